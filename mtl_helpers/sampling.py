"""Tasks of unequal size: what is drawn, and in which batches it comes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from .batches import length_batches
from .checks import check_settings, number, one_of, or_none, whole


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
        rules = {"alpha": number(0, 1), "final_alpha": or_none(number(0, 1))}
        rules |= {"cap": or_none(whole(1)), "rows": or_none(whole(1))}
        check_settings(self, rules | {"order": one_of(("shuffled", "round_robin", "mixed"))})

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
        for past in range(1, epoch + 1):
            before = dict(dealt)
            for name, n in _apportion(self.shares(sizes, past, epochs), self.rows or total).items():
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
            groups = [group for own in by_task for group in own]
            return [groups[i] for i in torch.randperm(len(groups), generator=generator)]
        turns = sorted(((i + 0.5) / len(groups), t, i) for t, groups in enumerate(by_task) for i in range(len(groups)))
        return [by_task[t][i] for _, t, i in turns]


def _apportion(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers nearest to share x total with the right sum (the method of largest remainders)."""
    counts = {name: int(share * total) for name, share in shares.items()}
    remainders = sorted(shares, key=lambda name: counts[name] - shares[name] * total)
    for name in remainders[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _deal(deck: Sequence[int], start: int, stop: int, seed: tuple[int, int]) -> list[int]:
    """Cards number `start` to `stop` of a deck that is shuffled anew each time it has been dealt."""
    cards: list[int] = []
    for turn in range(start // len(deck), -(-stop // len(deck))) if stop > start else ():
        order = np.random.default_rng((*seed, turn)).permutation(len(deck))
        first = turn * len(deck)
        cards += [deck[i] for i in order[max(start - first, 0) : stop - first]]
    return cards
