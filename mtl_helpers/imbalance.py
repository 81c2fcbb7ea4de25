"""Classes of unequal size.

Shapes: N examples, C classes.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from .tasks import IGNORE

CLASS_BALANCE = ("inverse", "effective", "focal", "logit_adjustment")


def class_weights(counts: Tensor, kind: Literal["inverse", "effective"] = "inverse", beta: float = 0.99) -> Tensor:
    """Factors (C,) for the losses of the classes, so scaled that their mean over the labels is 1.

    Args:
        counts: (C,) labels of each class in the training data; a class without any counts as if it had one.
        kind: "inverse" to the number n of labels, or to their "effective" number (1 - beta^n) / (1 - beta), which
            grows ever more slowly: Cui et al. 2019, proposition 1, https://arxiv.org/abs/1901.05555.
        beta: near 1 it is the number itself; 0.99 suits classes of some hundred labels.
    """
    n = counts.double().clamp(min=1)
    weights = 1 / n if kind == "inverse" else (1 - beta) / (1 - beta**n)
    labels = counts.double() if counts.any() else n
    return (weights * labels.sum() / (weights * labels).sum()).float()


def focal_loss(scores: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross-entropy (N,) times (1 - p)^gamma, p the probability of the true class: what is sure counts little.

    Lin et al. 2017, equation 4, https://arxiv.org/abs/1708.02002.
    """
    losses = F.cross_entropy(scores, target, ignore_index=IGNORE, reduction="none")
    return (1 - (-losses).exp()).clamp(min=1e-6) ** gamma * losses  # at 0 a root has no gradient


def adjusted_loss(scores: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Cross-entropy (N,) of scores to which the log frequency of each class is added, in training only.

    The scores learn what the frequencies don't say already. Menon et al. 2021, equation 10,
    https://arxiv.org/abs/2007.07314.
    """
    n = counts.to(scores).clamp(min=1)
    return F.cross_entropy(scores + (n / n.sum()).log(), target, ignore_index=IGNORE, reduction="none")


def class_criterion(kind: str, counts: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """One of CLASS_BALANCE as a function of scores (N, C) and class indices (N,), from the classes' counts (C,)."""
    if kind == "focal":
        return focal_loss
    if kind == "logit_adjustment":
        return lambda scores, target: adjusted_loss(scores, target, counts)
    weights = class_weights(counts, kind)
    return lambda scores, target: F.cross_entropy(
        scores, target, weights.to(scores), ignore_index=IGNORE, reduction="none"
    )
