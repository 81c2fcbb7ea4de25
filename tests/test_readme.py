"""The README: its figure is the committed notebook's, its links lead somewhere, its commands exist."""

import re
from pathlib import Path

import pytest
import readme

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figure_is_the_notebooks():
    assert readme.FIGURE.read_bytes() == readme.figure()
    assert f"({readme.FIGURE.relative_to(ROOT).as_posix()})" in TEXT


def test_local_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)", TEXT) if "://" not in link]
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_notebook_is_on_the_map():
    names = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert names and names == set(re.findall(r"\]\(notebooks/([\w.]+\.ipynb)\)", TEXT))


@pytest.mark.parametrize("target", ["course", "test", "lab"])
def test_make_commands_exist(target: str):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"make {target}" in TEXT


def test_python_example_runs(capsys: pytest.CaptureFixture[str]):
    examples = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
