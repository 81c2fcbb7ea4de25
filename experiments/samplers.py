"""One task scarce: how much of it in each epoch, and how heavy its loss?

Sentiment with 50 and 200 labels beside 1,000 sentences labelled for topic, entities with 50 beside sentence types;
then once at the size that the text talks about: 12,000 requests with intents beside 120 questions with their types.
All ways are compared on sentiment with 50 labels, the main ones on the rest.
"""

from collections.abc import Mapping
from functools import cache

import pandas as pd

from mtl_helpers import TASKS, Task, TaskSampling, TrainingConfig, load_corpus

from .evidence import Difference, Scores, by_way, choose, compare, read_differences, write_differences
from .natural_pairs import requests
from .public import INTENT, QUESTION_TYPE, load_public
from .runs import RATES, fitted, only, task_rows
from .sweeps import Study, fingerprint

TOPIC, SENTENCE_TYPE, SENTIMENT, ENTITIES = TASKS
PAIRS = {
    "sentiment": (TOPIC, SENTIMENT),
    "entities": (SENTENCE_TYPE, ENTITIES),
    "question_type": (INTENT, QUESTION_TYPE),
}
SAMPLERS = {"proportional": 1.0, "square root": 0.5, "uniform": 0.0}  # alpha
WEIGHTS = {"uniform, weights 1 : 10": 10.0}
ALONE = "alone, as many rows in all"
WAYS = (*SAMPLERS, *WEIGHTS, "uniform, uncertainty", ALONE)
MAIN = ("proportional", "uniform", ALONE)
EPOCHS = 5
FOUR_RATES = (1e-5, 3e-5, *RATES[:2])  # for what the claims rest on


def user(scarce: str, size: int, seed: int) -> tuple[pd.DataFrame, ...]:
    """Rows of the abundant task, of the scarce one, a fifth of those to choose by, rows to watch the other, test."""
    abundant, own = PAIRS[scarce]
    if scarce == "question_type":
        questions = load_public("trec6")
        rows = questions[questions["split"] == "train"].sample(frac=1, random_state=seed)
        many, watched = only(requests("train"), abundant), only(requests("validation"), abundant)[:50]
        few, test = only(rows, own)[:size], questions[questions["split"] == "test"]
    else:
        corpus = load_corpus()
        rows = corpus[corpus["split"] == "train"].sample(frac=1, random_state=seed)
        many, few = only(rows[:1000], abundant), only(rows[1000:], own)[:size]
        watched, test = (corpus[corpus["split"] == split] for split in ("validation", "test"))
        watched = only(watched, abundant)[:50]
    return many, few[size // 5 :], few[: size // 5], watched, test


def samplers(scarce: str, way: str, size: int, rows: int, rate: float, seed: int) -> list[dict]:
    """One user and one way: a row for the scarce task. `rows`: in all, of both tasks, over all epochs."""
    abundant, own = PAIRS[scarce]
    many, few, held_out, watched, test = user(scarce, size, seed)
    alone = way == ALONE
    sampling = TaskSampling(alpha=0.0 if alone else SAMPLERS.get(way, 0.0), order="mixed", rows=rows // EPOCHS)
    usual: dict = {"epochs": EPOCHS, "max_tokens": 256, "patience": None, "keep": "last", "seed": seed}
    usual |= {"learning_rate": rate, "head_learning_rate": 5 * rate, "sampling": sampling}
    if way in WEIGHTS:
        usual["task_weights"] = {own.name: WEIGHTS[way]}
    config = TrainingConfig(balancing="uncertainty" if way.endswith("uncertainty") else "fixed", **usual)
    tasks: list[Task] = [own] if alone else [abundant, own]
    train, held = (few, held_out) if alone else (pd.concat([many, few]), pd.concat([held_out, watched]))
    model, history = fitted(tasks, train, held, config)
    return [row | {"rows_hash": fingerprint(many, few, held_out)} for row in task_rows(model, history, test, [own])]


STUDY = Study(
    "samplers",
    "One task scarce: which sampler, which weight?",
    [
        {"scarce": scarce, "way": way, "size": size, "rows": rows, "rate": rate}
        for scarce, size, rows, ways, rates in (
            ("sentiment", 50, 3200, WAYS, FOUR_RATES),
            ("sentiment", 200, 3200, MAIN, RATES[:2]),
            ("entities", 50, 6400, MAIN, RATES[:2]),
            ("question_type", 120, 12000, (*SAMPLERS, ALONE), RATES[:2]),
        )
        for way in ways
        for rate in rates
    ],
    samplers,
    minutes=470,
    tolerance=0.06,  # half the smallest claimed effect
)


def gold(scarce: str, _: str) -> tuple[Task, list]:
    """The scarce task, and its labels in the sentences it is tested on."""
    task = PAIRS[scarce][1]
    return task, user(scarce, 1, 0)[-1][task.name].dropna().tolist()


@cache
def measured(scarce: str, size: int, way: str, rate: float | None = None) -> Scores:
    """How users fare, each at the rate that she chose, or all at one."""
    wanted = {"scarce": scarce, "size": size, "way": way} | ({} if rate is None else {"rate": rate})
    runs = [run for run in STUDY.runs if wanted.items() <= run.items()]
    return by_way(STUDY, runs, gold)[scarce, size, way]


def against(way: str, other: str, scarce: str = "sentiment", size: int = 50, rate: float | None = None) -> Difference:
    """A way minus another, in points of the scarce task (same users, same sentences).

    Args:
        rate: for all users and both ways; default: what each user chose for each way.
    """
    if scarce == "question_type":  # whose test questions are public data
        return read_differences(WRITTEN)[f"{way} minus {other}" + (f" at {rate:g}" if rate else "")]
    return difference(way, other, scarce, size, rate)


def difference(way: str, other: str, scarce: str, size: int, rate: float | None = None) -> Difference:
    """The same from the rows, for question types with the labels of their test questions."""
    first, second = (measured(scarce, size, name, rate) for name in (way, other))
    return compare({scarce: first}, {scarce: second})[scarce]


ABUNDANT = {"question_type": 12_252}  # rows of the abundant task where they are not 1,000


def overview(names: Mapping[tuple[str, int], str]) -> pd.DataFrame:
    """What each scarce task is trained on, and its F1 on test in points, means over users at their rates.

    Args:
        names: {(scarce task, number of labels): how it is called}.

    Returns:
        A row for each: labels (those trained on), drawn (rows, over all epochs) with uniform and with proportional
        shares, F1 alone for as many rows in all, and of both shares.
    """
    table = {}
    for (scarce, size), name in names.items():
        place = {"scarce": scarce, "size": size}
        runs = [run for run in STUDY.runs if place.items() <= run.items()]
        f1 = 100 * choose(STUDY.rows(runs), ["way"]).groupby("way")["test"].mean()
        few, rows = size - size // 5, runs[0]["rows"]
        sizes = {"abundant": ABUNDANT.get(scarce, 1000), "scarce": few}
        drawn = [rows * TaskSampling(alpha=alpha).shares(sizes)["scarce"] for alpha in (0.0, 1.0)]
        table[name] = [few, *drawn, *f1[[ALONE, "uniform", "proportional"]]]
    columns = [
        ("", "labels"),
        *(("drawn", way) for way in MAIN[1::-1]),
        ("F1", "alone"),
        *(("F1", w) for w in MAIN[1::-1]),
    ]
    frame = pd.DataFrame.from_dict(table, orient="index").round().astype(int)
    return frame.set_axis(pd.MultiIndex.from_tuples(columns), axis=1)


WRITTEN = "samplers.question_type"


def many() -> dict[str, Difference]:
    """What is said of 12,000 rows beside 120: {"way minus other": difference}."""
    sides = [("uniform", ALONE), *((way, "uniform") for way in SAMPLERS if way != "uniform")]
    return {f"{way} minus {other}": difference(way, other, "question_type", 120) for way, other in sides}


if __name__ == "__main__":
    write_differences(WRITTEN, many())
