"""One model for four tasks, or four models? And the recipe that the course recommends, as a whole."""

from functools import cache

import pandas as pd

from mtl_helpers import TASKS, Task, TrainingConfig, load_corpus

from .evidence import Difference, Scores, choose, compare, scores_by
from .runs import fitted, task_rows
from .sweeps import Study, fingerprint

EPOCHS, RATES = 5, (1e-4, 3e-4, 1e-3)
LONG = "one model, four times as long"
TOGETHER = {  # way: strategy, its options, epochs
    "one model": ("full_training", {}, EPOCHS),
    "one model, heads first": ("probe_then_finetune", {"epochs": 2}, EPOCHS),
    LONG: ("full_training", {}, 4 * EPOCHS),
}


def sharing(way: str, rate: float, seed: int) -> list[dict]:
    """One of TOGETHER, or a task alone: a row a task."""
    corpus = load_corpus()
    train, validation, test = (corpus[corpus["split"] == split] for split in ("train", "validation", "test"))
    tasks = [task for task in TASKS if way in TOGETHER or way == f"alone, {task.name}"]
    strategy, options, epochs = TOGETHER.get(way, ("full_training", {}, EPOCHS))
    config = TrainingConfig(epochs=epochs, learning_rate=rate, patience=None, seed=seed)
    model, history = fitted(tasks, train, validation, config, strategy, options)
    return [row | {"rows_hash": fingerprint(corpus)} for row in task_rows(model, history, test)]


STUDY = Study(
    "sharing",
    "One model for four tasks, or four models?",
    [
        {"way": way, "rate": rate}
        for way in [*TOGETHER, *(f"alone, {task.name}" for task in TASKS)]
        for rate in (RATES if way != LONG else RATES[1:2])  # four times as long is four times as dear: one rate
    ],
    sharing,
    minutes=420,
    tolerance=0.05,
)


@cache
def chosen() -> pd.DataFrame:
    """The rows of each seed of each way at the rate that it chose on validation."""
    return choose(STUDY.rows(), ["way"])


def gold(_: str, name: str) -> tuple[Task, list]:
    """A task and its labels in the test sentences."""
    corpus = load_corpus()
    return next(task for task in TASKS if task.name == name), corpus.loc[corpus["split"] == "test", name].tolist()


@cache
def measured() -> dict[str, dict[str, Scores]]:
    """{way: {task: scores of its seeds}}; the four models of their own are one way, "four models"."""
    scores = {way: tasks for (way,), tasks in scores_by(chosen(), list(STUDY.predictions()), ["way"], gold).items()}
    alone = {task.name: scores.pop(f"alone, {task.name}")[task.name] for task in TASKS}
    return scores | {"four models": alone}


@cache
def against(way: str, other: str = "four models") -> dict[str, Difference]:
    """A way minus another, in points, task by task and in the mean; seeds of the two sides have nothing in common."""
    return compare(measured()[way], measured()[other], paired=False)


def scores(way: str) -> pd.Series:
    """F1 on test in points, means over seeds, by task; "alone" for the four models of their own."""
    rows = chosen()[chosen()["way"].str.startswith("alone") if way == "alone" else chosen()["way"] == way]
    return 100 * rows.groupby("task")["test"].mean()
