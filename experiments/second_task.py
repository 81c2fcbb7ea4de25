"""When does a second task help? A scarce task beside one that knows more or less about it.

Scarce: entities with their types, 50 labelled sentences. Abundant: where an entity is, without its type, in 1,000 other
sentences of the corpus; in a share of these sentences the marks are put on random words, so that the second task goes
from most informative (0) to saying only how many entities there are (1). Compared with the scarce task alone, alone for
as many rows in all, and one task after the other.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from mtl_helpers import TASKS, Task, TaskSampling, TrainingConfig, load_corpus

from .evidence import Difference, choose, compare, corpus_gold, scores_by
from .runs import fitted, only, task_rows
from .sweeps import Study, fingerprint

ENTITIES = TASKS[-1]
MARKS = Task("marks", ("ENTITY",), "token")
EPOCHS = 5


def moved(spans: list, text: str, generator: np.random.Generator) -> list:
    """As many marks, each of as many words as it had, put on words at random, without overlap."""
    words, place = [], 0
    for word in text.split():
        start = text.index(word, place)
        place = start + len(word)
        words.append((start, place))
    marks: list[tuple[int, int, str]] = []
    for start, end, label in spans:
        length = min(len(text[start:end].split()), len(words))
        first = int(generator.integers(len(words) - length + 1))
        mark = (words[first][0], words[first + length - 1][1], label)
        if all(mark[1] <= other[0] or mark[0] >= other[1] for other in marks):
            marks.append(mark)
    return sorted(marks)


@cache
def user(size: int, noise: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Rows with marks, rows with typed entities to train on, and a fifth of the typed ones to choose by."""
    corpus = load_corpus()
    rows = corpus[corpus["split"] == "train"].sample(frac=1, random_state=seed)
    many, few = rows[:1000], only(rows[1000:], ENTITIES)[:size]
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(many)) < noise * len(many)
    marks = [[(start, end, "ENTITY") for start, end, _ in spans] for spans in many["entities"]]
    cells = [
        moved(spans, text, generator) if move else spans
        for spans, text, move in zip(marks, many["text"], shuffled, strict=True)
    ]
    many = many[["id", "text", "split"]].assign(marks=pd.Series(cells, index=many.index, dtype=object))
    return many, few[size // 5 :], few[: size // 5]


def settings(rows: int, rate: float, seed: int, head_rate: float | None = None) -> TrainingConfig:
    """Rows in all, uniform shares, tasks mixed in each batch; the last weights, as ten labels choose no epoch."""
    sampling = TaskSampling(alpha=0.0, order="mixed", rows=rows // EPOCHS)
    rates = {"learning_rate": rate, "head_learning_rate": head_rate or 5 * rate}
    usual = {"epochs": EPOCHS, "max_tokens": 256, "patience": None, "keep": "last", "seed": seed}
    return TrainingConfig(sampling=sampling, **rates, **usual)


def scarce_rows(
    way: str,
    tables: Sequence[pd.DataFrame],
    tasks: tuple[Task, Task],
    test: pd.DataFrame,
    rows: int,
    rate: float,
    seed: int,
    encoder: Path | None = None,
    head_rate: float | None = None,
) -> list[dict]:
    """Train for a scarce task in one of WAYS: its row.

    Args:
        tables: rows of the abundant task, of the scarce one, of the scarce one to choose by, of the other to look at.
        tasks: the abundant and the scarce one.
        rows: of each task, over all epochs.
        encoder: folder of another encoder than MiniLM.
        head_rate: learning rate of the heads; default: five times that of the encoder.
    """
    many, few, held_out, looked_at = tables
    abundant, scarce = tasks
    usual = {"rate": rate, "seed": seed, "head_rate": head_rate}
    start = None
    if way == "first A, then B":
        first, _ = fitted([abundant], many, looked_at, settings(rows, **usual), encoder=encoder)
        start = first.encoder.state_dict()
    if way == "together":
        both, held = pd.concat([many, few]), pd.concat([held_out, looked_at])
        model, history = fitted([abundant, scarce], both, held, settings(2 * rows, **usual), encoder=encoder)
    else:
        total = 2 * rows if way == "alone, as many rows in all" else rows
        model, history = fitted([scarce], few, held_out, settings(total, **usual), start=start, encoder=encoder)
    written = task_rows(model, history, test, [scarce])
    return [row | {"rows_hash": fingerprint(many, few, held_out)} for row in written]


def second_task(way: str, size: int, noise: float, rows: int, rate: float, seed: int) -> list[dict]:
    """One user and one way: a row for the scarce task. `rows`: of each task, over all epochs."""
    many, few, held_out = user(size, noise, seed)
    corpus = load_corpus()
    tables = [many, few, held_out, many.sample(50, random_state=seed)]
    return scarce_rows(way, tables, (MARKS, ENTITIES), corpus[corpus["split"] == "test"], rows, rate, seed)


WAYS = ("together", "alone", "alone, as many rows in all", "first A, then B")
RATE = 1e-4  # of the picture: the best of three in the mean over all ways, on validation labels of the first two users
TRIED = (3e-5, 3e-4)  # the others
CLAIMED = ("together", "alone, as many rows in all")  # what the claim compares: all users try all rates


def seeds(setting: dict) -> range:
    """Eight users; two for the rates that were only tried."""
    return range(8 if setting["rate"] == RATE or (setting["way"] in CLAIMED and not setting["noise"]) else 2)


STUDY = Study(
    "second_task",
    "When does a second task help, and how much must it know about the first?",
    [
        {"way": way, "size": 50, "noise": noise, "rows": 3200, "rate": rate}
        for way in WAYS
        for noise in ((0.0, 0.5, 1.0) if way == "together" else (0.0,))
        for rate in (RATE, *TRIED)
    ],
    second_task,
    seeds,
    minutes=210,
    tolerance=0.04,  # half the smallest claimed effect
)


def gain() -> Difference:
    """With all marks right, together minus alone for as many rows in all, each user at the rates that she chose."""
    keys = ["way", "noise"]
    rows = STUDY.rows([run for run in STUDY.runs if run["way"] in CLAIMED and not run["noise"]])
    chosen = choose(rows.astype({"noise": str}), keys)
    scores = scores_by(chosen, list(STUDY.predictions()), keys, corpus_gold)
    return compare(*(scores[way, "0.0"] for way in CLAIMED))["entities"]


def tried() -> pd.Series:
    """F1 on the validation labels of the first two users by rate, mean over all ways."""
    rows = STUDY.rows([run for run in STUDY.runs if run["seed"] < 2])
    return rows.groupby("rate")["validation"].mean()
