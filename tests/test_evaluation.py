"""Scores against the libraries that define them, one scorer for loop and test, and intervals against theory."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from seqeval.metrics import f1_score as seqeval_f1
from seqeval.metrics import precision_score as seqeval_precision
from seqeval.metrics import recall_score as seqeval_recall
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score, f1_score
from torch.nn import functional as F

from mtl_helpers import TASKS, CorpusError, MultiTaskModel, SentenceEncoder, Task, evaluate
from mtl_helpers.evaluation import (
    labelled,
    macro_f1,
    main_score,
    span_counts,
    span_f1,
    span_precision,
    span_recall,
    validate,
)
from mtl_helpers.intervals import Interval, bootstrap, seed_interval
from mtl_helpers.tasks import IGNORE

ENTITIES = TASKS[3]
Sides = tuple[pd.DataFrame, pd.DataFrame]


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


class Stub:
    """A model whose predictions are given, a row per text."""

    def __init__(self, predicted: pd.DataFrame, tasks: Sequence = TASKS) -> None:
        self.tasks, self.predicted = tuple(tasks), predicted.set_index("text", drop=False)

    def predict(self, texts: Sequence[str]) -> pd.DataFrame:
        return self.predicted.loc[list(texts)].reset_index(drop=True)


@pytest.fixture(scope="module")
def sides(bio: tuple) -> Sides:
    """300 texts with labels for every task, and predictions that are often right."""
    random = np.random.default_rng(5)
    texts = [f"the text with number {i}" for i in range(300)]  # longer than any sequence
    truth = pd.DataFrame({"text": texts})
    predicted = pd.DataFrame(index=pd.Index(texts[::-1], name="text"))  # in another order: the text has to decide
    for task in TASKS[:3]:
        shares = random.dirichlet(np.full(len(task.labels), 2.0))
        truth[task.name] = random.choice(task.labels, 300, p=shares).astype(object)
        guess = np.where(random.random(300) < 0.6, truth[task.name], random.choice(task.labels, 300))
        predicted[task.name] = pd.Series(guess, texts)
    letters = [i for i, character in enumerate(texts[0][:22]) if character != " "]  # spans without spaces at their ends
    inner = [[(letters[a], letters[a] + 1, label) for a, _, label in decode(s)] for side in bio for s in side[:300]]
    truth["entities"] = inner[:300]
    predicted["entities"] = pd.Series([[(*span, "surface") for span in spans] for spans in inner[300:]], texts)
    return truth.set_index(truth.index * 3 + 1), predicted.reset_index()


def both(task: Task, sides: Sides) -> tuple[list, list]:
    """Labels and predictions of one task."""
    return labelled(task, sides[0], Stub(sides[1]).predict(sides[0]["text"]))


# --------------------------------------------------------------------------------------------------------- the scores


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde")), min_size=1, max_size=40))
def test_macro_f1_is_that_of_scikit_learn(pairs: list):
    truth, predicted = np.array(pairs).T
    expected = f1_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
    assert macro_f1(truth, predicted) == pytest.approx(expected)
    numbers = [np.array(["abcde".index(letter) for letter in side]) for side in (truth, predicted)]
    assert macro_f1(*numbers) == pytest.approx(expected)
    assert main_score(Task("t", tuple("abcde")), truth.tolist(), predicted.tolist()) == pytest.approx(expected)


def test_span_scores_are_those_of_seqeval(bio):
    for sequence in bio[0]:
        assert decode(sequence) == [(start, end + 1, label) for label, start, end in get_entities(sequence)]
    counts = span_counts(*[[decode(sequence) for sequence in side] for side in bio])
    assert counts.shape == (1000, 3)
    theirs = {span_precision: seqeval_precision, span_recall: seqeval_recall, span_f1: seqeval_f1}
    for score, their_score in theirs.items():
        assert 0.2 < score(counts) < 0.8 and score(counts) == pytest.approx(their_score(*bio))
        for i in range(0, 1000, 20):
            few = slice(i, i + 5)
            assert score(counts[few]) == pytest.approx(their_score(bio[0][few], bio[1][few], zero_division=0))
    assert main_score(ENTITIES, *[[decode(s) for s in side] for side in bio]) == pytest.approx(seqeval_f1(*bio))


def test_a_span_counts_only_if_ends_and_label_are_right():
    truth = [[(0, 3, "PER"), (5, 8, "LOC")], [], [(0, 2, "ORG")]]
    predicted = [[(0, 3, "PER"), (5, 9, "LOC")], [(1, 2, "PER")], [(0, 2, "LOC")]]
    counts = span_counts(truth, predicted)
    assert counts.tolist() == [[1, 2, 2], [0, 1, 0], [0, 1, 1]]
    assert (span_f1(counts), span_precision(counts), span_recall(counts)) == pytest.approx((2 / 7, 1 / 4, 1 / 3))
    spans = [(0, 3, "PER")]
    for score in (span_precision, span_recall, span_f1):
        assert [score(span_counts([a], [b])) for a, b in (([], []), ([], spans), (spans, []))] == [0.0] * 3
        assert score(span_counts([spans], [spans])) == 1.0 and score(span_counts([], [])) == 0.0


# ------------------------------------------------------------------------------------------------- scores of a model


def test_scores_are_those_of_the_libraries(sides):
    table = evaluate(Stub(sides[1]), sides[0], draws=100)
    assert list(table) == ["task", "metric", "value", "low", "high", "texts"]
    assert table[["task", "metric"]].to_numpy().tolist() == [
        *([task.name, metric] for task in TASKS[:3] for metric in ("accuracy", "macro_f1")),
        *(["entities", metric] for metric in ("precision", "recall", "f1")),
    ]
    values = table.set_index(["task", "metric"])["value"]
    predicted = sides[1].set_index("text").loc[sides[0]["text"]]
    for task in TASKS[:3]:
        truth, guess = sides[0][task.name].tolist(), predicted[task.name].tolist()
        assert values[task.name, "accuracy"] == pytest.approx(accuracy_score(truth, guess))
        expected = f1_score(truth, guess, labels=sorted(set(truth)), average="macro", zero_division=0)
        assert 0.4 < expected < 0.9 and values[task.name, "macro_f1"] == pytest.approx(expected)
    counts = span_counts(*both(ENTITIES, sides))
    assert {len(span) for spans in both(ENTITIES, sides)[1] for span in spans} == {3}
    scores = [span_precision(counts), span_recall(counts), span_f1(counts)]
    assert values["entities"].tolist() == pytest.approx(scores) and 0.2 < scores[2] < 0.9
    assert (table["low"] < table["value"]).all() and (table["value"] < table["high"]).all()
    assert (table["high"] - table["low"]).between(0.02, 0.3).all()
    assert (table["texts"] == 300).all()
    pd.testing.assert_frame_equal(
        evaluate(Stub(sides[1]), sides[0], intervals=False), table.drop(columns=["low", "high"])
    )


@pytest.mark.parametrize("missing", [None, ""], ids=repr)
def test_texts_without_a_label_are_left_out(missing: object, sides):
    truth = sides[0].astype(object)
    gone = {"topic": range(0, 100), "entities": range(50, 290), "sentiment": range(300)}
    for name, rows in gone.items():
        values = [missing if i in rows else label for i, label in enumerate(truth[name])]
        truth[name] = pd.Series(values, truth.index, dtype=object)
    table = evaluate(Stub(sides[1]), truth, draws=50)
    assert table.groupby("task")["texts"].first().to_dict() == {"topic": 200, "sentence_type": 300, "entities": 60}
    expected = evaluate(Stub(sides[1], TASKS[:1]), sides[0].iloc[100:], draws=50)
    pd.testing.assert_frame_equal(table[table["task"] == "topic"], expected)
    nothing = truth.assign(entities=[[] for _ in range(300)])  # no entities: labelled all the same
    table = evaluate(Stub(sides[1], TASKS[3:]), nothing, intervals=False)
    assert table[["value", "texts"]].to_numpy().tolist() == [[0, 300]] * 3
    few = sides[0][["text", "sentiment"]]  # tasks without a column
    assert evaluate(Stub(sides[1]), few, draws=20)["task"].unique().tolist() == ["sentiment"]
    assert both(TASKS[0], (few, sides[1])) == ([], [])


REFUSED = {  # what is said: how the table is spoilt; what else can be wrong with one: test_corpus.py
    "found no label for topic, sentence_type, sentiment, entities in 300 rows": lambda t: t[["text"]],
    "found no label for topic, .* expected some to compare": lambda t: t.assign(**{task.name: None for task in TASKS}),
    r"^test: 300 problems\n  row 0, column topic: found 'sprots', .*'sports'\?": lambda t: t.assign(topic="sprots"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_table_that_can_not_be_scored_is_refused(message: str, sides):
    with pytest.raises(ValueError, match=message) as error:
        evaluate(Stub(sides[1]), REFUSED[message](sides[0]))
    assert isinstance(error.value, CorpusError) == ("no label" not in message)


# ------------------------------------------------------------------------------ validation in the loop, and evaluation

TEXTS = ["Wir sahen Rene\u0301 dort", "In Oslo met Ivo", "कल दिल्ली में", "ok 👍🏽 then", "Ana likes Ana Duarte and Oslo."]


@pytest.fixture(params=["bert", "roberta", "modernbert", "xlm-roberta", "deberta-v2", "albert"])
def answered(request, family_dirs, short) -> tuple[MultiTaskModel, pd.DataFrame]:
    """A model of random weights, and rows of which it has some right: half of their labels are its predictions."""
    torch.manual_seed(0)
    model = MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs[request.param])).eval()
    rows = short[:40].reset_index(drop=True)
    rows = pd.concat([rows, pd.DataFrame({"text": TEXTS * 2})], ignore_index=True)
    predicted = model.predict(rows["text"])
    for task in TASKS:
        answers = [[s[:3] for s in spans] if task is ENTITIES else spans for spans in predicted[task.name]]
        mixed = [answers[i] if i % 2 or i > 44 else label for i, label in enumerate(rows[task.name])]
        rows[task.name] = pd.Series(mixed, dtype=object)
    rows.at[40, "entities"] = [(10, 15, "PER")]
    rows.at[41, "entities"] = [(3, 6, "LOC"), (12, 15, "PER")]  # one ends within a word
    rows.loc[42, "topic"] = None
    return model, rows


@pytest.mark.filterwarnings("ignore:.* spans don't begin and end where tokens do")
def test_validation_and_evaluation_give_the_same_score(answered):
    model, rows = answered
    examples = model.train().examples(rows)
    scores = validate(model, examples)
    assert model.heads.training  # restored
    table = evaluate(model, rows, intervals=False).set_index(["task", "metric"])["value"]
    for task in TASKS:
        metric = "f1" if task is ENTITIES else "macro_f1"
        assert scores[task.name]["score"] == pytest.approx(table[task.name, metric], abs=1e-12)
        assert 0.1 < scores[task.name]["score"] < 1
        if task is not ENTITIES:
            assert scores[task.name]["accuracy"] == pytest.approx(table[task.name, "accuracy"])


def test_validation_weighs_each_label_the_same_however_batches_fall(model, short):
    rows = pd.concat([short[:30], short[:20].assign(topic=None)], ignore_index=True)
    examples = model.examples(rows)
    sums = {task.name: np.zeros(3) for task in TASKS}  # loss, right, labels
    with torch.inference_mode():
        for example in examples:
            logits = model(model.batch([example]))
            for task in TASKS:
                target = torch.tensor(example["labels"][task.name]).flatten()
                scores = logits[task.name].flatten(0, -2)[target != IGNORE]
                target = target[target != IGNORE]
                loss = F.cross_entropy(scores, target, reduction="sum").item()
                sums[task.name] += loss, (scores.argmax(-1) == target).sum().item(), len(target)
    asked = []

    def hidden(positions: Sequence[int], batch: dict) -> tuple:
        asked.extend(positions)
        return model.encoder.hidden(batch)

    for result in (validate(model, examples), validate(model, examples, hidden=hidden)):
        for name, (loss, right, labels) in sums.items():
            assert result[name]["validation_loss"] == pytest.approx(loss / labels, abs=1e-5)
            assert result[name]["accuracy"] == pytest.approx(right / labels)
    assert sorted(asked) == list(range(50))
    empty = validate(model, model.examples(rows[["text", "topic"]][30:]))
    assert all(math.isnan(value) for scores in empty.values() for value in scores.values())


# ---------------------------------------------------------------------------------------------------------- intervals


def test_the_bootstrap_interval_has_the_width_that_theory_gives():
    sample = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    value, low, high = bootstrap(np.mean, sample, draws=4000)
    assert value == pytest.approx(sample.mean())
    half = 1.96 * sample.std() / 400**0.5
    assert (value - low, high - value) == (pytest.approx(half, rel=0.1), pytest.approx(half, rel=0.1))
    assert bootstrap(np.mean, sample, draws=100) == bootstrap(np.mean, sample, draws=100, seed=0)
    assert bootstrap(np.mean, sample, draws=100, seed=1) != bootstrap(np.mean, sample, draws=100)


def test_the_bootstrap_draws_the_same_rows_of_all_columns_and_takes_tables_of_counts():
    first = np.random.default_rng(4).normal(size=60)
    largest = bootstrap(lambda a, b: float(np.abs(b - a - 5).max()), first, first + 5, draws=50)
    assert largest == pytest.approx((0, 0, 0), abs=1e-12)
    counts = np.array([[1, 2, 2], [0, 1, 0], [2, 2, 2]] * 20)
    value, low, high = bootstrap(span_f1, counts, draws=200)
    assert value == span_f1(counts) and low < value < high


@given(st.lists(st.integers(-800, 800).map(lambda n: n / 8), min_size=2, max_size=12, unique=True))
def test_seed_interval_is_student_s(values: list):
    mean, low, high = seed_interval(values)
    assert mean == pytest.approx(np.mean(values))
    expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (low, high) == pytest.approx(expected, abs=1e-9)


def test_an_interval_reads_as_value_low_and_high():
    assert f"{Interval(1.24, -0.5, 2.0):+.1f}" == "+1.2 (-0.5 to +2.0)"
    assert f"{seed_interval([1.0, 1.0, 1.0]):.2f}" == "1.00 (1.00 to 1.00)"
