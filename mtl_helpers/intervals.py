"""How sure is it? Intervals over texts and over seeds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student


class Interval(NamedTuple):
    """A value and its 95 % interval. As text, f"{interval:+.1f}" gives "+1.2 (+0.3 to +2.1)"."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        value, low, high = (format(number, spec) for number in self)
        return f"{value} ({low} to {high})"


def bootstrap(score: Callable[..., float], *columns: np.ndarray, draws: int = 1000, seed: int = 0) -> Interval:
    """A score and its 95 % percentile interval over the choice of examples (Efron 1979).

    Args:
        score: function of as many arrays as there are columns.
        columns: arrays of the same length; rows are drawn with replacement, the same rows of all columns.
            For a paired difference pass both models' predictions and a score that subtracts.
        draws, seed: number of resamples, and their random seed.

    Returns:
        The score on all rows, the 2.5 % and the 97.5 % quantile.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}, expected 1 or more")
    arrays = [np.asarray(column) for column in columns]
    rows = np.random.default_rng(seed).integers(len(arrays[0]), size=(draws, len(arrays[0])))
    low, high = np.quantile([score(*(array[row] for array in arrays)) for row in rows], [0.025, 0.975])
    return Interval(float(score(*arrays)), float(low), float(high))


def seed_interval(values: Sequence[float]) -> Interval:
    """Mean over seeds and its 95 % interval by Student's t.

    For a comparison pass the differences of the two sides seed by seed: that is a paired interval.
    """
    values = np.asarray(values, dtype=float)
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))
