"""Executes the notebooks, two at a time, each from a fresh kernel, and builds the site with what they show.

python tools/course.py              execute every notebook, then build _site/ (see website.py)
python tools/course.py 01 02        execute only the notebooks whose file names start so; the others as committed
python tools/course.py --save 01    also write the outputs back into the notebook (for authors)
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import time
from base64 import b64decode, b64encode
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import nbformat
import zmq
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TITLE = "Multi-task learning with sentence transformers"
SECONDS_PER_CELL = 600
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1"}
UNSET = ("MPLBACKEND", "COLUMNS")  # a user's settings that would change what the cells show
FOLDERS = ("notebooks", "notebooks/appendix", "notebooks/solutions")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


class NotebookError(RuntimeError):
    """A notebook could not be executed; the message says which cell failed and how."""


class RunningPython(KernelSpecManager):
    """Answers a request for any kernel with the interpreter that runs this program."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def notebooks(root: Path = ROOT) -> list[Path]:
    """The course's notebooks in reading order: the story, the appendix, the solutions."""
    return [path for folder in FOLDERS for path in sorted(root.glob(f"{folder}/*.ipynb"))]


def images(notebook: NotebookNode) -> list[NotebookNode]:
    """The metadata of each figure among the outputs, in their order; "alt" in them is its alternative text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [o.metadata.setdefault("image/png", NotebookNode()) for o in outputs if "image/png" in o.get("data", {})]


def describe(notebook: NotebookNode) -> NotebookNode:
    """Gives figures the alternative texts in their cell's metadata, ``alt``: one text, or a list of them; in place."""
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        alt = cell.metadata.get("alt", [])
        texts = [alt] if isinstance(alt, str) else alt
        for image, text in zip(images(NotebookNode(cells=[cell])), texts, strict=False):
            image["alt"] = text
    return notebook


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Drops what differs from run to run (times, versions) or is empty, joins the pieces of a stream; in place.

    Cells tagged ``hide-input`` are folded in JupyterLab, too.
    """
    kept = {name: value for name, value in notebook.metadata.items() if name == "course"}
    notebook.metadata = NotebookNode(kept, kernelspec=NotebookNode(KERNEL), language_info=NotebookNode(name="python"))
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.metadata.pop("execution", None)
        if "hide-input" in cell.metadata.get("tags", []):
            cell.metadata["jupyter"] = NotebookNode(source_hidden=True)
        outputs: list[NotebookNode] = []
        for output in cell.outputs:
            if output.output_type == "stream" and outputs and outputs[-1].get("name") == output.name:
                outputs[-1].text += output.text
            else:
                outputs.append(output)
        cell.outputs = outputs
    return describe(notebook)


def shrink(notebook: NotebookNode) -> NotebookNode:
    """Stores the figures with palettes of 256 colours, which the eye can't tell and takes a quarter; in place."""
    for data in (output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])):
        if "image/png" in data:
            picture, file = Image.open(io.BytesIO(b64decode(data["image/png"]))), io.BytesIO()
            few = picture.convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE)
            few.save(file, "PNG", optimize=True)
            data["image/png"] = b64encode(file.getvalue()).decode()
    return notebook


def execute(path: Path) -> NotebookNode:
    """Runs a notebook top to bottom in a fresh kernel, in its folder and offline; the file stays as it is.

    Its metadata say how long that took, rounded up to ten seconds: the site shows it. Raises NotebookError.
    """
    notebook, reached, start = nbformat.read(path, as_version=4), [0], time.perf_counter()

    def cell_starts(cell: NotebookNode, cell_index: int) -> None:
        reached[0] = cell_index

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
    notebook.metadata["course"] = NotebookNode(seconds=10 * math.ceil((time.perf_counter() - start) / 10))
    return tidy(notebook)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Executes and builds; returns the exit status: 0, or 1 where a notebook failed or the site has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of file names (default: every notebook)")
    parser.add_argument("--save", action="store_true", help="write the outputs back into the notebooks")
    options = parser.parse_args(arguments)
    paths = [p for p in notebooks(root) if not options.names or p.name.startswith(tuple(options.names))]
    if not paths:
        parser.error(f"no notebook {' '.join(options.names)} in {root / 'notebooks'}")
    executed: dict[Path, NotebookNode] = {}
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // 2)))  # two at a time do more than one with all cores
    with ProcessPoolExecutor(min(2, cores, len(paths)), get_context("spawn")) as pool:
        runs = {pool.submit(execute, path): path for path in paths}
        try:
            for number, run in enumerate(as_completed(runs), start=1):
                path, label = runs[run], f"[{number}/{len(paths)}] {runs[run].relative_to(root)}"
                if isinstance(error := run.exception(), NotebookError):
                    print(f"{label} failed", error, sep="\n", flush=True)
                    continue
                executed[path] = run.result()
                if options.save:
                    nbformat.write(shrink(executed[path]), path)
                print(f"{label} about {executed[path].metadata['course']['seconds']} s", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if len(executed) < len(paths):
        print(f"{len(paths) - len(executed)} of {len(paths)} notebooks failed; the site is as it was")
        return 1
    import website  # it imports this module

    return website.build(root, executed)


if __name__ == "__main__":
    import course  # under this name the processes that main starts find it, too

    try:
        sys.exit(course.main())
    except KeyboardInterrupt:
        sys.exit("\nstopped")
