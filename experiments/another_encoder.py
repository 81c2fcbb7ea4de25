"""Does it hold for another encoder? The course's questions once more, on all-mpnet-base-v2 and 600 sentences.

MPNet (Song et al. 2020, https://arxiv.org/abs/2004.09297) with 12 layers of 768, tuned for similarity on the same
pairs as MiniLM: another architecture, tokenizer and size, five times the parameters. MiniLM goes through the same
design, so that what is due to fewer sentences and seeds is not laid to the encoder. MPNet's weights are fetched by
`python -m experiments weights mpnet`; without them the rows can be read all the same.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from mtl_helpers import TASKS, MultiTaskModel, SentenceEncoder, TrainingConfig, load_corpus
from mtl_helpers.intervals import Interval

from . import samplers, second_task, sweeps
from .evidence import Difference, Scores, choose, compare, corpus_gold, over_seeds, scores_by
from .runs import fitted, task_rows
from .sweeps import Study, fingerprint
from .weights import find
from .what_to_train import similarity

TOPIC, SENTENCE_TYPE, SENTIMENT, ENTITIES = TASKS
NAMES = [task.name for task in TASKS]
SENTENCES, EPOCHS, ROWS = 600, 3, 1000
ENCODERS = ("MPNet", "MiniLM")
RATES = {"MPNet": (3e-5, 1e-4), "MiniLM": (3e-4,)}  # MiniLM: what all seeds chose in `what_to_train`
# MPNet's states vary less than half as much a dimension as MiniLM's: on validation one seed of one model had a mean F1
# of 0.69 at 2e-5 with MiniLM's 1e-3 for the heads, 0.83 with 5e-3.
HEAD_RATE = {"MPNet": 5e-3, "MiniLM": 1e-3}
TOGETHER = ("one model", "one model, heads first", "one model, plain mean")
PAIRS = {"related": (second_task.MARKS, ENTITIES), "unrelated": (TOPIC, SENTIMENT)}
FEW = ("together", "alone, as many rows in all")
WAYS = (
    *TOGETHER,
    *(f"alone, {name}" for name in NAMES),
    *(f"{pair}: {way}" for pair in PAIRS for way in FEW),
)
UNTOUCHED = {"way": "untouched", "rate": 0.0}
TOO_HIGH = [{"encoder": "MPNet", "way": way, "rate": 2e-4} for way in ("one model", "related: together")]  # one seed


def folder(encoder: str) -> Path | None:
    """Where the weights of one of ENCODERS are; None: those that are installed."""
    return find() if encoder == "MPNet" else None


def tables(seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """600 sentences to train on, all to validate and to test on."""
    corpus = load_corpus()
    train, validation, test = (corpus[corpus["split"] == split] for split in ("train", "validation", "test"))
    return train.sample(SENTENCES, random_state=seed), validation, test


def scarce(encoder: str, pair: str, way: str, rate: float, seed: int) -> list[dict]:
    """A task with 50 labels beside a related or an unrelated one: a row for the scarce task."""
    corpus = load_corpus()
    if pair == "related":
        many, few, held_out = second_task.user(50, 0.0, seed)
    else:
        many, few, held_out, *_ = samplers.user("sentiment", 50, seed)
    parts = [many, few, held_out, many.sample(50, random_state=seed)]
    test = corpus[corpus["split"] == "test"]
    own = {"encoder": folder(encoder), "head_rate": HEAD_RATE[encoder]}
    return second_task.scarce_rows(way, parts, PAIRS[pair], test, ROWS, rate, seed, **own)


def another_encoder(encoder: str, way: str, rate: float, seed: int) -> list[dict]:
    """One of WAYS: a row a task, with what is left of similarity (STS-B) where all tasks train; or STS-B before."""
    if way == UNTOUCHED["way"]:
        return [{"stsb": similarity(MultiTaskModel(SentenceEncoder.from_pretrained(folder(encoder))))["test"]}]
    pair, _, rest = way.partition(": ")
    if rest:
        return scarce(encoder, pair, rest, rate, seed)
    train, validation, test = tables(seed)
    tasks = [task for task in TASKS if way in TOGETHER or way == f"alone, {task.name}"]
    weights = {"task_weights": {"entities": 1.0}} if way.endswith("plain mean") else {}
    usual = {"learning_rate": rate, "head_learning_rate": HEAD_RATE[encoder], "max_tokens": 256}
    config = TrainingConfig(epochs=EPOCHS, patience=None, seed=seed, **usual, **weights)
    strategy = ("probe_then_finetune", {"epochs": 1}) if way.endswith("heads first") else ("full_training", {})
    model, history = fitted(tasks, train, validation, config, *strategy, encoder=folder(encoder))
    left = {"stsb": similarity(model)["test"] if way in TOGETHER[:2] else np.nan, "rows_hash": fingerprint(train)}
    return [row | left for row in task_rows(model, history, test)]


STUDY = Study(
    "another_encoder",
    "Does it hold for another encoder, all-mpnet-base-v2?",
    [
        {"encoder": encoder} | setting
        for encoder in ENCODERS
        for setting in [*({"way": way, "rate": rate} for way in WAYS for rate in RATES[encoder]), UNTOUCHED]
    ]
    + TOO_HIGH,
    another_encoder,
    lambda setting: range(5 if setting["rate"] in RATES[setting["encoder"]] else 1),
    minutes=440,
    tolerance=0.007,  # below half the smallest effect that holds here
)


def rows(encoder: str) -> pd.DataFrame:
    """Those of all ways at all rates for one of ENCODERS."""
    return STUDY.rows([run for run in STUDY.runs if run["encoder"] == encoder and run["rate"] in RATES[encoder]])


def chosen(encoder: str) -> pd.DataFrame:
    """Those at the rate that each seed of each way chose on validation."""
    return choose(rows(encoder), ["way"])


def too_high() -> pd.DataFrame:
    """Validation F1 in points of one seed of MPNet, by way and task: at the highest of RATES, and at TOO_HIGH."""
    runs = [{**run, "rate": rate, "seed": 0} for run in TOO_HIGH for rate in (max(RATES["MPNet"]), run["rate"])]
    return 100 * STUDY.rows(runs).pivot_table(index=["way", "task"], columns="rate", values="validation")


@cache
def measured(encoder: str) -> dict[str, dict[str, Scores]]:
    """{way: {task: Scores}} of one of ENCODERS, each seed at the rate that it chose on validation."""
    own, keys = chosen(encoder), ["encoder", "way"]
    return {way: tasks for (_, way), tasks in scores_by(own, list(STUDY.predictions()), keys, corpus_gold).items()}


def pair(encoder: str, first: str, second: str, task: str) -> Difference:
    """One way minus another for a task, in points, over seeds and test sentences."""
    ours, theirs = (measured(encoder)[way][task] for way in (first, second))
    return compare({task: ours}, {task: theirs})[task]


def mean(encoder: str, first: str, second: str) -> Difference:
    """One model minus another, or minus a model for each task ("alone"), in the mean of four tasks."""
    known = measured(encoder)
    other = {name: known[f"alone, {name}" if second == "alone" else second][name] for name in NAMES}
    return compare({name: known[first][name] for name in NAMES}, other)["mean"]


def forgotten(encoder: str) -> Difference:
    """Heads first minus full training, both at the highest rate: Spearman on STS-B times 100, over seeds."""
    of = rows(encoder)
    left = 100 * of[of["rate"] == max(RATES[encoder])].groupby(["way", "seed"])["stsb"].first()
    return over_seeds(left["one model, heads first"], left["one model"], paired=True)


CLAIMS: dict[str, Callable[[str], Difference]] = {  # claim of experiments.claims: the same comparison here
    "a related second task": lambda encoder: pair(encoder, *(f"related: {way}" for way in FEW), "entities"),
    "an unrelated second task": lambda encoder: pair(encoder, *(f"unrelated: {way}" for way in FEW), "sentiment"),
    "one model against four": lambda encoder: mean(encoder, "one model", "alone"),
    "a weight for the token task": lambda encoder: pair(encoder, "one model", "one model, plain mean", "entities"),
    "heads first: similarity kept": forgotten,
    "heads first: mean score": lambda encoder: mean(encoder, "one model, heads first", "one model"),
}


def answer(claimed: float, here: Interval) -> str:
    """Whether a claimed difference holds here, fails (the opposite is measured), or is undecided."""
    if here.low <= 0 <= here.high:
        return "undecided"
    return "holds" if here.value * claimed > 0 else "fails"


@cache
def asked(encoder: str = ENCODERS[0]) -> dict[str, Interval]:
    """{claim: what its comparison gives here}, in points."""
    return {name: measure(encoder).interval for name, measure in CLAIMS.items()}


def absolute(encoder: str) -> pd.DataFrame:
    """F1 on test in points by way and task, means over seeds at the rates that they chose."""
    return (100 * chosen(encoder).pivot_table(index="way", columns="task", values="test")).reindex(WAYS)[NAMES]


def similarities(encoder: str) -> pd.DataFrame:
    """Spearman on STS-B times 100 before and after training, by way and rate, means over seeds."""
    after = rows(encoder).dropna(subset="stsb").groupby(["way", "rate"])["stsb"].mean()
    return 100 * pd.DataFrame({"before": untouched(encoder), "after": after})


def untouched(encoder: str) -> float:
    """Spearman's correlation on STS-B before any training."""
    return float(STUDY.rows([{"encoder": encoder, **UNTOUCHED, "seed": 0}])["stsb"].item())


def speed() -> pd.DataFrame:
    """How fast the package was with both encoders: the rows that experiments.benchmark kept, `--output benchmark.csv`.

    Returns:
        Index (benchmark, contender); columns (encoder, measure): sentences_per_second, and ratio, lowest and highest:
        how many times as fast as what one would use otherwise.
    """
    rows = pd.read_csv(sweeps.RESULTS / "benchmark.csv").replace({"encoder": {"mpnet": "MPNet"}})
    ours = rows[rows["contender"].str.startswith(("ours", "fit", "one model"))]
    table = ours.set_index(["benchmark", "contender", "encoder"])
    measures = ["sentences_per_second", "ratio", "lowest", "highest"]
    return pd.concat({encoder: table[measures].xs(encoder, level="encoder") for encoder in ENCODERS}, axis=1)
