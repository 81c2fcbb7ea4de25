"""From runs to statements: a rate chosen inside each seed, intervals over seeds and sentences, four verdicts.

A difference between two ways of training varies with the seed (first weights, order, the labels a user happens to
have) and with the sentences it is tested on. Both are resampled together: each draw takes seeds with replacement and
test sentences with replacement, the same sentences for both sides (Efron and Tibshirani 1993, chapter 8).
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import nct, t, ttest_ind, ttest_rel

from mtl_helpers import TASKS, Task, load_corpus
from mtl_helpers.evaluation import span_counts
from mtl_helpers.intervals import Interval

from .sweeps import RESULTS, Study

DRAWS = 4000


@cache
def power(degrees: float) -> float:
    """Standard errors that an effect must have to be seen in four of five repetitions of a t test (noncentral t)."""
    if not degrees > 0:  # two sides without any spread
        return math.nan
    border = t.ppf(0.975, degrees)
    return float(brentq(lambda effect: nct.sf(border, degrees, effect) - 0.8, 1.0, 50.0))


def choose(rows: pd.DataFrame, setting: Sequence[str], rate: str = "rate", score: str = "validation") -> pd.DataFrame:
    """Of each setting and seed the rows at the rate with the best mean validation score (over its tasks).

    Where two are equal, as with ten labels they may be, the higher rate is taken.

    Args:
        rows: one per setting, rate, seed and task.
        setting: columns that make a setting.
    """
    keys = [*setting, "seed"]
    means = rows.groupby([*keys, rate], as_index=False)[score].mean()
    best = means.sort_values(score, kind="stable").drop_duplicates(keys, keep="last")
    return rows.merge(best[[*keys, rate]], on=[*keys, rate])


class Scores:
    """How each seed's predictions of one task fare on any resample of the test sentences.

    Args:
        task: what was predicted.
        truth: the N labels, or lists of spans, of the test sentences.
        predictions: for each seed N class indices, or lists of spans [start, end, label, ...].
    """

    def __init__(self, task: Task, truth: Sequence, predictions: Sequence[Sequence]) -> None:
        self.token = task.level == "token"
        if self.token:
            own = [[[tuple(span[:3]) for span in spans] for spans in one] for one in predictions]
            self.counts = [span_counts([list(map(tuple, spans)) for spans in truth], one) for one in own]
            return
        gold = np.eye(len(task.labels))[[task.index(label) for label in truth]]
        guesses = [np.eye(len(task.labels))[np.asarray(one)] for one in predictions]
        self.counts = [np.stack([gold * guess, guess, gold], axis=2) for guess in guesses]  # (N, C, 3)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Scores (draws, seeds), macro-F1 or F1 of spans, for weights (draws, N): how often each sentence counts."""
        scores = []
        for counts in self.counts:
            hits, guessed, gold = np.moveaxis(np.tensordot(weights, counts, axes=(1, 0)), -1, 0)
            f1 = 2 * hits / np.maximum(guessed + gold, 1e-12)
            if not self.token:  # the mean over the classes that occur
                f1 = np.where(gold > 0, f1, 0).sum(axis=1) / np.maximum((gold > 0).sum(axis=1), 1)
            scores.append(f1)
        return np.stack(scores, axis=1)

    @property
    def sentences(self) -> int:
        """N."""
        return len(self.counts[0])

    def first(self, seeds: int) -> "Scores":
        """Those of the first seeds alone, to set beside a side with fewer."""
        part = copy.copy(self)
        part.counts = self.counts[:seeds]
        return part


class Correlations:
    """How each seed's cosines of pairs of sentences rank them, beside human grades, on any resample of the pairs.

    Stands in for `Scores` in `compare`: Spearman's correlation instead of F1.

    Args:
        grades: of the N pairs.
        cosines: for each seed N numbers.
    """

    def __init__(self, grades: Sequence[float], cosines: Sequence[Sequence[float]]) -> None:
        self.grades, self.counts = np.asarray(grades), [np.asarray(one) for one in cosines]

    @property
    def sentences(self) -> int:
        """N, the pairs."""
        return len(self.grades)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Correlations (draws, seeds) for weights (draws, N): how often each pair counts."""
        share = weights / weights.sum(axis=1, keepdims=True)

        def centred_ranks(values: np.ndarray) -> np.ndarray:
            order = np.argsort(values, kind="stable")
            _, first, group = np.unique(values[order], return_index=True, return_inverse=True)
            heavy = np.add.reduceat(share[:, order], first, axis=1)  # equal values share their mean rank
            ranks = np.empty_like(share)
            ranks[:, order] = (np.cumsum(heavy, axis=1) - heavy / 2)[:, group]
            return ranks - (share * ranks).sum(axis=1, keepdims=True)

        gold, results = centred_ranks(self.grades), []
        for cosines in self.counts:
            own = centred_ranks(cosines)
            together, *alone = ((share * a * b).sum(axis=1) for a, b in ((own, gold), (own, own), (gold, gold)))
            with np.errstate(invalid="ignore"):  # equal cosines have no correlation: NaN
                results.append(together / np.sqrt(alone[0] * alone[1]))
        return np.stack(results, axis=1)


@dataclass(frozen=True)
class Difference:
    """A difference between two ways of training, in points of F1.

    Args:
        interval: value and 95 % interval.
        p: two-sided; the share of resamples on the other side of zero, doubled.
        visible: smallest effect that a study like this one sees four times out of five.
    """

    interval: Interval
    p: float
    visible: float

    def verdict(self, p_adjusted: float, matters: float = 2.0) -> str:
        """In one of four words: shown, likely, undecided, none larger than x.

        Args:
            p_adjusted: p after Holm's correction over the table.
            matters: the smallest effect, in points, that would change what one does.
        """
        if p_adjusted < 0.05:
            return "shown"
        if self.interval.low > 0 or self.interval.high < 0:
            return "likely"
        bound = math.ceil(10 * max(-self.interval.low, self.interval.high)) / 10
        return f"none larger than {bound:.1f}" if bound <= matters else "undecided"


def verdict(interval: Interval) -> str:
    """That of an interval that stands in no table: likely at most."""
    return Difference(interval, np.nan, np.nan).verdict(p_adjusted=1.0)


def compare(
    first: Mapping[str, Scores | Correlations],
    second: Mapping[str, Scores | Correlations],
    paired: bool = True,
    seed: int = 0,
) -> dict[str, Difference]:
    """`first` minus `second`, task by task and in the mean over the tasks ("mean").

    Args:
        first, second: {task: Scores} on the same test sentences.
        paired: whether seed i of both sides has something in common (data, first weights); otherwise the seeds of
            the two sides are drawn apart.
        seed: of the resampling.

    Raises:
        ValueError: tasks of a side, or paired sides, have unequal numbers of seeds.
    """
    numbers = [{len(scores.counts) for scores in side.values()} for side in (first, second)]
    if max(map(len, numbers)) > 1 or (paired and numbers[0] != numbers[1]):
        raise ValueError(f"found {[sorted(n) for n in numbers]} seeds on the two sides, expected as many everywhere")
    generator, drawn, values = np.random.default_rng(seed), {}, {}
    picks: list[np.ndarray] = []
    counts: dict[int, np.ndarray] = {}
    for name, ours in first.items():
        theirs, n = second[name], ours.sentences
        if n not in counts:  # tasks of as many, that is of the same, test sentences: the same ones are drawn for all
            counts[n] = generator.multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(float)
        if not picks:  # the same seeds in all tasks
            picks = [generator.integers(len(side.counts), size=(DRAWS, len(side.counts))) for side in (ours, theirs)]
            picks[1] = picks[0] if paired else picks[1]
        sides = [
            np.take_along_axis(scores(counts[n]), pick, axis=1).mean(axis=1)
            for scores, pick in zip((ours, theirs), picks, strict=True)
        ]
        drawn[name] = 100 * (sides[0] - sides[1])
        whole = np.ones((1, n))
        values[name] = 100 * float(ours(whole).mean() - theirs(whole).mean())
    if len(first) > 1:
        drawn["mean"] = np.mean(list(drawn.values()), axis=0)
        values["mean"] = float(np.mean(list(values.values())))
    seeds = min(len(side.counts) for scores in (first, second) for side in scores.values())
    return {name: _difference(values[name], resamples, seeds) for name, resamples in drawn.items()}


def _difference(value: float, resamples: np.ndarray, seeds: int) -> Difference:
    if not np.isfinite(resamples).all():
        raise ValueError("some resample has no score, as that of constant cosines")
    low, high = np.quantile(resamples, [0.025, 0.975])
    below, above = (resamples <= 0).mean(), (resamples >= 0).mean()
    p = min(1.0, 2 * max(min(below, above), 1 / len(resamples)))
    return Difference(Interval(value, float(low), float(high)), float(p), power(seeds - 1) * float(resamples.std()))


def write_differences(name: str, differences: Mapping[str, Difference]) -> None:
    """Put comparisons on file that can't be made without the labels of public test sets: `data/results/NAME.csv`."""
    rows = {what: [*one.interval, one.p, one.visible] for what, one in differences.items()}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high", "p", "visible"])
    table.to_csv(RESULTS / f"{name}.csv", index_label="what", float_format="%.5g")


def read_differences(name: str) -> dict[str, Difference]:
    """The comparisons that `write_differences` wrote."""
    table = pd.read_csv(RESULTS / f"{name}.csv", index_col="what")
    return {row[0]: Difference(Interval(*row[1:4]), *row[4:]) for row in table.itertuples()}


def unpaired_interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of `first` minus mean of `second` and its 95 % interval (Welch 1947).

    For runs that share a seed's number but nothing that moves their scores together: first weights of heads, order.
    """
    return over_seeds(first, second, paired=False).interval


def over_seeds(first: Sequence[float], second: Sequence[float], paired: bool) -> Difference:
    """`first` minus `second` from a score per seed: what can be said where predictions were not kept.

    The interval holds the seeds alone, not the choice of test sentences: Student's t on the differences if the seeds
    of both sides share their data, Welch's t otherwise.
    """
    test = ttest_rel(first, second) if paired else ttest_ind(first, second, equal_var=False)
    low, high = test.confidence_interval()
    value = float(np.mean(first) - np.mean(second))
    visible = power(float(test.df)) * abs(value / test.statistic)  # value / statistic: the standard error
    return Difference(Interval(value, float(low), float(high)), float(test.pvalue), float(visible))


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979, "A simple sequentially rejective multiple test procedure")."""
    order, adjusted, largest = np.argsort(p), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


Gold = Callable[[str, str], tuple[Task, Sequence]]


@cache
def test_sentences() -> pd.DataFrame:
    """The corpus' test part."""
    corpus = load_corpus()
    return corpus[corpus["split"] == "test"]


def corpus_gold(_: str, name: str) -> tuple[Task, list]:
    """One of the course's tasks and its labels in the test sentences, whatever the setting."""
    return next(task for task in TASKS if task.name == name), test_sentences()[name].tolist()


def scores_by(
    chosen: pd.DataFrame, predictions: Sequence[dict], setting: Sequence[str], gold: Gold
) -> dict[tuple, dict[str, Scores]]:
    """{setting: {task: Scores of its seeds, in their order}} for the runs that were chosen.

    Args:
        chosen: from `choose`.
        predictions: of `Study.predictions`.
        setting: columns that make a setting; the first names the data.
        gold: function of data and task name that gives the Task and the labels of the test sentences.
    """
    keys = [*setting, "rate", "seed", "task"]
    known = {tuple(line[key] for key in keys): line["predictions"] for line in predictions}
    result: dict[tuple, dict[str, Scores]] = {}
    for values, rows in chosen.groupby([*setting, "task"], sort=False):
        *place, name = values
        ordered = rows.sort_values("seed")
        guesses = [known[tuple(str(row[key]) for key in keys)] for _, row in ordered.iterrows()]
        result.setdefault(tuple(place), {})[name] = Scores(*gold(place[0], name), guesses)
    return result


def by_way(study: Study, runs: Sequence[dict], gold: Gold) -> dict[tuple[str, int, str], Scores]:
    """{(scarce, size, way): Scores of the scarce task}, each seed at the rate that it chose on its own labels.

    Args:
        study: of settings scarce (name of a task), size, way and rate.
        runs: those to read.
        gold: as for `scores_by`; its data is the scarce task.
    """
    keys = ["scarce", "size", "way"]
    scores = scores_by(choose(study.rows(runs), keys), list(study.predictions()), keys, gold)
    return {place: tasks[place[0]] for place, tasks in scores.items()}
