"""Three more ways to weigh losses, for comparison; importing this module makes them settings of `TrainingConfig`.

Shapes: K tasks, B texts, T tokens, H width of the backbone.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from mtl_helpers import MultiTaskModel
from mtl_helpers.balancing import BALANCING, WEIGHT_RATE, LossBalance
from mtl_helpers.tasks import IGNORE


class DynamicWeightAverage(LossBalance):
    """A task whose loss falls more slowly than the others' gets more weight in the next epoch.

    w = L(t-1) / L(t-2), weight = K softmax(w / T) with T = 2, and 1 in the first two epochs: Liu, Johns and Davison
    2019, equation 7, https://arxiv.org/abs/1803.10704.
    """

    def __init__(self, factors: Mapping[str, float], criteria: Mapping[str, Callable] | None = None) -> None:
        super().__init__(factors, criteria)
        self.register_buffer("before", torch.full((len(factors),), torch.nan))  # mean losses of the epoch before

    def end_epoch(self, losses: Mapping[str, float], temperature: float = 2.0) -> None:
        now = self._scaled(losses)
        speed = (now / self.before).nan_to_num(1.0)
        self.weights = len(speed) * (speed / temperature).softmax(0)
        self.before = torch.where(now.isnan(), self.before, now)


class GradientBalance(LossBalance):
    """The frame for methods that compare the tasks' gradients at the shared representation, the last hidden states.

    The encoder runs once; its output is cut off from the graph, so that each task's gradient there costs a pass
    through its head alone; their weighted sum goes back through the encoder once. Only batches with labels of several
    tasks leave something to compare: rows with several labels, or a TaskSampling whose order is "mixed".
    """

    needs_gradients = True

    def logits(self, model: MultiTaskModel, states: Sequence[Tensor], batch: dict) -> dict[str, Tensor]:
        if model.encoder.pooling == "last_layers":
            raise ValueError("pooling is 'last_layers', expected one of the last layer, where gradients are compared")
        self.top = states[-1]
        self.leaf = self.top.detach().requires_grad_()
        return super().logits(model, (self.leaf,), batch)

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        gradients = {
            name: torch.autograd.grad(self.factors[name] * loss, self.leaf, retain_graph=True)[0]
            for name, loss in losses.items()
        }
        super().backward(losses)  # into the heads, and as far as the cut
        if self.top.requires_grad:  # else the encoder is frozen
            self.pass_on(gradients)

    def pass_on(self, gradients: Mapping[str, Tensor]) -> None:
        """Send what is made of {task: gradient (B, T, H) at the shared states} back through the encoder."""
        self.top.backward(self.leaf.grad)


class GradNorm(GradientBalance):
    """Weights under which the tasks' gradients have lengths in proportion to how far behind each task is.

    The length of w L should be the mean length times r^a, where r is the task's loss relative to its first one,
    divided by the mean of that over the tasks; w moves down the gradient of the absolute difference and is scaled to
    the sum K. Chen et al. 2018, equations 1 and 2 and algorithm 1, https://arxiv.org/abs/1711.02257. There the
    gradients are those of the last shared weights, here those of the last shared states.
    """

    restoring_force = 1.5  # a in the paper's runs on NYUv2

    def __init__(self, factors: Mapping[str, float], criteria: Mapping[str, Callable] | None = None) -> None:
        super().__init__(factors, criteria)
        self.w = nn.Parameter(torch.ones(len(factors)))
        self.optimizer = torch.optim.Adam([self.w], WEIGHT_RATE)
        self.register_buffer("first", torch.full((len(factors),), torch.nan))
        self.lengths: dict[str, float] = {}

    def pass_on(self, gradients: Mapping[str, Tensor]) -> None:
        self.lengths = {name: gradient.float().norm().item() for name, gradient in gradients.items()}
        super().pass_on(gradients)

    def end_step(self, losses: Mapping[str, float]) -> None:
        now = self._scaled(losses)
        self.first = torch.where(self.first.isnan(), now, self.first)
        lengths = torch.tensor([self.lengths.get(name, torch.nan) for name in self.factors])
        scaled = self.w.detach() * lengths
        rate = now / self.first
        target = scaled.nanmean() * (rate / rate.nanmean()) ** self.restoring_force
        self.w.grad = (lengths * (scaled - target).sign()).nan_to_num(0.0)
        self.optimizer.step()
        with torch.no_grad():
            self.w.clamp_(min=1e-3)  # Adam knows nothing of the bound
            self.w.mul_(len(self.w) / self.w.sum())
        self.weights = self.w.detach().clone()


class GradientSurgery(GradientBalance):
    """Of two gradients that point against each other, each loses its part along the other before they are added.

    PCGrad: Yu et al. 2020, algorithm 1, https://arxiv.org/abs/2001.06782. If the rows of a batch are labelled for all
    of its tasks, the gradients at the shared states are compared, and one pass through the encoder takes the result
    back. Tasks with rows of their own have gradients on different rows there, which can't conflict whatever the rows
    demand of the weights; so the gradients of the encoder's parameters are compared, at one pass for each task.
    """

    def logits(self, model: MultiTaskModel, states: Sequence[Tensor], batch: dict) -> dict[str, Tensor]:
        rows = [(codes != IGNORE).reshape(len(codes), -1).any(1) for codes in batch["labels"].values()]
        rows = [row for row in rows if row.any()]
        self.same_rows = all(torch.equal(row, rows[0]) for row in rows)
        self.parameters_of_encoder = [p for p in model.encoder.backbone.parameters() if p.requires_grad]
        return super().logits(model, states, batch)

    def pass_on(self, gradients: Mapping[str, Tensor]) -> None:
        if self.same_rows:
            after = self._surgery([gradient.flatten() for gradient in gradients.values()])
            self.top.backward(after.view_as(self.leaf).to(self.leaf.dtype))
            return
        weights, flat = self.parameters_of_encoder, []
        for gradient in gradients.values():
            own = torch.autograd.grad(self.top, weights, gradient, retain_graph=True, materialize_grads=True)
            flat.append(torch.cat([piece.flatten() for piece in own]))
        after = self._surgery(flat).split([weight.numel() for weight in weights])
        for weight, piece in zip(weights, after, strict=True):
            weight.grad = piece.view_as(weight)

    def _surgery(self, gradients: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(gradients)).float()
        conflicts, pairs = (stacked @ stacked.T < 0).sum().item(), len(stacked) * (len(stacked) - 1)
        self.noted = {"conflicts": conflicts / pairs} if pairs else {}
        return project_conflicts(stacked).sum(0)


def project_conflicts(gradients: Tensor) -> Tensor:
    """The gradients (K, N) of K tasks after surgery: each loses its part along every other it conflicts with.

    The others come in random order (of torch's global generator), as they are, not as they have become.
    """
    result = gradients.clone()
    for i, own in enumerate(result):
        for j in torch.randperm(len(gradients)).tolist():
            product = own @ gradients[j]
            if i != j and product < 0:
                own -= product / (gradients[j] @ gradients[j]) * gradients[j]
    return result


BALANCING |= {"dynamic_weight_average": DynamicWeightAverage, "gradnorm": GradNorm, "pcgrad": GradientSurgery}
