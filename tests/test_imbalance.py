"""Classes of unequal size: against the papers' equations, worked out by hand."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
import torch
from exactly import CONFIG, NAMES
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from experiments.class_imbalance import oversample
from mtl_helpers import TASKS, fit
from mtl_helpers.imbalance import CLASS_BALANCE, adjusted_loss, class_criterion, class_weights, focal_loss
from mtl_helpers.optimization import make_optimizer, train_step
from mtl_helpers.tasks import IGNORE

pytest_plugins = ["training_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")
COUNTS = torch.tensor([400, 75, 25])


def test_class_weights_by_hand():
    """(1 - 0.99^n) / 0.01 is 98.20493, 52.94094, 22.21786 for the three classes (Cui et al. 2019, equation 2)."""
    inverse = class_weights(COUNTS)
    assert inverse.tolist() == pytest.approx([500 / 1200, 500 / 225, 500 / 75])
    weights = [1 / 98.20493, 1 / 52.94094, 1 / 22.21786]
    mean = (400 * weights[0] + 75 * weights[1] + 25 * weights[2]) / 500
    assert class_weights(COUNTS, "effective").tolist() == pytest.approx([w / mean for w in weights], rel=1e-4)
    torch.testing.assert_close(class_weights(COUNTS, "effective", beta=1 - 1e-7), inverse, rtol=1e-3, atol=0)
    assert class_weights(COUNTS, "effective", beta=0.0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["inverse", "effective"])
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=8))
def test_the_mean_over_the_labels_is_one_and_rarer_classes_weigh_more(kind, counts):
    """A class without labels weighs as if it had one, and takes nothing from the mean."""
    weights = class_weights(torch.tensor(counts), kind)
    assert weights.dtype == torch.float32 and (weights > 0).all()
    labels = counts if any(counts) else [1] * len(counts)
    assert (weights.double() * torch.tensor(labels)).sum().item() / sum(labels) == pytest.approx(1, rel=1e-6)
    number = (lambda n: n) if kind == "inverse" else (lambda n: (1 - 0.99**n) / 0.01)
    for (i, n), (j, m) in itertools.combinations(enumerate(counts), 2):
        assert (weights[i] / weights[j]).item() == pytest.approx(number(max(m, 1)) / number(max(n, 1)), rel=1e-4)


def scores_of(*probabilities: float) -> Tensor:
    """One row of scores with that softmax, moved by a constant that must not matter."""
    return torch.tensor([probabilities]).log() + 3.0


@pytest.mark.parametrize(
    "probabilities, label, gamma, factor",
    [
        ((0.9, 0.06, 0.04), 0, 2.0, 0.01),  # (1 - 0.9)^2
        ((0.9, 0.06, 0.04), 2, 2.0, 0.9216),
        ((0.75, 0.2, 0.05), 0, 0.5, 0.5),
        ((0.75, 0.2, 0.05), 1, 0.0, 1.0),
    ],
)
def test_the_focal_loss_of_what_is_sure_is_small(probabilities, label, gamma, factor):
    losses = focal_loss(scores_of(*probabilities), torch.tensor([label]), gamma)
    assert losses.tolist() == pytest.approx([factor * -math.log(probabilities[label])], rel=1e-4)
    if gamma == 2.0:
        assert losses.tolist() == focal_loss(scores_of(*probabilities), torch.tensor([label])).tolist()
    scores = torch.tensor([[60.0, 0.0, 0.0], [1.0, 2.0, 3.0]], requires_grad=True)
    focal_loss(scores, torch.tensor([0, IGNORE]), gamma).sum().backward()  # of what is certain
    assert scores.grad.abs().max() < 1e-9


def test_adjusted_scores_carry_the_log_frequencies():
    """The frequencies are 0.8, 0.15 and 0.05: what the loss of scores that say nothing consists of."""
    target, frequencies = torch.tensor([0, 1, 2]), torch.tensor([0.8, 0.15, 0.05])
    torch.testing.assert_close(adjusted_loss(torch.zeros(3, 3), target, COUNTS), -frequencies.log())
    scores = torch.randn(3, 3)
    expected = F.cross_entropy(scores + frequencies.log(), target, reduction="none")
    torch.testing.assert_close(adjusted_loss(scores, target, COUNTS), expected)
    rare = adjusted_loss(torch.zeros(1, 3), torch.tensor([2]), torch.tensor([6, 3, 0]))  # 6, 3 and 1 of 10
    assert rare.tolist() == pytest.approx([-math.log(0.1)])


@pytest.mark.parametrize(
    "kind, expected",
    [  # probabilities 0.7, 0.2, 0.1 and the last class
        ("inverse", 500 / 75 * -math.log(0.1)),
        ("effective", 3.40203 * -math.log(0.1)),
        ("focal", 0.81 * -math.log(0.1)),
        ("logit_adjustment", -math.log(0.1 * 0.05 / (0.7 * 0.8 + 0.2 * 0.15 + 0.1 * 0.05))),
    ],
)
def test_each_kind_of_class_balance_is_a_loss_for_each_label(kind: str, expected: float):
    scores = scores_of(0.7, 0.2, 0.1).repeat(3, 1).requires_grad_()
    losses = class_criterion(kind, COUNTS)(scores, torch.tensor([IGNORE, 2, IGNORE]))
    assert losses.tolist() == pytest.approx([0.0, expected, 0.0], rel=1e-3)
    losses.sum().backward()
    assert scores.grad[[0, 2]].abs().max() == 0 and scores.grad[1].abs().max() > 0


def test_fit_counts_the_classes_of_the_training_rows_alone(build, partly, validation, monkeypatch):
    counted = {}

    def spy(kind: str, counts: Tensor) -> Callable:
        counted[kind] = counts.tolist()
        return class_criterion(kind, counts)

    monkeypatch.setattr("mtl_helpers.optimization.class_criterion", spy)
    config = replace(CONFIG, epochs=1, class_balance={"topic": "inverse", "entities": "effective"})
    fit(model := build(), partly, validation, config)
    topics = Counter(partly["topic"].dropna())
    assert counted["inverse"] == [topics[label] for label in TASKS[0].labels] and sum(counted["inverse"]) == 9
    begun = Counter(label for spans in partly["entities"].dropna() for _, _, label in spans)
    assert counted["effective"][1::2] == [begun[label] for label in TASKS[3].labels]  # classes B-PER, B-ORG, B-LOC
    codes = [code for example in model.examples(partly) for code in example["labels"]["entities"]]
    assert sum(counted["effective"]) == sum(code != IGNORE for code in codes)


@pytest.mark.parametrize("kind", CLASS_BALANCE)
def test_a_step_that_is_given_no_balance_has_no_classes_to_count(kind: str, model, full):
    config = replace(CONFIG, class_balance={"topic": kind})
    losses, _ = train_step(model, make_optimizer(model, config), model.batch(model.examples(full)), config)
    assert set(losses) == set(NAMES) and all(map(math.isfinite, losses.values()))


def test_class_balance_changes_what_is_trained_and_not_what_is_measured(build, full, validation):
    """With rates of 0 the model stays: its loss on validation is plain, that of training is balanced."""
    config = replace(CONFIG, epochs=1, learning_rate=0.0, head_learning_rate=0.0)
    plain, *balanced = (
        fit(build(), full, validation, replace(config, class_balance=kinds)).to_frame().set_index("task")
        for kinds in ({}, *({"topic": kind} for kind in CLASS_BALANCE))
    )
    for epochs in balanced:
        pd.testing.assert_series_equal(plain["validation_loss"], epochs["validation_loss"])
        changed = (plain["train_loss"] - epochs["train_loss"]).abs() > 1e-3
        assert changed.to_dict() == {name: name == "topic" for name in NAMES}


def test_oversampling_makes_all_classes_as_frequent_as_the_largest():
    labels = ["x"] * 11 + ["y"] * 4 + ["z"] + [None] * 3
    frame = pd.DataFrame({"id": range(19), "sentiment": labels, "text": [f"text {i}" for i in range(19)]})
    frame = frame.sample(frac=1, random_state=1)
    more = oversample(frame, 0)
    assert more["sentiment"].value_counts().to_dict() == {"x": 11, "y": 11, "z": 11}
    times = Counter(more["id"])
    assert [times[i] for i in range(11)] == [1] * 11
    assert sorted(times[i] for i in range(11, 15)) == [2, 3, 3, 3]
    assert times[15] == 11 and set(times) == set(range(16))
    assert more.index.tolist() == list(range(33)) and list(more) == list(frame) and len(frame) == 19
    merged = more.merge(frame, on="id", suffixes=("", "_before"))
    assert (merged["text"] == merged["text_before"]).all() and (merged["sentiment"] == merged["sentiment_before"]).all()
    pd.testing.assert_frame_equal(more, oversample(frame.copy(), 0))
    seeds = (frozenset(i for i, n in Counter(oversample(frame, s)["id"]).items() if n == 2) for s in range(4))
    assert len(set(seeds)) > 1  # which of them come once more is a matter of the seed
