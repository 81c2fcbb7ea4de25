"""One task scarce, the other abundant and unrelated: from 25 labels to 400, a dozen ways (first edition's rules).

A user has 1,000 sentences labelled for the abundant task and a few others labelled for the scarce one; a fifth of
these she keeps to choose between two rates. Ways are trained on 800 rows of each task unless they say more. The loss
of entities counts ten times, the default when these rows were measured.
"""

from functools import cache, lru_cache

import pandas as pd
import torch

from mtl_helpers import (
    TASKS,
    History,
    MultiTaskModel,
    SentenceEncoder,
    TaskSampling,
    TrainingConfig,
    fit,
    freeze,
    load_corpus,
)
from mtl_helpers.evaluation import validate
from mtl_helpers.runtime import bfloat16_is_fast

from . import balancing_methods  # noqa: F401  (registers them)
from .public import QUESTION_TYPE, questions_and_names
from .sweeps import Study

BY_NAME = {task.name: task for task in (*TASKS, QUESTION_TYPE)}
PAIRS = {
    "topic → sentiment": ("topic", "sentiment"),
    "sentence_type → entities": ("sentence_type", "entities"),
}
OUTSIDE = {
    "question_type → entities": ("question_type", "entities"),
    "entities → question_type": ("entities", "question_type"),
}
TASKS_OF = PAIRS | OUTSIDE
SIZES = (25, 50, 100, 200, 400)
RATES = (1e-4, 3e-4)
SAMPLERS = {
    "proportional": {"alpha": 1.0},
    "square root": {"alpha": 0.5},
    "temperature 3, cap 500": {"alpha": 1 / 3, "cap": 500},
    "uniform": {"alpha": 0.0},
    "annealed": {"alpha": 1.0, "final_alpha": 0.2},
    "round robin": {"alpha": 0.0, "order": "round_robin"},
}
WEIGHTS = ("weights 1 : 1", "weights 1 : 3", "weights 1 : 10")  # abundant : scarce
BALANCERS = {
    "uncertainty": "uncertainty",
    "dynamic weight average": "dynamic_weight_average",
    "GradNorm": "gradnorm",
    "PCGrad": "pcgrad",
}
FROZEN = {"heads alone": "mean", "heads alone, last four layers": "last_layers"}
TOGETHER = {  # entities ten times a sentence task
    "topic → sentiment": "weights 1 : 1",
    "sentence_type → entities": "weights 1 : 10",
    "question_type → entities": "weights 1 : 10",
    "entities → question_type": "weights 10 : 1",
}
ONE_TASK = ("alone", "alone, twice as long", *FROZEN, "pseudo-labels", "first A, then B")
VARIANTS = (*SAMPLERS, *WEIGHTS, *BALANCERS, "together, twice as long")


def ways(pair: str) -> list[str]:
    """The main ways of a pair. Single tokens are read from the last layer, whatever is pooled."""
    token = BY_NAME[TASKS_OF[pair][1]].level == "token"
    return [way for way in ONE_TASK if not (token and FROZEN.get(way) == "last_layers")] + [TOGETHER[pair]]


@cache
def sentences(pair: str, split: str) -> pd.DataFrame:
    """The sentences that the users of a pair have, or a part of those that nobody trains on."""
    corpus = load_corpus()
    return questions_and_names(split) if pair in OUTSIDE else corpus[corpus["split"] == split]


def labelled_for(task: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that are labelled for a task, with the labels of this task only."""
    rows = rows[rows[task].notna()]
    return rows.assign(**{other: None for other in BY_NAME if other != task})


@lru_cache(maxsize=2)
def user(pair: str, size: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Rows labelled for the abundant task, for the scarce one, and of the scarce one to choose by."""
    abundant, scarce = TASKS_OF[pair]
    rows = sentences(pair, "train").sample(frac=1, random_state=seed)
    many = labelled_for(abundant, rows)[:1000]
    few = labelled_for(scarce, rows.drop(many.index))[:size]
    return many, few[size // 5 :], few[: size // 5]


def train_on(
    tasks, rows: pd.DataFrame, held_out: pd.DataFrame, rate: float, seed: int, draws: int, start=None, **settings
) -> tuple[MultiTaskModel, History]:
    """A model trained on `draws` rows in five epochs, from an encoder's weights; its history."""
    torch.manual_seed(seed)
    model = MultiTaskModel(
        SentenceEncoder.from_pretrained(pooling=settings.pop("pooling", "mean")), [BY_NAME[name] for name in tasks]
    )
    if start is not None:
        model.encoder.load_state_dict(start)
    if settings.pop("frozen", False):
        freeze(model, "backbone")
    how = {"alpha": 0.0, "order": "mixed"} | settings.pop("sampling", {})
    usual = {"epochs": 5, "max_tokens": 256, "patience": None, "keep": "last", "seed": seed}
    usual |= {"learning_rate": rate, "head_learning_rate": 5 * rate}
    usual |= {"task_weights": {name: 10.0 for name in tasks if BY_NAME[name].level == "token"}}
    config = TrainingConfig(sampling=TaskSampling(**how, rows=draws // 5), **(usual | settings))
    return model, fit(model, rows, held_out, config)


def draws(few: pd.DataFrame) -> int:
    """Rows of a task to train on: 800, but at least five epochs of the scarce labels."""
    return max(800, 5 * len(few))


@lru_cache(maxsize=1)
def alone(pair: str, size: int, rate: float, seed: int) -> tuple[MultiTaskModel, History]:
    """The scarce task and nothing else."""
    _, few, held_out = user(pair, size, seed)
    return train_on([TASKS_OF[pair][1]], few, held_out, rate, seed, draws(few))


def looked_at(pair: str) -> pd.DataFrame:
    """A hundred rows that `fit` scores the abundant task on; nothing is chosen by them."""
    return labelled_for(TASKS_OF[pair][0], sentences(pair, "validation"))[:100]


@lru_cache(maxsize=1)
def abundant_first(pair: str, rate: float, seed: int) -> dict:
    """Weights of the encoder after training on the abundant task."""
    abundant = TASKS_OF[pair][0]
    model, _ = train_on([abundant], user(pair, 25, seed)[0], looked_at(pair), rate, seed, 800)
    return model.encoder.state_dict()


def with_pseudo_labels(pair: str, size: int, rate: float, seed: int) -> tuple[MultiTaskModel, History]:
    """A model learns from the true labels and from what the one trained alone guesses for the other sentences."""
    many, few, held_out = user(pair, size, seed)
    abundant, scarce = TASKS_OF[pair]
    guesses = alone(pair, size, rate, seed)[0].predict(many["text"])[scarce]
    if BY_NAME[scarce].level == "token":
        guesses = [[span[:3] for span in spans] for spans in guesses]
    guessed = many.assign(**{abundant: None, scarce: pd.Series(list(guesses), index=many.index, dtype=object)})
    rows = pd.concat([guessed] + [few] * round(len(guessed) / len(few)))
    return train_on([scarce], rows, held_out, rate, seed, draws(few))


def settings_of(way: str, tasks: tuple[str, str]) -> dict:
    """What a way of training both together changes in the configuration."""
    if way in SAMPLERS:
        return {"sampling": {"order": "shuffled"} | SAMPLERS[way]}
    if way in BALANCERS:
        return {"balancing": BALANCERS[way], "task_weights": dict.fromkeys(tasks, 1.0)}
    weights = map(float, way.removeprefix("weights ").split(" : "))
    return {"task_weights": dict(zip(tasks, weights, strict=True))}


def run_way(way: str, pair: str, size: int, rate: float, seed: int) -> tuple[MultiTaskModel, History]:
    """The trained model and its history."""
    tasks, (many, few, held_out) = TASKS_OF[pair], user(pair, size, seed)
    one = [tasks[1:], few, held_out]
    if way == "alone":
        return alone(pair, size, rate, seed)
    if way in FROZEN:  # heads bear ten times the rate
        return train_on(*one, 10 * rate, seed, 4 * draws(few), frozen=True, pooling=FROZEN[way])
    longer = 2 if way.endswith("twice as long") else 1
    if way == "alone, twice as long":
        return train_on(*one, rate, seed, longer * draws(few))
    if way == "pseudo-labels":
        return with_pseudo_labels(pair, size, rate, seed)
    if way == "first A, then B":
        return train_on(*one, rate, seed, draws(few), start=abundant_first(pair, rate, seed))
    both = [tasks, pd.concat([many, few]), pd.concat([looked_at(pair), held_out])]
    how = settings_of(TOGETHER[pair] if way == "together, twice as long" else way, tasks)
    return train_on(*both, rate, seed, longer * 2 * draws(few), **how)


def scarce_task(pair: str, size: int, method: str, learning_rate: float, seed: int) -> dict:
    """One user, one way, one rate: scores on her validation data and on test, shares, weights."""
    names = TASKS_OF[pair]
    model, history = run_way(method, pair, size, learning_rate, seed)
    test = sentences(pair, "test").dropna(subset=[task.name for task in model.tasks], how="all")
    precision = "bfloat16" if bfloat16_is_fast(torch.device("cpu")) else "float32"
    scores, last = validate(model, model.examples(test), precision), history.to_frame()
    last = last[last["task"] == names[1]].iloc[-1]
    row = {
        "validation": last["score"],
        "validation_loss": last["validation_loss"],
        "scarce": scores[names[1]]["score"],
        "scarce_loss": scores[names[1]]["validation_loss"],
        "epochs_scarce": last["epochs_seen"],
        **dict.fromkeys(["abundant", "share", *(f"weight_{epoch}" for epoch in range(1, 6)), "conflicts"]),
    }
    if len(scores) < 2:
        return row
    steps = history.to_frame("steps")
    drawn = steps[[f"{name}_labels" for name in names]].sum()
    weights = steps.groupby("epoch").last()[[f"{name}_weight" for name in names]]
    return row | {
        "abundant": scores[names[0]]["score"],
        "share": drawn.iloc[1] / drawn.sum(),
        **{f"weight_{epoch}": pair_of.iloc[1] / pair_of.sum() for epoch, pair_of in weights.iterrows()},
        "conflicts": steps["conflicts"].mean() if "conflicts" in steps else None,
    }


def grid(pair: str, size: int, methods, rates=RATES) -> list[dict]:
    """Settings of the study."""
    return [
        {"pair": pair, "size": size, "method": method, "learning_rate": rate} for method in methods for rate in rates
    ]


STUDY = Study(
    "scarce_task",
    "One task scarce beside an unrelated one: which way (first edition's rules)?",
    [
        *(setting for pair in PAIRS for size in SIZES for setting in grid(pair, size, ways(pair))),
        *(setting for pair in OUTSIDE for setting in grid(pair, 50, ways(pair))),
    ],
    scarce_task,
    seeds=range(5),
    minutes=300,
    tolerance=0.15,
)


def choose(rows: pd.DataFrame) -> pd.DataFrame:
    """For each user and way the row that is best on her own validation data, by the loss there where two are equal."""
    order = rows.sort_values(["validation", "validation_loss"], ascending=[False, True])
    return order.drop_duplicates(["pair", "size", "method", "seed"]).sort_index()


def all_rows() -> pd.DataFrame:
    """A row for each user and way; what varies training together takes the rate that she chose for it."""
    best = choose(STUDY.rows())
    plain = best[
        (best["method"] == best["pair"].map(TOGETHER)) & best["pair"].isin(PAIRS) & best["size"].isin([50, 200])
    ]
    runs = [
        {"pair": row.pair, "size": row.size, "method": way, "learning_rate": row.learning_rate, "seed": row.seed}
        for row in plain[["pair", "size", "learning_rate", "seed"]].itertuples(index=False)
        for way in VARIANTS
        if way != TOGETHER[row.pair]
    ]
    return pd.concat([best, STUDY.rows(runs)], ignore_index=True)
