"""Makes the slides from the write-up's own cells, chosen by their tags, as one file that needs no network.

python tools/slides.py              _site/slides.html (and slides.pdf, if Chromium or Chrome is installed)

A cell tagged `slide` begins a slide, one tagged `slide-more` goes on with it. Of code its outputs are shown. A slide
without a heading of its own has the one above it in the notebook.
"""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
from course import ROOT, TITLE, describe
from jinja2 import DictLoader
from nbconvert import SlidesExporter
from nbformat import NotebookNode, v4
from report import browser, print_pdf
from website import MATHJAX

REVEAL = Path(find_spec("sphinx_revealjs").origin).parent / "_static" / "revealjs" / "dist"
# Each block emptied here would load a script from a server.
TEMPLATE = """{% extends 'reveal/index.html.j2' %}
{% block html_head_js %}{% endblock %}{% block html_head_js_mathjax %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block data_png %}<img src="data:image/png;base64,{{ output.data['image/png'] }}"
alt="{{ output | get_metadata('alt', 'image/png') | default('', true) | escape_html }}">{% endblock %}
{% block footer_js %}<script>{{ resources.reveal_js }}</script><script>
Reveal.initialize({width: 1280, height: 720, center: false, hash: true, slideNumber: "c/t", transition: "none"});
</script>{% endblock %}"""
FORMULAS = (
    """<script>MathJax = {tex: {inlineMath: [["$", "$"]]}, options: {enableMenu: false}};</script><script>%s</script>"""
)


def chosen(notebook: NotebookNode) -> NotebookNode:
    """The cells of the slides, marked as nbconvert wants it. ValueError where no cell is tagged `slide`."""
    cells, heading = [], ""
    for cell in notebook.cells:
        prose, tags = cell.cell_type == "markdown", cell.metadata.get("tags", [])
        headings = re.findall(r"^#+ .*$", cell.source, re.MULTILINE) if prose else []
        if "slide" in tags or "slide-more" in tags:
            if "slide" in tags and not headings:
                cells.append(v4.new_markdown_cell(heading))
            cells.append(NotebookNode(cell, metadata=NotebookNode()))
            if "slide" in tags:
                cells[-1 if headings else -2].metadata.slideshow = {"slide_type": "slide"}
        heading = headings[-1] if headings else heading
    if not cells:
        raise ValueError("no cell of the write-up is tagged `slide`")
    return NotebookNode(notebook, cells=cells)


def slides(notebook: NotebookNode) -> str:
    """The slides as one HTML page with all that it needs inside."""
    exporter = SlidesExporter(extra_loaders=[DictLoader({"slides.html.j2": TEMPLATE})], template_file="slides.html.j2")
    exporter.exclude_input = exporter.exclude_output_prompt = True
    script = (REVEAL / "reveal.js").read_text("utf-8")
    resources = {"metadata": {"name": TITLE}, "reveal_js": script}
    html, _ = exporter.from_notebook_node(chosen(describe(notebook)), resources)
    sheets = [REVEAL / "reveal.css", REVEAL / "theme" / "white.css", ROOT / "docs" / "slides.css"]
    css = "\n".join(re.sub(r"@import .*?;", "", sheet.read_text("utf-8")) for sheet in sheets)
    html = re.sub(r'<link [^>]*rel="stylesheet"[^>]*>', "", html)
    html = re.sub(r'<a href="(?!\w+:)[^"]*"[^>]*>(.*?)</a>', r"\1", html)  # pages of the site, which may be elsewhere
    formulas = FORMULAS % MATHJAX.read_text("utf-8") if "$" in html.split("<main>")[1] else ""
    return html.replace("</head>", f"<style>{css}</style>{formulas}</head>")


def main(root: Path = ROOT) -> int:
    """Write the slides; returns 1 where no cell is tagged for them."""
    page = root / "_site" / "slides.html"
    page.parent.mkdir(exist_ok=True)
    try:
        page.write_text(slides(nbformat.read(root / "notebooks" / "00_write_up.ipynb", as_version=4)), "utf-8")
    except ValueError as error:
        print(f"no slides: {error}")
        return 1
    print(f"wrote {page}")
    if browser():
        print_pdf(f"{page.resolve().as_uri()}?print-pdf", page.with_suffix(".pdf"))
        print(f"wrote {page.with_suffix('.pdf')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
