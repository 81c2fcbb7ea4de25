"""Experiments as grids: one run per (setting, seed), its rows appended to `data/results/` as soon as it ends.

What is on file is not run again, so that a sweep that was killed goes on where it stopped, and a notebook reads an
expensive experiment in a second. MTL_RERUN=3 in the environment repeats three random runs of every sweep that is
read, MTL_RERUN=all repeats them all, and both compare with the committed rows.
"""

import gzip
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from mtl_helpers.corpus import DATA
from mtl_helpers.progress import progress
from mtl_helpers.runtime import bfloat16_is_fast, device

RESULTS = DATA / "results"
CIRCUMSTANCES = ["seconds", "device", "threads", "precision", "torch", "transformers"]


@dataclass(frozen=True)
class Study:
    """A question, the grid of runs that answers it, and its rows on file.

    Args:
        name: of the file of results, `data/results/NAME.csv`.
        question: in one sentence.
        settings: the grid, one dict of the same keys each.
        experiment: called as experiment(seed=seed, **setting) after torch has been seeded; gives the metrics of one
            row, or a list of them for several rows. A metric that it can't measure here (a data set is not at hand)
            is left out: its cell stays empty, and a repeated run compares the others. What stands under the key
            "predictions", one entry a test sentence, goes to `data/results/NAME.predictions.gz`.
        seeds: run numbers, also the random seeds; or a function that gives those of a setting.
        minutes: what the whole grid takes on one CPU core.
        tolerance: largest absolute difference of a metric that a repeated run may show. Columns called chosen_...
            are not compared: another number of threads can tip what validation chooses without moving a score.
            Nor are those called ...seconds: a time belongs to one machine at one moment.
    """

    name: str
    question: str
    settings: Sequence[dict]
    experiment: Callable[..., dict | list[dict]]
    seeds: Sequence[int] | Callable[[dict], Sequence[int]] = tuple(range(8))
    minutes: float = 0.0
    tolerance: float = 0.01

    @property
    def runs(self) -> list[dict]:
        """All runs, seed by seed, so that a sweep that ends early has whole seeds."""
        of = self.seeds if callable(self.seeds) else lambda _: self.seeds
        runs = [{**setting, "seed": seed} for setting in self.settings for seed in of(setting)]
        return sorted(runs, key=lambda run: run["seed"])

    @property
    def path(self) -> Path:
        """The file of rows."""
        return RESULTS / f"{self.name}.csv"

    def missing(self) -> list[dict]:
        """Runs that have no rows on file."""
        known = _read(self.path, list(self.runs[0]))
        return [run for run in self.runs if _key(run) not in known]

    def whole(self) -> list[dict]:
        """The runs of those seeds of which no run is missing: what there is to read while a study goes on."""
        missing = {run["seed"] for run in self.missing()}
        return [run for run in self.runs if run["seed"] not in missing]

    def hours(self) -> float:
        """What the runs on file took, one after the other."""
        return pd.read_csv(self.path).drop_duplicates(list(self.runs[0]))["seconds"].sum() / 3600

    def complete(self, label: str = "") -> None:
        """Run what is missing, one run after the other, in this process."""
        for run in progress(self.missing(), label or self.name):
            self.append(run, self.measure(run))

    def measure(self, run: dict) -> list[dict]:
        """The rows of one run, with the circumstances under which they were measured."""
        torch.manual_seed(run["seed"])
        start = time.perf_counter()
        rows = self.experiment(**run)
        about = {
            "seconds": round(time.perf_counter() - start, 1),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
            "precision": "bfloat16" if bfloat16_is_fast(device()) else "float32",  # what "auto" means here
            "torch": torch.__version__.partition("+")[0],
            "transformers": version("transformers"),
        }
        setting = dict(zip(run, _key(run), strict=True))
        return [{**setting, **row, **about} for row in ([rows] if isinstance(rows, dict) else rows)]

    def append(self, run: dict, rows: list[dict]) -> None:
        """Put the rows of one run on file, its predictions first, so that a row never lacks them."""
        predictions = [
            {**{name: value for name, value in row.items() if isinstance(value, str)}, "predictions": guesses}
            for row in rows
            if (guesses := row.pop("predictions", None)) is not None
        ]
        frame = pd.DataFrame(rows)
        if self.path.is_file():
            header = list(pd.read_csv(self.path, nrows=0))
            if not set(frame) - set(CIRCUMSTANCES) <= set(header):
                raise ValueError(
                    f"{self.path}: has the columns {header}, this run gives {list(frame)}; delete the file"
                )
            frame = frame.reindex(columns=header)
        if predictions:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in predictions)
            _append(self.path.with_suffix(".predictions.gz"), gzip.compress(text.encode(), mtime=0))
        first = not self.path.is_file()
        text = frame.to_csv(index=False, header=first, float_format="%.6g", lineterminator="\n")
        _append(self.path, text.encode())

    def rows(self, runs: Sequence[dict] | None = None) -> pd.DataFrame:
        """Rows of the runs given, or of all: setting, seed, metrics, circumstances.

        Raises:
            ValueError: runs without rows, or a repeated run (MTL_RERUN) that differs from its rows on file.
        """
        runs = self.runs if runs is None else runs
        known = _read(self.path, list(runs[0]))
        lacking = [run for run in runs if _key(run) not in known]
        if lacking:
            remedy = f"python -m experiments {self.name} runs them"
            raise ValueError(f"{self.path}: {len(lacking)} of {len(runs)} runs are missing; {remedy}")
        self._repeat(known, runs)
        return pd.concat([known[_key(run)].assign(**run) for run in runs], ignore_index=True)

    def predictions(self) -> Iterator[dict]:
        """Settings and predictions of each run on file, in the order in which they ran.

        One that was killed between its predictions and its rows ran again: the last lines of a run count.
        """
        with gzip.open(self.path.with_suffix(".predictions.gz"), "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)

    def _repeat(self, known: dict[tuple[str, ...], pd.DataFrame], runs: Sequence[dict]) -> None:
        wish = os.environ.get("MTL_RERUN", "0")
        chosen = runs if wish == "all" else random.sample(list(runs), min(int(wish), len(runs)))
        threads = torch.get_num_threads()
        for run in progress(chosen, f"{self.name}, again"):
            torch.set_num_threads(1)  # as the rows on file were measured
            again = pd.DataFrame(self.measure(run)).drop(columns=[*CIRCUMSTANCES, "predictions"], errors="ignore")
            torch.set_num_threads(threads)
            again = again[[c for c in again if not c.startswith("chosen_") and not c.endswith("seconds")]]
            again = again.where(again.notna())  # None is an empty cell too
            before = known[_key(run)][again.columns]
            try:
                pd.testing.assert_frame_equal(again, before, rtol=1e-5, atol=self.tolerance, check_dtype=False)
            except AssertionError as error:
                message = f"{self.name}: repeating {run} gives other results than {self.path.name}: {error}"
                raise ValueError(message) from error


def sweep(
    name: str,
    settings: Sequence[dict],
    experiment: Callable[..., dict | list[dict]],
    seeds: Iterable[int] = range(5),
    minutes: float = 0.0,
    tolerance: float = 0.01,
) -> pd.DataFrame:
    """The rows of a study that is defined where it is read; runs what is missing. Arguments as for `Study`.

    Returns:
        Rows of the grid, setting by setting: setting, seed, metrics, seconds of the run, device, versions.
    """
    study = Study(name, "", settings, experiment, tuple(seeds), minutes, tolerance)
    if missing := len(study.missing()):
        print(
            f"{name}: {missing} of {len(study.runs)} runs missing, about {minutes * missing / len(study.runs):.0f} min"
        )
        study.complete()
    return study.rows([{**setting, "seed": seed} for setting in settings for seed in study.seeds])


def fingerprint(*tables: pd.DataFrame) -> str:
    """Twelve digits that change with any cell of the tables: which data a row was measured on."""
    texts = [table.to_json(orient="split", index=False, default_handler=str) for table in tables]
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _key(run: dict) -> tuple[str, ...]:
    """Setting and seed as they stand in the file, where everything is text."""
    return tuple("" if value is None else str(value) for value in run.values())


def _append(path: Path, raw: bytes) -> None:
    """Add bytes to a file, whole or not at all: a new file that is on disk takes the place of the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    longer = path.with_name(f".{path.name}.partial")
    with open(longer, "wb") as file:
        file.write(path.read_bytes() + raw if path.is_file() else raw)
        file.flush()
        os.fsync(file.fileno())
    os.replace(longer, path)


def _read(path: Path, keys: list[str]) -> dict[tuple[str, ...], pd.DataFrame]:
    """Rows of a file of results by run."""
    if not path.is_file():
        return {}
    rows = pd.read_csv(path, dtype=dict.fromkeys(keys, str), keep_default_na=False, na_values=[""])
    rows[keys] = rows[keys].fillna("")
    return {key: group.reset_index(drop=True) for key, group in rows.groupby(keys, sort=False)}
