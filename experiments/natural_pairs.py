"""Does a second task help on natural data? Intents and slots of the same kind of requests (SNIPS).

One of the two is scarce, 50 or 200 labelled requests; the other has labels on 1,000 other requests.
`python -m experiments.natural_pairs` writes the comparisons, which take the labels of the public test set.
"""

from functools import cache

import pandas as pd

from mtl_helpers import Task

from .evidence import by_way, compare
from .public import INTENT, SLOTS, load_public
from .runs import only
from .second_task import WAYS, scarce_rows
from .sweeps import RESULTS, Study

RATES = (1e-4, 3e-4)
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
        for rate in RATES
    ],
    natural_pairs,
    minutes=100,
    tolerance=0.1,
)


def gold(scarce: str, _: str) -> tuple[Task, list]:
    """The scarce task, and its labels in the test requests."""
    task = PAIRS[scarce][1]
    return task, requests("test")[task.name].tolist()


def gains() -> pd.DataFrame:
    """Both tasks together against the scarce one alone for as many rows in all (users and test requests resampled).

    Returns:
        Rows scarce, size, value, low, high (points of F1), users: those whose runs are all on file.
    """
    runs = STUDY.whole()
    scores, rows = by_way(STUDY, runs, gold), []
    for scarce, size in dict.fromkeys((run["scarce"], run["size"]) for run in runs):
        sides = ({scarce: scores[scarce, size, way]} for way in ("together", "alone, as many rows in all"))
        rows.append([scarce, size, *compare(*sides)[scarce].interval, len({run["seed"] for run in runs})])
    return pd.DataFrame(rows, columns=["scarce", "size", "value", "low", "high", "users"])


if __name__ == "__main__":
    gains().to_csv(RESULTS / "natural_pairs.gains.csv", index=False, float_format="%.4f")
