"""What does a way to freeze cost: seconds of training, megabytes of memory?

All ways take each batch in turns, so that a disturbance meets them all. Memory is counted, not guessed: the weights;
for every weight that trains its gradient and Adam's two averages; what the forward pass keeps for the backward pass;
cached states, if there are any.
"""

import time
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import pandas as pd
import torch
from torch import nn

from mtl_helpers import TASKS, MultiTaskModel
from mtl_helpers.batches import make_examples
from mtl_helpers.features import frozen_layers, hidden_source
from mtl_helpers.freezing import thaw
from mtl_helpers.optimization import make_optimizer, train_step
from mtl_helpers.runtime import autocast, bfloat16_is_fast
from mtl_helpers.training import epoch_batches

from .freezing_strategies import LONGER, POOLING, STRATEGIES, frozen_model, settings, splits
from .layer_probes import frozen_encoder
from .sweeps import Study

CONTROLS = ("everything frozen", *LONGER, *POOLING)
HEADS = [f"{task.name} head frozen" for task in TASKS]  # one of them stands for all
WAYS = [way for way in STRATEGIES if way not in (*CONTROLS, *HEADS[1:])]
RATE = 3e-4
SAMPLE = 8  # batches of an epoch that are timed


def precision() -> str:
    """What a training run on this processor computes in."""
    return "bfloat16" if bfloat16_is_fast(torch.device("cpu")) else "float32"


@cache
def examples() -> list[dict]:
    """All training sentences, tokenised."""
    encoder = frozen_encoder()
    return make_examples(splits()["train"], encoder.tokenizer, TASKS, encoder.max_length)


def step_memory(model: MultiTaskModel, batch: dict, hidden: Callable) -> dict[str, float]:
    """Megabytes: weights, gradients with Adam's averages, what is kept for the backward pass.

    Args:
        batch: of `model.batch`.
        hidden: function of the batch that gives its hidden states.
    """
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, autocast(torch.device("cpu"), precision()):
        model.loss(model.answer(hidden(batch), batch), batch["labels"])
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {
        "weights_mb": 4e-6 * sum(size for size, _ in sizes),
        "optimizer_mb": 12e-6 * sum(size for size, trains in sizes if trains),
        "activations_mb": 1e-6 * sum(storage.nbytes() for storage in kept.values()),
    }


def prepare(way: str, rows: Sequence[int]) -> tuple[nn.Module, torch.optim.Optimizer, Callable, dict]:
    """Model, optimizer, source of hidden states of some rows (cached, if they can be), what caching all rows takes."""
    model, place = frozen_model(way), {i: n for n, i in enumerate(rows)}
    lengths = np.array([len(example["input_ids"]) for example in examples()])
    start = time.perf_counter()
    hidden = hidden_source(model, [examples()[i] for i in rows], precision())
    seconds = (time.perf_counter() - start) * lengths.sum() / lengths[rows].sum()
    cached = {"cache_seconds": seconds, "cache_mb": 4e-6 * 384 * lengths.sum()} if frozen_layers(model) else {}
    optimizer = make_optimizer(model, settings(RATE, 0))
    return model, optimizer, lambda chosen, batch: hidden([place[i] for i in chosen], batch), cached


def freezing_cost(seed: int) -> list[dict]:
    """Seconds of each of three epochs (from a sample of batches), of caching, and megabytes: a row a way."""
    plan = epoch_batches(examples(), settings(RATE, seed), epoch=1)
    some, times = plan[:SAMPLE], []
    ready = {way: prepare(way, np.concatenate(some)) for way in WAYS}
    for epoch in (1, 2, 3):
        for rows in some:
            for way, (model, optimizer, hidden, _) in ready.items():
                thaw(model, epoch)
                model.train()
                batch = model.batch([examples()[i] for i in rows])
                start = time.perf_counter()
                train_step(model, optimizer, batch, settings(RATE, seed), hidden=partial(hidden, rows))
                times.append((way, f"epoch_{epoch}_seconds", time.perf_counter() - start))
    table = pd.DataFrame(times, columns=["strategy", "epoch", "seconds"])
    epochs = len(plan) * table.groupby(["strategy", "epoch"])["seconds"].median().unstack()
    largest = max(some, key=lambda rows: len(rows) * max(len(examples()[i]["input_ids"]) for i in rows))
    measured = []
    for way, (model, _, hidden, cached) in ready.items():
        batch = model.batch([examples()[i] for i in largest])
        memory = step_memory(model, batch, partial(hidden, largest))
        measured.append({"strategy": way, **epochs.loc[way], **memory, **cached})
    return measured


STUDY = Study(
    "freezing_cost",
    "How many seconds and megabytes does each way to freeze take?",
    [{}],
    freezing_cost,
    range(5),
    minutes=5,
    tolerance=5.0,
)


def totals(rows: pd.DataFrame) -> pd.DataFrame:
    """For each way and seed: seconds of a run of three epochs with its caching, and megabytes at the peak of a step."""
    rows = rows.fillna({"cache_seconds": 0.0, "cache_mb": 0.0})
    seconds = rows[["epoch_1_seconds", "epoch_2_seconds", "epoch_3_seconds", "cache_seconds"]].sum(axis=1)
    megabytes = rows[["weights_mb", "optimizer_mb", "activations_mb", "cache_mb"]].sum(axis=1)
    return pd.DataFrame({"way": rows["strategy"], "seed": rows["seed"], "run": seconds, "megabytes": megabytes})
