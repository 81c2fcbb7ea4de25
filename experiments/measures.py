"""Measures that the course uses beside the package's own: behaviour, calibration, linear probes."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mtl_helpers import MultiTaskModel
from mtl_helpers.evaluation import macro_f1


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
