"""The page for people, in a real browser."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_service import start_server, stop

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def test_a_person_gets_an_answer(exported: Callable[[str], Path]):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    server, url = start_server(exported("bert"))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page, asked, problems = browser.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(url)
        text = "👩\u200d👧 <b>Ana</b> met José in 東京."
        page.fill("#text", text)
        page.click("button")
        page.wait_for_selector("#answer table")
        shown = page.locator("#answer .text").evaluate(
            "p => Array.from(p.childNodes, n => n.nodeName === 'MARK' ? n.firstChild.data : n.data).join('')"
        )
        assert shown == text  # the spans are marked where they are, and nothing is taken for HTML
        assert page.locator("#answer b").count() == 0 and page.locator("#answer .track div").count() >= 3
        page.fill("#text", "a " * 5000)
        page.click("button")
        page.wait_for_selector("#answer .problem")  # longer than the model reads
        page.goto(f"{url}/docs")
        page.locator("#answer", has_text="predictions").wait_for()
        page.locator("#paths", has_text="POST /predict").wait_for()
        assert "503" in page.inner_text("#paths")
        browser.close()
    stop(server)
    assert problems == [] and all(address.startswith((url, "data:")) for address in asked)
