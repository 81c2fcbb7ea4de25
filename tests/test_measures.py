"""Behaviour, calibration and probes: against theory, by hand, and never with a look at the test set."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.measures import calibration, evaluate_challenge, expected_calibration_error, linear_probe
from mtl_helpers import TASKS, load_challenge
from mtl_helpers.evaluation import macro_f1

# --------------------------------------------------------------------------------------------------------- behaviour

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
ROWS = CHALLENGE.drop(columns="says")
COLUMNS = ["capability", "test_type", "groups", "passed", "rate", "low", "high", "accuracy"]


class Stub:
    """Says what it is made to say for the task that is asked for, and nonsense for the others."""

    def __init__(self, rows: pd.DataFrame, says: str, tasks: tuple = TASKS[:3]) -> None:
        answers = {task.name: rows[says].where(rows["task"] == task.name, "nonsense") for task in TASKS[:3]}
        self.tasks, self.answers = tasks, rows[["text"]].assign(**answers).set_index("text", drop=False)

    def predict(self, texts: pd.Series) -> pd.DataFrame:
        return self.answers.loc[list(texts)].reset_index(drop=True)


def test_a_group_with_one_wrong_sentence_fails():
    table = evaluate_challenge(Stub(CHALLENGE, "says"), ROWS)
    assert list(table) == COLUMNS
    assert table.drop(columns=["low", "high"]).to_numpy().tolist() == [
        ["negation", "directional", 2, 1, 0.5, 0.75],
        ["negation", "invariance", 1, 0, 0.0, pytest.approx(2 / 3)],
        ["typos", "invariance", 2, 2, 1.0, 1.0],
    ]
    for _, row in table.iterrows():
        expected = stats.binomtest(row["passed"], row["groups"]).proportion_ci(method="wilson")
        assert (row["low"], row["high"]) == pytest.approx(tuple(expected))
    names = {"n1": "1", "n2": "2", "n3": "1", "t1": "1", "t2": "2"}  # each capability may count its groups from 1
    again = evaluate_challenge(Stub(CHALLENGE, "says"), ROWS.assign(group=ROWS["group"].replace(names)))
    pd.testing.assert_frame_equal(again, table)
    table = evaluate_challenge(Stub(CHALLENGE, "says", TASKS[:1]), ROWS[::-1])  # has no head for the others
    assert table[["capability", "groups", "passed"]].to_numpy().tolist() == [["typos", 1, 1]]
    table = evaluate_challenge(Stub(CHALLENGE, "says", TASKS[1:2]), ROWS)
    assert (len(table), list(table)) == (0, COLUMNS)


def test_a_model_that_is_always_right_passes_the_challenge():
    challenge = load_challenge()
    table = evaluate_challenge(Stub(challenge, "expected"), challenge)
    assert table["groups"].sum() == table["passed"].sum() == challenge["group"].nunique() == 200
    assert (table["accuracy"] == 1).all() and table["low"].between(0.2, 0.9).all()


# -------------------------------------------------------------------------------------------------------- calibration


def test_calibration_by_hand():
    confidence, right = [0.05, 0.55, 0.57, 0.95, 1.0], [False, True, False, True, True]
    table = calibration(np.array(confidence), np.array(right))
    assert list(table) == ["confidence", "accuracy", "n"] and table.index.tolist() == [0, 5, 9]
    np.testing.assert_allclose(table, [[0.05, 0, 1], [0.56, 0.5, 2], [0.975, 1, 2]])
    assert expected_calibration_error(confidence, right) == pytest.approx((0.05 + 2 * 0.06 + 2 * 0.025) / 5)
    assert expected_calibration_error(confidence, right, bins=1) == pytest.approx(abs(np.mean(confidence) - 0.6))
    assert calibration(confidence, right, bins=2).index.tolist() == [0, 1]
    assert calibration(np.linspace(0, 1, 101), np.ones(101), bins=4)["n"].tolist() == [25, 25, 25, 26]


@pytest.mark.parametrize("too_sure", [0.0, 0.1, -0.1])
def test_the_calibration_error_is_how_far_the_confidence_is_off(too_sure: float):
    random = np.random.default_rng(6)
    confidence = random.uniform(0.3, 0.9, 40_000)
    right = random.random(40_000) < confidence - too_sure
    assert expected_calibration_error(confidence, right) == pytest.approx(abs(too_sure), abs=0.012)
    table = calibration(confidence, right)
    np.testing.assert_allclose(table["confidence"] - table["accuracy"], too_sure, atol=0.03)


# -------------------------------------------------------------------------------------------------------------- probe


def blobs(rows: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that differ in the first of 40 features."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    features = random.normal(size=(rows, 40))
    features[:, 0] = (2 * labels - 1) * 3 + noise * random.normal(size=rows)
    return features, np.array(["no", "yes"])[labels]


def test_the_probe_is_fitted_on_train_and_chosen_on_validation():
    train, validation = blobs(60, 6.0, seed=3), blobs(400, 6.0, seed=4)
    strengths, alone = (10.0, 0.001, 0.1), {c: linear_probe(train, validation, [c]) for c in (10.0, 0.001, 0.1)}
    scores = {c: macro_f1(validation[1], probe.predict(validation[0])) for c, probe in alone.items()}
    probe = linear_probe(train, validation, strengths)
    assert len(set(scores.values())) == 3
    assert probe[-1].C == max(scores, key=scores.get) != 10.0  # the weakest penalty fits the 60 rows of train best
    assert probe[0].mean_ == pytest.approx(train[0].mean(axis=0)) and probe[0].n_samples_seen_ == 60
    features, labels = blobs(100, 0.1, seed=2)
    assert macro_f1(labels, linear_probe(blobs(200, 0.1, 0), blobs(40, 0.1, 1)).predict(features)) == 1.0
    by_strength = linear_probe(blobs(200, 0.1, seed=0), None, (0.01, 10.0, 0.1), score=lambda probe: probe[-1].C)
    assert by_strength[-1].C == 10.0
