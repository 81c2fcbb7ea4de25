"""A grid of runs: each is kept as it ends, none is run twice, and a repeated one is compared with what is on file."""

import itertools
import os
from pathlib import Path

import pandas as pd
import pytest
import torch

from mtl_helpers import sweeps
from mtl_helpers.sweeps import sweep

GRID = [{"pooling": "mean", "layers": 1}, {"pooling": "max", "layers": 3}]


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sweeps, "RESULTS", tmp_path / "results")
    monkeypatch.delenv("MTL_RERUN", raising=False)
    return tmp_path / "results"


class Experiment:
    """Counts its runs; its score depends on setting and seed."""

    def __init__(self, fail_at: int | None = None, shift: float = 0.0) -> None:
        self.calls, self.fail_at, self.shift = [], fail_at, shift

    def __call__(self, seed: int, pooling: str, layers: int) -> dict:
        self.calls.append((pooling, layers, seed))
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        return {"score": layers / 7 + seed + self.shift, "note": f"{pooling}, {seed}"}


def forbidden(**setting) -> dict:
    raise AssertionError(f"{setting} was run again")


def without_seconds(path: Path) -> pd.DataFrame:
    return pd.read_csv(path).drop(columns="seconds")


def test_a_sweep_gives_a_row_for_each_setting_and_seed(results):
    rows = sweep("s", GRID, Experiment(), seeds=range(3))
    assert rows[["pooling", "layers", "seed"]].to_numpy().tolist() == [
        *(["mean", 1, seed] for seed in range(3)),
        *(["max", 3, seed] for seed in range(3)),
    ]
    assert rows["score"].tolist() == pytest.approx([layers / 7 + s for layers in (1, 3) for s in range(3)], abs=1e-5)
    assert {"seconds", "device", "torch", "transformers"} < set(rows)
    assert rows["torch"].unique().tolist() == [torch.__version__.partition("+")[0]]
    pd.testing.assert_frame_equal(pd.read_csv(results / "s.csv"), rows)


def test_what_is_on_file_is_not_run_again():
    first = sweep("s", GRID, Experiment(), seeds=range(2))
    pd.testing.assert_frame_equal(sweep("s", GRID, forbidden, seeds=range(2)), first)
    more = Experiment()
    rows = sweep("s", GRID, more, seeds=range(3))
    assert more.calls == [("mean", 1, 2), ("max", 3, 2)]
    assert rows["seed"].tolist() == [0, 1, 2, 0, 1, 2]


def test_a_part_of_the_grid_gives_only_its_rows():
    sweep("s", GRID, Experiment(), seeds=range(3))
    rows = sweep("s", GRID[1:], forbidden, seeds=[2])
    assert rows[["pooling", "seed"]].to_numpy().tolist() == [["max", 2]]


def test_runs_that_ended_before_an_interruption_are_kept(results):
    with pytest.raises(KeyboardInterrupt):
        sweep("s", GRID, Experiment(fail_at=3), seeds=range(2))
    assert len(pd.read_csv(results / "s.csv")) == 2
    rest = Experiment()
    assert len(sweep("s", GRID, rest, seeds=range(2))) == 4
    assert rest.calls == [("max", 3, 0), ("max", 3, 1)]


def test_a_run_may_give_several_rows(results):
    def layers(seed: int, pooling: str) -> list[dict]:
        return [{"layer": layer, "score": seed + layer / 10} for layer in range(3)]

    rows = sweep("s", [{"pooling": "mean"}, {"pooling": "max"}], layers, seeds=range(2))
    assert len(rows) == len(pd.read_csv(results / "s.csv")) == 12
    assert rows["layer"].tolist() == [0, 1, 2] * 4
    pd.testing.assert_frame_equal(sweep("s", [{"pooling": "mean"}, {"pooling": "max"}], forbidden, range(2)), rows)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("cut", [1, 10, 45, 70, 120])
def test_a_file_that_was_cut_off_is_completed(cut: int, several: bool, results):
    def experiment(seed: int, pooling: str, layers: int) -> list[dict]:
        return [{"part": part, "score": layers / 7 + seed + part} for part in range(1 + 2 * several)]

    path = results / "s.csv"
    sweep("s", GRID, experiment, seeds=range(2))
    whole = without_seconds(path)
    path.write_bytes(path.read_bytes()[:-cut])
    rows = sweep("s", GRID, experiment, seeds=range(2))
    pd.testing.assert_frame_equal(without_seconds(path), whole)
    assert len(rows) == len(whole)


@pytest.mark.parametrize(
    "left", [b"", b"pooling,lay", b"pooling,layers,seed,score,note,seconds,device,torch,transformers\n"]
)
def test_a_file_without_rows_is_filled(left: bytes, results):
    results.mkdir()
    (results / "s.csv").write_bytes(left)
    assert len(sweep("s", GRID, Experiment(), seeds=range(2))) == len(pd.read_csv(results / "s.csv")) == 4


@pytest.mark.parametrize(
    "values",
    [[2e-5, 1e-4], [1 / 3], [True, False], [None, 16], [None], ["None", "linear"], ["1", "2"], [4, "all"], [1e6, 0.1]],
    ids=str,
)
def test_a_setting_of_any_kind_is_found_again(values: list):
    grid = [{"value": value} for value in values]
    first = sweep("s", grid, lambda seed, value: {"score": seed}, seeds=range(2))
    again = sweep("s", grid, forbidden, seeds=range(2))
    assert len(first) == len(again) == 2 * len(values)
    assert again["score"].tolist() == [0, 1] * len(values)


def test_metrics_are_filed_by_name_not_by_position():
    def experiment(seed: int, pooling: str, layers: int) -> dict:
        return {"f1": 0.25, "loss": 1.5} if pooling == "mean" else {"loss": 2.5, "f1": 0.5}

    rows = sweep("s", GRID, experiment, seeds=[0])
    assert rows[["f1", "loss"]].to_numpy().tolist() == [[0.25, 1.5], [0.5, 2.5]]


@pytest.mark.parametrize("others", [{"loss": 2.5}, {"f1": 0.5, "loss": 2.5}, {}], ids=list)
def test_runs_with_other_metrics_never_spoil_the_file(others: dict):
    def experiment(seed: int, pooling: str, layers: int) -> dict:
        return {"f1": 0.25} if pooling == "mean" else others

    try:
        rows = sweep("s", GRID, experiment, seeds=[0])
    except ValueError:  # refusing them is fine, as long as what was there can still be read
        rows = sweep("s", GRID[:1], forbidden, seeds=[0])
    assert rows["f1"][0] == 0.25
    assert rows["f1"][1:].isna().all() or rows["f1"][1] == others["f1"]


def test_torch_is_seeded_before_each_run():
    def draw(seed: int, pooling: str) -> dict:
        return {"number": torch.rand(1).item()}

    rows = sweep("s", [{"pooling": "mean"}, {"pooling": "max"}], draw, seeds=range(3))
    assert rows["number"].nunique() == 3
    assert rows["number"][:3].tolist() == rows["number"][3:].tolist()
    torch.manual_seed(2)
    assert rows["number"][2] == pytest.approx(torch.rand(1).item(), abs=1e-6)


def test_the_expected_time_is_printed_before_anything_runs(capsys):
    printed = []

    def experiment(seed: int, pooling: str, layers: int) -> dict:
        printed.append(capsys.readouterr().out)
        return {"score": 1.0}

    sweep("s", GRID, experiment, seeds=range(2), minutes=8)
    assert printed == ["s: 4 of 4 runs missing, about 8 min\n", "", "", ""]
    sweep("s", GRID, experiment, seeds=range(4), minutes=8)
    assert printed[4:] == ["s: 4 of 8 runs missing, about 4 min\n", "", "", ""]
    sweep("s", GRID, forbidden, seeds=range(4), minutes=8)
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------------------------------------------- repeating


@pytest.mark.parametrize(("wish", "repeated"), [("all", 4), ("3", 3), ("99", 4), ("0", 0)])
def test_mtl_rerun_repeats_so_many_runs(wish: str, repeated: int, monkeypatch, results):
    sweep("s", GRID, Experiment(), seeds=range(2))
    before = (results / "s.csv").read_bytes()
    monkeypatch.setenv("MTL_RERUN", wish)
    again = Experiment(shift=0.009)
    sweep("s", GRID, again, seeds=range(2))
    assert len(set(again.calls)) == len(again.calls) == repeated
    assert (results / "s.csv").read_bytes() == before


def test_mtl_rerun_does_not_repeat_what_has_just_been_run(monkeypatch):
    monkeypatch.setenv("MTL_RERUN", "all")
    experiment = Experiment()
    sweep("s", GRID, experiment, seeds=range(2))
    assert len(experiment.calls) == 4


def test_mtl_rerun_finds_a_difference(monkeypatch):
    sweep("s", GRID, Experiment(), seeds=range(2), tolerance=0.01)
    monkeypatch.setenv("MTL_RERUN", "all")
    with pytest.raises(
        ValueError, match=r"s: repeating \{'pooling': 'mean', .*'seed': 0\} gives other results than s\.csv"
    ):
        sweep("s", GRID, Experiment(shift=0.011), seeds=range(2), tolerance=0.01)
    sweep("s", GRID, Experiment(shift=0.011), seeds=range(2), tolerance=0.02)


def test_mtl_rerun_finds_another_number_of_rows(monkeypatch):
    def layers(seed: int, pooling: str) -> list[dict]:
        return [{"score": 1.0}] * (2 if os.environ.get("MTL_RERUN") else 3)

    sweep("s", [{"pooling": "mean"}], layers, seeds=[0])
    monkeypatch.setenv("MTL_RERUN", "all")
    with pytest.raises(ValueError, match="gives other results"):
        sweep("s", [{"pooling": "mean"}], layers, seeds=[0])


def test_mtl_rerun_compares_several_rows_per_run_and_large_numbers(monkeypatch):
    def layers(seed: int, pooling: str) -> list[dict]:
        return [{"layer": layer, "operations": 1234567.8, "unknown": float("nan")} for layer in range(3)]

    grid = [{"pooling": "mean"}, {"pooling": "max"}]
    sweep("s", grid, layers, seeds=range(2))
    monkeypatch.setenv("MTL_RERUN", "all")
    assert len(sweep("s", grid, layers, seeds=range(2))) == 12


def test_mtl_rerun_takes_none_for_an_empty_cell(monkeypatch):
    found = {"score": 0.5, "share": None}
    sweep("s", GRID[:1], lambda **_: found, seeds=[0])
    monkeypatch.setenv("MTL_RERUN", "all")
    assert sweep("s", GRID[:1], lambda **_: found, seeds=[0])["share"].isna().all()
    found["share"] = 0.5
    with pytest.raises(ValueError, match="gives other results"):
        sweep("s", GRID[:1], lambda **_: found, seeds=[0])


def test_mtl_rerun_passes_over_times_and_what_validation_chose(monkeypatch):
    numbers = itertools.count(1)
    scores = {"score": 0.5}

    def experiment(seed, pooling):
        return {**scores, "chosen_rate": next(numbers), "train_seconds": 10 * next(numbers)}

    grid = [{"pooling": "mean"}]
    sweep("s", grid, experiment, seeds=[0])
    monkeypatch.setenv("MTL_RERUN", "all")
    assert len(sweep("s", grid, experiment, seeds=[0])) == 1
    scores["score"] = 0.6
    with pytest.raises(ValueError, match="gives other results"):
        sweep("s", grid, experiment, seeds=[0])


def test_a_metric_that_is_not_at_hand_stays_empty_and_a_new_one_is_refused(results: Path, monkeypatch):
    sweep("some", GRID[:1], lambda **_: {"score": 1.0, "public": 0.5}, seeds=[0])
    rows = sweep("some", GRID[:1], lambda **_: {"score": 1.0}, seeds=[0, 1])
    assert rows["score"].tolist() == [1.0, 1.0]
    assert rows["public"].isna().tolist() == [False, True]
    monkeypatch.setenv("MTL_RERUN", "all")
    sweep("some", GRID[:1], lambda **_: {"score": 1.0}, seeds=[0, 1])  # compares what it could measure
    before = (results / "some.csv").read_bytes()
    monkeypatch.delenv("MTL_RERUN")
    with pytest.raises(ValueError, match=r"some\.csv: has the columns .*'public'.* this run gives .*'other'"):
        sweep("some", GRID[:1], lambda **_: {"score": 1.0, "other": 2.0}, seeds=[2])
    assert (results / "some.csv").read_bytes() == before
