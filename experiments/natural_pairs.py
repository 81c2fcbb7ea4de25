"""Does a second task help on natural data? Intents and slots of the same kind of requests (SNIPS).

One of the two is scarce, 50 or 200 labelled requests; the other has labels on 1,000 other requests.
`python -m experiments.natural_pairs` writes the comparisons, which take the labels of the public test set.
"""

from functools import cache

import pandas as pd

from mtl_helpers import Task

from .evidence import Difference, by_way, compare, write_differences
from .public import INTENT, SLOTS, load_public
from .runs import only
from .second_task import WAYS, scarce_rows
from .sweeps import Study

RATES = (3e-5, 1e-4, 3e-4, 1e-3)
TRIED = 3e-3  # with two users: no way learns anything at it, so nobody would choose it
PAIRS = {"intent": (SLOTS, INTENT), "slots": (INTENT, SLOTS)}  # scarce task: abundant one, itself


@cache
def requests(split: str) -> pd.DataFrame:
    """A part of SNIPS."""
    table = load_public("snips")
    return table[table["split"] == split]


def user(abundant: Task, scarce: Task, size: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """1,000 rows labelled for the abundant task, others for the scarce one, and a fifth of those to choose by."""
    rows = requests("train").sample(frac=1, random_state=seed)
    few = only(rows[1000:], scarce)[:size]
    return only(rows[:1000], abundant), few[size // 5 :], few[: size // 5]


def natural_pairs(scarce: str, way: str, size: int, rows: int, rate: float, seed: int) -> list[dict]:
    """One user and one way: a row for the scarce task. `rows`: of each task, over all epochs."""
    abundant, own = PAIRS[scarce]
    tables = [*user(abundant, own, size, seed), only(requests("validation"), abundant)[:50]]
    return scarce_rows(way, tables, (abundant, own), requests("test"), rows, rate, seed)


STUDY = Study(
    "natural_pairs",
    "Does a second task help on natural data: intents beside slots, slots beside intents?",
    [
        {"scarce": scarce, "way": way, "size": size, "rows": 2000, "rate": rate}
        for scarce, size in (("intent", 50), ("intent", 200), ("slots", 50))
        for way in WAYS[:3]
        for rate in (RATES[1:] if way == "alone" else (*RATES, TRIED))
    ],
    natural_pairs,
    lambda setting: range(2 if setting["rate"] == TRIED else 8),
    minutes=140,
    tolerance=0.012,  # half the smallest claimed effect
)


COMPARED = ("together", "alone, as many rows in all")


def gold(scarce: str, _: str) -> tuple[Task, list]:
    """The scarce task, and its labels in the test requests."""
    task = PAIRS[scarce][1]
    return task, requests("test")[task.name].tolist()


def gains() -> dict[str, Difference]:
    """Both tasks together against the scarce one alone for as many rows in all, in points of F1.

    Users and test requests are resampled together.

    Returns:
        {"intent, 50 labels": difference, ..., "mean": that of all}; of the users whose runs are all on file.
    """
    runs = [run for run in STUDY.whole() if run["rate"] != TRIED]
    scores = by_way(STUDY, runs, gold)
    pairs = dict.fromkeys((run["scarce"], run["size"]) for run in runs)
    sides = ({f"{scarce}, {size} labels": scores[scarce, size, way] for scarce, size in pairs} for way in COMPARED)
    return compare(*sides)


def at_equal_rates() -> pd.DataFrame:
    """F1 in points where all users train at the same rate, mean over users and pairings: rates x COMPARED."""
    rows = STUDY.rows().query("way in @COMPARED and rate != @TRIED")
    return 100 * rows.pivot_table(index="rate", columns="way", values="test")[list(COMPARED)]


def tied() -> float:
    """Share of the choices behind `gains` in which two rates or more share the best score on validation."""
    rows = STUDY.rows().query("way in @COMPARED and rate != @TRIED")
    choice = [rows[name] for name in ("scarce", "size", "way", "seed")]
    best = rows.groupby(choice)["validation"].transform("max") == rows["validation"]
    return float((best.groupby(choice).sum() > 1).mean())


GAINS = "natural_pairs.gains"

if __name__ == "__main__":
    write_differences(GAINS, gains())
