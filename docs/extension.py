"""A Sphinx extension: what is changed on the way from a notebook, README or docstring to its page.

Below the title of a notebook stands how long it takes and what belongs to it; links lead to pages of the site; figures
among the outputs have their alternative texts; cells that JupyterLab folds are folded here, too.
"""

import os
import re
import shutil
from pathlib import Path

import nbformat
from course import describe, images
from docutils import nodes
from nbformat import NotebookNode
from sphinx.application import Sphinx
from website import modules

LINK = re.compile(r"(!?\[([^\[\]]*)\])\((?!\w+:)([^()#\s]*)(#[^()\s]*)?\)")
WORDS, LINES, FIGURES = 120, 20, 2  # that a reader takes in within a minute


def reading_minutes(notebook: NotebookNode) -> int:
    """Minutes, in steps of five, for the prose (that which code prints, too), the open code and the figures."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    prose += [output.get("data", {}).get("text/markdown", "") for cell in code for output in cell.outputs]
    lines = sum(cell.source.count("\n") + 1 for cell in code if "hide-input" not in cell.metadata.get("tags", []))
    minutes = len(" ".join(prose).split()) / WORDS + lines / LINES + len(images(notebook)) / FIGURES
    return 5 * max(1, round(minutes / 5))


def banner(notebook: NotebookNode, path: Path) -> str:
    """The line below the title: how long reading and running take, the file, its solutions and appendix."""
    seconds = notebook.metadata.get("course", {}).get("seconds", 0)
    running = f"{seconds} s to run" if seconds < 60 else f"{seconds / 60:.0f} min to run"
    entries = [f"{reading_minutes(notebook)} min to read", *[running] * bool(seconds)]
    entries.append(f"[notebook file](path:{path.name})")
    solutions = path.parent.glob(f"solutions/{path.name[:2]}*.ipynb")
    entries += [f"[solutions](solutions/{solution.name})" for solution in solutions]
    cited = re.findall(r"\]\((appendix/(\w+?)_\w*\.ipynb)", "\n".join(cell.source for cell in notebook.cells))
    entries += [f"[appendix {name}]({link})" for link, name in dict.fromkeys(cited)]
    return "\n\n:::{container} banner\n" + " · ".join(entries) + "\n:::\n"


def relinked(text: str, folder: Path, app: Sphinx) -> str:
    """Links of a file in `folder` of the repository, to pages of the site; a file that is no page is copied there."""
    source, root = Path(app.srcdir), Path(app.srcdir).parent.parent
    moved = {"README.md": "index.md"} | {f"mtl_helpers/{name}.py": f"reference/{name}.rst" for name in modules(root)}

    def link(match: re.Match) -> str:
        anchor = re.sub(r"[^\w#-]", "", (match[4] or "").lower())  # Jupyter's anchors keep what Sphinx's leave out
        target = Path(os.path.normpath(root / folder / match[3]))
        if not match[3] or not target.is_relative_to(root) or not target.exists():
            return f"{match[1]}({match[3]}{anchor})"
        if target.is_dir():
            return match[2]
        name = target.relative_to(root).as_posix()
        page = moved.get(name, name)
        if not (source / page).exists():
            (source / page).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, source / page)
        return f"{match[1]}({os.path.relpath(page, folder)}{anchor})"

    return LINK.sub(link, text)


def change_source(app: Sphinx, name: str, content: list[str]) -> None:
    """Sphinx's event `source-read`."""
    folder, path = Path(name).parent, Path(app.env.doc2path(name))
    if path.suffix == ".md":
        content[0] = relinked(content[0], folder, app)
    if path.suffix == ".ipynb":
        notebook = describe(nbformat.reads(content[0], as_version=4))
        app.env.temp_data["alternative texts"] = [image.get("alt", "") for image in images(notebook)]
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = relinked(cell.source, folder, app)
            for data in (output.get("data", {}) for output in cell.get("outputs", [])):
                if "text/markdown" in data:  # text with numbers that code has filled in
                    data["text/markdown"] = relinked(data["text/markdown"], folder, app)
            if cell.metadata.get("jupyter", {}).get("source_hidden"):
                cell.metadata["tags"] = sorted({*cell.metadata.get("tags", []), "hide-input"})
        if (Path(app.srcdir).parent.parent / folder / path.name).exists():  # not a section of the write-up
            title, line, rest = notebook.cells[0].source.partition("\n")
            notebook.cells[0].source = title + banner(notebook, path) + line + rest
        content[0] = nbformat.writes(notebook)


def change_document(app: Sphinx, document: nodes.document) -> None:
    """Sphinx's event `doctree-read`: the figures among the outputs get their alternative texts."""
    outputs = document.findall(lambda node: isinstance(node, nodes.container) and "cell_output" in node["classes"])
    figures = [image for output in outputs for image in output.findall(nodes.image)]
    for image, text in zip(figures, app.env.temp_data.get("alternative texts", []), strict=False):
        image["alt"] = text


def change_docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Autodoc's event `autodoc-process-docstring`: but for `code` nothing in a docstring is markup, as in **rows."""
    text = re.sub(r"(`[^`]+`)|([*|]|(?<=\w)_(?!\w))", lambda found: found[1] or "\\" + found[2], "\n".join(lines))
    lines[:] = text.split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("source-read", change_source)
    app.connect("doctree-read", change_document)
    app.connect("autodoc-process-docstring", change_docstring, priority=100)  # before napoleon
    return {"parallel_read_safe": False, "parallel_write_safe": True}
