"""Fifteen ways to freeze, and two controls: what each is worth, how far it moves the encoder, what it forgets.

All train on the whole corpus for three epochs; rates by halving. The loss of entities is multiplied by ten, which was
the package's default when these rows were measured.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from mtl_helpers import (
    TASKS,
    History,
    MultiTaskModel,
    SentenceEncoder,
    Task,
    TrainingConfig,
    evaluate,
    fit,
    freeze,
    load_corpus,
    load_pairs,
    trainable_summary,
)
from mtl_helpers.batches import make_examples
from mtl_helpers.corpus import SPLITS
from mtl_helpers.runtime import bfloat16_is_fast

from .halving import Halving
from .layer_probes import hidden_states
from .public import load_public
from .sweeps import Study

STRATEGIES = {  # way: strategy of freeze and its options
    "full training": ("full_training", {}),
    "heads first": ("probe_then_finetune", {"epochs": 1}),
    "layer-wise decay": ("layerwise_decay", {}),
    "gradual unfreezing": ("gradual_unfreezing", {"layers_per_epoch": 4}),
    "LoRA": ("lora", {}),
    "biases only": ("bias_only", {}),
    "embeddings frozen": ("embeddings", {}),
    "lower half frozen": ("lower_layers", {"layers": 3}),
    "only the top layer": ("lower_layers", {"layers": 5}),
    "heads alone": ("backbone", {}),
    "heads alone, 10x epochs": ("backbone", {}),
    "heads alone, last four layers": ("backbone", {}),
    **{f"{task.name} head frozen": ("one_head", {"task": task.name}) for task in TASKS},
    "everything frozen": ("no_training", {}),
}
LONGER = {"heads alone, 10x epochs": 10}  # times as many epochs
POOLING = {"heads alone, last four layers": "last_layers"}
HALVING = Halving(
    ("strategy",),
    {
        ("full training",): (3e-4, 1e-4),
        ("heads first",): (3e-4, 1e-3),
        ("layer-wise decay",): (3e-4, 1e-3),
        ("gradual unfreezing",): (3e-4, 1e-3),
        ("LoRA",): (3e-3, 1e-3),
        ("biases only",): (3e-3, 1e-3),
        ("embeddings frozen",): (3e-4, 1e-4),
        ("lower half frozen",): (3e-4, 1e-3),
        ("only the top layer",): (3e-3, 1e-3),
        ("heads alone",): (3e-3, 1e-3),
        ("heads alone, 10x epochs",): (1e-3, 3e-3),
        ("heads alone, last four layers",): (3e-3, 1e-3),
        **{(f"{task.name} head frozen",): (3e-4,) for task in TASKS},  # so nearly full training: its rate
        ("everything frozen",): (1e-4,),  # any: nothing moves
    },
)


@cache
def splits() -> dict[str, pd.DataFrame]:
    """The three splits of the course's corpus."""
    corpus = load_corpus()
    return {split: corpus[corpus["split"] == split] for split in SPLITS}


def settings(rate: float, seed: int, epochs: int = 3) -> TrainingConfig:
    """One rate decides both: heads learn at five times the encoder's."""
    rates = {"learning_rate": rate, "head_learning_rate": 5 * rate}
    return TrainingConfig(epochs=epochs, seed=seed, patience=None, task_weights={"entities": 10.0}, **rates)


def frozen_model(way: str, epochs: int = 3, tasks: Sequence[Task] = TASKS) -> MultiTaskModel:
    """The pretrained encoder with heads of random numbers, ready to train in one of STRATEGIES."""
    model = MultiTaskModel(SentenceEncoder.from_pretrained(pooling=POOLING.get(way, "mean")), tasks)
    name, options = STRATEGIES[way]
    if name == "probe_then_finetune":  # a third of the epochs for the heads alone
        options = {"epochs": round(epochs / 3)}
    freeze(model, name, **options)
    return model


def trained(
    way: str, rate: float, seed: int, train: pd.DataFrame, validation: pd.DataFrame, epochs: int = 3, tasks=TASKS
) -> tuple[MultiTaskModel, History, pd.Series]:
    """A model trained in one of STRATEGIES, its history, and each task's score on validation."""
    model = frozen_model(way, epochs, tasks)
    if STRATEGIES[way][0] == "no_training":
        return model, History(), f1(model, validation)
    history = fit(model, train, validation, settings(rate, seed, epochs))
    best = history.to_frame().query("epoch == @history.best_epoch").set_index("task")["score"]
    return model, history, best


def f1(model: MultiTaskModel, table: pd.DataFrame) -> pd.Series:
    """Macro-F1 of each sentence task, F1 of exact spans of each token task."""
    scores = evaluate(model, table, intervals=False).query("metric in ['macro_f1', 'f1']")
    return scores.set_index("task")["value"]


def similarity(encoder: SentenceEncoder, table: pd.DataFrame) -> float:
    """Spearman's correlation of cosines with the scores of sentence pairs."""
    precision = "bfloat16" if bfloat16_is_fast(torch.device("cpu")) else "float32"
    first, second = (encoder.encode(table[f"sentence_{i}"], precision=precision) for i in (1, 2))
    return float(spearmanr((first * second).sum(1).numpy(), table["score"]).statistic)


@cache
def graded() -> dict[str, pd.DataFrame]:
    """The sentence pairs to measure similarity on; STS-B where its file can be had, else its cells stay empty."""
    try:
        return {"pairs": load_pairs(), "stsb": load_public("stsb")}
    except (OSError, ValueError):
        return {"pairs": load_pairs()}


def layer_means(encoder: SentenceEncoder) -> np.ndarray:
    """Mean token vector of each test sentence after each layer, embeddings first: (7, 597, 384)."""
    examples = make_examples(splits()["test"], encoder.tokenizer, [], encoder.max_length)
    return torch.stack([states.mean(1) for states in hidden_states(encoder, examples)], dim=1).numpy()


@cache
def untouched() -> np.ndarray:
    """Token means of the pretrained encoder."""
    return layer_means(SentenceEncoder.from_pretrained())


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """How alike two sets of vectors of the same sentences are, 0 to 1 (Kornblith et al. 2019, section 3)."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def freezing_strategies(strategy: str, learning_rate: float, seed: int) -> list[dict]:
    """Train in one way: a row a task with scores, how far the layers moved, and what similarity is left."""
    data, epochs = splits(), 3 * LONGER.get(strategy, 1)
    model, history, best = trained(strategy, learning_rate, seed, data["train"], data["validation"], epochs)
    moved = zip(untouched(), layer_means(model.encoder), strict=True)
    about = {
        "trainable": int(trainable_summary(model)["trainable"].sum()),
        "chosen_epoch": history.best_epoch if history.epochs else 0,
        **{name: similarity(model.encoder, table) for name, table in graded().items()},
        **{f"cka_{layer}": linear_cka(before, after) for layer, (before, after) in enumerate(moved)},
    }
    rows = pd.DataFrame({"validation": best, "test": f1(model, data["test"])})
    for epoch in (1, 2, 3) if history.epochs else ():
        rows[f"epoch_{epoch}"] = history.to_frame().query("epoch == @epoch").set_index("task")["score"]
    return rows.assign(**about).reset_index(names="task").to_dict("records")


STUDY = Study(
    "freezing_strategies",
    "What is each of fifteen ways to freeze worth, and what does it forget?",
    HALVING.settings,
    freezing_strategies,
    HALVING.seeds,
    minutes=190,
    tolerance=0.06,
)
