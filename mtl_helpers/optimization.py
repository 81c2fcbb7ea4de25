"""One optimizer step: rates, groups of parameters, factors of the losses, and the step itself."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from . import distributed
from .balancing import BALANCING, LossBalance
from .freezing import trained_parameters
from .imbalance import class_criterion
from .multitask import MultiTaskModel
from .runtime import autocast, bfloat16_is_fast
from .settings import TrainingConfig
from .tasks import IGNORE, Task


def learning_rate_factor(step: int, total: int, config: TrainingConfig) -> float:
    """Share of the peak learning rate that step number `step` (0 to total - 1) is taken with."""
    warmup = math.ceil(config.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if config.schedule == "linear":
        return 1 - done
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 0.1 if config.schedule == "step" and step >= 2 / 3 * total else 1.0


def make_optimizer(model: MultiTaskModel, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or Adam over the parameters that train, in four groups (encoder and heads, decayed and not) or more.

    Groups have their own `peak` rate; `freeze` may have given the layers different shares of the encoder's.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter, share in trained_parameters(model):
        rate = config.head_learning_rate if name.startswith("heads.") else share * config.learning_rate
        decay = config.weight_decay if parameter.ndim > 1 else 0.0  # biases and layer norms are vectors
        groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise ValueError("every parameter is frozen (requires_grad is False), expected something to train")
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        [
            {"params": members, "lr": rate, "peak": rate, "weight_decay": decay}
            for (rate, decay), members in groups.items()
        ],
        fused=True,
    )


def make_balance(model: MultiTaskModel, config: TrainingConfig, examples: Sequence[dict] = ()) -> LossBalance:
    """The factors of the tasks' losses, and the losses themselves where classes of `examples` are to be balanced."""
    usual = {task.name: usual_factor(task, examples) for task in model.tasks}
    criteria = {}
    for task in model.tasks:
        if kind := config.class_balance.get(task.name):
            codes = [code for example in examples for code in np.atleast_1d(example["labels"][task.name])]
            valid = torch.tensor([code for code in codes if code != IGNORE], dtype=torch.long)
            counts = torch.bincount(valid, minlength=len(task.classes))
            criteria[task.name] = class_criterion(kind, counts)
    return BALANCING[config.balancing](usual | config.task_weights, criteria)


def usual_factor(task: Task, examples: Sequence[dict]) -> float:
    """What the loss of a task is multiplied with unless the settings say otherwise: 1 for a sentence task.

    Most tokens of a token task lie outside its spans and are soon easy, so that the mean over all tokens is small and
    its gradient short: beside sentence tasks the token task starves. Its factor is the square root of how many
    labelled tokens there are for each one in a span; 1 where there is none. On four data sets no task lost measurably
    more than a point by it against the best of five ways; a plain sum, ten and a learnt weight each harmed one
    (experiments/token_weight.py).
    """
    if task.level != "token":
        return 1.0
    codes = np.concatenate([np.zeros(0, int), *(example["labels"][task.name] for example in examples)])
    in_spans = (codes > 0).sum()
    return math.sqrt((codes != IGNORE).sum() / in_spans) if in_spans else 1.0


def train_step(
    model: MultiTaskModel,
    optimizer: torch.optim.Optimizer,
    batch: dict,
    config: TrainingConfig,
    balance: LossBalance | None = None,
    hidden: Callable[[dict], Sequence[Tensor]] | None = None,
) -> tuple[dict[str, float], float]:
    """One optimizer step on one batch: each task's loss is the mean over its labels in the batch.

    Args:
        balance: says what each loss is multiplied with; default: the factors of `config`.
        hidden: function of the batch that gives its hidden states; default: the model's encoder.

    Returns:
        {task: loss} (nats per label; tasks without a label are left out) and the norm of the gradient before clipping.

    Raises:
        FloatingPointError: a loss or a gradient that is not finite; nothing has been changed then.
    """
    balance, device = balance or make_balance(model, config), next(model.parameters()).device
    with autocast(device, precision_of(model, config)):
        states = (hidden or model.encoder.hidden)(batch)  # one pass through the backbone, whatever the tasks
        logits = balance.logits(model, states, batch)
    counts = {name: int((codes != IGNORE).sum()) for name, codes in batch["labels"].items()}
    totals = distributed.summed(counts, device)  # of all processes, if there are several
    losses = model.loss(logits, batch["labels"], balance.criteria)
    losses = {name: loss * (counts[name] / totals[name]) for name, loss in losses.items() if counts.get(name)}
    values = {name: losses[name].item() if name in losses else 0.0 for name in totals}
    values = {name: value for name, value in distributed.summed(values, device).items() if totals[name]}
    for name, value in values.items():
        if not math.isfinite(value):
            optimizer.zero_grad()
            raise FloatingPointError(f"the loss of task {name!r} is {value}")
    if losses:
        balance.backward(losses)
    distributed.sum_gradients(p for group in optimizer.param_groups for p in group["params"])
    norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], config.max_norm)
    if not torch.isfinite(norm):
        optimizer.zero_grad()
        raise FloatingPointError(f"the gradient of {' + '.join(values)} has the length {norm.item()}")
    optimizer.step()
    optimizer.zero_grad()
    balance.end_step(values)
    return values, norm.item()


def precision_of(model: nn.Module, config: TrainingConfig) -> str:
    """The precision of the settings; "auto" is bfloat16 where the model's device is fast at it."""
    if config.precision != "auto":
        return config.precision
    return "bfloat16" if bfloat16_is_fast(next(model.parameters()).device) else "float32"
