"""Prints the story of the site as one PDF and the appendix as another, with the Chromium or Chrome that is installed.

python tools/report.py              _site/report.pdf, _site/appendix.pdf; builds the site first where there is none
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from html import escape
from pathlib import Path

from bs4 import BeautifulSoup
from course import ROOT, TITLE
from playwright.sync_api import sync_playwright
from pypdf import PdfReader
from website import MATHJAX, build

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# What a browser would otherwise do besides showing the page, most of it on the network; root gets no sandbox.
QUIET = ["--disable-gpu", "--no-first-run", "--disable-extensions", "--disable-quic", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]
QUIET += ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
# Links, what is folded, and what only a running notebook can do.
LEFT_OUT = "a.headerlink, .banner, details.above-input, details.above-cell, details.twice"
LEFT_OUT += ", section[id='your-turn'], section[id='exercises']"


def chapter(page: Path, others: set[str]) -> BeautifulSoup:
    """What a page of the site says, but for what is folded; the page's name stands before each id, as in links."""
    soup = BeautifulSoup(page.read_text("utf-8"), "html.parser").select_one("article")
    for element in [*soup.select(LEFT_OUT), *(p for p in soup.select("p") if p.get_text().startswith("Previous:"))]:
        element.decompose()
    for element in soup.select(".cell_input"):
        if re.fullmatch(r"pictures\.\w+\([^\n]*\)", element.get_text().strip()):
            element.decompose()  # a call that draws the picture below it
    for element in soup.select("details"):
        element["open"] = ""
    for element in soup.select("[id]"):
        element["id"] = f"{page.stem}--{element['id']}"
    for link in soup.select("a[href]"):
        file, _, anchor = link["href"].partition("#")
        name = Path(file).stem if file else page.stem
        if "://" not in file and name in others:
            link["href"] = f"#{name}--{anchor}" if anchor else f"#{name}"
        elif "://" not in file:
            link.unwrap()
    return soup


def joined(pages: list[Path], title: str, numbers: dict[str, int]) -> str:
    """The pages as one, to be put into their folder; `numbers` of pages, by id, for the table of contents."""
    heads = [page.read_text("utf-8").partition("</head>")[0].partition("<head>")[2] for page in pages]
    head = next((head for head in heads if MATHJAX.name in head), heads[0])  # a page without formulas loads none
    entries, body = [], []
    for page in pages:
        soup = chapter(page, {other.stem for other in pages})
        body.append(f'<section id="{page.stem}" class="chapter">{soup}</section>')
        for heading in soup.select("h1, h2"):
            target = page.stem if heading.name == "h1" else heading.parent["id"]
            words = f'<a href="#{target}">{escape(heading.get_text())}</a>'
            entries.append(f'<li class="to-{heading.name}">{words}<span>{numbers.get(target, "")}</span></li>')
    contents = f'<nav class="contents"><h1>{escape(title)}</h1><ol>{"".join(entries)}</ol></nav>'
    text = f'<body class="report">{contents}{"".join(body)}</body>'
    return f'<!DOCTYPE html>\n<html lang="en" data-theme="light"><head>{head}</head>{text}</html>'


def browser() -> str | None:
    """The first browser that is installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def print_pdf(address: str, pdf: Path) -> PdfReader:
    """Print a page when its pictures are loaded and its formulas drawn."""
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=browser(), args=QUIET) as program:
        page = program.new_page(viewport={"width": 1280, "height": 720})
        page.goto(address, wait_until="networkidle")
        page.wait_for_function("!window.MathJax || window.MathJax.startup?.promise")  # its script has been read
        page.evaluate("Promise.all([window.MathJax?.startup.promise, document.fonts.ready])")
        page.wait_for_function("!window.Reveal || document.querySelector('.pdf-page')")  # slides laid out as pages
        page.pdf(path=pdf, prefer_css_page_size=True, print_background=True, tagged=True, outline=True)
    return PdfReader(pdf)


def report(pages: list[Path], title: str, pdf: Path) -> int:
    """Print pages of one folder as one PDF, twice: the second time with the numbers of the pages. Gives how many."""
    page, numbers = pages[0].parent / "report.html", {}
    for _ in range(2):
        page.write_text(joined(pages, title, numbers), "utf-8")
        pdf_now = print_pdf(page.resolve().as_uri(), pdf)
        places = pdf_now.named_destinations.items()
        numbers = {name.removeprefix("/"): pdf_now.get_destination_page_number(place) + 1 for name, place in places}
    page.unlink()
    return len(pdf_now.pages)


def main(root: Path = ROOT) -> int:
    """Print both; returns 1 where the site has faults. Without a browser it says so and prints nothing."""
    site = root / "_site"
    if not (site / "index.html").is_file() and build(root):
        return 1
    if browser() is None:
        print("no PDF: found neither Chromium nor Chrome")
        return 0
    for name, pattern, title in (("report", "[0-9]*", TITLE), ("appendix", "appendix/*", f"{TITLE}: appendix")):
        pages = sorted((site / "notebooks").glob(f"{pattern}.html"))
        if pages:
            print(f"wrote {site / name}.pdf, {report(pages, title, site / f'{name}.pdf')} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
