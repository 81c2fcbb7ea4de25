"""Scores and how sure they are: macro-F1, entity-span F1, bootstrap and paired intervals, linear probes."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from .tasks import Span


def macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Unweighted mean of the classes' F1, over the classes that occur in `truth`; both (N,), any labels.

    Each class counts the same, however rare it is (a class that is only predicted lowers the others' precision).
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    scores = [
        _f1(np.sum((truth == c) & (predicted == c)), np.sum(predicted == c), np.sum(truth == c))
        for c in np.unique(truth)
    ]
    return float(np.mean(scores))


def span_counts(truth: Sequence[list[Span]], predicted: Sequence[list[Span]]) -> np.ndarray:
    """(N, 3) counts per text: spans found exactly (start, end and label), spans predicted, spans there are.

    The counting of the CoNLL-2003 shared task (Tjong Kim Sang and De Meulder 2003, https://aclanthology.org/W03-0419).
    """
    return np.array([[len(set(a) & set(b)), len(set(b)), len(set(a))] for a, b in zip(truth, predicted, strict=True)])


def span_f1(counts: np.ndarray) -> float:
    """Entity-level F1 over all texts from `span_counts`, in 0 to 1."""
    return _f1(*counts.sum(axis=0))


def _f1(hits: int, predicted: int, there: int) -> float:
    return float(2 * hits / (predicted + there)) if predicted + there else 0.0


def bootstrap(
    score: Callable[..., float], *columns: np.ndarray, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """A score and its 95 % percentile interval over the choice of examples (Efron 1979).

    Args:
        score: function of as many arrays as there are columns.
        columns: arrays of the same length; rows are drawn with replacement, the same rows of all columns.
            For a paired difference pass both models' predictions and a score that subtracts.
        draws, seed: number of resamples, and their random seed.

    Returns:
        The score on all rows, the 2.5 % and the 97.5 % quantile.
    """
    arrays = [np.asarray(column) for column in columns]
    rows = np.random.default_rng(seed).integers(len(arrays[0]), size=(draws, len(arrays[0])))
    low, high = np.quantile([score(*(array[row] for array in arrays)) for row in rows], [0.025, 0.975])
    return float(score(*arrays)), float(low), float(high)


def seed_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds and its 95 % interval by Student's t.

    For a comparison pass the differences of the two sides seed by seed: that is a paired interval.
    """
    values = np.asarray(values, dtype=float)
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def linear_probe(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None,
    strengths: Sequence[float] = (0.001, 0.01, 0.1),
    score: Callable[[Pipeline], float] | None = None,
) -> Pipeline:
    """Fit a logistic regression to fixed features (Alain and Bengio 2016, https://arxiv.org/abs/1610.01644).

    Args:
        train, validation: features (N, D) and labels (N,). Features are standardised by the training part.
        strengths: inverse regularisation strengths C to try.
        score: what to choose the strength by, on validation data; default: macro-F1 of `validation`, which is not
            needed otherwise.

    Returns:
        The probe with the best score; its `predict` takes features (M, D).
    """
    probes = [make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(*train) for c in strengths]
    return max(probes, key=score or (lambda probe: macro_f1(validation[1], probe.predict(validation[0]))))
