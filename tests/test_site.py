"""The site, the report and the slides: what they hold, and how they behave in a browser that has no network.

The browser is the Chromium or Chrome that is installed; without one its tests are skipped.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import axe_playwright_python
import course
import extension
import nbformat
import pytest
import report
import slides
import website
from bs4 import BeautifulSoup
from nbformat import v4
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parent.parent
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")
needs_browser = pytest.mark.skipif(report.browser() is None, reason="neither Chromium nor Chrome is installed")

README = """# A small course

A picture says it:

![a grey square](picture.png)

## The notebooks

[One](notebooks/01_one.ipynb), [licence](LICENSE), [results](data/results), [a module](mtl_helpers/tasks.py).

## Your own data

### A CSV

Three columns.

## Installing

`make` does it.
"""


def figure(source: str, *tags: str, colour: str = "grey", **more: object) -> nbformat.NotebookNode:
    """A cell with a figure among its outputs."""
    file = BytesIO()
    Image.new("RGB", (900, 300), colour).save(file, "PNG")
    data = {"image/png": b64encode(file.getvalue()).decode(), "text/plain": "<Figure>"}
    output = v4.new_output("display_data", data)
    return v4.new_code_cell(source, execution_count=1, outputs=[output], metadata={"tags": list(tags)} | more)


def write_notebook(path: Path, *cells: nbformat.NotebookNode) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(course.tidy(v4.new_notebook(cells=list(cells))), path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small course and its site."""
    root = tmp_path_factory.mktemp("small")
    prose = v4.new_markdown_cell
    table = v4.new_output("display_data", {"text/markdown": "| a | b |\n|:--|--:|\n| mean | 0.5 |"})
    write_notebook(
        root / "notebooks" / "00_write_up.ipynb",
        prose("# The write-up\n\nWhat is the question?", metadata={"tags": ["slide"]}),
        prose("## The loss\n\n$$\\mathcal{L} = \\sum_t w_t \\ell_t$$\n\nSee [one](01_one.ipynb#What-is-it?)."),
        figure("plot(rows)", "hide-input", "slide", alt="Four lines. The lowest falls to a half."),
        prose("Read it from the left; $x^2$.", metadata={"tags": ["slide-more"]}),
        v4.new_code_cell("show(table)", outputs=[table], execution_count=2, metadata={"tags": ["slide"]}),
        prose("## Cheat sheet\n\n### Few labels\n\nLess."),
        prose("## Glossary\n\n**Head**: what is above."),
    )
    write_notebook(
        root / "notebooks" / "01_one.ipynb",
        prose("# One\n\nSee [the appendix](appendix/A1_more.ipynb) and [the data](../data/README.md)."),
        prose("## What is it?\n\n<details><summary>First guess.</summary>\n\nA square.\n\n</details>"),
        v4.new_code_cell("import os", metadata={"jupyter": {"source_hidden": True}}),
    )
    write_notebook(root / "notebooks" / "appendix" / "A1_more.ipynb", prose("# More\n\n[Back](../01_one.ipynb)."))
    write_notebook(root / "notebooks" / "solutions" / "01_one.ipynb", prose("# Solutions to one\n\nFour."))
    (root / "data" / "results").mkdir(parents=True)
    (root / "data" / "README.md").write_text("# Datasheet\n\nTen rows.\n", "utf-8")
    (root / "README.md").write_text(README, "utf-8")
    (root / "LICENSE").write_text("MIT", "utf-8")
    (root / "mtl_helpers").mkdir()
    for name in ("__init__", "freezing", "tasks"):
        (root / "mtl_helpers" / f"{name}.py").write_text('"""In this order: tasks, freezing."""\n', "utf-8")
    Image.new("RGB", (1200, 300), "grey").save(root / "picture.png")
    assert website.build(root) == 0
    return root


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the course as it is in the repository, built elsewhere."""
    root = tmp_path_factory.mktemp("course")
    for path in ROOT.iterdir():
        if path.name not in {"_build", "_site", "out"} and not path.name.startswith("."):
            (root / path.name).symlink_to(path)
    assert website.build(root) == 0
    return root / "_site"


def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


def words(path: Path) -> str:
    return " ".join(soup(path).select_one("article").get_text().split())


# ---------------------------------------------------------------- what the pages hold


def test_pages_of_the_small_course(small: Path):
    site = small / "_site"
    assert "A picture says it:" in words(site / "index.html") and "Three columns" not in words(site / "index.html")
    assert [h.name for h in soup(site / "own_data.html").select("article :is(h1, h2, h3)")] == ["h1", "h2"]
    assert "make does it." in words(site / "running.html")
    assert words(site / "notebooks" / "glossary.html").startswith("Glossary# Head: what is above.")
    assert "Few labels" in words(site / "notebooks" / "cheat_sheet.html")
    captions = [caption.get_text() for caption in soup(site / "index.html").select("nav .caption")]
    assert captions == ["The story", "Use it", "Appendix", "Solutions", "Reference", "About"]
    modules = soup(site / "reference" / "index.html").select("article li")
    assert [" ".join(entry.get_text().split()) for entry in modules] == [
        "tasks: In this order: tasks, freezing.",
        "freezing: In this order: tasks, freezing.",
    ]


def test_links_of_the_small_course(small: Path):
    start = soup(small / "_site" / "index.html").select_one("article")
    links = {link.get_text(): link["href"] for link in start.select("a[href]:not(.headerlink)")}
    assert links["One"] == "notebooks/01_one.html"
    assert links["a module"] == "reference/tasks.html"
    assert (small / "_site" / links["licence"]).read_text("utf-8") == "MIT"
    assert "results" not in links and "results" in start.get_text()
    write_up = soup(small / "_site" / "notebooks" / "00_write_up.html")
    assert write_up.find("a", string="one")["href"] == "01_one.html#what-is-it"


def test_a_notebook_says_how_long_it_takes_and_leads_on(small: Path):
    line = soup(small / "_site" / "notebooks" / "01_one.html").select_one(".banner")
    assert " ".join(line.get_text().split()) == "5 min to read · notebook file · solutions · appendix A1"
    links = [link["href"] for link in line.select("a")]
    assert links[1:] == ["solutions/01_one.html", "appendix/A1_more.html"]
    file = small / "_site" / "notebooks" / links[0]
    assert file.read_bytes() == (small / "_build" / "source" / "notebooks" / "01_one.ipynb").read_bytes()
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell("word " * 1200), figure("a\n" * 99)] * 2)
    assert extension.reading_minutes(notebook) == 30  # 2,400 words, 200 lines, two figures
    notebook.metadata["course"] = {"seconds": 90}
    assert "30 min to read · 2 min to run" in extension.banner(notebook, small / "notebooks" / "01_one.ipynb")


def test_folded_cells_and_tables(small: Path):
    write_up, one = (soup(small / "_site" / "notebooks" / f"{name}.html") for name in ("00_write_up", "01_one"))
    assert len(write_up.select("details.above-input")) == 1 and len(one.select("details.above-input")) == 1
    assert write_up.select_one("table td").get_text() == "mean"


def test_alternative_texts(small: Path):
    image = soup(small / "_site" / "notebooks" / "00_write_up.html").select_one(".cell_output img")
    assert image["alt"] == "Four lines. The lowest falls to a half."
    cells = [figure("plot()", alt=["One.", "Two."]), figure("plot()")]
    cells[0].outputs += figure("").outputs
    cells[1].outputs[0].metadata["image/png"] = {"alt": "By display."}
    texts = [image.get("alt") for image in course.images(course.describe(v4.new_notebook(cells=cells)))]
    assert texts == ["One.", "Two.", "By display."]


def test_a_broken_link_is_an_error_and_leaves_the_site(small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    write_notebook(tmp_path / "notebooks" / "01_one.ipynb", v4.new_markdown_cell("# One\n\n[two](02_two.ipynb)"))
    (tmp_path / "_site").mkdir()
    (tmp_path / "_site" / "index.html").write_text("as it was", "utf-8")
    assert website.build(tmp_path) != 0
    assert "02_two.ipynb" in capfd.readouterr().err
    assert (tmp_path / "_site" / "index.html").read_text("utf-8") == "as it was"


@pytest.mark.parametrize("path", course.notebooks(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_figure_has_an_alternative_text(path: Path):
    notebook = course.describe(nbformat.read(path, as_version=4))
    lacking = []
    for cell in notebook.cells:
        if any(not image.get("alt", "").strip() for image in course.images(nbformat.NotebookNode(cells=[cell]))):
            lacking.append(f"In [{cell.execution_count}]")
    assert lacking == [], "figures without an alternative text"


def test_modules_are_in_the_order_of_the_docstring_and_have_pages(site: Path):
    assert website.modules(ROOT)[0] == "tasks"
    assert [name for name in website.modules(ROOT) if not (site / "reference" / f"{name}.html").is_file()] == []
    assert "freeze(" in words(site / "reference" / "freezing.html")


def test_nothing_is_tied_to_a_place(site: Path):
    """The site works from a disk and below any address: no link starts at a root, nothing is loaded from a server."""
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.search(r'(?:href|src)="/', text), page
        assert not re.search(r'<(?:script|img|link|iframe)\b[^>]*(?:src|href)="(?:https?:)?//', text), page


def test_previous_and_next_walk_all_notebooks(site: Path):
    page, walked, way = site / "index.html", [], r'<a class="{}"\s+href="([^"]+)"'
    while link := re.search(way.format("right-next"), page.read_text("utf-8")):
        before, page = page, page.parent / link[1]
        back = re.search(way.format("left-prev"), page.read_text("utf-8"))
        assert (page.parent / back[1]).samefile(before)
        walked.append(page.resolve().relative_to(site.resolve()).with_suffix(".ipynb").as_posix())
    expected = [path.relative_to(ROOT).as_posix() for path in course.notebooks()]
    assert [name for name in walked if name in expected] == expected


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    """A page of the installed browser; `faults` of it are what the console says and what is asked of a server."""
    with sync_playwright() as playwright:
        program = playwright.chromium.launch(executable_path=report.browser(), args=report.QUIET)
        page = program.new_page(viewport={"width": 1280, "height": 900})
        page.faults = []
        page.on("console", lambda said: page.faults.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("request", lambda asked: page.faults.append(asked.url) if asked.url.startswith("http") else None)
        yield page
        program.close()


HEADINGS = """[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].filter(h => h.offsetParent)
  .map(h => +h.tagName[1])"""
WIDEST = """Math.max(document.documentElement.scrollWidth,
  ...[...document.images].map(image => image.getBoundingClientRect().right))"""
SERIOUS = """axe.run({include: [['body']], exclude: EXCLUDE}, {preload: false, resultTypes: ['violations']})
  .then(found => found.violations.filter(fault => ['serious', 'critical'].includes(fault.impact))
    .map(fault => fault.id + ': ' + fault.nodes[0].html))"""


@needs_browser
def test_every_page_opens(site: Path, browser: Page):
    """Without an error or a request, with headings in order, and no wider than a phone."""
    faults = {}
    for path in sorted(path for path in site.rglob("*.html") if "_static" not in path.parts):
        browser.faults.clear()
        browser.set_viewport_size({"width": 390, "height": 844})
        browser.goto(path.as_uri())
        browser.evaluate("window.MathJax?.startup.promise")
        levels = browser.evaluate(HEADINGS)
        found = list(browser.faults)
        found += [f"h{b} after h{a}" for a, b in zip([0, *levels], levels, strict=False) if b > a + 1]
        found += [f"{levels.count(1)} headings of level 1"] if levels.count(1) != 1 else []
        width = browser.evaluate(WIDEST)
        found += [f"{width} pixels wide"] if width > 390 else []
        found += ["a formula is not drawn"] * browser.evaluate("document.querySelectorAll('mjx-merror').length")
        faults |= {path.relative_to(site).as_posix(): found} if found else {}
    assert faults == {}


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_fault_of_accessibility(site: Path, small: Path, browser: Page, scheme: str):
    """Colours of code are looked at in the small course alone: there are a thousand pieces of it on other pages."""
    names = ["index", "search", "own_data", "data/README", "reference/index", "reference/tasks"]
    names.append("notebooks/00_write_up")
    pages = [(small / "_site" / "notebooks" / "00_write_up.html", "[]")]
    pages += [(site / f"{name}.html", "[['pre']]") for name in (names if scheme == "light" else names[:1])]
    browser.set_viewport_size({"width": 1280, "height": 900})
    browser.emulate_media(color_scheme=scheme)
    faults = {}
    for path, exclude in pages:
        browser.goto(path.as_uri())
        browser.wait_for_timeout(500)  # colours fade in when the scheme has changed
        browser.evaluate(AXE)
        found = browser.evaluate(SERIOUS.replace("EXCLUDE", exclude))
        faults |= {path.name: found} if found else {}
    browser.emulate_media(color_scheme="light")
    assert faults == {}


@needs_browser
@pytest.mark.parametrize("query", ["PCGrad", "freeze"])
def test_search_finds(site: Path, browser: Page, query: str):
    browser.goto(f"{(site / 'search.html').as_uri()}?q={query}")
    browser.wait_for_selector("#search-results li a")
    assert browser.locator("#search-results li").count() >= 2


@needs_browser
def test_formulas_are_drawn_a_folded_cell_opens_and_dark_mode_switches(small: Path, browser: Page):
    browser.set_viewport_size({"width": 1280, "height": 900})
    browser.goto((small / "_site" / "notebooks" / "00_write_up.html").as_uri())
    browser.evaluate("MathJax.startup.promise")
    assert browser.locator("mjx-container svg").count() == 2
    code = browser.locator("details.above-input pre").first
    assert not code.is_visible()
    browser.locator("details.above-input summary").first.click()
    assert code.is_visible() and "plot(rows)" in code.inner_text()
    for theme in ("dark", "light"):
        browser.locator("button.theme-switch-button:visible").first.click()
        browser.locator(f"button.theme-change-button[data-mode={theme}]:visible").first.click()
        assert browser.evaluate("document.documentElement.dataset.theme") == theme


# ---------------------------------------------------------------- report and slides


def in_thread(function: Callable[[Path], int], path: Path) -> int:
    """Playwright's plain interface works once in a thread, and the fixture `browser` may hold it in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, path).result()


def test_the_report_holds_every_page_with_links_that_lead_somewhere(small: Path):
    pages = [small / "_site" / "notebooks" / f"{name}.html" for name in ("00_write_up", "01_one")]
    page = BeautifulSoup(report.joined(pages, "A title", {}), "html.parser").body
    ids = [element["id"] for element in page.select("[id]")]
    assert len(ids) == len(set(ids))
    assert [section["id"] for section in page.select(".chapter")] == ["00_write_up", "01_one"]
    links = [link["href"] for link in page.select("a[href]")]
    assert "#01_one--what-is-it" in links and len(links) == 7  # six of them in the table of contents
    assert [link for link in links if link[1:] not in ids] == []


def test_the_report_leaves_out_what_is_folded_and_opens_answers(small: Path):
    pages = [small / "_site" / "notebooks" / f"{name}.html" for name in ("01_one", "00_write_up")]
    page = report.joined(pages, "A title", {})
    assert website.MATHJAX.name in page  # the second page has formulas, the first none
    assert "plot(rows)" not in page and "import os" not in page
    assert "show(table)" in BeautifulSoup(page, "html.parser").get_text()
    assert "<details open" in page and "Four lines. The lowest falls to a half." in page


@needs_browser
def test_the_report_is_printed_with_its_contents(small: Path, capsys: pytest.CaptureFixture[str]):
    assert in_thread(report.main, small) == 0
    assert "report.pdf, 1 pages" in capsys.readouterr().out
    first = PdfReader(small / "_site" / "report.pdf").pages[0].extract_text()
    assert re.search(r"The write-up\s*1\b", first) and re.search(r"One\s*1\b", first)
    assert len(PdfReader(small / "_site" / "appendix.pdf").pages) == 1
    assert not list((small / "_site").rglob("report.html"))


@needs_browser
def test_the_story_is_printed_on_45_pages_at_most(site: Path):
    pages = sorted((site / "notebooks").glob("[0-9]*.html"))
    assert len(pages) == 7
    assert in_thread(lambda pdf: report.report(pages, "The story", pdf), site / "story.pdf") <= 45


def test_without_a_browser_there_is_no_pdf(small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setenv("PATH", "")
    assert report.main(small) == 0
    assert "no PDF: found neither Chromium nor Chrome" in capsys.readouterr().out


def test_slides_are_the_tagged_cells(small: Path):
    page = slides.slides(nbformat.read(small / "notebooks" / "00_write_up.ipynb", as_version=4))
    deck = BeautifulSoup(page, "html.parser").select(".slides > section")
    titles = [slide.select_one("h1, h2").get_text().removesuffix("¶") for slide in deck]
    assert titles == ["The write-up", "The loss", "The loss"]
    assert deck[1].select_one("img")["alt"] == "Four lines. The lowest falls to a half."
    assert "Read it from the left" in deck[1].get_text() and "mean" in deck[2].get_text()
    assert "plot(rows)" not in page and "Glossary" not in page
    assert not re.search(r'<(?:script|img|link)\b[^>]*(?:src|href)="(?!data:)', page)


def test_without_a_tag_there_are_no_slides(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_notebook(tmp_path / "notebooks" / "00_write_up.ipynb", v4.new_markdown_cell("# A"))
    assert slides.main(tmp_path) == 1
    assert "no cell of the write-up is tagged `slide`" in capsys.readouterr().out


@needs_browser
def test_slides_need_no_network_fit_the_screen_and_print(small: Path, browser: Page):
    assert in_thread(slides.main, small) == 0
    browser.faults.clear()
    browser.set_viewport_size({"width": 1280, "height": 720})
    browser.goto((small / "_site" / "slides.html").as_uri())
    browser.wait_for_function("Reveal.isReady()")
    assert browser.evaluate("Reveal.getTotalSlides()") == 3
    heights = "[...document.querySelectorAll('.slides section section')].map(slide => slide.scrollHeight)"
    assert max(browser.evaluate(heights)) <= 720
    assert browser.faults == []
    assert len(PdfReader(small / "_site" / "slides.pdf").pages) == 3
