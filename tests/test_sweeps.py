"""A grid of runs: each is kept as it ends, none is run twice, and a repeated one is compared with what is on file."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments import sweeps
from experiments.__main__ import main
from experiments.runner import studies
from experiments.sweeps import Study, fingerprint, sweep

GRID = [{"pooling": "mean", "layers": 1}, {"pooling": "max", "layers": 3}]
PACKAGE = Path(sweeps.__file__).parent


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sweeps, "RESULTS", tmp_path / "results")
    monkeypatch.delenv("MTL_RERUN", raising=False)
    return tmp_path / "results"


class Experiment:
    """Counts its runs; its score depends on setting and seed."""

    def __init__(self, fail_at: int | None = None, shift: float = 0.0, predict: bool = False) -> None:
        self.calls, self.fail_at, self.shift, self.predict = [], fail_at, shift, predict

    def __call__(self, seed: int, pooling: str, layers: int) -> dict:
        self.calls.append((pooling, layers, seed))
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        row = {"score": layers / 7 + seed + self.shift, "drawn": torch.rand(1).item(), "note": f"{pooling}, {seed}"}
        return row | ({"predictions": [seed, [[0, 3, "Łódź"]]]} if self.predict else {})


def forbidden(**setting) -> dict:
    raise AssertionError(f"{setting} was run again")


def several(seed: int, pooling: str, layers: int) -> list[dict]:
    """Three rows a run; large numbers and missing ones among them."""
    return [{"part": part, "score": layers / 7 + seed, "operations": 1234567.8, "none": None} for part in range(3)]


def without_seconds(path: Path) -> pd.DataFrame:
    return pd.read_csv(path).drop(columns="seconds")


# ------------------------------------------------------------------------------------------------------------ rows


def test_a_sweep_gives_a_row_for_each_setting_and_seed(results):
    rows = sweep("s", GRID, Experiment(), seeds=range(3))
    assert rows[["pooling", "layers", "seed"]].to_numpy().tolist() == [
        *(["mean", 1, seed] for seed in range(3)),
        *(["max", 3, seed] for seed in range(3)),
    ]
    assert rows["score"].tolist() == pytest.approx([layers / 7 + s for layers in (1, 3) for s in range(3)], abs=1e-5)
    assert list(rows)[-len(sweeps.CIRCUMSTANCES) :] == sweeps.CIRCUMSTANCES
    assert set(rows["torch"]) == {torch.__version__.partition("+")[0]} and (rows["seconds"] >= 0).all()
    assert set(rows["threads"]) == {torch.get_num_threads()}
    torch.manual_seed(2)
    assert rows["drawn"][[2, 5]].tolist() == pytest.approx([torch.rand(1).item()] * 2, abs=1e-6)
    assert rows["drawn"].nunique() == 3
    on_file = pd.read_csv(results / "s.csv")
    assert on_file["seed"].tolist() == [0, 0, 1, 1, 2, 2]  # seed by seed: a sweep that ends early has whole seeds
    pd.testing.assert_frame_equal(on_file.sort_values("layers", kind="stable", ignore_index=True), rows)


def test_what_is_on_file_is_not_run_again(results):
    with pytest.raises(KeyboardInterrupt):
        sweep("s", GRID, Experiment(fail_at=3), seeds=range(2))
    assert len(pd.read_csv(results / "s.csv")) == 2
    rest = Experiment()
    first = sweep("s", GRID, rest, seeds=range(2))
    assert rest.calls == [("mean", 1, 1), ("max", 3, 1)]
    pd.testing.assert_frame_equal(sweep("s", GRID, forbidden, seeds=range(2)), first)
    more = Experiment()
    rows = sweep("s", GRID, more, seeds=range(3))
    assert more.calls == [("mean", 1, 2), ("max", 3, 2)]
    assert rows["seed"].tolist() == [0, 1, 2, 0, 1, 2]
    part = sweep("s", GRID[1:], forbidden, seeds=[2])
    assert part[["pooling", "seed"]].to_numpy().tolist() == [["max", 2]]


def test_a_study_knows_what_it_lacks(results):
    experiment = Experiment(predict=True)
    study = Study("s", "Which?", GRID, experiment, seeds=(0, 1))
    assert study.missing() == study.runs and len(study.runs) == 4 and study.path == results / "s.csv"
    with pytest.raises(ValueError, match=r"s\.csv: 4 of 4 runs are missing; python -m experiments s runs them"):
        study.rows()
    run = study.runs[2]
    study.append(run, study.measure(run))
    assert study.missing() == [study.runs[0], study.runs[1], study.runs[3]]
    assert study.rows([run])["note"].tolist() == ["mean, 1"]
    with pytest.raises(ValueError, match=r"1 of 2 runs are missing"):
        study.rows([run, study.runs[0]])
    study.complete()
    assert len(experiment.calls) == 4 and study.missing() == [] and study.rows()["seed"].tolist() == [0, 0, 1, 1]
    assert "predictions" not in study.rows() and "predictions" not in (results / "s.csv").read_text()
    kept = list(study.predictions())
    assert [(line["pooling"], line["seed"], line["predictions"]) for line in kept] == [
        (pooling, str(seed), [seed, [[0, 3, "Łódź"]]])
        for pooling, seed in [("mean", 1), ("mean", 0), ("max", 0), ("max", 1)]
    ]


def test_rows_are_added_whole_or_not_at_all(monkeypatch, results):
    sweep("s", GRID, Experiment(), seeds=range(1))
    before = (results / "s.csv").read_bytes()

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            sweep("s", GRID, Experiment(), seeds=range(2))
    assert (results / "s.csv").read_bytes() == before
    assert len(sweep("s", GRID, Experiment(), seeds=range(2))) == len(pd.read_csv(results / "s.csv")) == 4


def test_an_old_file_keeps_its_columns(results):
    results.mkdir()
    (results / "s.csv").write_text("pooling,layers,seed,score,drawn,note,seconds,device,torch\n")
    assert len(sweep("s", GRID, Experiment(), seeds=range(2))) == len(pd.read_csv(results / "s.csv")) == 4
    assert "threads" not in (results / "s.csv").read_text()


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
    assert again["value"].tolist() == [value for value in values for _ in range(2)] or None in values


def test_metrics_are_filed_by_name_and_those_not_at_hand_stay_empty(results, monkeypatch):
    rows = {"mean": {"f1": 0.25, "loss": 1.5}, "max": {"loss": 2.5, "f1": 0.5}}
    rows_of = sweep("s", GRID, lambda pooling, **_: rows[pooling], seeds=[0])
    assert rows_of[["f1", "loss"]].to_numpy().tolist() == [[0.25, 1.5], [0.5, 2.5]]
    del rows["max"]["loss"], rows["mean"]["f1"]
    rows_of = sweep("s", GRID, lambda pooling, **_: rows[pooling], seeds=[0, 1])
    assert rows_of["f1"].isna().tolist() == [False, True, False, False]
    monkeypatch.setenv("MTL_RERUN", "all")
    sweep("s", GRID, lambda pooling, **_: rows[pooling], seeds=[0, 1])  # compares what it could measure
    monkeypatch.delenv("MTL_RERUN")
    before = (results / "s.csv").read_bytes()
    with pytest.raises(ValueError, match=r"s\.csv: has the columns .*'f1'.* this run gives .*'other'.*; delete"):
        sweep("s", GRID, lambda **_: {"f1": 1.0, "other": 2.0, "predictions": [1]}, seeds=[2])
    assert (results / "s.csv").read_bytes() == before and len(list(results.iterdir())) == 1
    assert len(sweep("s", GRID, forbidden, seeds=[0, 1])) == 4


def test_the_expected_time_is_printed_before_anything_runs(capsys):
    printed = []

    def experiment(**setting) -> dict:
        printed.append(capsys.readouterr().out)
        return {"score": 1.0}

    for seeds in (2, 4, 4):
        sweep("s", GRID, experiment, seeds=range(seeds), minutes=8)
    first, second = (f"s: 4 of {runs} runs missing, about {time} min\n" for runs, time in ((4, 8), (8, 4)))
    assert [*printed, capsys.readouterr().out] == [first, "", "", "", second, "", "", "", ""]


def test_a_fingerprint_changes_with_any_cell():
    table = pd.DataFrame({"text": ["Hi.", "Łódź"], "spans": [[(0, 2, "PER")], None]}, index=[4, 9])
    assert len(fingerprint(table)) == 12 and fingerprint(table) == fingerprint(table.reset_index(drop=True))
    others = [table.assign(text=["Hi", "Łódź"]), table.assign(spans=[[(0, 1, "PER")], None]), table[::-1]]
    assert len({fingerprint(one) for one in (table, *others)} | {fingerprint(table, table)}) == 5


# ------------------------------------------------------------------------------------------------------- repeating


@pytest.mark.parametrize(("wish", "repeated"), [("all", 4), ("3", 3), ("99", 4), ("0", 0)])
def test_mtl_rerun_repeats_so_many_runs(wish: str, repeated: int, monkeypatch, results):
    sweep("s", GRID, Experiment(predict=True), seeds=range(2))
    before = [path.read_bytes() for path in sorted(results.iterdir())]
    monkeypatch.setenv("MTL_RERUN", wish)
    again = Experiment(shift=0.009, predict=True)
    sweep("s", GRID, again, seeds=range(2))
    assert len(set(again.calls)) == len(again.calls) == repeated
    assert [path.read_bytes() for path in sorted(results.iterdir())] == before


REPEATED = {  # what differs: (first rows, rows when repeated, whether that is refused)
    "nothing": ([{"big": 1234567.8, "share": None}] * 3, [{"big": 1234568.0, "share": float("nan")}] * 3, False),
    "less than the tolerance": ([{"score": 0.5}], [{"score": 0.509}], False),
    "more than the tolerance": ([{"score": 0.5}], [{"score": 0.511}], True),
    "a text": ([{"kind": "a"}], [{"kind": "b"}], True),
    "the number of rows": ([{"score": 0.5}] * 3, [{"score": 0.5}] * 2, True),
    "a cell that was empty": ([{"score": 0.5, "share": None}], [{"score": 0.5, "share": 0.5}], True),
    "what validation chose": ([{"score": 0.5, "chosen_rate": 1}], [{"score": 0.5, "chosen_rate": 2}], False),
    "a time": ([{"score": 0.5, "train_seconds": 1}], [{"score": 0.5, "train_seconds": 9}], False),
    "a time and the score": ([{"score": 0.5, "train_seconds": 1}], [{"score": 0.6, "train_seconds": 9}], True),
}


@pytest.mark.parametrize("what", REPEATED)
def test_mtl_rerun_finds_a_difference(what: str, monkeypatch):
    first, second, refused = REPEATED[what]
    sweep("s", GRID, lambda **_: first, seeds=range(2))
    monkeypatch.setenv("MTL_RERUN", "all")
    message = r"s: repeating \{'pooling': 'mean', .*'seed': 0\} gives other results than s\.csv"
    with pytest.raises(ValueError, match=message) if refused else nullcontext():
        sweep("s", GRID, lambda **_: second, seeds=range(2))


def test_a_repeated_run_has_one_thread_and_the_process_keeps_its_own(one_thread, monkeypatch):
    def threads(**_) -> dict:
        return {"threads_seen": torch.get_num_threads()}

    sweep("s", GRID, threads, seeds=range(2))
    torch.set_num_threads(2)
    monkeypatch.setenv("MTL_RERUN", "2")
    sweep("s", GRID, threads, seeds=range(2))
    assert torch.get_num_threads() == 2


# ------------------------------------------------------------------------------------------------ several processes

TINY = """
import os, signal, time
from pathlib import Path
import torch
from . import sweeps

HERE = Path(__file__).parent
sweeps.RESULTS = HERE / "results"

def experiment(seed, size):
    if seed == 2 and not (HERE / "killed").exists():
        while not STUDY.path.is_file():
            time.sleep(0.01)
        (HERE / "killed").touch()
        os.kill(os.getppid(), signal.SIGKILL)
    (HERE / f"process-{os.getpid()}").touch()
    while (HERE / "killed").exists() and len(list(HERE.glob("process-*"))) < 3:  # one of the first try, two now
        time.sleep(0.01)
    return {"number": torch.rand(1).item(), "process": os.getpid(), "predictions": [size]}

STUDY = sweeps.Study("tiny", "Does it run?", [{"size": 1}, {"size": 2}], experiment, seeds=range(4), minutes=120)
"""


def test_a_study_runs_in_two_processes_and_goes_on_when_it_was_killed(tmp_path):
    (tmp_path / "experiments").mkdir()
    for name in ("__init__.py", "__main__.py", "runner.py", "sweeps.py"):
        (tmp_path / "experiments" / name).write_text((PACKAGE / name).read_text())
    (tmp_path / "experiments" / "tiny.py").write_text(TINY)

    def command(*arguments: str) -> subprocess.CompletedProcess:
        paths = os.pathsep.join([str(tmp_path), str(PACKAGE.parent)])
        call = [sys.executable, "-m", "experiments", *arguments]
        return subprocess.run(
            call, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=120
        )

    assert command("tiny", "--processes", "1").returncode == -9
    path = tmp_path / "experiments" / "results" / "tiny.csv"
    before = pd.read_csv(path)
    assert 1 <= len(before) < 8
    again = command("tiny", "--processes", "2")
    assert (again.returncode, again.stdout) == (0, "tiny: Does it run?\n    complete, took 0.0 hours of one core\n"), (
        again.stderr
    )
    rows = pd.read_csv(path)
    pd.testing.assert_frame_equal(rows[: len(before)], before, check_dtype=False)  # seconds: 1 or 1.0
    assert len(rows) == 8 and not rows.duplicated(["size", "seed"]).any()
    assert rows["process"][len(before) :].nunique() == 2 and set(rows["threads"]) == {1}
    torch.manual_seed(3)
    assert rows.query("seed == 3")["number"].tolist() == pytest.approx([torch.rand(1).item()] * 2, abs=1e-6)


def test_the_studies_are_listed(capsys):
    known = studies()
    assert "token_weight" in known
    for name, study in known.items():
        assert study.name == name and study.question.endswith("?")
        assert len({tuple(map(str, run.values())) for run in study.runs}) == len(study.runs)
        assert len({tuple(run) for run in study.runs}) == 1  # settings of the same keys
    assert main([]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[::2] == [f"{name}: {study.question}" for name, study in known.items()]
    assert all("runs missing" in line for line in printed[1::2])
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert "no study nothing, expected some of " in capsys.readouterr().err


def test_no_file_of_results_is_without_a_reader():
    readers = [*PACKAGE.glob("*.py"), *(PACKAGE.parent / "notebooks").rglob("*.ipynb")]
    text = "\n".join(path.read_text("utf-8") for path in readers)
    names = {path.name.partition(".")[0] for path in (PACKAGE.parent / "data" / "results").iterdir()}
    assert names and [name for name in sorted(names) if name not in text] == []
