"""Experiments as grids: one run per (setting, seed), its rows appended to `data/results/` as soon as it ends.

What is in the file already is not run again, so that a notebook shows an expensive experiment whole, reads it in
a second, and repeats just what somebody deletes. MTL_RERUN=3 in the environment repeats three random runs of
every sweep, MTL_RERUN=all repeats them all, and both compare with the committed rows.
"""

import io
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from .corpus import DATA, progress

RESULTS = DATA / "results"
CIRCUMSTANCES = ["seconds", "device", "torch", "transformers"]


def sweep(
    name: str,
    settings: Sequence[dict],
    experiment: Callable[..., dict | list[dict]],
    seeds: Iterable[int] = range(5),
    minutes: float = 0.0,
    tolerance: float = 0.01,
) -> pd.DataFrame:
    """Run an experiment for every setting and seed that `data/results/NAME.csv` lacks, and return all rows asked for.

    Args:
        name: of the file of results.
        settings: the grid, one dict of the same keys each.
        experiment: called as experiment(seed=seed, **setting) after torch has been seeded; gives the metrics
            of one row, or a list of them for several rows. A metric that it can't measure here (a data set is not
            at hand) is left out: its cell stays empty, and a repeated run compares the others.
        seeds: run numbers, also the random seeds.
        minutes: what the whole grid took on two CPU cores; printed before anything runs.
        tolerance: largest absolute difference of a metric that a repeated run may show. Columns called chosen_...
            are not compared: another number of threads can tip what validation chooses without moving a score.
            Nor are those called ...seconds: a time belongs to one machine at one moment.

    Returns:
        Rows of the grid: setting, seed, metrics, seconds of the run, device, versions of torch and transformers.

    Raises:
        ValueError: a repeated run (MTL_RERUN) differs by more than the tolerance, or gives other rows.
    """
    runs = [{**setting, "seed": seed} for setting in settings for seed in seeds]
    keys = list(runs[0])
    path = RESULTS / f"{name}.csv"
    there = _read(path, keys)
    missing = [run for run in runs if _key(run) not in there]
    if missing:
        print(f"{name}: {len(missing)} of {len(runs)} runs missing, about {minutes * len(missing) / len(runs):.0f} min")
        for run in progress(missing, name):
            _append(path, _run(experiment, run))
        there = _read(path, keys)
    _repeat(name, [run for run in runs if run not in missing], there, experiment, tolerance)
    return pd.concat([there[_key(run)].assign(**run) for run in runs], ignore_index=True)


def _key(run: dict) -> tuple[str, ...]:
    """Setting and seed as they stand in the file, where everything is text."""
    return tuple("" if value is None else str(value) for value in run.values())


def _run(experiment: Callable[..., dict | list[dict]], run: dict) -> pd.DataFrame:
    torch.manual_seed(run["seed"])
    start = time.perf_counter()
    rows = experiment(**run)
    seconds = round(time.perf_counter() - start, 1)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    about = {
        "seconds": seconds,
        "device": device,
        "torch": torch.__version__.partition("+")[0],
        "transformers": version("transformers"),
    }
    setting = dict(zip(run, _key(run), strict=True))
    return pd.DataFrame([{**setting, **row, **about} for row in ([rows] if isinstance(rows, dict) else rows)])


def _append(path: Path, rows: pd.DataFrame) -> None:
    """Add the rows of one run in a single write that is on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        header = pd.read_csv(path, nrows=0).columns
        if not set(rows) <= set(header):
            raise ValueError(f"{path}: has the columns {list(header)}, this run gives {list(rows)}; delete the file")
        rows = rows.reindex(columns=header)
    with open(path, "a", encoding="utf-8", newline="") as file:
        file.write(rows.to_csv(index=False, header=file.tell() == 0, float_format="%.6g", lineterminator="\n"))
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, keys: list[str]) -> dict[tuple[str, ...], pd.DataFrame]:
    """Rows of a file of results by run. If its last line is cut off, its run is dropped, to be run again."""
    if not path.is_file() or b"\n" not in path.read_bytes():
        path.unlink(missing_ok=True)
        return {}
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    rows = pd.read_csv(io.BytesIO(whole), dtype=dict.fromkeys(keys, str), keep_default_na=False, na_values=[""])
    rows[keys] = rows[keys].fillna("")
    if whole != raw and len(rows):
        rows = rows[(rows[keys] != rows[keys].iloc[-1]).any(axis=1)]
    if whole != raw:
        rows.to_csv(path, index=False, lineterminator="\n")
    return {key: part.reset_index(drop=True) for key, part in rows.groupby(keys, sort=False)}


def _repeat(name: str, runs: list[dict], there: dict, experiment: Callable, tolerance: float) -> None:
    wish = os.environ.get("MTL_RERUN", "0")
    chosen = runs if wish == "all" else random.sample(runs, min(int(wish), len(runs)))
    for run in progress(chosen, f"{name}, again"):
        again = _run(experiment, run).drop(columns=CIRCUMSTANCES)
        again = again[[c for c in again if not c.startswith("chosen_") and not c.endswith("seconds")]]
        again = again.where(again.notna())  # None is an empty cell too
        before = there[_key(run)][again.columns]
        try:
            pd.testing.assert_frame_equal(again, before, rtol=1e-5, atol=tolerance, check_dtype=False)
        except AssertionError as error:
            raise ValueError(f"{name}: repeating {run} gives other results than {name}.csv: {error}") from error
