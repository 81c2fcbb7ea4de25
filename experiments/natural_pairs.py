"""Does a second task help on natural data? Intents and slots of the same kind of requests (SNIPS).

One of the two is scarce, 50 or 200 labelled requests; the other has labels on 1,000 other requests.
"""

from functools import cache

import pandas as pd

from mtl_helpers import Task

from .public import INTENT, SLOTS, load_public
from .runs import fitted, only, task_rows
from .second_task import settings
from .sweeps import Study, fingerprint

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
    many, few, held_out = user(abundant, own, size, seed)
    looked_at, start = only(requests("validation"), abundant)[:50], None
    if way == "first A, then B":
        first, _ = fitted([abundant], many, looked_at, settings(rows, rate, seed))
        start = first.encoder.state_dict()
    if way == "together":
        both, held = pd.concat([many, few]), pd.concat([held_out, looked_at])
        model, history = fitted([abundant, own], both, held, settings(2 * rows, rate, seed))
    else:
        total = 2 * rows if way == "alone, as many rows in all" else rows
        model, history = fitted([own], few, held_out, settings(total, rate, seed), start=start)
    written = task_rows(model, history, requests("test"), [own])
    return [row | {"rows_hash": fingerprint(many, few, held_out)} for row in written]


STUDY = Study(
    "natural_pairs",
    "Does a second task help on natural data: intents beside slots, slots beside intents?",
    [
        {"scarce": scarce, "way": way, "size": size, "rows": 2000, "rate": rate}
        for scarce in PAIRS
        for size in (50, 200)
        for way in ("together", "alone", "alone, as many rows in all", "first A, then B")
        for rate in (1e-4, 3e-4)
    ],
    natural_pairs,
    minutes=220,
    tolerance=0.1,
)
