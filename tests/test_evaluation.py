"""Scores against the libraries that define them, intervals against theory, and a probe that never sees the test set."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from seqeval.metrics import f1_score as seqeval_f1
from seqeval.metrics import precision_score as seqeval_precision
from seqeval.metrics import recall_score as seqeval_recall
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as seqeval_scores
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from mtl_helpers import TASKS, Task, evaluate, evaluation, load_challenge
from mtl_helpers.evaluation import (
    Interval,
    bootstrap,
    calibration,
    class_report,
    confusion,
    evaluate_challenge,
    expected_calibration_error,
    labelled,
    linear_probe,
    macro_f1,
    paired_test,
    seed_interval,
    span_counts,
    span_f1,
    span_precision,
    span_recall,
)

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


@pytest.mark.parametrize(
    "score, theirs",
    [(span_precision, seqeval_precision), (span_recall, seqeval_recall), (span_f1, seqeval_f1)],
    ids=["precision", "recall", "F1"],
)
def test_span_scores_are_those_of_seqeval(score, theirs, bio):
    counts = span_counts(*[[decode(sequence) for sequence in side] for side in bio])
    assert counts.shape == (1000, 3)
    assert 0.2 < score(counts) < 0.8
    assert score(counts) == pytest.approx(theirs(*bio))
    for i in range(0, 1000, 5):
        few = slice(i, i + 5)
        assert score(counts[few]) == pytest.approx(theirs(bio[0][few], bio[1][few], zero_division=0))


def test_a_span_counts_only_if_ends_and_label_are_right():
    truth = [[(0, 3, "PER"), (5, 8, "LOC")], [], [(0, 2, "ORG")]]
    predicted = [[(0, 3, "PER"), (5, 9, "LOC")], [(1, 2, "PER")], [(0, 2, "LOC")]]
    counts = span_counts(truth, predicted)
    assert counts.tolist() == [[1, 2, 2], [0, 1, 0], [0, 1, 1]]
    assert span_f1(counts) == pytest.approx(2 / 7)
    assert (span_precision(counts), span_recall(counts)) == (pytest.approx(1 / 4), pytest.approx(1 / 3))


@pytest.mark.parametrize("score", [span_precision, span_recall, span_f1])
def test_where_there_are_no_spans_the_scores_are_zero(score):
    spans = [(0, 3, "PER")]
    for truth, predicted in (([], []), ([], spans), (spans, [])):
        assert score(span_counts([truth], [predicted])) == 0.0
    assert score(span_counts([spans], [spans])) == 1.0


# ------------------------------------------------------------------------------------------------- scores of a model


class Stub:
    """A model whose predictions are given, a row per text."""

    def __init__(self, predicted: pd.DataFrame, tasks: Sequence = TASKS) -> None:
        self.tasks, self.predicted = tuple(tasks), predicted.set_index("text", drop=False)

    def predict(self, texts: Sequence[str]) -> pd.DataFrame:
        return self.predicted.loc[list(texts)].reset_index(drop=True)


@pytest.fixture(scope="module")
def sides(bio: tuple) -> tuple[pd.DataFrame, pd.DataFrame]:
    """300 texts with labels for every task, and predictions that are often right."""
    random = np.random.default_rng(5)
    texts = [f"text {i}" for i in range(300)]
    truth = pd.DataFrame({"text": texts})
    predicted = pd.DataFrame(index=pd.Index(texts[::-1], name="text"))  # in another order: the text has to decide
    for task in TASKS[:3]:
        shares = random.dirichlet(np.full(len(task.labels), 2.0))
        truth[task.name] = random.choice(task.labels, 300, p=shares).astype(object)
        guess = np.where(random.random(300) < 0.6, truth[task.name], random.choice(task.labels, 300))
        predicted[task.name] = pd.Series(guess, texts)
    truth["entities"] = [decode(sequence) for sequence in bio[0][:300]]
    found = [[(*span, "surface") for span in decode(sequence)] for sequence in bio[1][:300]]
    predicted["entities"] = pd.Series(found, texts)
    return truth.set_index(truth.index * 3 + 1), predicted.reset_index()


def both(task: Task, sides: tuple[pd.DataFrame, pd.DataFrame]) -> tuple[list, list]:
    """Labels and predictions of one task."""
    return labelled(task, sides[0], Stub(sides[1]).predict(sides[0]["text"]))


def test_scores_are_those_of_the_libraries(sides, bio):
    table = evaluate(Stub(sides[1]), sides[0], draws=100)
    assert list(table) == ["task", "metric", "value", "low", "high", "texts"]
    assert table[["task", "metric"]].to_numpy().tolist() == [
        *([task.name, metric] for task in TASKS[:3] for metric in ("accuracy", "macro_f1")),
        *(["entities", metric] for metric in ("precision", "recall", "f1")),
    ]
    found = table.set_index(["task", "metric"])["value"]
    predicted = sides[1].set_index("text").loc[sides[0]["text"]]
    for task in TASKS[:3]:
        truth, guess = sides[0][task.name].tolist(), predicted[task.name].tolist()
        assert found[task.name, "accuracy"] == pytest.approx(accuracy_score(truth, guess))
        expected = f1_score(truth, guess, labels=sorted(set(truth)), average="macro", zero_division=0)
        assert found[task.name, "macro_f1"] == pytest.approx(expected)
        assert 0.4 < expected < 0.9
    for metric, score in (("precision", seqeval_precision), ("recall", seqeval_recall), ("f1", seqeval_f1)):
        assert found["entities", metric] == pytest.approx(score(bio[0][:300], bio[1][:300]))
    assert (table["low"] < table["value"]).all() and (table["value"] < table["high"]).all()
    assert (table["high"] - table["low"]).between(0.02, 0.3).all()
    assert (table["texts"] == 300).all()


@pytest.mark.parametrize("missing", [None, math.nan, pd.NA], ids=repr)
def test_texts_without_a_label_are_left_out(missing: object, sides):
    truth = sides[0].astype(object)
    gone = {"topic": range(0, 100), "entities": range(50, 290), "sentiment": range(300)}
    for name, rows in gone.items():
        values = [missing if i in rows else label for i, label in enumerate(truth[name])]
        truth[name] = pd.Series(values, truth.index, dtype=object)
    table = evaluate(Stub(sides[1]), truth, draws=50)
    counts = table.groupby("task")["texts"].first().to_dict()
    assert counts == {"topic": 200, "sentence_type": 300, "entities": 60}
    expected = evaluate(Stub(sides[1], TASKS[:1]), sides[0].iloc[100:], draws=50)
    pd.testing.assert_frame_equal(table[table["task"] == "topic"], expected)
    for task in TASKS:
        assert [len(side) for side in both(task, (truth, sides[1]))] == [counts.get(task.name, 0)] * 2


def test_a_text_without_entities_counts_as_labelled(sides):
    truth = sides[0].assign(entities=[[] for _ in range(300)])
    table = evaluate(Stub(sides[1], TASKS[3:]), truth, draws=20)
    assert table["value"].tolist() == [0.0, 0.0, 0.0]
    assert table["texts"].tolist() == [300] * 3


def test_tasks_without_a_column_are_left_out(sides):
    few = sides[0][["text", "sentiment"]]
    assert evaluate(Stub(sides[1]), few, draws=20)["task"].unique().tolist() == ["sentiment"]
    assert both(TASKS[0], (few, sides[1])) == ([], [])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows[["text"]],
        lambda rows: rows[:0],
        lambda rows: rows.assign(**dict.fromkeys([task.name for task in TASKS])),
    ],
    ids=["no column", "no row", "no label"],
)
def test_a_table_without_labels_is_refused(spoil, sides):
    rows = spoil(sides[0])
    names = "topic, sentence_type, sentiment, entities"
    with pytest.raises(ValueError, match=f"found no label for {names} in {len(rows)} rows"):
        evaluate(Stub(sides[1]), rows)


def test_evaluate_is_repeatable_and_takes_a_real_model(model, corpus):
    rows = corpus[corpus["text"].str.len() < 40][:40]
    table = evaluate(model, rows, draws=20)
    pd.testing.assert_frame_equal(table, evaluate(model, rows, draws=20))
    assert set(table["task"]) == {task.name for task in TASKS}
    predicted = model.predict(rows["text"])
    found = table.set_index(["task", "metric"])["value"]
    assert found["topic", "accuracy"] == pytest.approx(np.mean(predicted["topic"].to_numpy() == rows["topic"]))


def test_labelled_gives_spans_as_the_corpus_has_them(sides):
    truth, predicted = both(ENTITIES, sides)
    assert truth == sides[0]["entities"].tolist()
    assert {len(span) for spans in predicted for span in spans} == {3}
    assert 0.05 < np.mean([a == b for a, b in zip(truth, predicted, strict=True)]) < 0.95


# ------------------------------------------------------------------------------------------ per class, per capability


@pytest.mark.parametrize("task", TASKS[:3], ids=lambda task: task.name)
def test_the_class_report_is_that_of_scikit_learn(task, sides):
    truth, predicted = both(task, sides)
    report = class_report(task, truth, predicted)
    assert list(report) == ["precision", "recall", "f1", "n"]
    assert (report.index.name, *report.index) == ("label", *task.labels)
    expected = precision_recall_fscore_support(truth, predicted, labels=task.labels, zero_division=0)
    np.testing.assert_allclose(report.to_numpy().T, expected)


def test_the_class_report_of_spans_is_that_of_seqeval(bio):
    report = class_report(ENTITIES, *[[decode(sequence) for sequence in side] for side in bio])
    assert report.index.tolist() == ["PER", "ORG", "LOC"]
    expected = seqeval_scores(*bio, average=None, zero_division=0)  # labels in alphabetical order
    np.testing.assert_allclose(report.sort_index().to_numpy().T, expected)


def test_the_class_report_of_a_label_that_nobody_uses_has_zeros():
    report = class_report(TASKS[2], ["positive", "negative"], ["positive", "positive"])
    assert report.loc["neutral"].tolist() == [0, 0, 0, 0]
    assert report.loc["positive"].tolist() == pytest.approx([0.5, 1, 2 / 3, 1])
    assert report.loc["negative"].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_class_report_of_no_text_at_all_has_zeros(task):
    assert not class_report(task, [], []).to_numpy().any()


def test_the_confusion_matrix_has_a_row_per_true_label(sides):
    task = TASKS[0]
    truth, predicted = both(task, sides)
    table = confusion(task, truth, predicted)
    assert (table.index.name, *table.index) == ("true", *task.labels)
    assert tuple(table.columns) == task.labels
    assert table.sum(axis=1).to_dict() == {label: truth.count(label) for label in task.labels}
    assert table.sum(axis=0).to_dict() == {label: predicted.count(label) for label in task.labels}
    pairs = list(zip(truth, predicted, strict=True))
    assert all(table.at[a, b] == pairs.count((a, b)) for a in task.labels for b in task.labels)
    assert confusion(task, ["health"], ["sports"]).at["health", "sports"] == 1


CHALLENGE = pd.DataFrame(
    [  # the last: what the model says
        ("n1", "negation", "directional", "sentiment", "positive", "It works.", "positive"),
        ("n1", "negation", "directional", "sentiment", "negative", "It does not work.", "positive"),
        ("n2", "negation", "directional", "sentiment", "negative", "I hate it.", "negative"),
        ("n2", "negation", "directional", "sentiment", "positive", "I don't hate it.", "positive"),
        ("n3", "negation", "invariance", "sentiment", "neutral", "It is a box.", "neutral"),
        ("n3", "negation", "invariance", "sentiment", "neutral", "It is not a box.", "neutral"),
        ("n3", "negation", "invariance", "sentiment", "neutral", "Is it not a box?", "negative"),
        ("t1", "typos", "invariance", "topic", "sports", "They won the mach.", "sports"),
        ("t2", "typos", "invariance", "sentiment", "neutral", "It is a bxo.", "neutral"),
    ],
    columns=["group", "capability", "test_type", "task", "expected", "text", "says"],
)
CHALLENGE_COLUMNS = ["capability", "test_type", "groups", "passed", "rate", "low", "high", "accuracy"]


def challenged(tasks: Sequence = TASKS[:3]) -> Stub:
    """Says what it is made to say for the task that is asked for, and nonsense for the others."""
    says = {task.name: CHALLENGE["says"].where(CHALLENGE["task"] == task.name, "nonsense") for task in TASKS[:3]}
    return Stub(CHALLENGE[["text"]].assign(**says), tasks)


def test_a_group_with_one_wrong_sentence_fails():
    table = evaluate_challenge(challenged(), CHALLENGE.drop(columns="says"))
    assert list(table) == CHALLENGE_COLUMNS
    assert table.drop(columns=["low", "high"]).to_numpy().tolist() == [
        ["negation", "directional", 2, 1, 0.5, 0.75],
        ["negation", "invariance", 1, 0, 0.0, pytest.approx(2 / 3)],
        ["typos", "invariance", 2, 2, 1.0, 1.0],
    ]
    for _, row in table.iterrows():
        expected = stats.binomtest(row["passed"], row["groups"]).proportion_ci(method="wilson")
        assert (row["low"], row["high"]) == pytest.approx(tuple(expected))


def test_groups_of_tasks_that_the_model_does_not_have_are_left_out():
    shuffled = CHALLENGE.drop(columns="says")[::-1]
    table = evaluate_challenge(challenged(TASKS[:1]), shuffled)
    assert table[["capability", "groups", "passed"]].to_numpy().tolist() == [["typos", 1, 1]]


def test_without_a_group_for_its_tasks_the_table_is_empty():
    table = evaluate_challenge(challenged(TASKS[1:2]), CHALLENGE.drop(columns="says"))
    assert (len(table), list(table)) == (0, CHALLENGE_COLUMNS)


def test_the_accuracy_is_that_of_the_capability_alone():
    names = {"n1": "1", "n2": "2", "n3": "1", "t1": "1", "t2": "2"}  # each capability counts its groups from 1
    rows = CHALLENGE.assign(group=CHALLENGE["group"].replace(names)).drop(columns="says")
    assert evaluate_challenge(challenged(), rows)["accuracy"].tolist() == pytest.approx([0.75, 2 / 3, 1.0])


def test_a_model_that_is_always_right_passes_the_challenge():
    challenge = load_challenge()
    right = {task.name: challenge["expected"].where(challenge["task"] == task.name) for task in TASKS[:3]}
    table = evaluate_challenge(Stub(challenge[["text"]].assign(**right)), challenge)
    assert table["groups"].sum() == table["passed"].sum() == challenge["group"].nunique() == 200
    assert (table["accuracy"] == 1).all()
    assert table["low"].between(0.2, 0.9).all()


# -------------------------------------------------------------------------------------------------------- calibration


def test_calibration_by_hand():
    confidence, right = [0.05, 0.55, 0.57, 0.95, 1.0], [False, True, False, True, True]
    table = calibration(np.array(confidence), np.array(right))
    assert list(table) == ["confidence", "accuracy", "n"]
    assert table.index.tolist() == [0, 5, 9]
    np.testing.assert_allclose(table, [[0.05, 0, 1], [0.56, 0.5, 2], [0.975, 1, 2]])
    assert expected_calibration_error(confidence, right) == pytest.approx((0.05 + 2 * 0.06 + 2 * 0.025) / 5)
    assert expected_calibration_error(confidence, right, bins=1) == pytest.approx(abs(np.mean(confidence) - 0.6))
    assert calibration(confidence, right, bins=2).index.tolist() == [0, 1]


def test_every_confidence_has_a_bin():
    table = calibration(np.linspace(0, 1, 101), np.ones(101), bins=4)
    assert table["n"].tolist() == [25, 25, 25, 26]
    assert (table["accuracy"] == 1).all()


@pytest.mark.parametrize("too_sure", [0.0, 0.1, -0.1])
def test_the_calibration_error_is_how_far_the_confidence_is_off(too_sure: float):
    random = np.random.default_rng(6)
    confidence = random.uniform(0.3, 0.9, 40_000)
    right = random.random(40_000) < confidence - too_sure
    assert expected_calibration_error(confidence, right) == pytest.approx(abs(too_sure), abs=0.012)
    table = calibration(confidence, right)
    np.testing.assert_allclose(table["confidence"] - table["accuracy"], too_sure, atol=0.03)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50), st.integers(1, 20))
def test_more_bins_find_at_least_the_error_of_one(pairs: list, bins: int):
    confidence, right = np.array([c for c, _ in pairs]), np.array([r for _, r in pairs])
    table = calibration(confidence, right, bins)
    assert table["n"].sum() == len(pairs)
    assert table.index.is_monotonic_increasing and set(table.index) <= set(range(bins))
    error = expected_calibration_error(confidence, right, bins)
    assert abs(confidence.mean() - right.mean()) - 1e-9 <= error <= 1 + 1e-9


# --------------------------------------------------------------------------------------------------------- two models


def accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean(truth == predicted))


def guesses(rows: int, *rates: float) -> list[np.ndarray]:
    """Labels, and predictions that are right at the given rates."""
    random = np.random.default_rng(8)
    truth = random.choice(TASKS[0].labels, rows)
    wrong = np.roll(TASKS[0].labels, 1)[[TASKS[0].index(label) for label in truth]]
    return [truth, *(np.where(random.random(rows) < rate, truth, wrong) for rate in rates)]


@pytest.mark.parametrize("score", [accuracy, macro_f1])
def test_a_model_does_not_differ_from_itself(score):
    truth, predicted = guesses(50, 0.5)
    assert paired_test(score, truth, predicted, predicted, draws=100) == (0.0, 1.0)


def test_a_clear_difference_has_a_small_p_and_a_sign():
    truth, good, bad = guesses(150, 0.9, 0.4)
    difference, p = paired_test(macro_f1, truth, good, bad, draws=500)
    assert difference == pytest.approx(macro_f1(truth, good) - macro_f1(truth, bad))
    assert difference > 0.3
    assert p == 1 / 501  # never 0
    assert paired_test(macro_f1, truth, bad, good, draws=500) == (-difference, p)


def test_the_paired_test_is_repeatable_and_symmetric():
    truth, first, second = guesses(60, 0.5, 0.6)
    difference, p = paired_test(macro_f1, truth, first, second, draws=200)
    assert 0.005 < p < 0.5
    assert paired_test(macro_f1, list(truth), list(first), list(second), draws=200) == (difference, p)
    assert paired_test(macro_f1, truth, second, first, draws=200) == (-difference, p)
    others = {paired_test(macro_f1, truth, first, second, draws=200, seed=seed)[1] for seed in range(1, 5)}
    assert others != {p}
    assert all(abs(other - p) < 0.15 for other in others)


def test_p_is_that_of_all_swaps():
    """Six of the seven texts on which they differ speak for the first: as unlikely as six or more heads, or tails."""
    truth, first, second = np.array(["a"] * 12), np.array(list("aaaaaaabaaab")), np.array(list("bbbbbbaaaaab"))
    swaps = itertools.product([False, True], repeat=12)
    pairs = [(np.where(swap, second, first), np.where(swap, first, second)) for swap in swaps]
    exact = np.mean([abs(accuracy(truth, a) - accuracy(truth, b)) > 5 / 12 - 1e-9 for a, b in pairs])
    difference, p = paired_test(accuracy, truth, first, second, draws=4000)
    assert difference == pytest.approx(5 / 12)
    assert p == pytest.approx(exact, abs=0.02)
    assert exact == pytest.approx(stats.binomtest(6, 7).pvalue)


def test_without_a_difference_p_is_uniform():
    def closeness(truth: np.ndarray, predicted: np.ndarray) -> float:
        return -float(np.abs(truth - predicted).mean())

    random = np.random.default_rng(7)
    found = []
    for seed in range(200):
        truth, *noise = random.normal(size=(3, 25))
        found.append(paired_test(closeness, truth, truth + noise[0], truth + noise[1], draws=199, seed=seed)[1])
    assert stats.kstest(found, "uniform").pvalue > 0.05
    assert 0.01 <= np.mean(np.array(found) <= 0.05) <= 0.1


def test_spans_can_be_compared_too(bio):
    truth, predicted = ([decode(sequence) for sequence in side[:60]] for side in bio)
    difference, p = paired_test(lambda a, b: span_f1(span_counts(a, b)), truth, truth, predicted, draws=100)
    assert difference == pytest.approx(1 - span_f1(span_counts(truth, predicted)))
    assert p == 1 / 101


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


def test_an_interval_reads_as_value_low_and_high():
    assert f"{Interval(1.24, -0.5, 2.0):+.1f}" == "+1.2 (-0.5 to +2.0)"
    assert f"{seed_interval([1.0, 1.0, 1.0]):.2f}" == "1.00 (1.00 to 1.00)"


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
