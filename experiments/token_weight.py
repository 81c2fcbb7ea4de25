"""How much should the loss of a token task weigh beside that of a sentence task?

A token task's loss is the mean over its tokens. Where few of them lie in spans, most are soon easy, the mean is small
and its gradient short: beside sentence tasks the token task starves. A constant factor repairs one data set and harms
another, so ways to choose it are compared on four data sets, each with two rates of which every seed takes the one
that is better on its own validation texts. Three seeds show which ways fail where; eight set the others apart.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
import torch

from mtl_helpers import TASKS, MultiTaskModel, SentenceEncoder, Task, TrainingConfig, fit, load_corpus
from mtl_helpers.batches import make_examples
from mtl_helpers.evaluation import labelled, macro_f1, span_counts, span_f1
from mtl_helpers.tasks import IGNORE

from .evidence import choose, compare, scores_by
from .public import ENTITIES, INTENT, QUESTION_TYPE, SLOTS, load_public, questions_and_names
from .sweeps import Study, fingerprint

Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]
ROUNDS = {"course": 3, "trec6_wnut17": 3, "snips_200": 10, "snips_1000": 4}  # epochs
TOGETHER = {
    "course": TASKS,
    "trec6_wnut17": (QUESTION_TYPE, ENTITIES),
    "snips_200": (INTENT, SLOTS),
    "snips_1000": (INTENT, SLOTS),
}
WAYS = ("mean", "three", "root", "ten", "uncertainty")
CLOSE = ("three", "root")  # what three seeds left to choose from
RATES = (3e-4, 5e-4)  # seed 0 was worse at 1e-4 and at 1e-3 on three of the four data sets


@cache
def tables(data: str, seed: int) -> Tables:
    """Rows to train on, drawn by the seed; to validate on; to test on."""
    if data == "trec6_wnut17":
        return (
            questions_and_names("train", 600, seed),
            questions_and_names("validation", 200),
            questions_and_names("test"),
        )
    table = load_corpus() if data == "course" else load_public("snips")
    train, validation, test = (table[table["split"] == split] for split in ("train", "validation", "test"))
    size = {"course": len(train), "snips_200": 200, "snips_1000": 1000}[data]
    held_out = min(len(validation), 200 if data == "snips_200" else 300)
    return train.sample(size, random_state=seed), validation.sample(held_out, random_state=seed), test


def tokens_per_span_token(model: MultiTaskModel, train: pd.DataFrame, task: Task) -> float:
    """Of the tokens that are labelled for a token task, how many there are for each that lies in a span."""
    examples = make_examples(train, model.encoder.tokenizer, [task], model.encoder.max_length)
    codes = torch.tensor([code for example in examples for code in example["labels"][task.name]])
    return ((codes != IGNORE).sum() / (codes > 0).sum()).item()


def settle(way: str, model: MultiTaskModel, train: pd.DataFrame) -> dict:
    """Settings of TrainingConfig for one of WAYS, or for a task alone."""
    token_task = next((task for task in model.tasks if task.level == "token"), None)
    if token_task is None:
        return {}
    factor = {"three": 3.0, "ten": 10.0}.get(way, 1.0)
    if way == "root":
        factor = tokens_per_span_token(model, train, token_task) ** 0.5
    return {"task_weights": {token_task.name: factor}, "balancing": way if way == "uncertainty" else "fixed"}


def token_weight(data: str, way: str, rate: float, seed: int) -> list[dict]:
    """One model for all tasks, or (way: alone, NAME) for one of them: a row a task."""
    train, validation, test = tables(data, seed)
    tasks = [task for task in TOGETHER[data] if way in WAYS or way == f"alone, {task.name}"]
    used = [part.dropna(subset=[task.name for task in tasks], how="all") for part in (train, validation, test)]
    model = MultiTaskModel(SentenceEncoder.from_pretrained(), tasks)
    settings = settle(way, model, used[0])
    config = TrainingConfig(epochs=ROUNDS[data], learning_rate=rate, patience=None, seed=seed, **settings)
    history = fit(model, used[0], used[1], config)
    best = history.to_frame().query("epoch == @history.best_epoch").set_index("task")
    predicted, rows = model.predict(used[2]["text"]), []
    for task in tasks:
        truth, guesses = labelled(task, used[2], predicted)
        token = task.level == "token"
        rows.append(
            {
                "task": task.name,
                "validation": best.at[task.name, "score"],
                "test": span_f1(span_counts(truth, guesses)) if token else macro_f1(truth, guesses),
                "factor": settings.get("task_weights", {}).get(task.name, 1.0),
                "rows_hash": fingerprint(*used),
                "predictions": guesses if token else [task.index(label) for label in guesses],
            }
        )
    return rows


def seeds(setting: dict) -> range:
    """Eight for what is close; three for what fails plainly, and for each task alone, which only gives the scale."""
    return range(8 if setting["way"] in CLOSE else 3)


STUDY = Study(
    "token_weight",
    "How much should the loss of a token task weigh beside that of a sentence task?",
    [
        {"data": data, "way": way, "rate": rate}
        for data, way in [
            *((data, way) for data in ROUNDS for way in WAYS),
            *((data, f"alone, {task.name}") for data, tasks in TOGETHER.items() for task in tasks),
        ]
        for rate in RATES
    ],
    token_weight,
    seeds,
    minutes=220,
    tolerance=0.05,
)


def gold(data: str, name: str) -> tuple[Task, list]:
    """A task and its labels in the test rows of a data set."""
    task = next(task for task in TOGETHER[data] if task.name == name)
    return task, tables(data, 0)[2][name].dropna().tolist()


def summary(rows: pd.DataFrame, predictions: Sequence[dict]) -> pd.DataFrame:
    """Each way on each data set and task: score in points, and the difference from the best way there.

    The rate is that which each seed chose on its validation texts, for each way anew.

    Returns:
        One row per data set, task and way: score, from_best (with low and high, 95 % over seeds and sentences).
    """
    chosen = choose(rows, ["data", "way"])
    scores, table = scores_by(chosen, predictions, ["data", "way"], gold), []
    for data in dict.fromkeys(chosen["data"]):
        ways = {way: tasks for (place, way), tasks in scores.items() if place == data}
        means = {
            (way, task): 100 * float(own(np.ones((1, own.sentences))).mean())
            for way, tasks in ways.items()
            for task, own in tasks.items()
        }
        for task in dict.fromkeys(task for _, task in means):
            best = max((way for way in WAYS if (way, task) in means), key=lambda way: means[way, task])
            for way in (way for way, name in means if name == task):
                value, low, high = compare({task: ways[way][task]}, {task: ways[best][task]})[task].interval
                table.append([data, task, way, means[way, task], value, low, high])
    return pd.DataFrame(table, columns=["data", "task", "way", "score", "from_best", "low", "high"])


def harm(table: pd.DataFrame) -> pd.DataFrame:
    """For each of WAYS the task it harms most: the way whose worst interval lies highest is the default."""
    worst = table[table["way"].isin(WAYS)].sort_values("high").drop_duplicates("way")
    return worst.sort_values("from_best", ascending=False).reset_index(drop=True)
