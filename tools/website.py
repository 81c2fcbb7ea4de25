"""Builds the site from the notebooks, README and datasheet as they are (nothing is executed), with Sphinx.

python tools/website.py             _site/index.html

Sphinx reads what `sources` puts into _build/source; docs/conf.py and docs/extension.py say how.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import nbformat
from course import ROOT, TITLE, notebooks
from nbformat import NotebookNode
from sphinx.cmd.build import build_main

MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax" / "tex-svg-full.js"
HEADING = re.compile(r"^#(#+ )", re.MULTILINE)
README = {
    "own data": "own_data.md",
    "notebooks": "index.md",
    "assignment": "index.md",
}  # words in a section's heading: its page; else running.md
SIDEBAR = {
    "The story": "notebooks/[0-9]*",
    "Use it": "notebooks/cheat_sheet* own_data* running* deploy/README* notebooks/glossary*",
    "Appendix": "notebooks/appendix/*",
    "Solutions": "notebooks/solutions/*",
    "Reference": "reference/index*",
    "About": "data/README* CHANGELOG* CONTRIBUTING*",
}


def docstring(path: Path) -> str:
    """What a module says of itself."""
    return path.read_text("utf-8").split('"""')[1]


def modules(root: Path) -> list[str]:
    """The modules of mtl_helpers, in the order in which its docstring names them."""
    names = {path.stem for path in root.glob("mtl_helpers/*.py") if not path.stem.startswith("__")}
    words = re.findall(r"\w+", docstring(root / "mtl_helpers" / "__init__.py")) if names else []
    return list(dict.fromkeys([word for word in words if word in names] + sorted(names)))


def section(notebook: NotebookNode, title: str) -> NotebookNode:
    """The cells below the level-2 heading that holds the words, one level higher; no cells where there is none."""
    cells, inside = [], False
    for cell in notebook.cells:
        prose = cell.cell_type == "markdown"
        if prose and re.match("##? ", cell.source):
            inside = title in cell.source.split("\n")[0].lower()
        if inside:
            cells.append(NotebookNode(cell, source=HEADING.sub(r"\1", cell.source) if prose else cell.source))
    return NotebookNode(notebook, cells=cells)


def sources(root: Path, executed: Mapping[Path, NotebookNode]) -> dict[str, str]:
    """{file in _build/source: its text}; of a notebook that was executed now, what it shows now."""
    shown = {p.relative_to(root).as_posix(): executed.get(p) or nbformat.read(p, 4) for p in notebooks(root)}
    write_up = shown.get("notebooks/00_write_up.ipynb", NotebookNode(cells=[]))
    for title in ("cheat sheet", "glossary"):
        shown[f"notebooks/{title.replace(' ', '_')}.ipynb"] = section(write_up, title)
    texts = {name: nbformat.writes(notebook) for name, notebook in shown.items() if notebook.cells}
    files = ("README.md", "data/README.md", "deploy/README.md", "CHANGELOG.md", "CONTRIBUTING.md")
    texts |= {name: (root / name).read_text("utf-8") for name in files if (root / name).is_file()}

    texts["index.md"], *rest = re.split(r"^(?=## )", texts.pop("README.md", f"# {TITLE}\n"), flags=re.MULTILINE)
    for part in rest:
        heading = part.split("\n")[0].lower()
        page = next((page for words, page in README.items() if words in heading), "running.md")
        if page == "own_data.md":
            part = HEADING.sub(r"\1", part)
        texts[page] = texts.get(page, "# Running it yourself\n\n" if page == "running.md" else "") + part

    texts["index.md"] = texts["index.md"].replace("](#your-own-data)", "](own_data.md)")  # now a page of its own

    names, entries = modules(root), []
    for name in names:
        texts[f"reference/{name}.rst"] = f"{name}\n{'=' * 20}\n\n.. automodule:: mtl_helpers.{name}\n   :members:\n"
        first_line = docstring(root / "mtl_helpers" / f"{name}.py").split("\n")[0]
        entries.append(f"- :doc:`{name}`: {first_line}")
    if names:
        title = f"mtl_helpers\n{'=' * 20}\n\n.. automodule:: mtl_helpers\n\n"
        tree = "\n   ".join(["\n\n.. toctree::", ":hidden:", "", *names])
        texts["reference/index.rst"] = title + "\n".join(entries) + tree + "\n"
    for caption, patterns in SIDEBAR.items():
        pages = [name for pattern in patterns.split() for name in fnmatch.filter(sorted(texts), pattern)]
        lines = ["", "```{toctree}", f":caption: {caption}", ":hidden:", "", *pages, "```", ""]
        texts["index.md"] += "\n".join(lines) if pages else ""
    return texts


def build(root: Path = ROOT, executed: Mapping[Path, NotebookNode] | None = None) -> int:
    """Writes root/_site anew; returns Sphinx's exit status. A warning is an error, and leaves the site as it was."""
    work, site = root / "_build", root / "_site"
    shutil.rmtree(work, ignore_errors=True)
    for name, text in sources(root, executed or {}).items():
        path = work / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    folders = ["-c", ROOT / "docs", "-d", work / "doctrees", work / "source", work / "site"]
    status = build_main(["-b", "html", "-W", "-q", *map(str, folders)])
    if status:
        print("the site has faults, see above; it is as it was")
    else:
        shutil.rmtree(site, ignore_errors=True)
        (work / "site").rename(site)
        print(f"open {site / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(build())
