"""Scores and how sure they are: per task, per class, per capability; intervals, paired tests, calibration, probes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from .multitask import MultiTaskModel
from .tasks import Span, Task

# ------------------------------------------------------------------------------------ scores of a model


def evaluate(model: MultiTaskModel, test: pd.DataFrame, draws: int = 1000) -> pd.DataFrame:
    """Score every task on the texts that are labelled for it.

    Args:
        model: anything whose `tasks` and `predict` are those of MultiTaskModel.
        test: a table as `load_corpus` gives it.
        draws: resamples behind the intervals.

    Returns:
        One row per task and metric: task, metric, value, low, high (95 % bootstrap interval over the texts), texts.
        Sentence tasks have accuracy and macro_f1, token tasks precision, recall and f1 of exact spans.

    Raises:
        ValueError: no text is labelled for any task of the model.
    """
    predicted = model.predict(test["text"])
    rows = []
    for task in model.tasks:
        truth, found = labelled(task, test, predicted)
        if not len(truth):
            continue
        if task.level == "token":
            columns = [span_counts(truth, found)]
            metrics = {"precision": span_precision, "recall": span_recall, "f1": span_f1}
        else:
            columns = [np.array([task.index(label) for label in labels]) for labels in (truth, found)]
            metrics = {"accuracy": lambda a, b: float(np.mean(a == b)), "macro_f1": macro_f1}
        for metric, score in metrics.items():
            value, low, high = bootstrap(score, *columns, draws=draws)
            rows.append([task.name, metric, value, low, high, len(truth)])
    if not rows:
        names = ", ".join(task.name for task in model.tasks)
        raise ValueError(f"found no label for {names} in {len(test)} rows, expected some to compare predictions with")
    return pd.DataFrame(rows, columns=["task", "metric", "value", "low", "high", "texts"])


def labelled(task: Task, test: pd.DataFrame, predicted: pd.DataFrame) -> tuple[list, list]:
    """Labels and predictions of the texts labelled for a task; of token tasks spans (start, end, label)."""
    if task.name not in test:
        return [], []
    pairs = zip(test[task.name], predicted[task.name], strict=True)
    pairs = [(a, b) for a, b in pairs if isinstance(a, list | str)]  # else missing: None, NaN or pandas' NA
    truth, found = [a for a, _ in pairs], [b for _, b in pairs]
    return truth, found if task.level == "sentence" else [[tuple(span[:3]) for span in spans] for spans in found]


def class_report(task: Task, truth: Sequence, predicted: Sequence) -> pd.DataFrame:
    """Precision, recall and F1 (0 to 1) of each label, and how often it occurs; arguments as `labelled` gives them.

    Returns:
        A table indexed by label: precision, recall, f1, n (texts; of token tasks spans).
    """
    counts = {}
    for label in task.labels:
        if task.level == "token":
            sides = [[[span for span in spans if span[2] == label] for spans in side] for side in (truth, predicted)]
            counts[label] = span_counts(*sides).sum(axis=0)
        else:
            a, b = np.asarray(truth) == label, np.asarray(predicted) == label
            counts[label] = np.array([np.sum(a & b), b.sum(), a.sum()])
    rows = {
        label: [span_precision(n[None]), span_recall(n[None]), span_f1(n[None]), n[2]] for label, n in counts.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["precision", "recall", "f1", "n"]).rename_axis("label")


def confusion(task: Task, truth: Sequence[str], predicted: Sequence[str]) -> pd.DataFrame:
    """Confusion matrix of a sentence task: a row per true label, a column per predicted one, counts of texts."""
    matrix = confusion_matrix(truth, predicted, labels=list(task.labels))
    return pd.DataFrame(matrix, index=pd.Index(task.labels, name="true"), columns=task.labels)


def evaluate_challenge(model: MultiTaskModel, challenge: pd.DataFrame) -> pd.DataFrame:
    """Behavioural tests by capability (Ribeiro et al. 2020, https://arxiv.org/abs/2005.04118).

    A group (a sentence and its edited versions) passes when every one of its labels is right: for a directional
    group the label had to change, for an invariance group it had to stay.

    Args:
        model: as for `evaluate`; rows of tasks that it doesn't have are left out.
        challenge: from `load_challenge`.

    Returns:
        One row per capability and test_type: groups, passed, rate (passed / groups), low, high (95 % Wilson
        interval) and accuracy (share of single sentences that are right).
    """
    rows = challenge[challenge["task"].isin([task.name for task in model.tasks])].reset_index(drop=True)
    predicted = model.predict(rows["text"])
    rows["right"] = [
        predicted.at[i, task] == label
        for i, (task, label) in enumerate(zip(rows["task"], rows["expected"], strict=True))
    ]
    groups = rows.groupby(["capability", "test_type", "group"])["right"].agg(["all", "mean"]).reset_index()
    table = []
    for (capability, kind), part in groups.groupby(["capability", "test_type"]):
        interval = binomtest(int(part["all"].sum()), len(part)).proportion_ci(method="wilson")
        right = rows.loc[(rows["capability"] == capability) & (rows["test_type"] == kind), "right"]
        table.append([capability, kind, len(part), int(part["all"].sum()), part["all"].mean(), *interval, right.mean()])
    columns = ["capability", "test_type", "groups", "passed", "rate", "low", "high", "accuracy"]
    return pd.DataFrame(table, columns=columns)


# ---------------------------------------------------------------------------------------------- metrics


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
    rows = [[len(set(a) & set(b)), len(set(b)), len(set(a))] for a, b in zip(truth, predicted, strict=True)]
    return np.array(rows, dtype=int).reshape(-1, 3)


def span_f1(counts: np.ndarray) -> float:
    """Entity-level F1 over all texts from `span_counts`, in 0 to 1."""
    return _f1(*counts.sum(axis=0))


def span_precision(counts: np.ndarray) -> float:
    """Share of the predicted spans that are right, from `span_counts`, in 0 to 1."""
    hits, predicted, _ = counts.sum(axis=0)
    return float(hits / predicted) if predicted else 0.0


def span_recall(counts: np.ndarray) -> float:
    """Share of the spans there are that were found, from `span_counts`, in 0 to 1."""
    hits, _, there = counts.sum(axis=0)
    return float(hits / there) if there else 0.0


def _f1(hits: int, predicted: int, there: int) -> float:
    return float(2 * hits / (predicted + there)) if predicted + there else 0.0


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """What a reliability diagram shows: predictions in bins of equal width by confidence (Guo et al. 2017).

    Args:
        confidence: (N,) probability of the predicted class, 0 to 1.
        right: (N,) whether the prediction was right.
        bins: number of bins from 0 to 1.

    Returns:
        One row per bin that is not empty: confidence (mean), accuracy, n.
    """
    confidence, right = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    table = pd.DataFrame({"bin": place, "confidence": confidence, "accuracy": right, "n": 1})
    return table.groupby("bin").agg({"confidence": "mean", "accuracy": "mean", "n": "sum"})


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Mean distance of confidence and accuracy over the bins of `calibration`, weighted by their size, in 0 to 1.

    Guo et al. 2017, "On calibration of modern neural networks", section 2 (https://arxiv.org/abs/1706.04599).
    """
    table = calibration(confidence, right, bins)
    return float(np.average((table["confidence"] - table["accuracy"]).abs(), weights=table["n"]))


# ---------------------------------------------------------------------------------------- how sure is it


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
    arrays = [np.asarray(column) for column in columns]
    rows = np.random.default_rng(seed).integers(len(arrays[0]), size=(draws, len(arrays[0])))
    low, high = np.quantile([score(*(array[row] for array in arrays)) for row in rows], [0.025, 0.975])
    return Interval(float(score(*arrays)), float(low), float(high))


def paired_test(
    score: Callable[..., float],
    truth: Sequence,
    first: Sequence,
    second: Sequence,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Approximate randomisation test of two models on the same texts (Noreen 1989; Yeh 2000, https://aclanthology.org/C00-2137).

    If the models were equally good, it would not matter which of them made which prediction: the predictions of
    each text are swapped by the toss of a coin, again and again.

    Args:
        score: function of (truth, predictions), for instance `macro_f1`.
        truth, first, second: labels and both models' predictions, text by text.
        draws, seed: number of random swaps, and their random seed.

    Returns:
        score(truth, first) - score(truth, second), and the two-sided p value: how often swapping gives a difference
        at least as large (this one included, so never 0).
    """
    truth, first, second = (np.fromiter(column, dtype=object, count=len(column)) for column in (truth, first, second))
    difference = score(truth, first) - score(truth, second)
    generator, extreme = np.random.default_rng(seed), 1
    for _ in range(draws):
        swap = generator.random(len(truth)) < 0.5
        a, b = np.where(swap, second, first), np.where(swap, first, second)
        extreme += abs(score(truth, a) - score(truth, b)) >= abs(difference) - 1e-12
    return float(difference), extreme / (draws + 1)


def seed_interval(values: Sequence[float]) -> Interval:
    """Mean over seeds and its 95 % interval by Student's t.

    For a comparison pass the differences of the two sides seed by seed: that is a paired interval.
    """
    values = np.asarray(values, dtype=float)
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


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
