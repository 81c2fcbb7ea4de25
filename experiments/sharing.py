"""One model for four tasks, or four models? Four models of their own, to set beside the one of `what_to_train`.

The same sentences, epochs (three), rate of the heads and rules; only the grid of the encoder's rates differs: entities
alone get that of the four-task model, sentence tasks alone, which learn best at lower rates, a lower one.
"""

from functools import cache

import pandas as pd

from mtl_helpers import TASKS, TrainingConfig, load_corpus

from . import what_to_train
from .evidence import Difference, choose, compare, corpus_gold, scores_by
from .runs import RATES, fitted, task_rows
from .sweeps import Study, fingerprint

EPOCHS = 3
GRIDS = {"topic": (3e-5, *RATES), "sentence_type": (3e-5, *RATES), "sentiment": (3e-5, *RATES[:2])}  # others: RATES
ONE = what_to_train.FULL  # the way to train one model that is meant where none is named


def sharing(way: str, rate: float, seed: int) -> list[dict]:
    """A task alone, with a model of its own: one row."""
    corpus = load_corpus()
    train, validation, test = (corpus[corpus["split"] == split] for split in ("train", "validation", "test"))
    tasks = [task for task in TASKS if way == f"alone, {task.name}"]
    config = TrainingConfig(epochs=EPOCHS, learning_rate=rate, patience=None, seed=seed)
    model, history = fitted(tasks, train, validation, config)
    return [row | {"rows_hash": fingerprint(train, validation, test)} for row in task_rows(model, history, test)]


STUDY = Study(
    "sharing",
    "How good is each task with a model of its own, beside one model for four?",
    [{"way": f"alone, {task.name}", "rate": rate} for task in TASKS for rate in GRIDS.get(task.name, RATES)],
    sharing,
    minutes=140,
    tolerance=0.005,  # half the smallest claimed effect
)


@cache
def chosen(rate: float | None = None) -> pd.DataFrame:
    """The rows of each task alone, each seed at the rate that it chose on validation; or all at one `rate`."""
    rows = STUDY.rows()
    return choose(rows if rate is None else rows[rows["rate"] == rate], ["way"])


@cache
def against_four(way: str = ONE, epochs: int = EPOCHS, rate: float | None = None) -> dict[str, Difference]:
    """One model minus four of their own (three epochs each), in points, task by task and in the mean.

    Seeds of the two sides have nothing in common.

    Args:
        way, epochs: how the one model was trained, of those of `what_to_train`.
        rate: of all models; default: what each seed of each model chose.
    """
    read = scores_by(chosen(rate), list(STUDY.predictions()), ["way"], corpus_gold)
    four = {name: scores for tasks in read.values() for name, scores in tasks.items()}
    return compare(what_to_train.measured(None, epochs, rate)[way], four, paired=False)
