"""What can be set about a training run, and the one place that checks it."""

import math
from dataclasses import dataclass, field
from typing import Literal

from .balancing import BALANCING
from .checks import check_settings, is_number, number, one_of, or_none, whole
from .imbalance import CLASS_BALANCE
from .sampling import TaskSampling


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. The encoder's rate rests on validation, the rest is common practice.

    Args:
        epochs: passes over the training data. The best of them is kept, so too many cost time rather than quality.
        learning_rate: of the encoder at its peak. Between the better two of three for the four-task model on the
            validation data of the course (data/results/what_to_train.csv).
        head_learning_rate: of the heads at its peak: they start from random numbers and have further to go.
        optimizer: "adamw" (decoupled weight decay, Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) or
            "adam" (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, the decay added to the gradient).
        weight_decay: of weight matrices; biases and layer norms are never decayed.
        schedule: of the learning rates behind the warm-up: "linear" or "cosine" to zero, "step" (a tenth for the last
            third of the steps) or "constant". Rates that end at zero let the last steps settle.
        warmup: share of all steps in which the rates rise from zero to their peaks; the first steps of Adam rest on
            few gradients and are the least reliable.
        max_norm: gradients (of all parameters together) longer than this are scaled down to it, so that a single odd
            batch can't do much; math.inf: never.
        max_tokens: budget of a batch in tokens, padding included; 512 are about 23 sentences of the corpus: more
            steps in an epoch than a larger budget gives, at little loss of speed.
        task_weights: {task: factor of its loss}. Tasks not named: 1 for sentence tasks; for a token task the square
            root of how many labelled tokens there are for each one in a span (optimization.usual_factor).
        sampling: how many rows of each task make an epoch, and in which batches; None: every row once. For tasks of
            very different size (notebook 5).
        balancing: what becomes of the factors of the losses: "fixed", "uncertainty", or a method that another module
            has registered in `balancing.BALANCING`.
        class_balance: {task: "inverse", "effective", "focal" or "logit_adjustment"}, for tasks whose classes are of
            very different size (notebook 5); tasks not named: plain cross-entropy.
        precision: of matrix products: "float32", "bfloat16", or "auto", bfloat16 where the device is fast at it.
        patience: training stops after so many epochs without a better score on validation; None: never.
        keep: the weights that the model ends with: of the "best" epoch on validation, or of the "last", where there
            are too few labels for validation to tell one from the other.
        checkpoint_every: optimizer steps between checkpoints, about a minute on two cores; there is one at the end of
            each epoch as well.
        seed: of the order of the batches and of dropout. The heads' first weights are drawn before, with the model.

    Raises:
        ValueError: an impossible value, by name.
    """

    epochs: int = 5
    learning_rate: float = 2e-4
    head_learning_rate: float = 1e-3
    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: float = 0.01
    schedule: Literal["linear", "cosine", "step", "constant"] = "linear"
    warmup: float = 0.1
    max_norm: float = 1.0
    max_tokens: int = 512
    task_weights: dict[str, float] = field(default_factory=dict)
    sampling: TaskSampling | None = None
    balancing: str = "fixed"
    class_balance: dict[str, str] = field(default_factory=dict)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    patience: int | None = 3
    keep: Literal["best", "last"] = "best"
    checkpoint_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        rules = dict.fromkeys(("epochs", "max_tokens", "checkpoint_every"), whole(1))
        rules |= dict.fromkeys(("learning_rate", "head_learning_rate", "weight_decay"), number())
        rules |= {
            "optimizer": one_of(("adamw", "adam")),
            "schedule": one_of(("linear", "cosine", "step", "constant")),
            "warmup": (lambda share: is_number(share) and 0 <= share < 1, "a share of all steps, below 1"),
            "max_norm": (_is_norm, "a number above 0 (math.inf: no clipping)"),
            "task_weights": (_are_weights, "{task: a finite number of at least 0}"),
            "sampling": (lambda sampling: isinstance(sampling, TaskSampling | None), "a TaskSampling, or None"),
            "balancing": one_of(tuple(BALANCING)),
            "class_balance": (_are_balances, f"{{task: one of {', '.join(CLASS_BALANCE)}}}"),
            "precision": one_of(("auto", "float32", "bfloat16")),
            "patience": or_none(whole(1)),
            "keep": one_of(("best", "last")),
            "seed": whole(0),
        }
        check_settings(self, rules)


def _is_norm(value: object) -> bool:
    return value == math.inf or (is_number(value) and value > 0)


def _are_weights(value: object) -> bool:
    return isinstance(value, dict) and all(is_number(weight) and weight >= 0 for weight in value.values())


def _are_balances(value: object) -> bool:
    return isinstance(value, dict) and all(kind in CLASS_BALANCE for kind in value.values())
