"""The README: its figures and numbers are the committed notebooks', its links lead somewhere, its commands exist."""

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import readme

import mtl_helpers
from mtl_helpers import Task, load_corpus
from mtl_helpers.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_and_texts_are_the_notebooks():
    assert readme.figures() and readme.figures() == {path: path.read_bytes() for path in readme.figures()}
    assert {path.relative_to(ROOT).as_posix() for path in readme.figures()} == set(re.findall(r"\]\((\S+png)\)", TEXT))
    assert readme.filled(TEXT) == TEXT


def test_local_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)", TEXT) if "://" not in link]
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_notebook_is_on_the_map():
    names = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert names and names == set(re.findall(r"\]\(notebooks/([\w.]+\.ipynb)\)", TEXT))


@pytest.mark.parametrize("target", ["course", "site", "test", "lab", "report", "slides"])
def test_make_commands_exist(target: str):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"make {target}" in TEXT


@pytest.fixture
def yours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: pd.DataFrame) -> None:
    """A folder to write into, with the file that the examples read."""
    few = corpus.groupby("split").head(20)
    own = pd.DataFrame({"text": few["text"]})
    own["urgency"] = few["sentence_type"].map({"command": "high", "question": "high", "statement": "low"})
    own["mood"] = few["sentiment"].map({"negative": "bad", "positive": "good"})  # neutral: not labelled
    people = [[span for span in spans if span[2] == "PER"] for spans in few["entities"]]
    own["entities"] = [json.dumps(spans) for spans in people]
    monkeypatch.chdir(tmp_path)
    own.to_csv("yours.csv", index=False)
    own[:20].to_csv("newer.csv", index=False)


def test_python_example_runs(yours: None):
    examples = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert examples
    for example in examples:
        names: dict = {}
        exec(compile(example, "README.md", "exec"), names)
    assert set(names["scores"]["task"]) == {"urgency", "mood", "entities"}
    assert mtl_helpers.MultiTaskModel.from_pretrained("model").predict(["Behold!"]).shape == (1, 6)


def test_rows_of_the_csv_example_are_good(tmp_path: Path):
    (tmp_path / "rows.csv").write_text(re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)[0], "utf-8")
    tasks = [Task("urgency", ("high", "low")), Task("mood", ("bad", "good")), Task("entities", ("PER",), "token")]
    table = load_corpus(tmp_path / "rows.csv", tasks=tasks)
    spans = [[text[a:b] for a, b, _ in s] for text, s in zip(table["text"], table["entities"], strict=True) if s]
    assert len(table) == 3 and spans == [["Ana Duarte"]] and table["mood"].isna().sum() == 1


def test_shell_example_runs(yours: None, capsys: pytest.CaptureFixture[str]):
    lines = re.findall(r"^python -m mtl_helpers (.+)$", TEXT, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["train", "evaluate", "predict"]
    for line in lines:
        assert main(shlex.split(line)) == 0
    assert "Could Ana Duarte send the minutes?," in capsys.readouterr().out
