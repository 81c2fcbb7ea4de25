"""Puts the committed notebooks into one page that needs no network, and the same into a PDF.

python tools/report.py              _site/report.html, and _site/report.pdf if Chromium or Chrome is installed

Nothing is executed: the report shows the outputs that the notebooks were saved with.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

import nbformat
from course import ROOT, TITLE
from pages import DATASHEET, heading, markdown, render

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# What a browser would otherwise do besides printing, most of it on the network.
QUIET = ["--headless", "--disable-gpu", "--no-first-run", "--disable-extensions", "--no-pdf-header-footer"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
PRINT = """
nav.contents ol { list-style: none; padding: 0; margin: 0.8rem 0; }
nav.contents ol ol { columns: 2; font-size: 14px; margin: 0.2rem 0 0 1.2rem; }
section.chapter { break-before: page; max-width: 960px; margin: 0 auto; }
@media print { body { font-size: 13px; padding: 0; --jp-code-font-size: 11px; } .anchor-link { display: none; }
  .jp-Notebook .jp-RenderedHTMLCommon { font-size: 13px; line-height: 1.5; }
  .jp-Notebook .jp-RenderedMarkdown table, .jp-Notebook .jp-RenderedHTML table { font-size: 11.5px; }
  .jp-Notebook td, .jp-Notebook th { padding: 0.25em 0.5em; }
  .jp-InputArea-editor pre, pre { white-space: pre-wrap; } img, tr, .jp-OutputArea-child { break-inside: avoid; }
  h1, h2, h3 { break-after: avoid; } .jp-Notebook .jp-OutputArea-output, .jp-Notebook table { overflow: visible; } }
@page { size: A4; margin: 16mm 14mm; }
"""


def chapters(root: Path = ROOT) -> list[Path]:
    """The notebooks of the report, in reading order."""
    return sorted((root / "notebooks").glob("[0-9]*.ipynb"))


def inside(body: str, chapter: str) -> str:
    """A page's body with the anchors of a chapter of its own, and its links kept inside the report."""
    body = re.sub(r'\bid="([^"]+)"', rf'id="{chapter}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{chapter}-\1"', body)
    body = re.sub(r'href="(\d\d)_\w+\.html#([^"]+)"', r'href="#\1-\2"', body)
    body = re.sub(r'href="(\d\d)_\w+\.html"', r'href="#\1"', body)
    body = body.replace(f'href="{DATASHEET}"', 'href="#datasheet"')
    return re.sub(r'<a href="(?!#|\w+:)[^"]*">(.*?)</a>', r"\1", body)  # files that are not in the report


def contents(notebook: nbformat.NotebookNode, chapter: str) -> str:
    """A chapter's entry in the table of contents: its title and its sections."""
    title = escape(re.sub(r"[*_`$]", "", heading(notebook)[0]))
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    sections = re.findall(r"^## (.+)$", re.sub(r"```.*?```", "", prose, flags=re.DOTALL), re.MULTILINE)
    names = [(s.strip(), re.sub(r"[*_`$]", "", s.strip()).replace(" ", "-")) for s in sections]
    entries = "".join(f'<li><a href="#{chapter}-{escape(anchor)}">{escape(name)}</a></li>' for name, anchor in names)
    return f'<li><a href="#{chapter}"><strong>{title}</strong></a><ol>{entries}</ol></li>'


def report(root: Path = ROOT) -> str:
    """All notebooks, and the datasheet of the corpus behind them, as one HTML page."""
    head, entries, sections = "", [], []
    for path in chapters(root):
        notebook, chapter = nbformat.read(path, as_version=4), path.name[:2]
        page = render(notebook, path)
        head = head or page[page.index("<head>") + len("<head>") : page.index("</head>")]
        body = re.search(r"<body[^>]*>(.*)</body>", page, re.DOTALL)[1]
        entries.append(contents(notebook, chapter))
        sections.append(f'<section class="chapter" id="{chapter}">{inside(body, chapter)}</section>')
    datasheet = inside(markdown((root / "data" / "README.md").read_text(encoding="utf-8")), "datasheet")
    entries.append('<li><a href="#datasheet"><strong>The corpus: datasheet</strong></a></li>')
    sections.append(f'<section class="chapter" id="datasheet">{datasheet}</section>')
    head = re.sub(r"<title>.*?</title>", f"<title>{escape(TITLE)}</title>", head, flags=re.DOTALL)
    table = f'<nav class="contents"><h1>{escape(TITLE)}</h1><ol>{"".join(entries)}</ol></nav>'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{PRINT}</style></head>'
        f'<body class="jp-Notebook" data-jp-theme-light="true"><main>{table}{"".join(sections)}</main></body></html>\n'
    )


def print_pdf(page: Path, pdf: Path) -> bool:
    """Print a page with the first browser that is installed; False if there is none."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        return False
    sandbox = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []  # Chromium refuses it to root
    with tempfile.TemporaryDirectory() as profile:
        where = [f"--user-data-dir={profile}", f"--print-to-pdf={pdf}", page.resolve().as_uri()]
        subprocess.run([browser, *QUIET, *sandbox, *where], check=True, capture_output=True, timeout=300)
    return True


def main(root: Path = ROOT) -> int:
    """Write both files; the PDF only where a browser is there."""
    page = root / "_site" / "report.html"
    page.parent.mkdir(exist_ok=True)
    page.write_text(report(root), encoding="utf-8")
    print(f"wrote {page.relative_to(root)}")
    pdf = page.with_suffix(".pdf")
    done = print_pdf(page, pdf)
    print(f"wrote {pdf.relative_to(root)}" if done else "no PDF: found neither Chromium nor Chrome")
    return 0


if __name__ == "__main__":
    sys.exit(main())
