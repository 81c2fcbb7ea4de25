"""How much should the loss of a token task weigh beside that of a sentence task?

A token task's loss is the mean over its tokens. Where few of them lie in spans, most are soon easy, the mean is small
and its gradient short: beside sentence tasks the token task starves. A constant factor repairs one data set and harms
another, so ways to choose it are compared on four data sets, each with two rates of which every seed takes the one
that is better on its own validation texts. Three seeds show which ways fail where; eight set the others apart, and the
default from a plain sum on the corpus.
`python -m experiments.token_weight` writes the comparisons that notebook 04 reads.
"""

from collections.abc import Sequence
from functools import cache

import pandas as pd
import torch

from mtl_helpers import TASKS, MultiTaskModel, SentenceEncoder, Task, TrainingConfig, fit, load_corpus
from mtl_helpers.batches import make_examples
from mtl_helpers.evaluation import labelled, macro_f1, span_counts, span_f1
from mtl_helpers.tasks import IGNORE

from .evidence import Difference, Scores, choose, compare, scores_by
from .public import ENTITIES, INTENT, QUESTION_TYPE, SLOTS, load_public, questions_and_names
from .sweeps import RESULTS, Study, fingerprint

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
    """Settings of TrainingConfig for one of WAYS."""
    token_task = next(task for task in model.tasks if task.level == "token")
    factor = {"three": 3.0, "ten": 10.0}.get(way, 1.0)
    if way == "root":
        factor = tokens_per_span_token(model, train, token_task) ** 0.5
    return {"task_weights": {token_task.name: factor}, "balancing": way if way == "uncertainty" else "fixed"}


def token_weight(data: str, way: str, rate: float, seed: int) -> list[dict]:
    """One model for all tasks of a data set: a row a task."""
    train, validation, test = tables(data, seed)
    tasks = TOGETHER[data]
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
                "factor": settings["task_weights"].get(task.name, 1.0),
                "rows_hash": fingerprint(*used),
                "predictions": guesses if token else [task.index(label) for label in guesses],
            }
        )
    return rows


def seeds(setting: dict) -> range:
    """Eight for what is close and for what a claim is about; three for what fails plainly."""
    return range(8 if setting["way"] in CLOSE or (setting["data"], setting["way"]) == ("course", "mean") else 3)


STUDY = Study(
    "token_weight",
    "How much should the loss of a token task weigh beside that of a sentence task?",
    [{"data": data, "way": way, "rate": rate} for data in ROUNDS for way in WAYS for rate in RATES],
    token_weight,
    seeds,
    minutes=210,
    tolerance=0.05,
)


def gold(data: str, name: str) -> tuple[Task, list]:
    """A task and its labels in the test rows of a data set."""
    task = next(task for task in TOGETHER[data] if task.name == name)
    return task, tables(data, 0)[2][name].dropna().tolist()


@cache
def measured(data: str) -> dict[str, dict[str, Scores]]:
    """{way: {task: Scores}}: each seed of each way at the rate that it chose on its validation texts."""
    chosen = choose(STUDY.rows([run for run in STUDY.runs if run["data"] == data]), ["data", "way"])
    scores = scores_by(chosen, list(STUDY.predictions()), ["data", "way"], gold)
    return {way: tasks for (_, way), tasks in scores.items()}


def against(data: str, way: str, other: str, tasks: Sequence[str]) -> Difference:
    """A way minus another in points, in the mean of some tasks, over the seeds that both have and test sentences.

    Seeds are paired where they draw the texts to train on, which is everywhere but in the corpus.
    """
    first, second = (measured(data)[name] for name in (way, other))
    seeds = min(len(side[task].counts) for side in (first, second) for task in tasks)
    sides = [{task: side[task].first(seeds) for task in tasks} for side in (first, second)]
    return list(compare(*sides, paired=data != "course").values())[-1]


def gains() -> pd.DataFrame:
    """Each other way against the square root: rows data, way, kind (token task, sentence tasks), value, low, high."""
    rows = []
    for data, tasks in TOGETHER.items():
        for way in (way for way in WAYS if way != "root"):
            for kind in ("token task", "sentence tasks"):
                names = [task.name for task in tasks if (task.level == "token") == (kind == "token task")]
                rows.append([data, way, kind, *against(data, way, "root", names).interval])
    return pd.DataFrame(rows, columns=["data", "way", "kind", "value", "low", "high"])


def harm() -> pd.DataFrame:
    """For each of WAYS the task that it harms most measurably, beside the best way for it: least harmful first.

    On test predictions, since a measurable harm holds the choice of sentences too. So the default is decided on these
    data sets and their test parts, and what it is worth elsewhere is another question.

    Returns:
        Rows way, data, task, best (the way that is), value, low, high: points of F1 behind that way, 95 % over seeds
        and sentences.
    """
    rows = []
    for data, tasks in TOGETHER.items():
        for task in (task.name for task in tasks):
            means = {way: against(data, way, "root", [task]).interval.value for way in WAYS}
            best = max(means, key=means.__getitem__)
            for way in WAYS:
                gap = against(data, way, best, [task]).interval if way != best else (0.0, 0.0, 0.0)
                rows.append([way, data, task, best, *gap])
    table = pd.DataFrame(rows, columns=["way", "data", "task", "best", "value", "low", "high"])
    return table.sort_values("high").drop_duplicates("way").sort_values("high", ascending=False, ignore_index=True)


def read(name: str) -> pd.DataFrame:
    """The table "gains" or "harm" as written: to make them takes the labels of the public test sets."""
    return pd.read_csv(RESULTS / f"token_weight.{name}.csv")


if __name__ == "__main__":
    for table in (gains, harm):
        table().to_csv(RESULTS / f"token_weight.{table.__name__}.csv", index=False, float_format="%.4f")
