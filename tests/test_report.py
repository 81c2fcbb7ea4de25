"""The report: one page that holds every notebook, whose links lead somewhere and that asks no server for anything."""

from __future__ import annotations

import html
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import report as tool  # noqa: E402


@pytest.fixture(scope="module")
def page() -> str:
    return tool.report()


def test_it_holds_every_notebook_in_order_and_the_datasheet(page: str):
    expected = [path.name[:2] for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
    assert re.findall(r'<section class="chapter" id="([^"]+)"', page) == [*expected, "datasheet"]
    assert len(expected) >= 4


def test_anchors_are_unique_and_every_link_inside_leads_to_one(page: str):
    anchors = [html.unescape(found) for found in re.findall(r'\bid="([^"]+)"', page)]
    assert len(anchors) == len(set(anchors))
    links = [html.unescape(found) for found in re.findall(r'<a [^>]*?href="([^"]+)"', page)]
    inside = [link for link in links if not re.match(r"https?:", link)]
    missing = [link for link in inside if not link.startswith("#") or link[1:] not in anchors]
    assert missing == []
    assert len(inside) > 100


def test_it_asks_no_server_for_anything(page: str):
    assert re.findall(r"<(?:script|img|link|iframe)[^>]*?(?:src|href)=\"(?!data:)", page) == []
    assert re.findall(r"@import|url\((?!['\"]?data:)", page) == []
    assert "mathjax" not in page.lower()


@pytest.mark.skipif(not any(shutil.which(name) for name in tool.BROWSERS), reason="no browser")
def test_a_browser_prints_it(tmp_path: Path):
    (tmp_path / "page.html").write_text("<p>One page.</p>", encoding="utf-8")
    assert tool.print_pdf(tmp_path / "page.html", tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_without_a_browser_there_is_no_pdf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not tool.print_pdf(tmp_path / "page.html", tmp_path / "page.pdf")
    assert list(tmp_path.iterdir()) == []
