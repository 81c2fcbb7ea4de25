"""Does it hold for another encoder? The course's questions once more, on all-mpnet-base-v2 and 600 sentences.

MPNet (Song et al. 2020, https://arxiv.org/abs/2004.09297) with 12 layers of 768, tuned for similarity on the same
pairs as MiniLM: another architecture, tokenizer and size, five times the parameters. Its weights are fetched by
`python -m experiments weights mpnet`; without them the rows can be read all the same.
"""

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import pandas as pd

from mtl_helpers import TASKS, MultiTaskModel, SentenceEncoder, TrainingConfig, load_corpus

from . import samplers, second_task
from .evidence import Difference, Scores, choose, compare, corpus_gold, over_seeds, scores_by
from .runs import fitted, task_rows
from .sweeps import Study, fingerprint
from .weights import find
from .what_to_train import similarity

TOPIC, SENTENCE_TYPE, SENTIMENT, ENTITIES = TASKS
NAMES = [task.name for task in TASKS]
SENTENCES, EPOCHS, ROWS = 600, 3, 1000
RATES = (2e-5, 5e-5)  # at 1.5e-4 one seed learnt next to nothing (validation)
TOGETHER = ("one model", "one model, heads first", "one model, plain mean")
PAIRS = {"related": (second_task.MARKS, ENTITIES), "unrelated": (TOPIC, SENTIMENT)}
FEW = ("together", "alone, as many rows in all")
WAYS = (
    *TOGETHER,
    *(f"alone, {name}" for name in NAMES),
    *(f"{pair}: {way}" for pair in PAIRS for way in FEW),
)
UNTOUCHED = {"way": "untouched", "rate": 0.0}


def tables(seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """600 sentences to train on, all to validate and to test on."""
    corpus = load_corpus()
    train, validation, test = (corpus[corpus["split"] == split] for split in ("train", "validation", "test"))
    return train.sample(SENTENCES, random_state=seed), validation, test


def scarce(pair: str, way: str, rate: float, seed: int) -> list[dict]:
    """A task with 50 labels beside a related or an unrelated one: a row for the scarce task."""
    corpus = load_corpus()
    if pair == "related":
        many, few, held_out = second_task.user(50, 0.0, seed)
    else:
        many, few, held_out, *_ = samplers.user("sentiment", 50, seed)
    parts = [many, few, held_out, many.sample(50, random_state=seed)]
    test = corpus[corpus["split"] == "test"]
    return second_task.scarce_rows(way, parts, PAIRS[pair], test, ROWS, rate, seed, find())


def another_encoder(way: str, rate: float, seed: int) -> list[dict]:
    """One of WAYS: a row a task, with what is left of similarity (STS-B) where all tasks train; or STS-B before."""
    if way == UNTOUCHED["way"]:
        return [{"stsb": similarity(MultiTaskModel(SentenceEncoder.from_pretrained(find())))["test"]}]
    pair, _, rest = way.partition(": ")
    if rest:
        return scarce(pair, rest, rate, seed)
    train, validation, test = tables(seed)
    tasks = [task for task in TASKS if way in TOGETHER or way == f"alone, {task.name}"]
    weights = {"task_weights": {"entities": 1.0}} if way.endswith("plain mean") else {}
    # MPNet's states vary less than half as much a dimension as MiniLM's: its heads need a higher rate and more steps
    usual = {"learning_rate": rate, "head_learning_rate": 5e-3, "max_tokens": 256}
    config = TrainingConfig(epochs=EPOCHS, patience=None, seed=seed, **usual, **weights)
    strategy = ("probe_then_finetune", {"epochs": 1}) if way.endswith("heads first") else ("full_training", {})
    model, history = fitted(tasks, train, validation, config, *strategy, encoder=find())
    left = {"stsb": similarity(model)["test"] if way in TOGETHER[:2] else np.nan, "rows_hash": fingerprint(train)}
    return [row | left for row in task_rows(model, history, test)]


STUDY = Study(
    "another_encoder",
    "Does it hold for another encoder, all-mpnet-base-v2?",
    [*({"way": way, "rate": rate} for way in WAYS for rate in RATES), UNTOUCHED],
    another_encoder,
    lambda setting: range(1 if setting == UNTOUCHED else 5),
    minutes=380,
    tolerance=0.05,
)


def rows() -> pd.DataFrame:
    """Those of all ways, without the one before training."""
    return STUDY.rows([run for run in STUDY.whole() if run["way"] != UNTOUCHED["way"]])


@cache
def measured() -> dict[tuple, dict[str, Scores]]:
    """{(way,): {task: Scores}}, each seed at the rate that it chose on validation."""
    return scores_by(choose(rows(), ["way"]), list(STUDY.predictions()), ["way"], corpus_gold)


def pair(first: str, second: str, task: str) -> Difference:
    """One way minus another for a task, in points, over seeds and test sentences."""
    return compare({task: measured()[first,][task]}, {task: measured()[second,][task]})[task]


def mean(first: str, second: str) -> Difference:
    """One model minus another, or minus a model for each task ("alone"), in the mean of four tasks."""
    other = {name: measured()[f"alone, {name}" if second == "alone" else second,][name] for name in NAMES}
    return compare({name: measured()[first,][name] for name in NAMES}, other)["mean"]


def forgotten(rate: float = RATES[-1]) -> Difference:
    """Heads first minus full training, both at one rate: Spearman on STS-B times 100, over seeds."""
    left = 100 * rows().query("rate == @rate").groupby(["way", "seed"])["stsb"].first()
    return over_seeds(left["one model, heads first"], left["one model"], paired=True)


CLAIMS: dict[str, Callable[[], Difference]] = {  # claim of experiments.claims: the same comparison here
    "a related second task": lambda: pair(*(f"related: {way}" for way in FEW), "entities"),
    "an unrelated second task": lambda: pair(*(f"unrelated: {way}" for way in FEW), "sentiment"),
    "one model against four": lambda: mean("one model", "alone"),
    "a weight for the token task": lambda: pair("one model", "one model, plain mean", "entities"),
    "heads first: similarity kept": forgotten,
    "heads first: mean score": lambda: mean("one model, heads first", "one model"),
}


def answer(claimed: float, here: Difference) -> str:
    """Whether a claimed difference holds here, fails (the opposite is measured), or is undecided."""
    if here.interval.low <= 0 <= here.interval.high:
        return "undecided"
    return "holds" if here.interval.value * claimed > 0 else "fails"


def asked(claimed: Mapping[str, float]) -> pd.DataFrame:
    """What the claims' comparisons give here: claim (index), value, low, high, answer.

    Args:
        claimed: {claim: its difference on MiniLM}.
    """
    found = {name: measure() for name, measure in CLAIMS.items()}
    rows = {name: [*one.interval, answer(claimed[name], one)] for name, one in found.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high", "answer"])


def absolute() -> pd.DataFrame:
    """F1 on test in points by way and task, means over seeds at the rates that they chose."""
    chosen = choose(rows(), ["way"])
    return (100 * chosen.pivot_table(index="way", columns="task", values="test")).reindex(WAYS)[NAMES]


def untouched() -> float:
    """Spearman's correlation on STS-B before any training."""
    return float(STUDY.rows([{**UNTOUCHED, "seed": 0}])["stsb"].item())
