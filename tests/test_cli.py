"""The command line: what a user types, what comes back, and what is said when something is wrong."""

import csv
import importlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mtl_helpers import TASKS, MultiTaskModel, TrainingConfig, console, evaluate, load_corpus, training
from mtl_helpers import __main__ as program
from mtl_helpers.__main__ import main
from mtl_helpers.corpus import DATA, SPLITS
from mtl_helpers.own_tasks import MOST_LABELS

ROOT = Path(__file__).resolve().parent.parent
ODD = [
    "Could Ana Duarte send the minutes to Łódź?",
    "",
    "   ",
    '😀 שלום, "quoted"; e\u0301 \u200b [SEP]',
    "one line \u2028 to \x0b us \x85 still",
    "a tab\tand a carriage\rreturn and a NUL \0",
    "-5 degrees in Oslo",
    "word " * 10_000,
    "",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 short rows of the corpus: 40 to train on, 10 for validation, 10 for the test."""
    rows = pd.read_csv(DATA / "sentences.csv", dtype=str, keep_default_na=False)
    rows = rows[rows["text"].str.len() < 60]
    few = [rows[rows["split"] == split].head(n) for split, n in (("train", 40), ("validation", 10), ("test", 10))]
    path = tmp_path_factory.mktemp("data") / "sixty.csv"
    pd.concat(few).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def unsplit(data: Path) -> Path:
    """The same without a column split."""
    path = data.with_name("unsplit.csv")
    pd.read_csv(data, dtype=str, keep_default_na=False).drop(columns="split").to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def tiny_dir(family_dirs: dict[str, Path]) -> Path:
    return family_dirs["bert"]


def train(data: Path, output: Path, tiny_dir: Path, *more: str) -> int:
    settings = ["--epochs", "2", "--learning-rate", "0.001", "--backbone", str(tiny_dir)]
    return main(["train", str(data), "--output", str(output), *settings, *more])


@pytest.fixture(scope="module")
def trained(data: Path, tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run leaves."""
    output = tmp_path_factory.mktemp("trained") / "model"
    assert train(data, output, tiny_dir) == 0
    return output


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(trained, tmp_path / "copied"))


def type_in(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))


def refused(capsys: pytest.CaptureFixture) -> str:
    """The one error on standard error."""
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and "Traceback" not in err
    assert [line.startswith("error: ") for line in lines].count(True) == 1
    message = err[err.index("error: ") :].splitlines()
    assert all(line.startswith("  ") for line in message[1:]), f"something follows the error:\n{err}"
    return err


# ------------------------------------------------------------------------------------------------ one after another


def test_train_writes_model_history_and_scores(data, trained, tiny_dir):
    assert {path.name for path in trained.iterdir()} >= {"tasks.json", "checkpoints", "history.csv", "evaluation.csv"}
    model = MultiTaskModel.from_pretrained(trained)
    assert model.tasks == TASKS
    history = pd.read_csv(trained / "history.csv")
    assert history["epoch"].tolist() == [1] * 4 + [2] * 4
    expected = evaluate(model, load_corpus(data, split="test"))
    pd.testing.assert_frame_equal(pd.read_csv(trained / "evaluation.csv"), expected)


def test_the_printed_table_is_aligned_and_alone_on_stdout(data, copied, tiny_dir, capsys):
    assert train(data, copied, tiny_dir) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["task", "metric", "value", "low", "high", "texts"]
    assert len(lines) == 1 + 3 * 2 + 3 and len({len(line) for line in lines}) == 1
    assert "training on 40 texts" in err and f"saved in {copied}" in err and "scoring 10 texts (split test)" in err


def test_evaluate_gives_the_table_of_training(data, trained, capsys, tmp_path):
    assert main(["evaluate", str(trained), str(data), "--output", str(tmp_path / "scores.csv")]) == 0
    out = capsys.readouterr().out
    again, first = pd.read_csv(tmp_path / "scores.csv"), pd.read_csv(trained / "evaluation.csv")
    pd.testing.assert_frame_equal(again, first)
    assert len(out.splitlines()) == 1 + len(first)
    assert f"{first['value'][0]:.3f}" in out.splitlines()[1]


@pytest.mark.parametrize(("split", "texts"), [("train", 40), ("validation", 10), ("test", 10), ("all", 60)])
def test_evaluate_scores_the_split_asked_for(split: str, texts: int, data, trained, capsys):
    assert main(["evaluate", str(trained), str(data), "--split", split]) == 0
    out, err = capsys.readouterr()
    assert f"scoring {texts} texts (split {split})" in err
    assert out.splitlines()[1].split()[-1] == str(texts)


def test_a_file_without_splits_is_scored_whole(unsplit, trained, capsys):
    assert main(["evaluate", str(trained), str(unsplit)]) == 0
    assert "scoring 60 texts (split all: the file has no column split)" in capsys.readouterr().err


def test_rows_trained_on_are_not_scored_by_accident(unsplit, tiny_dir, tmp_path, capsys):
    assert train(unsplit, tmp_path / "model", tiny_dir) == 0
    first = capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "model"), str(unsplit)]) == 0
    out, err = capsys.readouterr()
    assert out == first
    assert "split test: the part of this file that training kept aside" in err


def test_texts_trained_on_are_noticed_in_another_file(unsplit, tiny_dir, tmp_path, capsys):
    assert train(unsplit, tmp_path / "model", tiny_dir) == 0
    (tmp_path / "again.csv").write_bytes(unsplit.read_bytes().replace(b"\n", b"\r\n"))
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "model"), str(tmp_path / "again.csv")]) == 0
    assert "warning: 42 of these texts were trained on" in capsys.readouterr().err


def test_the_data_are_not_overwritten(data, trained, capsys, tmp_path):
    before = data.read_bytes()
    assert main(["evaluate", str(trained), str(data), "--output", str(data.parent / "." / data.name)]) == 1
    assert "is the file with the labels, which would be lost" in refused(capsys)
    assert data.read_bytes() == before
    for command in (["train", str(data)], ["evaluate", str(trained), str(data)]):
        with pytest.raises(SystemExit):
            main([*command, "--output", ""])
        assert "argument --output: invalid destination value: ''" in capsys.readouterr().err
    assert main(["predict", str(trained), str(data), "--output", ""]) == 1
    assert "--output: found an empty path" in refused(capsys)


def test_own_tasks(tiny_dir, tmp_path, capsys):
    path = tmp_path / "reviews.csv"
    moods, shops, dishes = ("good", "bad", "10"), ("A", "B", ""), ('[[0, 4, ""DISH""]]', "[]", "")
    rows = [f'Soup number {i},{moods[i % 3]},{shops[i % 3]},"{dishes[i % 3]}"' for i in range(30)]
    path.write_text("\n".join(["text,mood,shop,food", *rows]), encoding="utf-8")
    tasks = ["--task", "shop", "--task", "mood=good, bad,10", "--token-task", "food=DISH,DRINK"]
    assert train(path, tmp_path / "model", tiny_dir, *tasks) == 0
    model = MultiTaskModel.from_pretrained(tmp_path / "model")
    assert [(task.name, task.labels, task.level) for task in model.tasks] == [
        ("shop", ("A", "B"), "sentence"),  # in order; an empty cell is no label
        ("mood", ("good", "bad", "10"), "sentence"),
        ("food", ("DISH", "DRINK"), "token"),
    ]
    assert "shop: A, B; mood: good, bad, 10; food: DISH, DRINK" in capsys.readouterr().err


def test_tasks_of_the_course_that_the_file_lacks_are_left_out(unsplit, tiny_dir, tmp_path):
    rows = pd.read_csv(unsplit, dtype=str, keep_default_na=False)
    rows[["text", "sentiment", "entities"]].to_csv(tmp_path / "two.csv", index=False)
    assert train(tmp_path / "two.csv", tmp_path / "model", tiny_dir) == 0
    assert MultiTaskModel.from_pretrained(tmp_path / "model").tasks == TASKS[2:]


def test_a_file_without_test_labels_is_trained_on_all_the_same(data, tiny_dir, tmp_path, capsys):
    rows = pd.read_csv(data, dtype=str, keep_default_na=False)
    rows[rows["split"] != "test"].to_csv(tmp_path / "few.csv", index=False)
    assert train(tmp_path / "few.csv", tmp_path / "model", tiny_dir) == 0
    out, err = capsys.readouterr()
    assert out == "" and "no labelled row in the split test" in err
    MultiTaskModel.from_pretrained(tmp_path / "model")


# ---------------------------------------------------------------------------------------------------------- predict


def read_back(out: str, format: str) -> list[dict]:
    if format == "jsonl":
        return [json.loads(line) for line in out.removesuffix("\n").split("\n")]
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    return [{**row, "entities": json.loads(row["entities"])} for row in rows]


@pytest.mark.parametrize("format", ["csv", "jsonl"])
@pytest.mark.parametrize("source", ["arguments", "stdin"])
def test_one_row_per_text_in_order(source: str, format: str, trained, capsys, monkeypatch):
    if source == "stdin":
        type_in(monkeypatch, "\n".join(ODD).encode() + b"\n")
        assert main(["predict", str(trained), "--format", format]) == 0
    else:
        assert main(["predict", str(trained), *ODD, "--format", format]) == 0
    out, err = capsys.readouterr()
    rows = read_back(out, format)
    assert [row["text"] for row in rows] == ODD
    expected = MultiTaskModel.from_pretrained(trained).predict
    with pytest.warns(UserWarning, match="1 texts were cut"):
        expected = expected(ODD)
    assert [row["topic"] for row in rows] == expected["topic"].tolist()
    assert [row["entities"] for row in rows] == [[list(span) for span in spans] for spans in expected["entities"]]
    for row, probability in zip(rows, expected["sentiment_probability"], strict=True):
        assert float(row["sentiment_probability"]) == pytest.approx(probability, abs=6e-5)
        assert len(str(row["sentiment_probability"])) <= 6
    assert err.startswith("warning: 1 texts were cut") and err.count("\n") == 1


def test_without_lines_csv_has_its_header_and_jsonl_nothing(trained, capsys, monkeypatch):
    type_in(monkeypatch, b"")
    assert main(["predict", str(trained)]) == 0
    columns = MultiTaskModel.from_pretrained(trained).predict(["x"]).columns
    assert capsys.readouterr().out == ",".join(columns) + "\n"
    assert main(["predict", str(trained), "--format", "jsonl"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("raw", "texts"),
    [
        (b"a\nb", ["a", "b"]),
        (b"a\r\n\r\nb\r\n", ["a", "", "b"]),
        (b"\n", [""]),
        (b"\xef\xbb\xbfa\n\n", ["a", ""]),
        (b"\n" * 1030, [""] * 1030),  # more than are read at a time
    ],
    ids=["no end", "Windows", "one empty", "byte order mark", "many"],
)
def test_lines(raw: bytes, texts: list[str], trained, capsys, monkeypatch):
    type_in(monkeypatch, raw)
    assert main(["predict", str(trained), "--format", "jsonl"]) == 0
    assert [row["text"] for row in read_back(capsys.readouterr().out, "jsonl")] == texts


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--format", "jsonl", "{model}", "a", "b"], ["a", "b"]),
        (["{model}", "--format", "jsonl", "a", "b"], ["a", "b"]),
        (["{model}", "a", "--format", "jsonl", "b"], ["a", "b"]),
        (["{model}", "--format", "jsonl", "-5 degrees"], ["-5 degrees"]),
        (["{model}", "--format", "jsonl", "a", "--", "-b", "--format"], ["a", "-b", "--format"]),
    ],
)
def test_texts_and_options_in_any_order(arguments: list[str], texts: list[str], trained, capsys):
    assert main(["predict", *(str(trained) if a == "{model}" else a for a in arguments)]) == 0
    assert [row["text"] for row in read_back(capsys.readouterr().out, "jsonl")] == texts


# --------------------------------------------------------------------------------------------------- stop and go on


def test_stopped_and_started_again(data, trained, tiny_dir, tmp_path, capsys, monkeypatch):
    real, calls = training.train_step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == steps + 2:
            raise KeyboardInterrupt
        return real(*arguments)

    # one epoch of the same run; its checkpoint lies at the end of each epoch
    steps = int(checkpoints(trained)[0].name.partition("-step-")[2][:8])
    output = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", interrupted)
        assert train(data, output, tiny_dir) == 130
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert f"stopped in step {steps + 2} of {2 * steps}" in err and "give the same command again" in err
    assert main(["predict", str(output), "x"]) == 1  # half a run leaves no model
    assert str(output) in refused(capsys)

    assert train(data, output, tiny_dir) == 0
    out, err = capsys.readouterr()
    assert f"going on from step {steps}," in err
    same_result(output, trained)
    monkeypatch.setattr(training, "train_step", lambda *_: pytest.fail("trained again"))
    assert train(data, output, tiny_dir) == 0
    same_result(output, trained)


def checkpoints(model: Path) -> list[Path]:
    """Oldest first."""
    return sorted((model / "checkpoints").glob("*-step-*"))


def same_weights(first: Path, second: Path) -> None:
    for name in ("model.safetensors", "heads.safetensors"):
        mine, theirs = load_file(first / name), load_file(second / name)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def same_result(first: Path, second: Path) -> None:
    same_weights(first, second)
    for name in ("history.csv", "evaluation.csv"):
        assert (first / name).read_text() == (second / name).read_text()


def test_the_seed_decides(data, trained, tiny_dir, tmp_path):
    assert train(data, tmp_path / "same", tiny_dir, "--seed", "0") == 0
    same_result(tmp_path / "same", trained)
    for seed in ("1", "2"):  # the first weights too, which with these rates are the last ones
        still = ("--seed", seed, "--learning-rate", "0", "--head-learning-rate", "0", "--epochs", "1")
        assert train(data, tmp_path / seed, tiny_dir, *still) == 0
    one, two = (load_file(tmp_path / seed / "heads.safetensors")["topic.1.weight"] for seed in ("1", "2"))
    assert not torch.equal(one, two)


def test_training_does_not_look_at_test_labels(data, trained, tiny_dir, tmp_path):
    table = pd.read_csv(data, dtype=str, keep_default_na=False)
    for task in TASKS[:3]:
        table.loc[table["split"] == "test", task.name] = task.labels[0]
    table.to_csv(tmp_path / "others.csv", index=False)
    assert train(tmp_path / "others.csv", tmp_path / "model", tiny_dir) == 0
    same_weights(tmp_path / "model", trained)
    history, scores = ((tmp_path / "model" / f"{name}.csv").read_text() for name in ("history", "evaluation"))
    assert history == (trained / "history.csv").read_text()
    assert scores != (trained / "evaluation.csv").read_text()


def test_options_reach_the_run_and_checkpoints_of_another_are_refused(data, copied, tiny_dir, capsys):
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    changes = ["--epochs", "3", "--head-learning-rate", "0.5", "--seed", "3", "--task-weight", "topic=2"]
    assert train(data, copied, tiny_dir, *changes) == 1
    message = refused(capsys)
    for what in ("epochs was 2 and is 3", "head_learning_rate was 0.001 and is 0.5", "seed was 0 and is 3"):
        assert what in message
    assert "task_weights was {} and is {'topic': 2.0}" in message
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


# ----------------------------------------------------------------------------------------------------- what is wrong


BAD_FILES = {  # (content, options, what the message must hold)
    "missing": (None, [], ["no such file"]),
    "no task column": ("text,colour\nHello.,red\n", [], ["line 1", "--task NAME declares a column of your own"]),
    "unknown label": ("text,topic\nHello.,spotrs\n", [], ["line 2", "did you mean 'sports'?"]),
    "too few rows": ("text,topic\nHello.,sports\n", [], ["found no row for validation", "label more rows"]),
    "no labels": ("text,topic\n" + "\n".join(f"Hello {i}.," for i in range(20)), [], ["found no label"]),
    "semicolons": ("text;mood\nOh, yes;good\n", ["mood"], ["line 1, column text", "separate the columns with commas"]),
    "commas": ("text,mood\nOh, yes,good\nOh, no,bad\n", ["mood"], ["line 2: found 3", "line 3: found 3", "in quotes"]),
    "misspelt": ("text,moods\nYes,good\n", ["mood"], ["line 1, column moods", "expected 'mood'; rename the column"]),
    "missing task": ("text,topic\nYes,good\n", ["mood"], ["line 1, column mood", "rename one of text, topic"]),
    "two of three": ("text,mood\nYes,good\n", ["mood=good,bad", "shop"], ["line 1, column shop", "check the name"]),
    "one value": ("text,mood\nA,good\nB,good \n", ["mood"], ["line 1, column mood: found 1 ", "--task mood=LABEL"]),
    "free text": (
        "text,mood\n" + "".join(f"A,a{i}\n" for i in range(101)),
        ["mood"],
        ["found 101 different", "2 to 100"],
    ),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_files(what: str, tiny_dir, tmp_path, capsys):
    content, tasks, fragments = BAD_FILES[what]
    path = tmp_path / "bad.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert train(path, tmp_path / "model", tiny_dir, *(word for task in tasks for word in ("--task", task))) == 1
    message = refused(capsys)
    fragments = fragments if what == "no labels" else [str(path), *fragments]  # which is what `fit` says of a table
    assert [fragment for fragment in fragments if fragment not in message] == [], message


def warned(capsys: pytest.CaptureFixture) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]


@pytest.mark.filterwarnings("ignore:.*white space alone", "ignore:.*has no row of")
def test_labels_that_differ_in_white_space_are_one_and_others_are_named(tiny_dir, tmp_path, capsys):
    """One warning each; a class that occurs once reaches the training part."""
    moods = ["good", "good ", "bad", "b\u00e4d", "ba\u0308d", "Bad", "bad\u200b"]
    stars = ["1", "1.0", "01", "2", "+2", "3", "1e2"]
    rows = [f"Soup number {i},{moods[i % 7]},{stars[i % 7]}" for i in range(70)]
    path = tmp_path / "soups.csv"
    path.write_text("\n".join(["text,mood,stars", *rows, "Rare,good\u00a0,7"]), encoding="utf-8")
    assert train(path, tmp_path / "model", tiny_dir, "--task", "mood", "--task", "stars", "--epochs", "1") == 0
    mood, star, space, *rest = warned(capsys)
    assert "'Bad' and 'bad' and 'bad\\u200b', 'ba\\u0308d' and 'b\\xe4d'; make them equal in the file" in mood
    assert "'+2' and '2', '01' and '1' and '1.0'; make them equal in the file" in star
    assert "white space alone" in space and "'good ' (mood, 10 times), 'good\\xa0' (mood, 1 times)" in space
    assert len(rest) == 1 and "validation has no row of 7 (stars)" in rest[0] and "train has" not in rest[0]
    tasks = {task.name: task for task in MultiTaskModel.from_pretrained(tmp_path / "model").tasks}
    assert set(tasks["mood"].labels) == {"good", "bad", "b\u00e4d", "ba\u0308d", "Bad", "bad\u200b"}
    rows = load_corpus(path, tasks=list(tasks.values()))
    assert rows.loc[rows["text"] == "Rare", "split"].tolist() == ["train"]


def test_training_that_blows_up(data, tiny_dir, tmp_path, capsys):
    assert train(data, tmp_path / "model", tiny_dir, "--learning-rate", "1e30", "--epochs", "4") == 1
    assert "loss" in (error := refused(capsys)) or "gradient" in error


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["history.csv", "training.json", "evaluation.csv"])
def test_a_full_disk_is_one_message_with_path_and_remedy(name: str, data, copied, tiny_dir, capsys, monkeypatch):
    real = Path.write_text
    monkeypatch.setattr(
        Path, "write_text", lambda path, *a, **k: (full_disk if path.name == name else real)(path, *a, **k)
    )
    assert train(data, copied, tiny_dir) == 1
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith(f"error: {copied / name}: No space left on device; free some space")


def test_a_full_disk_at_a_checkpoint_keeps_the_words_of_fit(data, tiny_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "save", full_disk)
    assert train(data, tmp_path / "model", tiny_dir) == 1
    message = refused(capsys)
    assert str(tmp_path / "model" / "checkpoints") in message and "make room" in message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_behind_standard_output_is_one_message(trained, capsys, monkeypatch):
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        assert main(["predict", str(trained), "Hello"]) == 1
        assert capsys.readouterr().err.startswith("error: output: No space left on device; free some space")
    # closing the stream, as Python does when it ends, raises nothing


def test_the_home_folder_may_be_written_as_a_tilde(data, copied, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(copied.parent))
    monkeypatch.chdir(copied)
    shutil.copy(data, copied.parent / "mine.csv")
    shutil.copytree(copied, copied.parent / "tiny")
    settings = ["--epochs", "1", "--backbone", "~/tiny"]
    assert main(["train", "~/mine.csv", "--output", "~/new", *settings]) == 0
    assert main(["evaluate", "~/new", "~/mine.csv", "--output", "~/scores.csv"]) == 0
    assert main(["predict", "~/new", "~"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("~,")  # a text is no path
    assert (copied.parent / "scores.csv").is_file() and not (copied / "~").exists()


def test_only_the_first_of_several_processes_speaks_and_writes(data, tiny_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "FIRST", False)
    monkeypatch.setattr(program, "FIRST", False)
    assert train(data, tmp_path / "model", tiny_dir, "--epochs", "1") == 0
    assert capsys.readouterr() == ("", "")
    assert {path.name for path in (tmp_path / "model").iterdir()} <= {"checkpoints"}


def test_evaluate_refuses_what_it_cannot_score(copied, tmp_path, capsys):
    path = tmp_path / "new.csv"
    path.write_text("text,topic,split\nHello.,sports,train\n")
    assert main(["evaluate", str(copied), str(path)]) == 1
    assert "found no row with the split test; --split all takes every row" in refused(capsys)
    path.write_text("text,topic\nHello.,\n")
    assert main(["evaluate", str(copied), str(path)]) == 1
    assert "found no label" in capsys.readouterr().err
    path.write_text("text,topic\nHello.,weather\n")
    assert main(["evaluate", str(copied), str(path)]) == 1
    assert "line 2, column topic" in refused(capsys)


def test_standard_input_that_is_not_utf_8(trained, capsys, monkeypatch):
    type_in(monkeypatch, b"good\nCaf\xe9\n")
    assert main(["predict", str(trained), "--format", "jsonl"]) == 1
    assert "error: standard input, line 2: found byte 0xe9, expected UTF-8" in refused(capsys)


def test_ctrl_c_outside_training(trained, capsys, monkeypatch):
    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(MultiTaskModel, "predict", pressed)
    assert main(["predict", str(trained), "x"]) == 130
    assert capsys.readouterr() == ("", "stopped\n")


# ------------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["train"],
        ["train", "data.csv"],
        ["train", "data.csv", "--output", "x", "--epochs", "many"],
        ["train", "data.csv", "--output", "x", "--epochs", "0"],
        ["train", "data.csv", "--output", "x", "--learning-rate", "nan"],
        ["train", "data.csv", "--output", "x", "--seed", "-1"],
        ["train", "data.csv", "--output", "x", "--task", "mood=good"],
        ["train", "data.csv", "--output", "x", "--task", "mood="],
        ["train", "data.csv", "--output", "x", "--task", "my mood"],
        ["train", "data.csv", "--output", "x", "--task", "text=a,b"],
        ["train", "data.csv", "--output", "x", "--token-task", "food"],
        ["train", "data.csv", "--output", "x", "--token-task", "food=A,A"],
        ["train", "data.csv", "--output", "x", "--task", "food", "--token-task", "food=A"],
        ["train", "data.csv", "--output", "x", "--task-weight", "topic"],
        ["train", "data.csv", "--output", "x", "--task-weight", "topic=-1"],
        ["train", "data.csv", "more.csv", "--output", "x"],
        ["evaluate", "model"],
        ["evaluate", "model", "data.csv", "--split", "dev"],
        ["predict"],
        ["predict", "model", "--format", "xml"],
        ["predict", "model", "--loud", "x"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str], capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and "usage: python -m mtl_helpers" in err and "error: " in err


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "train a model on a CSV and save it" in err


OPTIONS = {
    "train": "DATA.csv --output --epochs --learning-rate --head-learning-rate --seed --backbone --task --token-task "
    "--task-weight",
    "evaluate": "DIR DATA.csv --split --output",
    "predict": "DIR TEXT --format",
}


@pytest.mark.parametrize("command", OPTIONS)
def test_help_names_every_option_with_an_example_and_defaults(command: str, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    explained = out[out.index("positional arguments:") :]
    assert all(f"  {option}" in explained for option in OPTIONS[command].split())
    assert f"\n  python -m mtl_helpers {command} " in out
    assert "(default:" in explained and "None" not in out


def test_what_is_repeated_here_to_be_fast_is_what_holds_elsewhere(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert f"values (2 to {MOST_LABELS})" in capsys.readouterr().out
    defaults = TrainingConfig()
    assert {name: default for name, (_, default, _) in program.SETTINGS.items()} == {
        name: getattr(defaults, name) for name in program.SETTINGS
    }
    options = program.make_parser().parse_args(["evaluate", "model", "data.csv", "--split", "all"])
    assert options.split == "all" and all(
        program.make_parser().parse_args(["evaluate", "m", "d.csv", "--split", split]).split == split
        for split in SPLITS
    )


def test_a_command_can_be_added_by_a_module(monkeypatch, capsys, tmp_path):
    """As `python -m mtl_helpers greet`: help, options, errors and exit codes as for the others."""
    (tmp_path / "greet.py").write_text(
        'ABOUT = "Say hello."\n'
        "def add_arguments(parser): parser.add_argument('name')\n"
        "def run(options): print('hello', options.name); int(options.name)\n"
    )
    monkeypatch.setattr("mtl_helpers.__path__", [*importlib.import_module("mtl_helpers").__path__, str(tmp_path)])
    monkeypatch.setattr(program, "MODULES", {"greet": ("greet", "say hello")})
    assert main(["greet", "7"]) == 0 and main(["greet", "you"]) == 1
    out, err = capsys.readouterr()
    assert out == "hello 7\nhello you\n" and err.startswith("error: invalid literal")
    with pytest.raises(SystemExit):
        main(["greet", "--help"])
    assert "Say hello." in capsys.readouterr().out


def test_the_shape_of_the_csv_shown_in_the_help_is_right(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("  text,topic,entities")
    (tmp_path / "shown.csv").write_text("\n".join(line.strip() for line in lines[start : start + 3]), encoding="utf-8")
    rows = load_corpus(tmp_path / "shown.csv")
    text, spans = rows["text"][0], rows["entities"][0]
    assert [text[start:end] for start, end, _ in spans] == ["Ana Duarte", "Oslo"]
    assert rows["topic"].tolist() == ["business", "sports"] and rows["entities"][1] is None


# -------------------------------------------------------------------------------------------------- as a real program


def test_the_package_is_a_program_whose_help_waits_for_no_library():
    command = [sys.executable, "-X", "importtime", "-m", "mtl_helpers", "train", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "python -m mtl_helpers train" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in loaded and not loaded & {"torch", "pandas", "numpy", "transformers", "onnxruntime"}


def test_a_reader_that_stops_reading_gets_no_traceback(trained, tmp_path):
    lines = "A line that is long enough to fill the pipe sooner or later, for sure.\n" * 2100
    (tmp_path / "lines.txt").write_text(lines)
    command = f"{sys.executable} -m mtl_helpers predict {trained} < {tmp_path / 'lines.txt'} | head -n 1"
    done = subprocess.run(command, cwd=ROOT, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("text,topic,") and done.stderr == ""


def test_the_accelerator_is_used_where_there_is_one(monkeypatch):
    from mtl_helpers.runtime import device

    def accelerator(check_available: bool = False) -> torch.device | None:
        return None if check_available and not available else torch.device("cuda")  # PyTorch may be built for one

    monkeypatch.setattr(torch.accelerator, "current_accelerator", accelerator)
    available = True
    assert device() == torch.device("cuda")
    available = False
    assert device() == torch.device("cpu")
