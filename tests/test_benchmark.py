"""The benchmarks run and compare like with like; how fast anything is, no test says."""

import copy
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers

from experiments import benchmark
from mtl_helpers import MultiTaskModel, SentenceEncoder
from mtl_helpers.runtime import bfloat16_is_fast

COLUMNS = ["contender", "seconds", "sentences_per_second", "ratio", "lowest", "highest", "against"]
FAST = bfloat16_is_fast(torch.device("cpu"))


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "device", lambda: torch.device("cpu"))


@pytest.fixture
def tiny_backbone(family_dirs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny BERT in place of MiniLM, and of the corpus the sentences that it has room for."""
    tiny, whole = SentenceEncoder.from_pretrained, benchmark.load_corpus
    monkeypatch.setattr(benchmark, "load_corpus", lambda split: whole(split=split)[lambda f: f["text"].str.len() < 60])
    monkeypatch.setattr(benchmark.SentenceEncoder, "from_pretrained", lambda _: tiny(family_dirs["bert"]))


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], None]:
    """Function that puts another one in the place of transformers.Trainer."""

    def replace(train: Callable) -> None:
        monkeypatch.setattr("transformers.utils.is_accelerate_available", lambda *_: True)
        monkeypatch.setattr(benchmark, "train_with_trainer", train)

    return replace


def check(table: pd.DataFrame, sentences: int, more: tuple[str, ...] = ()) -> None:
    assert list(table.columns) == [*COLUMNS, *more]
    assert table["contender"].is_unique
    assert (table[["seconds", "sentences_per_second", "ratio", "lowest"]] > 0).all(axis=None)
    assert (table["lowest"] <= table["ratio"]).all() and (table["ratio"] <= table["highest"]).all()
    assert table["sentences_per_second"].tolist() == pytest.approx((sentences / table["seconds"]).tolist())
    alone = table["against"] == ""
    assert (table.loc[alone, ["ratio", "lowest", "highest"]] == 1).all(axis=None)
    assert set(table.loc[~alone, "against"]) <= set(table["contender"])


def test_encode(monkeypatch):
    monkeypatch.setattr(benchmark, "BATCH_SIZES", (8, 32))
    table = benchmark.encode(sentences=12, repeats=1)
    check(table, 12, ("difference",))
    names = table["contender"].tolist()
    theirs = ["sentence-transformers, batches of 8", "sentence-transformers, batches of 32"]
    assert names == [*theirs, "ours, float32", *["ours, bfloat16"] * FAST]
    difference = table.set_index("contender")["difference"]
    assert difference["ours, float32"] < 1e-5
    if FAST:
        assert difference["ours, float32"] < difference["ours, bfloat16"] < 0.02
    fastest = table.loc[table.loc[table["contender"].isin(theirs), "seconds"].idxmin(), "contender"]
    assert (table.loc[table["contender"] != fastest, "against"] == fastest).all()


def test_predict(tiny_backbone, monkeypatch):
    answers, real = [], benchmark.MultiTaskModel.predict

    def watched(model, texts, precision):
        answers.append((precision, real(model, texts, precision)))
        return answers[-1][1]

    monkeypatch.setattr(benchmark.MultiTaskModel, "predict", watched)
    table = benchmark.predict(sentences=9, repeats=2)
    check(table, 9)
    assert len(table) == 2 + 2 * FAST and len(answers) == (2 + 1) * 5 * (1 + FAST)
    answers = [answer for precision, answer in answers if precision == "float32"]
    single, shared = pd.concat([a.drop(columns="text") for a in answers[:4]], axis=1), answers[4].drop(columns="text")
    pd.testing.assert_frame_equal(single, shared, atol=1e-5)  # four models answer what the one with their heads does


def by_hand(model: MultiTaskModel, rows: pd.DataFrame, batch_size: int, **_) -> None:
    """What the Trainer does, in plain sight."""
    examples = model.examples(rows)
    optimizer, whole = torch.optim.AdamW(model.parameters(), lr=1e-3), benchmark._WithLoss(model).train()
    for start in range(0, len(examples), batch_size):
        whole(**model.batch(examples[start : start + batch_size]))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("which", ["by hand", "transformers.Trainer"])
def test_training(which: str, tiny_backbone, trainer, monkeypatch, capfd):
    given, real = [], transformers.TrainingArguments
    monkeypatch.setattr(transformers, "TrainingArguments", lambda *a, **k: given.append(set(k)) or real(*a, **k))
    if which == "by hand":
        trainer(by_hand)
    table = benchmark.training(sentences=50, repeats=1)
    check(table, 50, ("passes", "loss_before", "loss_after"))
    assert len(table) == 2 + 2 * FAST
    assert (table["passes"] == 50).all() and (table["loss_after"] < table["loss_before"]).all()
    assert table["against"].tolist()[1:] == [table["contender"][0]] * (1 + 2 * FAST)
    assert capfd.readouterr().out == ""
    named = {"num_train_epochs", "per_device_train_batch_size", "report_to", "save_strategy", "disable_tqdm", "use_cpu"}
    assert which == "by hand" or set().union(*given) == named | ({"bf16"} if FAST else set())  # its defaults else


@pytest.mark.parametrize("fault", ["sentences are skipped", "nothing is learnt"])
def test_training_that_goes_wrong_is_noticed(fault: str, tiny_backbone, trainer):
    def wrong(model: MultiTaskModel, rows: pd.DataFrame, batch_size: int, **_) -> None:
        if fault == "sentences are skipped":
            return by_hand(model, rows[:-5], batch_size)
        before = copy.deepcopy(model.state_dict())
        by_hand(model, rows, batch_size)
        model.load_state_dict(before)

    trainer(wrong)
    with pytest.raises(RuntimeError, match="expected 30 passes and a loss below"):
        benchmark.training(sentences=30, repeats=1)


def test_contenders_take_turns_after_one_to_warm_up():
    turns = []

    def contender(name: str, *times: float):
        times = iter(times)
        return lambda: turns.append(name) or next(times)

    contenders = {"a": contender("a", 99, 2, 4, 8), "b": contender("b", 99, 1, 1, 1)}
    table = benchmark.compare(benchmark.race(contenders, repeats=3), {"b": "a"}, sentences=10)
    assert turns == ["a", "b"] * 4
    check(table, 10)
    assert table.set_index("contender").loc["b", ["seconds", "ratio", "lowest", "highest"]].tolist() == [1, 4, 2, 8]
    assert table.loc[0, ["seconds", "sentences_per_second"]].tolist() == [4, 2.5]


def test_the_program_prints_table_and_machine_or_what_is_wrong(tiny_backbone, monkeypatch, capsys):
    assert benchmark.main(["predict", "--sentences", "5", "--repeats", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == COLUMNS and len(lines) == 1 + 2 + 2 * FAST + 1
    assert f"threads: {torch.get_num_threads()}" in lines[-1] and f"torch {torch.__version__}" in lines[-1]
    for given in (["--repeats", "0"], ["--sentences", "0"], ["--sentences", "99999"]):
        assert benchmark.main(["predict", *given]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    monkeypatch.setattr("transformers.utils.is_accelerate_available", lambda *_: False)
    assert benchmark.main(["training", "--sentences", "20"]) == 1
    lacking = "error: transformers.Trainer, which fit is compared with, needs accelerate: pip install accelerate\n"
    assert capsys.readouterr() == ("", lacking)
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["swim"])


def test_another_encoder_is_measured_and_its_rows_are_kept(family_dirs, monkeypatch, tmp_path, capsys):
    whole = benchmark.load_corpus
    monkeypatch.setattr(benchmark, "load_corpus", lambda split: whole(split=split)[lambda f: f["text"].str.len() < 60])
    kept, few = tmp_path / "rows.csv", ["--sentences", "5", "--repeats", "1"]
    for family in ("bert", "mpnet"):
        given = ["predict", *few, "--encoder", str(family_dirs[family]), "--output", str(kept)]
        assert benchmark.main(given) == 0
    rows = pd.read_csv(kept)
    assert list(rows) == ["benchmark", "encoder", "machine", *COLUMNS]
    assert rows["encoder"].unique().tolist() == [str(family_dirs[f]) for f in ("bert", "mpnet")]
    monkeypatch.setenv("MTL_WEIGHTS", str(tmp_path))
    assert benchmark.main(["predict", *few, "--encoder", "mpnet"]) == 1
    assert "python -m experiments weights mpnet fetches them" in capsys.readouterr().err
