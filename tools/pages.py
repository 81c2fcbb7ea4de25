"""Renders notebooks as HTML pages that need no network: pictures inside, TeX as MathML, no foreign script."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from jinja2 import DictLoader, pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import TagRemovePreprocessor
from nbformat import NotebookNode

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
# Each block emptied here would load a script from a server: require.js, MathJax, mermaid, widgets.
TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}{% block jupyter_widgets %}{% endblock %}
{% block html_head_css %}<style>{{ resources.style }}</style>{% endblock %}
{% block body_header %}{{ super() }}
{% if resources.home %}<p><a href="{{ resources.home }}">All notebooks</a></p>{% endif %}{% endblock %}"""
DATASHEET = "datasheet.html"  # data/README.md, as a page of the site
INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body><main><h1>{title}</h1>
{entries}
</main></body></html>
"""


class PageRenderer(IPythonRenderer):
    """Markdown to HTML with TeX as MathML and with links from notebook to notebook kept inside the site."""

    def inline_math(self, body: str) -> str:
        return mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")

    def link(self, text: str, url: str, title: str | None = None) -> str:
        url = DATASHEET if url.endswith("data/README.md") else url
        return super().link(text, re.sub(r"^(?!\w+:)([^#]+)\.ipynb(?=#|$)", r"\1.html", url), title)


class PageExporter(HTMLExporter):
    """nbconvert's HTML exporter with the renderer above."""

    @pass_context
    def markdown2html(self, context: dict, source: str) -> str:
        return markdown(source, context.get("resources", {}).get("metadata", {}).get("path", ""))


def mathml(tex: str, display: str) -> str:
    """TeX as a ``<math>`` element; raises ValueError naming the formula where it can't be converted."""
    try:
        element = convert(tex.strip(), display=display)
    except Exception as error:
        raise ValueError(f"cannot turn this TeX into MathML: {tex.strip()!r} ({error!r})") from error
    unknown = re.search(r"\\operatorname\*", tex) or re.search(r"\\[A-Za-z]+", element)
    if unknown:
        raise ValueError(f"cannot turn {unknown[0]} into MathML, in {tex.strip()!r}")
    return element.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")  # HTML needs no namespace


def markdown(source: str, folder: str = "") -> str:
    """Markdown as HTML; pictures that lie beside the notebook (in ``folder``) go into the page."""
    renderer = PageRenderer(escape=False, embed_images=True, path=folder)
    return MarkdownWithMath(renderer).render(source)


def heading(notebook: NotebookNode) -> tuple[str, str]:
    """The level-1 heading and the first paragraph after it, both as Markdown; empty where there is none."""
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(r"^# ([^\n]+)\n+(.*?)(?:\n[ \t]*\n|\Z)", prose + "\n", re.MULTILINE | re.DOTALL)
    return (found[1].strip(), found[2].strip()) if found else ("", "")


def render(notebook: NotebookNode, path: Path, home: str = "") -> str:
    """The notebook as one HTML page; ``path`` is its file, ``home`` the index page to link to, if any.

    Of cells tagged ``hide-input`` only the outputs are shown, if there are any.
    """
    exporter = PageExporter(extra_loaders=[DictLoader({"page.html.j2": TEMPLATE})], template_file="page.html.j2")
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    exporter.register_preprocessor(TagRemovePreprocessor(remove_input_tags={"hide-input"}), enabled=True)
    shown = [
        cell
        for cell in notebook.cells
        if cell.get("outputs", True) or "hide-input" not in cell.metadata.get("tags", [])
    ]
    metadata = {"path": str(path.parent), "name": re.sub(r"[*_`$]", "", heading(notebook)[0]) or path.stem}
    html, _ = exporter.from_notebook_node(
        NotebookNode(notebook, cells=shown), {"metadata": metadata, "style": STYLE, "home": home}
    )
    return html.replace("No description has been provided for this image", "Figure, read in the text after it")


def plain_page(title: str, source: str) -> str:
    """Markdown, without its level-1 heading, as a page of its own."""
    body = markdown(source.split("\n", 1)[1]) if source.startswith("# ") else markdown(source)
    return INDEX.format(title=escape(title), style=STYLE, entries=body)


def index(title: str, entries: list[tuple[str, NotebookNode, float]]) -> str:
    """The page that lists the notebooks, each given as (link, notebook, seconds it took to run)."""
    parts = []
    for link, notebook, seconds in entries:
        name, paragraph = heading(notebook)
        name = markdown(name).strip().removeprefix("<p>").removesuffix("</p>") or escape(link)
        parts.append(f'<h2><a href="{escape(link)}">{name}</a></h2>\n{markdown(paragraph)}')
        parts.append(f"<p><small>ran in {seconds:.0f} s</small></p>")
    return INDEX.format(title=escape(title), style=STYLE, entries="\n".join(parts))
