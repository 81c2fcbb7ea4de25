"""Scores against the libraries that define them, intervals against theory, and a probe that never sees the test set."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from seqeval.metrics import f1_score as seqeval_f1
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from mtl_helpers import TASKS, evaluation
from mtl_helpers.evaluation import bootstrap, linear_probe, macro_f1, seed_interval, span_counts, span_f1

ENTITIES = TASKS[3]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde")), min_size=1, max_size=40))
def test_macro_f1_is_that_of_scikit_learn(pairs: list):
    truth, predicted = np.array(pairs).T
    expected = f1_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
    assert macro_f1(truth, predicted) == pytest.approx(expected)


def test_macro_f1_takes_numbers_too():
    truth, predicted = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])
    assert macro_f1(truth, predicted) == pytest.approx((0.5 + 2 / 3 + 0) / 3)
    assert macro_f1(truth, truth) == 1.0


@pytest.fixture(scope="module")
def bio() -> tuple[list[list[str]], list[list[str]]]:
    """1,000 pairs of random BIO sequences, malformed ones included; truth and prediction agree in places."""
    random = np.random.default_rng(0)
    truth = [random.choice(ENTITIES.classes, random.integers(1, 16)) for _ in range(1000)]
    predicted = [np.where(random.random(len(t)) < 0.7, t, random.choice(ENTITIES.classes, len(t))) for t in truth]
    return [t.tolist() for t in truth], [p.tolist() for p in predicted]


def decode(sequence: list[str]) -> list:
    """Spans of a sequence whose tokens are one character long."""
    return ENTITIES.decode([ENTITIES.index(name) for name in sequence], [(i, i + 1) for i in range(len(sequence))])


def test_spans_are_those_of_seqeval(bio):
    for sequence in bio[0]:
        assert decode(sequence) == [(start, end + 1, label) for label, start, end in get_entities(sequence)]


def test_span_f1_is_that_of_seqeval(bio):
    counts = span_counts(*[[decode(sequence) for sequence in side] for side in bio])
    assert counts.shape == (1000, 3)
    assert 0.2 < span_f1(counts) < 0.8
    assert span_f1(counts) == pytest.approx(seqeval_f1(*bio))
    for i in range(0, 1000, 5):
        few = slice(i, i + 5)
        expected = seqeval_f1(bio[0][few], bio[1][few], zero_division=0)
        assert span_f1(counts[few]) == pytest.approx(expected)


def test_a_span_counts_only_if_ends_and_label_are_right():
    truth = [[(0, 3, "PER"), (5, 8, "LOC")], [], [(0, 2, "ORG")]]
    predicted = [[(0, 3, "PER"), (5, 9, "LOC")], [(1, 2, "PER")], [(0, 2, "LOC")]]
    counts = span_counts(truth, predicted)
    assert counts.tolist() == [[1, 2, 2], [0, 1, 0], [0, 1, 1]]
    assert span_f1(counts) == pytest.approx(2 / 7)
    assert span_f1(span_counts([[]], [[]])) == 0.0


# ---------------------------------------------------------------------------------------------------------- intervals


def test_the_bootstrap_interval_has_the_width_that_theory_gives():
    sample = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    value, low, high = bootstrap(np.mean, sample, draws=4000)
    assert value == pytest.approx(sample.mean())
    half = 1.96 * sample.std() / 400**0.5
    assert (value - low, high - value) == (pytest.approx(half, rel=0.1), pytest.approx(half, rel=0.1))


def test_the_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    random = np.random.default_rng(2)
    intervals = [bootstrap(np.mean, random.normal(size=100), draws=200, seed=i)[1:] for i in range(200)]
    assert 0.89 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.99


def test_the_bootstrap_is_reproducible():
    sample = np.random.default_rng(3).normal(size=50)
    assert bootstrap(np.mean, sample, draws=100) == bootstrap(np.mean, sample, draws=100)
    assert bootstrap(np.mean, sample, draws=100, seed=1) != bootstrap(np.mean, sample, draws=100)


def test_the_bootstrap_draws_the_same_rows_of_all_columns():
    first = np.random.default_rng(4).normal(size=60)
    found = bootstrap(lambda a, b: float(np.abs(b - a - 5).max()), first, first + 5, draws=50)
    assert found == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_bootstrap_takes_tables_of_counts():
    counts = np.array([[1, 2, 2], [0, 1, 0], [2, 2, 2]] * 20)
    value, low, high = bootstrap(span_f1, counts, draws=200)
    assert value == span_f1(counts)
    assert low < value < high


@given(st.lists(st.integers(-800, 800).map(lambda n: n / 8), min_size=2, max_size=12, unique=True))
def test_seed_interval_is_student_s(values: list):
    mean, low, high = seed_interval(values)
    assert mean == pytest.approx(np.mean(values))
    expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (low, high) == pytest.approx(expected, abs=1e-9)


# -------------------------------------------------------------------------------------------------------------- probe


def blobs(rows: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that differ in the first of 40 features."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    features = random.normal(size=(rows, 40))
    features[:, 0] = (2 * labels - 1) * 3 + noise * random.normal(size=rows)
    return features, np.array(["no", "yes"])[labels]


def test_a_probe_separates_what_is_separable():
    probe = linear_probe(blobs(200, 0.1, seed=0), blobs(40, 0.1, seed=1))
    features, labels = blobs(100, 0.1, seed=2)
    assert macro_f1(labels, probe.predict(features)) == 1.0


def test_the_probe_is_fitted_on_train_and_chosen_on_validation(monkeypatch):
    train, validation = blobs(60, 6.0, seed=3), blobs(400, 6.0, seed=4)
    fitted, scored = [], []
    fit = LogisticRegression.fit

    def spy_on_fit(self, features, labels):
        fitted.append((self.C, len(features)))
        return fit(self, features, labels)

    def spy_on_score(truth, predicted):
        scored.append((macro_f1(truth, predicted), truth is validation[1]))
        return scored[-1][0]

    monkeypatch.setattr(LogisticRegression, "fit", spy_on_fit)
    monkeypatch.setattr(evaluation, "macro_f1", spy_on_score)
    strengths = (10.0, 0.001, 0.1)
    probe = linear_probe(train, validation, strengths)
    assert fitted == [(c, 60) for c in strengths]
    assert [on_validation for _, on_validation in scored] == [True] * 3
    scores = [score for score, _ in scored]
    assert len(set(scores)) == 3
    best = strengths[int(np.argmax(scores))]
    assert probe[-1].C == best != 10.0  # the weakest penalty fits the 60 rows of train best
    assert probe[0].mean_ == pytest.approx(train[0].mean(axis=0))


def test_the_probe_can_be_chosen_by_another_score():
    probe = linear_probe(blobs(200, 0.1, seed=0), None, (0.01, 10.0, 0.1), score=lambda probe: probe[-1].C)
    assert probe[-1].C == 10.0
