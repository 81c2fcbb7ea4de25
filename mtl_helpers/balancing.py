"""How hard each loss pulls: fixed factors, factors that are learnt, and the frame for other methods.

`experiments.balancing_methods` has three more, registered in BALANCING when it is imported. Shapes: K tasks.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .multitask import MultiTaskModel

WEIGHT_RATE = 0.025  # Adam's rate for weights that are learnt, that of Chen et al. 2018


class LossBalance(nn.Module):
    """Fixed factors for the losses of the tasks, and the frame for the methods that change them.

    All methods start from the factors, so that `weights`, which begins at 1 for each task, multiplies them.

    Args:
        factors: {task: factor of its loss}.
        criteria: {task: function of scores (N, C) and class indices (N,) that gives losses (N,)}; tasks not named
            have cross-entropy.
    """

    needs_gradients = False  # at the shared representation, task by task
    optimizer: torch.optim.Optimizer | None = None

    def __init__(self, factors: Mapping[str, float], criteria: Mapping[str, Callable] | None = None) -> None:
        super().__init__()
        self.factors, self.criteria, self.noted = dict(factors), dict(criteria or {}), {}
        self.register_buffer("weights", torch.ones(len(factors)))

    def current(self) -> dict[str, float]:
        """{task: what its loss is multiplied with in the next step}."""
        return {name: factor * w for (name, factor), w in zip(self.factors.items(), self.weights.tolist(), strict=True)}

    def logits(self, model: MultiTaskModel, states: Sequence[Tensor], batch: dict) -> dict[str, Tensor]:
        """The model's answers to the hidden states of a batch; where a method listens in on the gradients."""
        self.noted = {}
        return model.answer(states, batch)

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Gradients of the weighted sum; `losses` holds the tasks that this batch has labels for."""
        weights = self.current()
        torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()

    def end_step(self, losses: Mapping[str, float]) -> None:
        """What to learn from the losses (nats per label) of a step; tasks without labels are not among them."""

    def end_epoch(self, losses: Mapping[str, float]) -> None:
        """What to learn from the mean losses of an epoch."""

    def _scaled(self, losses: Mapping[str, float]) -> Tensor:
        """(K,) factor x loss, NaN for a task that is not there."""
        return torch.tensor([factor * losses.get(name, torch.nan) for name, factor in self.factors.items()])


class UncertaintyWeights(LossBalance):
    """Homoscedastic uncertainty: a noise sigma per task is learnt; its loss counts 1 / sigma^2, and log sigma is paid.

    With s = log sigma^2 the sum over tasks of exp(-s) L + s / 2 is minimised over s too: Kendall, Gal and Cipolla
    2018, section 3.2, equation 10 and the remark on s, https://arxiv.org/abs/1705.07115. For a loss that stays at L
    the weight ends at 1 / (2 L).
    """

    def __init__(self, factors: Mapping[str, float], criteria: Mapping[str, Callable] | None = None) -> None:
        super().__init__(factors, criteria)
        self.log_variance = nn.Parameter(torch.zeros(len(factors)))
        self.optimizer = torch.optim.Adam([self.log_variance], WEIGHT_RATE)

    def end_step(self, losses: Mapping[str, float]) -> None:
        gradient = 0.5 - (-self.log_variance.detach()).exp() * self._scaled(losses)
        self.log_variance.grad = gradient.nan_to_num(0.0)
        self.optimizer.step()
        self.weights = (-self.log_variance.detach()).exp()


BALANCING: dict[str, type[LossBalance]] = {"fixed": LossBalance, "uncertainty": UncertaintyWeights}
