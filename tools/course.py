"""Executes the notebooks, each from a fresh kernel, and renders them as pages that need no network.

python tools/course.py              execute every notebook, render it into _site/, write the index page
python tools/course.py 01 02        only the notebooks whose file names start so
python tools/course.py --save 01    also write the outputs back into the notebook (for authors)
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nbformat
import zmq
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from pages import DATASHEET, index, plain_page, render
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TITLE = "Multi-task learning with sentence transformers"
SECONDS_PER_CELL = 600
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
UNSET = ("TQDM_DISABLE", "MPLBACKEND", "COLUMNS")  # a user's settings that would change what the cells show
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


class NotebookError(RuntimeError):
    """A notebook could not be executed; the message says which cell failed and how."""


class RunningPython(KernelSpecManager):
    """Answers a request for any kernel with the interpreter that runs this program."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def notebooks(root: Path = ROOT) -> list[Path]:
    """The course's notebooks in reading order, those of notebooks/solutions/ last."""
    return sorted(root.glob("notebooks/*.ipynb")) + sorted(root.glob("notebooks/solutions/*.ipynb"))


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Drops what differs from run to run (times, versions) or is empty, joins the pieces of a stream; in place."""
    notebook.metadata = NotebookNode(kernelspec=NotebookNode(KERNEL), language_info=NotebookNode(name="python"))
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.metadata.pop("execution", None)
        outputs: list[NotebookNode] = []
        for output in cell.outputs:
            if output.get("data", {}).keys() == {"text/plain"} and not output.data["text/plain"]:
                continue  # what a progress bar leaves when it is done
            if output.output_type == "stream" and outputs and outputs[-1].get("name") == output.name:
                outputs[-1].text += output.text
            else:
                outputs.append(output)
        cell.outputs = outputs
    return notebook


def shrink(notebook: NotebookNode) -> NotebookNode:
    """Stores the figures with palettes of 256 colours, which the eye can't tell and takes a quarter; in place."""
    for data in (output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])):
        if "image/png" in data:
            picture, file = Image.open(io.BytesIO(b64decode(data["image/png"]))), io.BytesIO()
            few = picture.convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE)
            few.save(file, "PNG", optimize=True)
            data["image/png"] = b64encode(file.getvalue()).decode()
    return notebook


def execute(path: Path, progress: Callable[[float], object] = lambda share: None) -> NotebookNode:
    """Runs a notebook top to bottom in a fresh kernel, in its folder and offline; the file stays as it is.

    ``progress`` is called before each cell with the share of cells done. Raises NotebookError.
    """
    notebook, reached = nbformat.read(path, as_version=4), [0]

    def cell_starts(cell: NotebookNode, cell_index: int) -> None:
        reached[0] = cell_index
        progress(cell_index / len(notebook.cells))

    encryption = "auto" if zmq.has("curve") else "disabled"  # without it the kernel prints a warning
    manager = AsyncKernelManager(kernel_spec_manager=RunningPython(), transport_encryption=encryption)
    client = NotebookClient(notebook, km=manager, timeout=SECONDS_PER_CELL, shutdown_kernel="immediate")
    client.record_timing, client.on_cell_start = False, cell_starts
    environment = {name: value for name, value in os.environ.items() if name not in UNSET} | OFFLINE
    try:
        client.execute(env=environment, cwd=str(path.parent), cleanup_kc=True)
    except AssertionError:  # what nbclient's clean-up raises after Ctrl-C; a cell's own is a CellExecutionError
        raise KeyboardInterrupt from None
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        where = f"{path.name} failed in cell {reached[0] + 1} of {len(notebook.cells)}"
        first = notebook.cells[reached[0]].source.strip().split("\n")[0]
        said = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
        raise NotebookError(f"{where}\n    {first}\n    {said.strip()}") from error
    return tidy(notebook)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Executes and renders; returns the exit status: 0, or 1 where a notebook failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of file names (default: every notebook)")
    parser.add_argument("--save", action="store_true", help="write the outputs back into the notebooks")
    options = parser.parse_args(arguments)
    paths = [p for p in notebooks(root) if not options.names or p.name.startswith(tuple(options.names))]
    if not paths:
        parser.error(f"no notebook {' '.join(options.names)} in {root / 'notebooks'}")
    site, entries = root / "_site", []  # entries: what the index page lists
    live, show = sys.stdout.isatty(), partial(print, end=" ", flush=True)
    for number, path in enumerate(paths, start=1):
        label = f"[{number}/{len(paths)}] {path.relative_to(root)}"
        show(label)
        start = time.perf_counter()
        try:
            notebook = execute(path, lambda share, label=label: live and show(f"\r{label} {share:4.0%}"))
        except NotebookError as error:
            print(f"\r{label} failed" if live else "failed", error, sep="\n", flush=True)
            continue
        seconds = time.perf_counter() - start
        page = site / path.relative_to(root / "notebooks").with_suffix(".html")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(render(notebook, path, os.path.relpath(site / "index.html", page.parent)), "utf-8")
        entries.append((page.relative_to(site).as_posix(), notebook, seconds))
        if options.save:
            nbformat.write(shrink(notebook), path)
        print(f"\r{label} {seconds:.0f} s" if live else f"{seconds:.0f} s", flush=True)
    if not options.names:
        page = site / "index.html"
        page.parent.mkdir(exist_ok=True)
        page.write_text(index(TITLE, entries), "utf-8")
        datasheet = root / "data" / "README.md"
        if datasheet.is_file():
            source = datasheet.read_text("utf-8")
            (site / DATASHEET).write_text(plain_page("The corpus: datasheet", source), "utf-8")
    failed = len(paths) - len(entries)
    print(f"{failed} of {len(paths)} notebooks failed" if failed else f"open {page}")
    return int(failed > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nstopped")
