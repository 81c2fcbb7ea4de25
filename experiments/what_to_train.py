"""What should be trained? Seven ways, two of them for longer too, three with few sentences.

Besides the four tasks' rows each run has two more: what is left of the encoder's sense of similarity (STS-B, Spearman's
rank correlation), and how the sentiment head fares on texts from elsewhere, 1,000 sentences of reviews of electronic
goods that it was never trained on. `python -m experiments.what_to_train` writes the comparisons on these two, which
take the labels of public test sets.
"""

from collections.abc import Sequence
from functools import cache

import pandas as pd
import torch
from scipy.stats import spearmanr

from mtl_helpers import TASKS, History, MultiTaskModel, Task, TrainingConfig, load_corpus
from mtl_helpers.evaluation import macro_f1

from .evidence import (
    Correlations,
    Difference,
    choose,
    compare,
    corpus_gold,
    read_differences,
    scores_by,
    write_differences,
)
from .public import load_public
from .runs import RATES, fitted, task_rows
from .sweeps import Study, fingerprint

STRATEGIES = {  # way: strategy of freeze, its options, pooling
    "full training": ("full_training", {}, "mean"),
    "heads first": ("probe_then_finetune", {"epochs": 1}, "mean"),
    "layer-wise decay": ("layerwise_decay", {"decay": 0.8}, "mean"),
    "LoRA": ("lora", {"rank": 8}, "mean"),
    "lower half frozen": ("lower_layers", {"layers": 3}, "mean"),
    "heads alone": ("backbone", {}, "mean"),
    "heads alone, last four layers": ("backbone", {}, "last_layers"),
}
FULL, HEADS = "full training", "heads alone, last four layers"
LONG = (FULL, "heads first")
FEW = (FULL, "heads first", HEADS)
NAMES = [task.name for task in TASKS]
BUDGETS = ((None, 3, tuple(STRATEGIES)), (None, 8, LONG), (50, 3, FEW))  # sentences (None: all), epochs, ways
SIMILARITY, ELSEWHERE = "STS-B", "elsewhere"
PUBLIC = {"stsb": SIMILARITY, "elsewhere": ELSEWHERE}  # column: task


def similarity(model: MultiTaskModel) -> dict:
    """The row of STS-B: Spearman's correlation of cosines with human judgements, and the cosines."""
    pairs = load_public("stsb")
    first, second = (model.encoder.encode(pairs[f"sentence_{i}"].tolist()) for i in (1, 2))
    cosines = (first * second).sum(1).numpy()
    test = float(spearmanr(cosines, pairs["score"]).statistic)
    return {"task": SIMILARITY, "test": test, "predictions": [round(float(cosine), 4) for cosine in cosines]}


def reviews() -> pd.DataFrame:
    """1,000 sentences of reviews with their sentiment."""
    return load_public("reviews").sample(1000, random_state=0)


def elsewhere(model: MultiTaskModel) -> dict:
    """The row of sentiment on reviews: macro-F1, and the labels that the model gives."""
    texts, task = reviews(), TASKS[2]
    guesses = model.predict(texts["text"])[task.name]
    coded = [task.index(label) for label in guesses]
    return {"task": ELSEWHERE, "test": macro_f1(texts[task.name], guesses), "predictions": coded}


def trained(
    way: str, size: int | None, epochs: int, rate: float, seed: int
) -> tuple[MultiTaskModel, History, list[pd.DataFrame]]:
    """A model trained in one of STRATEGIES, its history, and the tables: train, validation, test."""
    corpus = load_corpus()
    train, validation, test = (corpus[corpus["split"] == split] for split in ("train", "validation", "test"))
    if size is not None:  # few labels: a quarter as many to choose by, and as many steps as 800 rows make
        train, validation = train.sample(size, random_state=seed), validation.sample(size // 4, random_state=seed)
        epochs = epochs * 800 // size
    strategy, options, pooling = STRATEGIES[way]
    if way == "heads first":
        options = {"epochs": max(1, epochs // 3)}
    heads = 10 * rate if way.startswith("heads alone") else 1e-3
    usual = {"patience": None, "keep": "best" if size is None else "last", "seed": seed}
    config = TrainingConfig(epochs=epochs, learning_rate=rate, head_learning_rate=heads, **usual)
    return *fitted(TASKS, train, validation, config, strategy, options, pooling), [train, validation, test]


def what_to_train(way: str, size: int | None, epochs: int, rate: float, seed: int) -> list[dict]:
    """One strategy, number of sentences, budget and rate: a row a task, one of STS-B, one of texts from elsewhere."""
    model, history, tables = trained(way, size, epochs, rate, seed)
    rows = [*task_rows(model, history, tables[-1]), similarity(model), elsewhere(model)]
    return [row | {"rows_hash": fingerprint(*tables)} for row in rows]


def try_once(way: str, rate: float, seed: int) -> dict[str, float]:
    """{task: F1 in points} of one model trained with 50 sentences, minus the mean of full training with as many."""
    torch.manual_seed(seed)
    model, history, tables = trained(way, 50, 3, rate, seed)
    full = tidy(50).query("way == @FULL").groupby("task")["test"].mean()
    return {row["task"]: 100 * (row["test"] - full[row["task"]]) for row in task_rows(model, history, tables[-1])}


def rates(way: str, epochs: int = 3) -> tuple[float, ...]:
    """Of the encoder at its peak; heads alone learn at ten times as much. Wide enough that few seeds choose an end."""
    if epochs == 8:  # as many tries for both, each around what most seeds choose
        return (3e-5, *RATES[:2]) if way == FULL else RATES
    if way.startswith("heads alone"):
        return (*RATES, 3e-3, 1e-2)
    if way in ("layer-wise decay", "lower half frozen"):  # their lower layers learn less than the rate, or nothing
        return (*RATES, 3e-3)
    return (3e-4, 1e-3, 3e-3, 1e-2) if way == "LoRA" else RATES


STUDY = Study(
    "what_to_train",
    "Which parts should be trained, and does the answer change with the budget?",
    [
        {"way": way, "size": size, "epochs": epochs, "rate": rate}
        for size, epochs, ways in BUDGETS
        for way in ways
        for rate in rates(way, epochs)
    ],
    what_to_train,
    minutes=400,
    tolerance=0.008,  # half the smallest claimed effect
)


@cache
def runs(size: int | None, epochs: int) -> list[dict]:
    """Those of a number of sentences and a budget, of the ways that have all their runs on file."""
    here = [run for run in STUDY.runs if (run["size"], run["epochs"]) == (size, epochs)]
    begun = {run["way"] for run in STUDY.missing() if run in here}
    return [run for run in here if run["way"] not in begun]


@cache
def chosen(size: int | None = None, epochs: int = 3, rate: float | None = None) -> pd.DataFrame:
    """The rows at a number of sentences and a budget, each seed of each way at the rate that it chose on validation.

    Or at one `rate`, those ways that tried it.
    """
    rows = STUDY.rows(runs(size, epochs)).drop(columns="size")
    return choose(rows if rate is None else rows[rows["rate"] == rate], ["way"])


def tidy(size: int | None = None, epochs: int = 3, rate: float | None = None) -> pd.DataFrame:
    """The same without the rows of public data, whose scores stand in the columns stsb and elsewhere instead."""
    rows, keys = chosen(size, epochs, rate), ["way", "seed"]
    for column, task in PUBLIC.items():
        rows = rows.join(rows[rows["task"] == task].set_index(keys)["test"].rename(column), on=keys)
    return rows[rows["task"].isin(NAMES)]


def gold(_: str, name: str) -> tuple[Task, list]:
    """A task and its labels in the sentences it is tested on."""
    if name == ELSEWHERE:
        return TASKS[2], reviews()[TASKS[2].name].tolist()
    return corpus_gold(_, name)


@cache
def measured(
    size: int | None = None, epochs: int = 3, rate: float | None = None, public: bool = False
) -> dict[str, dict]:
    """{way: {task: its scores}} of the four tasks, or (public) of texts from elsewhere and of STS-B."""
    rows = chosen(size, epochs, rate)
    where = {"size": str(size or ""), "epochs": str(epochs)}
    lines = [line for line in STUDY.predictions() if where.items() <= line.items()]
    wanted = rows["task"].isin([ELSEWHERE] if public else NAMES)
    scores = {way: tasks for (way,), tasks in scores_by(rows[wanted], lines, ["way"], gold).items()}
    if public:
        grades = load_public("stsb")["score"]
        cosines = {tuple(line[key] for key in ("task", "way", "rate", "seed")): line["predictions"] for line in lines}
        for way, own in rows[rows["task"] == SIMILARITY].sort_values("seed").groupby("way"):
            seeds = [cosines[SIMILARITY, way, str(r), str(s)] for r, s in zip(own["rate"], own["seed"], strict=True)]
            scores[way][SIMILARITY] = Correlations(grades, seeds)
    return scores


def against(
    first: str,
    second: str = FULL,
    tasks: Sequence[str] = tuple(NAMES),
    *where: int | float | None,
    public: bool = False,
) -> Difference:
    """A way minus another in points (of F1, or Spearman's correlation times 100), in the mean over tasks.

    Seeds are paired where they draw the sentences to train on; with all sentences their scores are not correlated.

    Args:
        where: number of sentences (None: all), epochs, and rate (None: what each seed chose), as for `chosen`.
    """
    scores = measured(*where, public=public)
    sides = [{task: scores[way][task] for task in tasks} for way in (first, second)]
    return list(compare(*sides, paired=bool(where and where[0])).values())[-1]


WRITTEN = "what_to_train.public"


def label(way: str, column: str, size: int | None = None, epochs: int = 3, rate: float | None = None) -> str:
    """What a comparison with full training is called in the file of those on public data."""
    return f"{way}, {column}, {size or 'all'} sentences, {epochs} epochs, rate {rate or 'chosen'}"


def public_differences() -> dict[str, Difference]:
    """{label: a way minus full training} on STS-B and on texts from elsewhere, at chosen and at equal rates."""
    return {
        label(way, column, size, epochs, rate): against(way, FULL, [task], size, epochs, rate, public=True)
        for size, epochs, _ in BUDGETS
        for way in dict.fromkeys(run["way"] for run in runs(size, epochs))
        if way != FULL
        for rate in (None, *(rate for rate in rates(way, epochs) if rate in rates(FULL, epochs)))
        for column, task in PUBLIC.items()
    }


def public(way: str, column: str, *where: int | float | None) -> Difference:
    """A way minus full training in points: similarity kept ("stsb") or sentiment on texts from elsewhere.

    Args:
        where: as for `against`.
    """
    return read_differences(WRITTEN)[label(way, column, *where)]


if __name__ == "__main__":
    write_differences(WRITTEN, public_differences())
