"""Do the choices around a frozen encoder matter: pooling, scaling to unit length, the kind of head?

Each setting trains heads for the three sentence tasks together, thirty epochs on pooled vectors that never change and
are computed once. Learning rate (of seven) and epoch are chosen on validation inside each seed, test is read once.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_helpers import TASKS, load_corpus
from mtl_helpers.batches import make_examples
from mtl_helpers.corpus import SPLITS
from mtl_helpers.encoder import POOLINGS, pool
from mtl_helpers.evaluation import macro_f1
from mtl_helpers.multitask import make_head

from .evidence import Difference, Scores, compare
from .layer_probes import frozen_encoder, hidden_states
from .sweeps import Study

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SCALINGS = ("as pooled", "unit length")
HEADS = ("linear", "mlp", "projection")


@cache
def top_states(split: str) -> tuple[list[dict], list[Tensor]]:
    """Examples of a split and the states of their last four layers, each (4, T, H)."""
    corpus, encoder = load_corpus(), frozen_encoder()
    examples = make_examples(corpus[corpus["split"] == split], encoder.tokenizer, TASKS, encoder.max_length)
    return examples, hidden_states(encoder, examples, slice(-4, None))


def pooled_vectors(pooling: str, scaling: str, split: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Vectors (N, H) of a split, and the labels of its sentence tasks, (N,) each."""
    examples, states = top_states(split)
    vectors = torch.cat([pool(state[:, None].unbind(), torch.ones(1, state.shape[1]), pooling) for state in states])
    labels = {task.name: torch.tensor([row["labels"][task.name] for row in examples]) for task in TASKS[:3]}
    return (F.normalize(vectors, dim=1) if scaling == "unit length" else vectors), labels


def build_heads(head: str, width: int = 384) -> nn.ModuleDict:
    """Three heads, linear or MLP; or linear ones behind a shared projection to 128."""
    projection, kind = nn.Sequential(), ("mlp" if head == "mlp" else "linear")
    if head == "projection":
        projection, width = nn.Sequential(nn.Linear(width, 128), nn.Tanh(), nn.LayerNorm(128), nn.Dropout(0.1)), 128
    heads = {task.name: make_head(width, len(task.classes), kind) for task in TASKS[:3]}
    return nn.ModuleDict({"projection": projection, **heads})


def train_heads(
    model: nn.ModuleDict, x: Tensor, labels: Mapping[str, Tensor], rate: float, epochs: int = 30
) -> Iterator[nn.ModuleDict]:
    """Train on the three sentence tasks at once; yields the model after each epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    for _ in range(epochs):
        model.train()
        for part in torch.randperm(len(x)).split(64):
            shared = model["projection"](x[part])
            loss = sum(F.cross_entropy(model[task](shared), y[part]) for task, y in labels.items())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield model.eval()


@torch.inference_mode()
def predicted(model: nn.ModuleDict, x: Tensor, tasks: Iterable[str]) -> dict[str, np.ndarray]:
    """Class indices (N,) of each task."""
    shared = model["projection"](x)
    return {task: model[task](shared).argmax(1).numpy() for task in tasks}


def head_scores(model: nn.ModuleDict, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, float]:
    """Macro-F1 of each task."""
    return {task: macro_f1(labels[task].numpy(), guesses) for task, guesses in predicted(model, x, labels).items()}


def around_the_backbone(pooling: str, scaling: str, head: str, seed: int) -> dict:
    """One setting: the best rate and epoch on validation, and its scores on test."""
    (x, labels), validation, test = (pooled_vectors(pooling, scaling, split) for split in SPLITS)
    best: tuple = (-1.0,)
    for rate in RATES:
        torch.manual_seed(seed)
        for epoch, model in enumerate(train_heads(build_heads(head), x, labels, rate), start=1):
            mean = np.mean(list(head_scores(model, *validation).values()))
            if mean > best[0]:
                best = (mean, rate, epoch, copy.deepcopy(model))
    chosen = {"validation_f1": best[0], "chosen_rate": best[1], "chosen_epoch": best[2]}
    guesses = np.stack(list(predicted(best[3], *test).values()), axis=1)  # a sentence's labels in a row
    return {**chosen, **head_scores(best[3], *test), "predictions": guesses.tolist()}


COMPARED = ("last_layers", "mean")  # poolings: the gain of the first over the second is a claim


def seeds(setting: dict) -> range:
    """Eight for what a claim is about, five for the rest."""
    claimed = setting["pooling"] in COMPARED and (setting["scaling"], setting["head"]) == ("as pooled", "linear")
    return range(8 if claimed else 5)


STUDY = Study(
    "around_the_backbone",
    "Do pooling, scaling and the kind of head matter on a frozen encoder?",
    [
        {"pooling": pooling, "scaling": scaling, "head": head}
        for pooling in POOLINGS
        for scaling in SCALINGS
        for head in HEADS
    ],
    around_the_backbone,
    seeds,
    minutes=35,
)


def pooling_gains() -> dict[str, Difference]:
    """The first of COMPARED minus the second under linear heads, in points of F1; seeds and test sentences resampled.

    Equal seeds begin with equal weights, but their scores are not correlated, so the two sides are drawn apart.

    Returns:
        {task, or "mean": difference}.
    """
    corpus, runs = load_corpus(), {}
    for line in STUDY.predictions():  # the last ones of a run count
        if (line["scaling"], line["head"]) == ("as pooled", "linear"):
            runs[line["pooling"], line["seed"]] = line["predictions"]
    test = corpus[corpus["split"] == "test"]
    sides = [
        {
            task.name: Scores(task, test[task.name], [[row[i] for row in runs[name, str(s)]] for s in range(8)])
            for i, task in enumerate(TASKS[:3])
        }
        for name in COMPARED
    ]
    return compare(*sides, paired=False)
