"""Sentiment with 400 neutral, 75 positive and 25 negative sentences: which remedy finds the rare class?

Test scores are computed as if the test set had the same shares, by weighting its sentences.
"""

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_fscore_support

from mtl_helpers import load_corpus

from .scarce_task import RATES, labelled_for, train_on
from .sweeps import Study

SKEW = {"neutral": 400, "positive": 75, "negative": 25}
REMEDIES = {
    "nothing": {},
    "inverse weights": {"class_balance": {"sentiment": "inverse"}},
    "effective number": {"class_balance": {"sentiment": "effective"}},
    "focal loss": {"class_balance": {"sentiment": "focal"}},
    "logit adjustment": {"class_balance": {"sentiment": "logit_adjustment"}},
    "oversampling": {},
}


def skewed(rows: pd.DataFrame, seed: int, share: float = 1.0) -> pd.DataFrame:
    """Rows whose sentiment is as unequal as SKEW."""
    groups = [rows[rows["sentiment"] == label].sample(round(n * share), random_state=seed) for label, n in SKEW.items()]
    return labelled_for("sentiment", pd.concat(groups))


def oversample(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The rows of rarer classes repeated until all are as frequent as the largest; the remainder drawn at random."""
    groups = [group for _, group in rows.groupby("sentiment")]
    largest, repeated = max(map(len, groups)), []
    for group in groups:
        times, rest = divmod(largest, len(group))
        repeated += [group] * times + [group.sample(rest, random_state=seed)]
    return pd.concat(repeated, ignore_index=True)


def weighted_scores(truth: np.ndarray, guesses: np.ndarray, confidence: np.ndarray) -> dict[str, float]:
    """Scores as if the classes in `truth` had the shares of SKEW."""
    shares = {label: n / sum(SKEW.values()) for label, n in SKEW.items()}
    weight = np.array([shares[label] / np.mean(truth == label) for label in truth])
    weight, right = weight / weight.sum(), truth == guesses
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, guesses, labels=list(SKEW), sample_weight=weight, zero_division=0
    )
    bins = np.minimum((confidence * 10).astype(int), 9)
    gaps = [abs(np.sum((weight * (confidence - right))[bins == b])) for b in range(10)]
    return {
        "macro_f1": f1.mean(),
        "accuracy": weight[right].sum(),
        **{f"recall_{label}": value for label, value in zip(SKEW, recall, strict=True)},
        **{f"precision_{label}": value for label, value in zip(SKEW, precision, strict=True)},
        "ece": sum(gaps),
    }


def class_imbalance(method: str, learning_rate: float, seed: int) -> dict:
    """Sentiment alone, with skewed classes and one remedy."""
    corpus = load_corpus()
    train, validation, test = (corpus[corpus["split"] == split] for split in ("train", "validation", "test"))
    rows, held_out = skewed(train, seed), skewed(validation, seed, 0.2)
    if method == "oversampling":
        rows = oversample(rows, seed)
    model, history = train_on(["sentiment"], rows, held_out, learning_rate, seed, 1600, **REMEDIES[method])
    predicted, truth = model.predict(test["text"]), test["sentiment"].to_numpy()
    confidence = predicted["sentiment_probability"].to_numpy()
    scores = weighted_scores(truth, predicted["sentiment"].to_numpy(), confidence)
    return {"validation": history.to_frame()["score"].iloc[-1]} | scores


STUDY = Study(
    "class_imbalance",
    "Which remedy helps a rare class?",
    [{"method": name, "learning_rate": rate} for name in REMEDIES for rate in RATES],
    class_imbalance,
    seeds=range(5),
    minutes=20,
    tolerance=0.15,
)


def chosen() -> pd.DataFrame:
    """(method, seed): the rate that is better on validation, the lower one where they are equal."""
    order = STUDY.rows().sort_values("validation", ascending=False, kind="stable")
    return order.drop_duplicates(["method", "seed"]).set_index(["method", "seed"]).sort_index()
