"""Tasks of unequal size and classes of unequal size: what is drawn, and how hard each loss pulls.

Three questions, kept apart. Which rows come in which batch (`TaskSampling`)? What factor has the loss of each task
(`LossBalance` and its kinds)? What factor has each class inside a task (`class_criterion`, `oversample`)?
Shapes: K tasks, N examples, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .corpus import length_batches
from .encoder import layers_of
from .multitask import MultiTaskModel
from .tasks import IGNORE

# ----------------------------------------------------------------------------------------- sampling of tasks


@dataclass(frozen=True)
class TaskSampling:
    """How many rows each task gets in an epoch, and in which batches they come.

    A task with n labelled rows gets a share of the epoch proportional to min(n, cap) to the power of alpha. Each task
    deals its rows like a deck of cards: shuffled, one after the other, shuffled again when all have been dealt. So a
    small task is recycled and never ends the epoch, and no row comes twice before every other row has come once.
    A row that is labelled for several tasks lies in the deck of each, and all its labels count whenever it is drawn.

    Args:
        alpha: 1 is proportional to size, 0.5 square root, 0 uniform; 1 / T is what is called a temperature of T
            (Raffel et al. 2020, section 3.5.2, https://arxiv.org/abs/1910.10683).
        final_alpha: if given, alpha goes there in equal steps from the first epoch to the last: annealed sampling
            (Stickland and Murray 2019: from 1 to 0.2, https://arxiv.org/abs/1902.02671).
        cap: rows of a task beyond this number don't count for its share (Raffel et al. 2020: the limit K).
        order: "shuffled": each batch holds rows of one task, and the batches come at random; "round_robin": the same
            in turns; "mixed": a batch holds rows of all tasks, so that each step hears all of them.
        rows: in an epoch; None: as many as the table has.

    Raises:
        ValueError: an impossible value, by name.
    """

    alpha: float = 0.5
    final_alpha: float | None = None
    cap: int | None = None
    order: Literal["shuffled", "round_robin", "mixed"] = "shuffled"
    rows: int | None = None

    def __post_init__(self) -> None:
        orders = ("shuffled", "round_robin", "mixed")
        number = {"alpha": self.alpha} | ({} if self.final_alpha is None else {"final_alpha": self.final_alpha})
        wrong = {name: "a number from 0 to 1" for name, value in number.items() if not _in_unit(value)}
        wrong |= {
            name: "a whole number of at least 1, or None"
            for name in ("cap", "rows")
            if getattr(self, name) is not None and (type(getattr(self, name)) is not int or getattr(self, name) < 1)
        }
        wrong |= {} if self.order in orders else {"order": f"one of {', '.join(orders)}"}
        for name, expected in wrong.items():
            raise ValueError(f"TaskSampling: {name} is {getattr(self, name)!r}, expected {expected}")

    def shares(self, sizes: Mapping[str, int], epoch: int = 1, epochs: int = 1) -> dict[str, float]:
        """Share of each task in the rows of an epoch (1 to `epochs`), from the number of its labelled rows."""
        alpha = self.alpha
        if self.final_alpha is not None and epochs > 1:
            alpha += (self.final_alpha - self.alpha) * (epoch - 1) / (epochs - 1)
        counted = {name: n if self.cap is None else min(n, self.cap) for name, n in sizes.items()}
        powers = {name: n**alpha if n else 0.0 for name, n in counted.items()}  # a task without rows gets none
        return {name: power / sum(powers.values()) for name, power in powers.items()}

    def draw(
        self, decks: Mapping[str, Sequence[int]], seed: int, epoch: int, epochs: int, total: int
    ) -> dict[str, list[int]]:
        """Positions drawn for each task in one epoch: a function of the seed and the epoch alone.

        Args:
            decks: {task: positions of the rows that are labelled for it}.
            seed, epoch, epochs: of the run; the epoch's number (from 1); how many there are.
            total: rows in an epoch, if `rows` is None.
        """
        sizes = {name: len(deck) for name, deck in decks.items()}
        dealt = dict.fromkeys(decks, 0)
        for number in range(1, epoch + 1):
            before = dict(dealt)
            for name, n in _apportion(self.shares(sizes, number, epochs), self.rows or total).items():
                dealt[name] += n
        return {name: _deal(deck, before[name], dealt[name], (seed, i)) for i, (name, deck) in enumerate(decks.items())}

    def batches(
        self, drawn: Mapping[str, Sequence[int]], lengths: Sequence[int], max_tokens: int, generator: torch.Generator
    ) -> list[list[int]]:
        """Group what `draw` gives into batches of similar length and at most `max_tokens` tokens, in the order set.

        Args:
            drawn: {task: positions}.
            lengths: tokens of each row.
            max_tokens: budget of a batch, padding included.
            generator: of the random order.
        """

        def grouped(positions: Sequence[int]) -> list[list[int]]:
            groups = length_batches([lengths[i] for i in positions], max_tokens, generator)
            return [[positions[i] for i in group] for group in groups]

        if self.order == "mixed":
            return grouped([i for positions in drawn.values() for i in positions])
        by_task = [grouped(positions) for positions in drawn.values()]
        if self.order == "shuffled":
            everything = [group for groups in by_task for group in groups]
            return [everything[i] for i in torch.randperm(len(everything), generator=generator)]
        turns = sorted(((i + 0.5) / len(groups), t, i) for t, groups in enumerate(by_task) for i in range(len(groups)))
        return [by_task[t][i] for _, t, i in turns]


def _in_unit(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _apportion(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers nearest to share x total with the right sum (the method of largest remainders)."""
    counts = {name: int(share * total) for name, share in shares.items()}
    remainders = sorted(shares, key=lambda name: counts[name] - shares[name] * total)
    for name in remainders[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _deal(deck: Sequence[int], start: int, stop: int, seed: tuple[int, int]) -> list[int]:
    """Cards number `start` to `stop` of a deck that is shuffled anew each time it has been dealt."""
    found: list[int] = []
    for turn in range(start // len(deck), -(-stop // len(deck))) if stop > start else ():
        order = np.random.default_rng((*seed, turn)).permutation(len(deck))
        first = turn * len(deck)
        found += [deck[i] for i in order[max(start - first, 0) : stop - first]]
    return found


# ------------------------------------------------------------------------------------------- weights of losses

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

    def open(self, model: MultiTaskModel, batch: dict) -> dict:
        """The batch as the model should read it."""
        self.noted = {}
        return batch

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

    def open(self, model: MultiTaskModel, batch: dict) -> dict:
        if model.encoder.pooling == "last_layers":
            raise ValueError("pooling is 'last_layers', expected one of the last layer, where gradients are compared")
        self.top = model.encoder(batch)[1][-1]
        self.leaf = self.top.detach().requires_grad_()
        return super().open(model, batch) | {
            "states": self.leaf,
            "frozen_layers": len(layers_of(model.encoder.backbone)),
        }

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

    def open(self, model: MultiTaskModel, batch: dict) -> dict:
        rows = [(codes != IGNORE).reshape(len(codes), -1).any(1) for codes in batch["labels"].values()]
        rows = [row for row in rows if row.any()]
        self.same_rows = all(torch.equal(row, rows[0]) for row in rows)
        self.parameters_of_encoder = [p for p in model.encoder.backbone.parameters() if p.requires_grad]
        return super().open(model, batch)

    def pass_on(self, gradients: Mapping[str, Tensor]) -> None:
        if self.same_rows:
            after = self._surgery([gradient.flatten() for gradient in gradients.values()])
            self.top.backward(after.view_as(self.leaf).to(self.leaf.dtype))
            return
        found = []
        for gradient in gradients.values():
            parts = torch.autograd.grad(
                self.top, self.parameters_of_encoder, gradient, retain_graph=True, materialize_grads=True
            )
            found.append(torch.cat([part.flatten() for part in parts]))
        after = self._surgery(found).split([p.numel() for p in self.parameters_of_encoder])
        for parameter, part in zip(self.parameters_of_encoder, after, strict=True):
            parameter.grad = part.view_as(parameter)

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


BALANCING: dict[str, type[LossBalance]] = {
    "fixed": LossBalance,
    "uncertainty": UncertaintyWeights,
    "dynamic_weight_average": DynamicWeightAverage,
    "gradnorm": GradNorm,
    "pcgrad": GradientSurgery,
}

# -------------------------------------------------------------------------------- classes of unequal size

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
    there = counts.double() if counts.any() else n
    return (weights * there.sum() / (weights * there).sum()).float()


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


def oversample(frame: pd.DataFrame, task: str, seed: int = 0) -> pd.DataFrame:
    """The rows labelled for a sentence task, those of rarer classes repeated until all are as frequent as the largest.

    Every row comes at least n // size times, n being the largest class; which of them come once more is random.
    """
    groups = [rows for _, rows in frame[frame[task].notna()].groupby(task)]
    largest = max(len(rows) for rows in groups)
    parts = []
    for rows in groups:
        times, rest = divmod(largest, len(rows))
        parts += [rows] * times + [rows.sample(rest, random_state=seed)]
    return pd.concat(parts, ignore_index=True)
