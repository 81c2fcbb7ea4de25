"""Sampling of tasks, weights of losses and balance of classes: against the papers' equations, worked out by hand."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from exactly import assert_identical, assert_same_history, weights
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from mtl_helpers import TASKS, History, MultiTaskModel, SentenceEncoder, TaskSampling, TrainingConfig, fit, training
from mtl_helpers.balancing import (
    BALANCING,
    CLASS_BALANCE,
    DynamicWeightAverage,
    GradientBalance,
    GradNorm,
    LossBalance,
    UncertaintyWeights,
    adjusted_loss,
    class_criterion,
    class_weights,
    focal_loss,
    oversample,
    project_conflicts,
)
from mtl_helpers.corpus import collate, make_examples
from mtl_helpers.freezing import cache_states, freeze
from mtl_helpers.tasks import IGNORE
from mtl_helpers.training import epoch_batches, make_balance, make_optimizer, train_step

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = [task.name for task in TASKS]
PAIR = (TASKS[0], TASKS[2])  # topic and sentiment
LEARNT = ("uncertainty", "dynamic_weight_average", "gradnorm")  # methods that change the weights
CONFIG = TrainingConfig(
    epochs=3, learning_rate=3e-3, head_learning_rate=1e-2, max_tokens=120, precision="float32", patience=None
)
FACTORS = {"topic": 2.0, "sentence_type": 0.5, "sentiment": 1.0, "entities": 3.0}
FREE = replace(CONFIG, max_norm=math.inf, task_weights=FACTORS)


@pytest.fixture
def full(short: pd.DataFrame) -> pd.DataFrame:
    """A dozen sentences with all their labels."""
    return short[short["split"] == "train"][:12].reset_index(drop=True)


@pytest.fixture
def partly(full: pd.DataFrame) -> pd.DataFrame:
    """The same dozen, some without some of their labels."""
    rows = full.copy()
    for name, missing in (("topic", [0, 3, 7]), ("sentiment", [3]), ("entities", [4, 5])):
        rows.loc[missing, name] = None
    return rows


@pytest.fixture
def separate(short: pd.DataFrame) -> pd.DataFrame:
    """Two data sets: 16 sentences labelled for the topic alone, 4 others for the sentiment alone."""
    rows = short[short["split"] == "train"][:20].reset_index(drop=True)
    rows.loc[16:, "topic"] = rows.loc[:15, "sentiment"] = None
    return rows


@pytest.fixture
def validation(short: pd.DataFrame) -> pd.DataFrame:
    return short[short["split"] == "validation"][:6].reset_index(drop=True)


@pytest.fixture(scope="module")
def build(family_dirs: dict[str, Path]) -> Callable[..., MultiTaskModel]:
    """Function that makes a tiny model; always with the same weights."""

    def build(tasks: tuple = TASKS, dropout: float = 0.1, **settings) -> MultiTaskModel:
        torch.manual_seed(0)
        return MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs["bert"], **settings), tasks, dropout=dropout)

    return build


@contextmanager
def stopping_in_step(number: int) -> Iterator:
    """Training is interrupted in that step, and the interruption has to come out."""
    calls = itertools.count(1)

    def stopping(*args, **kwargs):
        if next(calls) == number:
            raise KeyboardInterrupt
        return train_step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(training, "train_step", stopping)
        yield caught


# ------------------------------------------------------------------------------------------- the share of each task

SIZES = {"a": 100_000, "b": 1_000}


@pytest.mark.parametrize(
    "settings, share",
    [
        ({"alpha": 1.0}, 100 / 101),
        ({"alpha": 1}, 100 / 101),
        ({"alpha": 0.5}, 10 / 11),
        ({"alpha": 0.25}, 0.7597469),  # a temperature of 4: the fourth root of 100 is 3.16228, to 1
        ({"alpha": 0.0}, 1 / 2),
        ({"alpha": 1.0, "cap": 4_000}, 4 / 5),
        ({"alpha": 0.5, "cap": 4_000}, 2 / 3),  # 4,000 to 1,000, then the root
        ({"alpha": 1.0, "cap": 500}, 1 / 2),
        ({"alpha": 1.0, "cap": 100_000}, 100 / 101),
    ],
    ids=str,
)
def test_shares_are_powers_of_the_capped_sizes(settings: dict, share: float):
    found = TaskSampling(**settings).shares(SIZES)
    assert found == pytest.approx({"a": share, "b": 1 - share}, abs=1e-6)


def test_the_default_is_the_square_root():
    assert TaskSampling().shares({"a": 900, "b": 100}) == pytest.approx({"a": 0.75, "b": 0.25})


def test_annealing_goes_from_the_first_alpha_to_the_last_in_equal_steps():
    """Stickland and Murray 2019: alpha = 1 - 0.8 (e - 1) / (E - 1), here with 100 to the power of it."""
    sampling = TaskSampling(alpha=1.0, final_alpha=0.2)
    found = [sampling.shares(SIZES, epoch, 5) for epoch in range(1, 6)]
    ratios = [100.0, 39.810717, 15.848932, 6.309573, 2.511886]  # alpha 1, 0.8, 0.6, 0.4, 0.2
    assert [shares["a"] / shares["b"] for shares in found] == pytest.approx(ratios, rel=1e-6)
    assert [sum(shares.values()) for shares in found] == pytest.approx([1.0] * 5)


def test_a_single_epoch_has_the_first_alpha():
    assert TaskSampling(alpha=1.0, final_alpha=0.2).shares(SIZES, 1, 1)["a"] == pytest.approx(100 / 101)


def test_annealing_may_also_go_up():
    found = [TaskSampling(alpha=0.0, final_alpha=1.0).shares(SIZES, epoch, 3)["a"] for epoch in (1, 2, 3)]
    assert found == pytest.approx([1 / 2, 10 / 11, 100 / 101])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_task_without_rows_gets_no_share(alpha: float):
    found = TaskSampling(alpha=alpha).shares({"a": 0, "b": 7, "c": 7})
    assert found == pytest.approx({"a": 0.0, "b": 0.5, "c": 0.5})


@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=6),
    st.floats(0, 1),
    st.none() | st.integers(1, 10**6),
)
def test_shares_lie_between_uniform_and_proportional(sizes, alpha, cap):
    found = TaskSampling(alpha=alpha, cap=cap).shares({str(i): n for i, n in enumerate(sizes)})
    assert sum(found.values()) == pytest.approx(1)
    counted = [min(n, cap or n) for n in sizes]
    for (i, n), (j, m) in itertools.product(enumerate(counted), repeat=2):
        if n >= m:
            assert 1 - 1e-9 <= found[str(i)] / found[str(j)] <= n / m + 1e-9 * n / m


# ---------------------------------------------------------------------------------------------------- what is drawn


def share_by_hand(sampling: TaskSampling, sizes: dict[str, int], epoch: int, epochs: int) -> dict[str, float]:
    last = sampling.alpha if sampling.final_alpha is None else sampling.final_alpha
    alpha = np.linspace(sampling.alpha, last, epochs)[epoch - 1]
    powers = {name: min(n, sampling.cap or n) ** alpha if n else 0 for name, n in sizes.items()}
    return {name: power / sum(powers.values()) for name, power in powers.items()}


def decks_of(sizes: Sequence[int]) -> dict[str, list[int]]:
    """A deck of each size, no position in two of them."""
    return {str(i): list(range(1000 * i, 1000 * i + n)) for i, n in enumerate(sizes)}


samplings = st.builds(
    TaskSampling,
    alpha=st.floats(0, 1),
    final_alpha=st.none() | st.floats(0, 1),
    cap=st.none() | st.integers(1, 30),
    rows=st.none() | st.integers(1, 90),
)
some_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any)


@given(samplings, some_sizes, st.integers(0, 2**31 - 1), st.integers(1, 6), st.integers(1, 90))
def test_each_task_gets_its_share_and_deals_its_rows_evenly(sampling, sizes, seed, epochs, total):
    decks = decks_of(sizes)
    rows = sampling.rows or total
    dealt: dict[str, list[int]] = {name: [] for name in decks}
    for epoch in range(1, epochs + 1):
        drawn = sampling.draw(decks, seed, epoch, epochs, total)
        assert list(drawn) == list(decks)
        assert sum(len(positions) for positions in drawn.values()) == rows
        shares = share_by_hand(sampling, {name: len(deck) for name, deck in decks.items()}, epoch, epochs)
        for name, positions in drawn.items():
            assert abs(len(positions) - shares[name] * rows) < 1 + 1e-6
            dealt[name] += positions
    for name, deck in decks.items():
        times, size = Counter(dealt[name]), len(deck)
        assert set(times) <= set(deck)
        if size:
            even = len(dealt[name]) / size
            assert {times[i] for i in deck} <= {math.floor(even), math.ceil(even)}
            rounds = [dealt[name][i : i + size] for i in range(0, len(dealt[name]), size)]  # across the epochs
            assert all(len(set(cards)) == len(cards) for cards in rounds)


@given(samplings, some_sizes, st.integers(0, 2**31 - 1), st.integers(1, 5))
def test_what_is_drawn_depends_on_seed_and_epoch_alone(sampling, sizes, seed, epochs):
    decks = decks_of(sizes)
    forwards = [sampling.draw(decks, seed, epoch, epochs, 50) for epoch in range(1, epochs + 1)]
    torch.rand(3)
    np.random.rand(3)
    backwards = [replace(sampling).draw(decks, seed, epoch, epochs, 50) for epoch in range(epochs, 0, -1)]
    assert backwards[::-1] == forwards


def test_each_seed_each_task_and_each_turn_has_an_order_of_its_own():
    """Also if two tasks have the same rows: else each row would be drawn for both at once."""
    decks = {"a": list(range(20)), "b": list(range(20))}
    orders = []
    for seed, epoch in itertools.product(range(5), (1, 2, 3)):
        drawn = TaskSampling(alpha=1.0, rows=40).draw(decks, seed, epoch, 3, 0)  # each deck once an epoch
        assert {name: sorted(positions) for name, positions in drawn.items()} == decks
        orders += drawn.values()
    assert len({tuple(order) for order in orders}) == 30
    assert len({order[0] for order in orders}) > 8


def test_a_small_task_is_recycled_and_never_ends_the_epoch():
    decks = {"large": list(range(30)), "small": [30, 31, 32], "single": [33]}
    drawn = TaskSampling(alpha=0.0).draw(decks, 0, 1, 1, total=24)
    assert {name: len(positions) for name, positions in drawn.items()} == {"large": 8, "small": 8, "single": 8}
    assert sorted(Counter(drawn["small"]).values()) == [2, 3, 3]
    assert drawn["single"] == [33] * 8
    assert len(set(drawn["large"])) == 8


def test_a_deck_goes_on_in_the_next_epoch_where_it_was_left():
    decks, sampling = {"a": list(range(10))}, TaskSampling(rows=4)
    epochs = [sampling.draw(decks, 3, epoch, 5, 0)["a"] for epoch in range(1, 6)]
    assert sorted(epochs[0] + epochs[1] + epochs[2][:2]) == list(range(10))
    assert sorted(epochs[2][2:] + epochs[3] + epochs[4]) == list(range(10))


def test_an_epoch_has_as_many_rows_as_the_table_unless_told_otherwise():
    decks, lengths = {"a": [0, 1, 2], "b": [3, 4]}, [5] * 9  # four rows without a label
    for rows, expected in ((None, 9), (31, 31)):
        config = replace(CONFIG, sampling=TaskSampling(rows=rows), max_tokens=10)
        drawn = [i for step in epoch_batches(lengths, config, 1, decks) for batch in step for i in batch]
        assert len(drawn) == expected
        assert set(drawn) <= {0, 1, 2, 3, 4}


# ------------------------------------------------------------------------------------------------ how it is batched


@given(
    st.sampled_from(["shuffled", "round_robin", "mixed"]),
    st.lists(st.lists(st.integers(0, 29), max_size=40), min_size=1, max_size=4),
    st.lists(st.integers(2, 60), min_size=30, max_size=30),
    st.integers(1, 200),
    st.integers(0, 1000),
)
def test_batches_keep_the_budget_and_every_row_that_was_drawn(order, columns, lengths, max_tokens, seed):
    drawn = {str(t): [30 * t + i for i in column] for t, column in enumerate(columns)}  # rows repeat within a task
    lengths = lengths * len(columns)

    def batches() -> list[list[int]]:
        return TaskSampling(order=order).batches(drawn, lengths, max_tokens, torch.Generator().manual_seed(seed))

    found = batches()
    assert Counter(i for batch in found for i in batch) == Counter(i for column in drawn.values() for i in column)
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_tokens for batch in found)
    assert all(found)
    if order != "mixed":
        assert all(len({i // 30 for i in batch}) == 1 for batch in found)
    torch.rand(1)
    assert batches() == found


def tasks_in_turn(order: str, sizes: Sequence[int], seed: int = 0) -> str:
    """The task of each batch, as a digit; four rows make a batch."""
    drawn = {str(t): list(range(100 * t, 100 * t + n)) for t, n in enumerate(sizes)}
    found = TaskSampling(order=order).batches(drawn, [5] * 1000, 20, torch.Generator().manual_seed(seed))
    assert all(len({i // 100 for i in batch}) == 1 for batch in found)
    return "".join(str(batch[0] // 100) for batch in found)


@pytest.mark.parametrize("sizes, turns", [([20, 20], "01" * 5), ([17, 20], "01" * 5), ([12, 12, 12], "012" * 3)])
def test_round_robin_alternates(sizes: list[int], turns: str):
    assert tasks_in_turn("round_robin", sizes) == turns


def test_round_robin_spreads_the_batches_of_a_smaller_task():
    found = tasks_in_turn("round_robin", [60, 20, 4])
    assert Counter(found) == {"0": 15, "1": 5, "2": 1}
    assert [found[i : i + 7].count("1") for i in (0, 7, 14)] == [2, 1, 2]
    assert 9 <= found.index("2") <= 11 and "11" not in found


def test_shuffled_batches_come_at_random():
    found = [tasks_in_turn("shuffled", [40, 40], seed) for seed in range(10)]
    assert all(Counter(turns) == {"0": 10, "1": 10} for turns in found)
    assert len(set(found)) == 10
    assert not {"01" * 10, "0" * 10 + "1" * 10, "1" * 10 + "0" * 10} & set(found)


def test_mixed_batches_hold_rows_of_several_tasks():
    drawn = {"a": list(range(40)), "b": list(range(40, 80))}
    found = TaskSampling(order="mixed").batches(drawn, [5] * 80, 40, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in found] == [8] * 10
    assert sum(0 < sum(i < 40 for i in batch) < 8 for batch in found) >= 9


# ---------------------------------------------------------------------------------------------------- fit samples


def labels_by_epoch(history: History, *names: str) -> list[tuple[int, ...]]:
    """Labels of each task that were trained on in each epoch."""
    sums = history.to_frame("steps").groupby("epoch")[[f"{name}_labels" for name in names]].sum()
    return [tuple(row) for row in sums.to_numpy().tolist()]


def epochs_seen(history: History, name: str) -> list[float]:
    rows = history.to_frame()
    return rows[rows["task"] == name]["epochs_seen"].tolist()


@pytest.mark.parametrize("order", ["shuffled", "round_robin", "mixed"])
@pytest.mark.parametrize(
    "sampling, labels, topic, sentiment",
    [  # 16 topics and 4 sentiments
        (TaskSampling(alpha=0.5, rows=12), [(8, 4)] * 3, [0.5, 1.0, 1.5], [1.0, 2.0, 3.0]),
        (TaskSampling(alpha=0.0), [(10, 10)] * 3, [0.625, 1.25, 1.875], [2.5, 5.0, 7.5]),
        (  # 16 : 4, then 4 : 2 (13.33 : 6.67), then 1 : 1
            TaskSampling(alpha=1.0, final_alpha=0.0),
            [(16, 4), (13, 7), (10, 10)],
            [1.0, 29 / 16, 39 / 16],
            [1.0, 11 / 4, 21 / 4],
        ),
    ],
    ids=["square root", "uniform", "annealed"],
)
def test_separate_data_sets_are_seen_as_often_as_their_shares_say(
    sampling, labels, topic, sentiment, order, build, separate, validation
):
    config = replace(CONFIG, sampling=replace(sampling, order=order))
    history = fit(build(PAIR), separate, validation, config)
    assert labels_by_epoch(history, "topic", "sentiment") == labels
    assert epochs_seen(history, "topic") == pytest.approx(topic)
    assert epochs_seen(history, "sentiment") == pytest.approx(sentiment)
    steps = history.to_frame("steps")
    together = (steps["topic_labels"] > 0) & (steps["sentiment_labels"] > 0)
    assert together.any() == (order == "mixed")


def test_each_label_of_a_drawn_row_counts(build, full, validation):
    """Eight topics, two of the rows with a sentiment: in two epochs each deck gives eight cards.

    The topic's deck passes by the two sentiments once, the sentiment's deck has a topic on each card.
    """
    rows = full[:8].copy()
    rows.loc[2:, "sentiment"] = None
    history = fit(build(PAIR), rows, validation, replace(CONFIG, epochs=2, sampling=TaskSampling(alpha=0.0)))
    assert [topics for topics, _ in labels_by_epoch(history, "topic", "sentiment")] == [8, 8]
    assert sum(sentiments for _, sentiments in labels_by_epoch(history, "topic", "sentiment")) == 2 + 8
    assert epochs_seen(history, "topic") == [1.0, 2.0]
    assert epochs_seen(history, "sentiment")[-1] == 5.0


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_fully_labelled_rows_give_every_task_the_same(alpha: float, build, full, validation):
    history = fit(build(), full, validation, replace(CONFIG, sampling=TaskSampling(alpha=alpha, rows=18)))
    assert labels_by_epoch(history, *NAMES) == [(18,) * 4] * 3
    assert all(epochs_seen(history, name) == [1.5, 3.0, 4.5] for name in NAMES)


def test_without_sampling_each_row_is_visited_once(build, partly, validation):
    history = fit(build(), partly, validation, CONFIG)
    assert labels_by_epoch(history, *NAMES) == [(9, 12, 11, 10)] * 3
    assert all(epochs_seen(history, name) == [1.0, 2.0, 3.0] for name in NAMES)
    lengths, decks = [3 + i % 11 for i in range(40)], {"a": [0, 1], "b": [1, 2, 3]}
    steps = epoch_batches(lengths, CONFIG, 2, decks)
    assert sorted(i for step in steps for batch in step for i in batch) == list(range(40))
    assert steps == epoch_batches(lengths, CONFIG, 2)


def test_sampled_batches_are_accumulated_too():
    decks, config = {"a": list(range(12))}, replace(CONFIG, sampling=TaskSampling(), max_tokens=10, accumulation=4)
    steps = epoch_batches([5] * 12, config, 1, decks)
    assert [[len(batch) for batch in step] for step in steps] == [[2, 2, 2, 2], [2, 2]]


# --------------------------------------------------------------------------------------------- interrupt and resume


@pytest.mark.parametrize("balancing", BALANCING)
def test_a_stopped_run_ends_as_one_that_was_not_stopped(balancing: str, build, partly, validation, tmp_path):
    sampling = TaskSampling(alpha=1.0, final_alpha=0.2, order="mixed", rows=12)
    config = replace(CONFIG, epochs=4, sampling=sampling, balancing=balancing, checkpoint_every=2, keep="last")
    model = build()
    expected = fit(model, partly, validation, config, tmp_path / "whole")
    numbers = [row["step"] for row in expected.steps if row["epoch"] == 4]
    with stopping_in_step(numbers[-1]):
        fit(build(), partly, validation, config, tmp_path / "stopped")
    last = max(path.name for path in (tmp_path / "stopped").iterdir())
    assert numbers[0] <= int(last[5:13]) < numbers[-1]  # inside the epoch
    scale = {"entities": training.TOKEN_WEIGHT}
    moved = [abs(expected.steps[numbers[-1] - 1][f"{name}_weight"] / scale.get(name, 1) - 1) for name in NAMES]
    assert (max(moved) > 1e-3) == (balancing in LEARNT)
    again = build()
    for parameter in again.parameters():
        nn.init.normal_(parameter)
    found = fit(again, partly, validation, config, tmp_path / "stopped")
    assert_identical(weights(again), weights(model))
    assert_same_history(found, expected)
    states = [load_file(max((tmp_path / name).glob("step-*.safetensors"))) for name in ("stopped", "whole")]
    assert_identical(*states)


def test_each_method_trains_otherwise(build, partly, validation):
    ends = {}
    for balancing in BALANCING:
        model = build()
        fit(model, partly, validation, replace(CONFIG, balancing=balancing, keep="last"))
        ends[balancing] = model.heads["topic"][1].weight.detach()
    assert not [pair for pair in itertools.combinations(ends, 2) if torch.equal(ends[pair[0]], ends[pair[1]])]


# --------------------------------------------------------------------------------------------------- fixed factors


def test_the_factors_are_those_of_the_configuration(build):
    balance = make_balance(build(), replace(CONFIG, task_weights={"topic": 0.5, "sentiment": 0}))
    assert type(balance) is LossBalance
    assert balance.current() == {"topic": 0.5, "sentence_type": 1.0, "sentiment": 0.0, "entities": 10.0}
    balance.end_step({"topic": 3.0})
    balance.end_epoch({"topic": 3.0, "entities": 0.1})
    assert balance.current() == {"topic": 0.5, "sentence_type": 1.0, "sentiment": 0.0, "entities": 10.0}


@pytest.mark.parametrize("balancing", BALANCING)
def test_every_method_starts_from_the_factors(balancing: str, build):
    balance = make_balance(build(), replace(CONFIG, balancing=balancing, task_weights={"topic": 0.5}))
    assert type(balance) is BALANCING[balancing]
    assert balance.current() == {"topic": 0.5, "sentence_type": 1.0, "sentiment": 1.0, "entities": 10.0}


# ---------------------------------------------------------------------------------------------- uncertainty weights


def test_the_first_step_of_uncertainty_goes_towards_the_minimum():
    """The first step of Adam is as long as its rate: s falls where L < 1/2 and rises where L > 1/2."""
    balance = UncertaintyWeights({"a": 1.0, "b": 1.0, "c": 10.0})
    balance.end_step({"a": 2.0, "b": 0.3, "c": 0.3})  # the third counts as 3
    assert balance.log_variance.tolist() == pytest.approx([0.025, -0.025, 0.025], abs=1e-6)
    assert balance.weights.tolist() == pytest.approx([0.9753099, 1.0253151, 0.9753099], abs=1e-6)  # exp(-s)
    assert balance.current() == pytest.approx({"a": 0.9753099, "b": 1.0253151, "c": 9.753099}, abs=1e-5)


def test_the_weight_of_a_constant_loss_ends_at_half_its_inverse():
    balance = UncertaintyWeights({"a": 1.0, "b": 1.0, "c": 1.0, "d": 10.0})
    for _ in range(3000):
        balance.end_step({"a": 0.1, "b": 0.5, "c": 3.0, "d": 0.2})
    assert balance.weights.tolist() == pytest.approx([5.0, 1.0, 1 / 6, 1 / 4], rel=1e-2)


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.lists(st.floats(0.01, 20), min_size=3, max_size=3))
def test_the_gradient_of_uncertainty_is_that_of_the_loss_in_the_paper(start, losses):
    balance = UncertaintyWeights(dict.fromkeys("abc", 1.0))
    balance.log_variance.data = torch.tensor(start)
    balance.end_step(dict(zip("abc", losses, strict=True)))
    s = torch.tensor(start, requires_grad=True)
    ((-s).exp() * torch.tensor(losses) + s / 2).sum().backward()
    torch.testing.assert_close(balance.log_variance.grad, s.grad, rtol=1e-4, atol=1e-4)


def test_a_task_without_a_loss_has_no_gradient_in_that_step():
    balance = UncertaintyWeights({"a": 1.0, "b": 1.0})
    for _ in range(5):
        balance.end_step({"a": 2.0})
        assert balance.log_variance.grad[1] == 0
        assert balance.log_variance.grad[0] < 0
    assert balance.weights[1] == 1
    assert balance.weights[0] < 0.95
    balance.end_step({"b": 2.0})
    assert balance.log_variance.grad.tolist() == [0.0, -1.5]


# -------------------------------------------------------------------------------------------- dynamic weight average


def softmax_by_hand(*speeds: float) -> list[float]:
    """K softmax(w / 2), equation 7 of Liu et al. 2019."""
    powers = [math.exp(speed / 2) for speed in speeds]
    return [len(speeds) * power / sum(powers) for power in powers]


def test_the_slower_task_gets_more_weight_in_the_third_epoch():
    balance = DynamicWeightAverage({"a": 1.0, "b": 10.0})
    balance.end_epoch({"a": 2.0, "b": 1.0})
    assert balance.weights.tolist() == [1.0, 1.0]
    balance.end_epoch({"a": 1.0, "b": 0.9})  # half of it, and nine tenths
    assert balance.weights.tolist() == pytest.approx([0.900332, 1.099668], abs=1e-5)  # 2 softmax(0.25, 0.45)
    assert balance.current() == pytest.approx({"a": 0.900332, "b": 10.99668}, abs=1e-4)
    balance.end_epoch({"a": 1.2, "b": 0.09})
    assert balance.weights.tolist() == pytest.approx(softmax_by_hand(1.2, 0.1))


@given(st.lists(st.tuples(*[st.floats(0.01, 10)] * 3), min_size=2, max_size=6))
def test_dynamic_weights_sum_to_the_number_of_tasks(epochs):
    balance = DynamicWeightAverage({"a": 1.0, "b": 2.0, "c": 0.5})
    for losses in epochs:
        balance.end_epoch(dict(zip("abc", losses, strict=True)))
        assert balance.weights.sum().item() == pytest.approx(3, abs=1e-5)
    speeds = [now / before for now, before in zip(epochs[-1], epochs[-2], strict=True)]
    assert balance.weights.tolist() == pytest.approx(softmax_by_hand(*speeds), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("missing", [{}, {"b": math.nan}], ids=["not there", "NaN"])
def test_a_task_that_was_missing_is_compared_with_its_last_epoch(missing: dict):
    balance = DynamicWeightAverage({"a": 1.0, "b": 1.0})
    balance.end_epoch({"a": 2.0, "b": 1.0})
    balance.end_epoch({"a": 1.0} | missing)
    assert balance.weights.tolist() == pytest.approx(softmax_by_hand(0.5, 1.0))
    balance.end_epoch({"a": 0.9, "b": 0.3})
    assert balance.weights.tolist() == pytest.approx(softmax_by_hand(0.9, 0.3))


# ---------------------------------------------------------------------------------------------------------- GradNorm


def test_the_first_step_of_gradnorm_evens_out_the_lengths():
    """Lengths 1 and 10, mean 5.5, no task behind: the first weight rises by Adam's rate, the second falls."""
    balance = GradNorm({"a": 1.0, "b": 1.0})
    balance.lengths = {"a": 1.0, "b": 10.0}
    balance.end_step({"a": 2.0, "b": 0.3})
    assert balance.w.grad.tolist() == [-1.0, 10.0]
    assert balance.weights.tolist() == pytest.approx([1.025, 0.975])


def test_the_weights_of_gradnorm_are_scaled_to_their_number():
    balance = GradNorm({"a": 1.0, "b": 1.0, "c": 2.0})
    balance.lengths = {"a": 1.0, "b": 1.0, "c": 10.0}  # mean 4: up, up, down
    balance.end_step({"a": 1.0, "b": 1.0, "c": 1.0})
    assert balance.weights.tolist() == pytest.approx([1.025 * 3 / 3.025, 1.025 * 3 / 3.025, 0.975 * 3 / 3.025])
    assert balance.current()["c"] == pytest.approx(2 * 0.975 * 3 / 3.025)


positive = st.lists(st.floats(0.05, 20), min_size=3, max_size=3)


@given(positive, positive, positive, positive)
def test_the_gradient_of_gradnorm_is_that_of_the_distance_to_a_constant_target(start, lengths, first, now):
    balance = GradNorm(dict.fromkeys("abc", 1.0))
    balance.w.data, balance.first = torch.tensor(start), torch.tensor(first)
    balance.lengths = dict(zip("abc", lengths, strict=True))
    balance.end_step(dict(zip("abc", now, strict=True)))
    w, n = torch.tensor(start, requires_grad=True), torch.tensor(lengths)
    rate = torch.tensor(now) / torch.tensor(first)
    target = ((w * n).mean() * (rate / rate.mean()) ** 1.5).detach()
    distance = (w * n - target).abs()
    if (distance > 1e-4 * target).all():  # else rounding decides on the sign
        distance.sum().backward()
        torch.testing.assert_close(balance.w.grad, w.grad)


def test_gradnorm_ends_where_all_gradients_are_equally_long():
    """w 1 = v 10 and w + v = 2."""
    balance = GradNorm({"a": 1.0, "b": 1.0})
    balance.lengths = {"a": 1.0, "b": 10.0}
    path = []
    for _ in range(1000):
        balance.end_step({"a": 2.0, "b": 5.0})
        path.append(balance.weights.tolist())
    assert path[-1] == pytest.approx([20 / 11, 2 / 11], abs=0.02)
    assert np.mean(path[-200:], axis=0) == pytest.approx([20 / 11, 2 / 11], abs=0.005)


def test_a_task_that_is_behind_gets_more_weight():
    balance = GradNorm({"a": 1.0, "b": 1.0})
    balance.lengths = {"a": 1.0, "b": 1.0}
    balance.end_step({"a": 3.0, "b": 1.0})
    assert balance.weights.tolist() == [1.0, 1.0]  # what counts is the loss relative to the first
    for _ in range(200):
        balance.end_step({"a": 3.0, "b": 0.5})
    assert balance.weights[0] > 1.2 > 0.8 > balance.weights[1]
    for _ in range(400):
        balance.end_step({"a": 0.3, "b": 0.5})
    assert balance.weights[1] > 1.2 > 0.8 > balance.weights[0]


@given(st.lists(st.tuples(*[st.floats(1e-3, 100)] * 6), min_size=1, max_size=20))
def test_the_weights_of_gradnorm_stay_positive_and_sum_to_their_number(steps):
    balance = GradNorm(dict.fromkeys("abc", 1.0))
    for numbers in steps * 3:
        balance.lengths = dict(zip("abc", numbers[:3], strict=True))
        balance.end_step(dict(zip("abc", numbers[3:], strict=True)))
        assert balance.weights.sum().item() == pytest.approx(3, abs=1e-4)
        assert (balance.weights > 0).all()


def test_a_weight_near_zero_is_not_taken_below_it():
    """It should be 2 / 101, less than the rate of Adam."""
    balance, path = GradNorm({"a": 1.0, "b": 1.0}), []
    balance.lengths = {"a": 1.0, "b": 100.0}
    for _ in range(200):
        balance.end_step({"a": 2.0, "b": 5.0})
        path.append(balance.weights[1].item())
    assert 0 < min(path) < 0.025


def test_a_task_without_a_label_is_left_out_of_the_comparison():
    balance = GradNorm(dict.fromkeys("abc", 1.0))
    balance.lengths = {"a": 1.0, "c": 3.0}
    balance.end_step({"a": 2.0, "c": 2.0})
    assert balance.w.grad.tolist() == [-1.0, 0.0, 3.0]
    assert balance.weights.tolist() == pytest.approx([1.025, 1.0, 0.975])
    balance.lengths = {"b": 5.0}
    balance.end_step({"b": 2.0})
    assert balance.w.grad.tolist() == [0.0, 0.0, 0.0]  # nothing to compare it with
    assert balance.first.tolist() == [2.0, 2.0, 2.0]


# -------------------------------------------------------------------------------------------------- gradient surgery


def algorithm_1(gradients: np.ndarray) -> np.ndarray:
    """Yu et al. 2020, line by line; the others in the order of torch.randperm."""
    results = []
    for i, gradient in enumerate(gradients):
        projected = gradient
        for other in (j for j in torch.randperm(len(gradients)).tolist() if j != i):
            if np.dot(projected, gradients[other]) < 0:
                share = np.dot(projected, gradients[other]) / np.linalg.norm(gradients[other]) ** 2
                projected = projected - share * gradients[other]
        results.append(projected)
    return np.stack(results)


@pytest.mark.parametrize(
    "gradients, expected",
    [
        ([[1, 0], [-1, 1]], [[0.5, 0.5], [0, 1]]),
        ([[2, 0], [-1, 1]], [[1, 1], [0, 1]]),  # how long the other one is doesn't matter
        ([[1, 0], [-2, 2]], [[0.5, 0.5], [0, 2]]),
        ([[1, 0], [0, 3]], [[1, 0], [0, 3]]),  # orthogonal
        ([[1, 0], [2, 3]], [[1, 0], [2, 3]]),  # in agreement
        ([[1, -2], [-1, 2]], [[0, 0], [0, 0]]),
        ([[1, 2], [0, 0]], [[1, 2], [0, 0]]),
        ([[1, 2]], [[1, 2]]),
    ],
    ids=str,
)
def test_conflicting_gradients_lose_their_part_along_each_other(gradients: list, expected: list):
    given_ones = torch.tensor(gradients, dtype=torch.float32)
    torch.testing.assert_close(project_conflicts(given_ones), torch.tensor(expected, dtype=torch.float32))
    assert given_ones.tolist() == gradients  # which are left as they were


def test_the_others_come_in_random_order_and_as_they_were():
    """(1, 0) against (-1, 1) and (-1, -2): by way of (0.5, 0.5) or of (0.8, -0.4)."""
    results = set()
    for seed in range(20):
        torch.manual_seed(seed)
        found = project_conflicts(torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-1.0, -2.0]]))
        results.add(tuple(round(x, 5) for x in found[0].tolist()))
    assert results == {(0.2, -0.1), (0.2, 0.2)}


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_surgery_is_the_algorithm_of_the_paper(tasks: int):
    for seed in range(20):
        gradients = torch.tensor(np.random.default_rng(seed).normal(size=(tasks, 7)))
        torch.manual_seed(seed)
        expected = algorithm_1(gradients.numpy())
        torch.manual_seed(seed)
        np.testing.assert_allclose(project_conflicts(gradients).numpy(), expected, rtol=1e-9, atol=1e-12)


vectors = st.lists(st.floats(-10, 10), min_size=4, max_size=4)


@given(vectors, vectors)
def test_of_two_tasks_neither_is_turned_against_the_other(one, other):
    gradients = torch.tensor([one, other], dtype=torch.float64)
    found = project_conflicts(gradients)
    if found.isfinite().all():
        scale = gradients.norm(dim=1).prod().item()
        assert (found @ gradients.T >= -1e-9 * max(scale, 1)).all()
        assert (found.norm(dim=1) <= gradients.norm(dim=1) + 1e-9).all()
    else:
        assert gradients.norm(dim=1).min() < 1e-150  # a square that is rounded to 0


# -------------------------------------------------------------------------- gradients at the shared representation


@pytest.fixture
def rows_for_all(model: MultiTaskModel, full: pd.DataFrame) -> dict:
    """A batch whose rows are labelled for all tasks."""
    return collate(make_examples(full[:8], model.encoder.tokenizer, TASKS, 64), 0)


@pytest.fixture
def apart(full: pd.DataFrame) -> pd.DataFrame:
    """The dozen as four data sets: each task has three rows that no other task has."""
    rows = full.copy()
    for i, name in enumerate(NAMES):
        rows.loc[[row for row in range(12) if row // 3 != i], name] = None
    return rows


@pytest.fixture
def rows_of_their_own(model: MultiTaskModel, apart: pd.DataFrame) -> dict:
    """A batch of these."""
    return collate(make_examples(apart, model.encoder.tokenizer, TASKS, 64), 0)


def gradients_of(model: MultiTaskModel, batch: dict, balancing: str, seed: int = 0) -> dict[str, Tensor]:
    """Gradients (missing ones are zero) of a step that is not taken."""
    config = replace(FREE, balancing=balancing)
    optimizer = make_optimizer(model, config)
    optimizer.step = optimizer.zero_grad = lambda: None
    torch.manual_seed(seed)
    train_step(model, optimizer, [batch], config)
    return take_gradients(model)


def take_gradients(model: MultiTaskModel) -> dict[str, Tensor]:
    found = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    model.zero_grad()
    return found


def weighted_losses(model: MultiTaskModel, logits: dict[str, Tensor], batch: dict) -> list[Tensor]:
    """Of the tasks that have a label."""
    losses = model.loss(logits, batch["labels"])
    return [FACTORS[name] * losses[name] for name in NAMES if (batch["labels"][name] != IGNORE).any()]


def plain_gradients(model: MultiTaskModel, batch: dict) -> dict[str, Tensor]:
    """Of the weighted sum, by one ordinary backward pass."""
    torch.stack(weighted_losses(model, model(batch), batch)).sum().backward()
    return take_gradients(model)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert any(tensor.abs().max() > 0.01 for tensor in expected.values())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("balancing", [name for name in BALANCING if name != "pcgrad"])
@pytest.mark.parametrize("rows", ["rows_for_all", "rows_of_their_own"])
def test_gradients_are_those_of_the_weighted_sum(balancing: str, rows: str, model, request):
    batch = request.getfixturevalue(rows)
    assert_close(gradients_of(model, batch, balancing), plain_gradients(model, batch))


def test_weights_that_are_learnt_scale_the_gradients(model, rows_for_all):
    balance = BALANCING["gradnorm"](FACTORS)
    balance.weights = torch.tensor([0.5, 2.0, 0.25, 1.25])
    losses = model.loss(model(balance.open(model, rows_for_all)), rows_for_all["labels"])
    balance.backward(losses)
    found = take_gradients(model)
    losses = weighted_losses(model, model(rows_for_all), rows_for_all)
    (0.5 * losses[0] + 2 * losses[1] + 0.25 * losses[2] + 1.25 * losses[3]).backward()
    assert_close(found, take_gradients(model))


def test_gradnorm_measures_gradients_at_the_last_hidden_states(model, rows_for_all):
    balance = BALANCING["gradnorm"](FACTORS)
    balance.weights = torch.tensor([0.5, 2.0, 0.25, 1.25])  # the lengths are those without it
    balance.backward(model.loss(model(balance.open(model, rows_for_all)), rows_for_all["labels"]))
    _, states = model.encoder(rows_for_all)
    pooled = (states[-1] * rows_for_all["attention_mask"][..., None]).sum(1)
    pooled = pooled / rows_for_all["attention_mask"].sum(1, keepdim=True)
    for task in TASKS:
        scores = model.heads[task.name](pooled if task.level == "sentence" else states[-1])
        loss = F.cross_entropy(scores.flatten(0, -2), rows_for_all["labels"][task.name].flatten(), ignore_index=IGNORE)
        [gradient] = torch.autograd.grad(FACTORS[task.name] * loss, states[-1], retain_graph=True)
        assert balance.lengths[task.name] == pytest.approx(gradient.square().sum().sqrt().item(), rel=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_surgery_on_fully_labelled_rows_compares_the_shared_states(seed: int, model, rows_for_all):
    plain = plain_gradients(model, rows_for_all)
    vectors, states = model.encoder(rows_for_all)  # the graph stays in one piece
    logits = {t.name: model.heads[t.name](vectors if t.level == "sentence" else states[-1]) for t in TASKS}
    losses = weighted_losses(model, logits, rows_for_all)
    parts = [torch.autograd.grad(loss, states[-1], retain_graph=True)[0] for loss in losses]
    torch.manual_seed(seed)
    after = algorithm_1(np.stack([part.flatten().double().numpy() for part in parts])).sum(0)
    states[-1].backward(torch.tensor(after).view_as(states[-1]).float())
    expected = take_gradients(model)
    expected |= {name: tensor for name, tensor in plain.items() if name.startswith("heads.")}
    found = gradients_of(model, rows_for_all, "pcgrad", seed)
    assert_close(found, expected)
    assert max((found[name] - plain[name]).abs().max() for name in plain) > 1e-3  # there was a conflict


@pytest.mark.parametrize("seed", [0, 1])
def test_surgery_on_rows_of_their_own_compares_the_gradients_of_the_encoder(seed: int, model, rows_of_their_own):
    plain = plain_gradients(model, rows_of_their_own)
    names = [name for name in plain if not name.startswith("heads.")]
    parts = []
    for i in range(len(NAMES)):
        weighted_losses(model, model(rows_of_their_own), rows_of_their_own)[i].backward()
        one = take_gradients(model)
        parts.append(torch.cat([one[name].flatten() for name in names]).double().numpy())
    torch.manual_seed(seed)
    after = torch.tensor(algorithm_1(np.stack(parts)).sum(0)).float()
    expected = {name: tensor for name, tensor in plain.items() if name.startswith("heads.")}
    for name, part in zip(names, after.split([plain[name].numel() for name in names]), strict=True):
        expected[name] = part.view_as(plain[name])
    found = gradients_of(model, rows_of_their_own, "pcgrad", seed)
    assert_close(found, {name: expected[name] for name in found})
    assert max((found[name] - plain[name]).abs().max() for name in names) > 1e-3


@pytest.mark.parametrize(
    "balancing, rows, back",
    [
        ("fixed", "rows_for_all", 1),
        ("gradnorm", "rows_for_all", 1),
        ("gradnorm", "rows_of_their_own", 1),
        ("pcgrad", "rows_for_all", 1),
        ("pcgrad", "rows_of_their_own", 4),
    ],
)
def test_the_encoder_runs_once_and_is_passed_back_as_rarely_as_possible(balancing, rows, back, model, request):
    batch, passes = request.getfixturevalue(rows), Counter()

    def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        passes["forth"] += 1
        output.register_hook(lambda gradient: passes.update(["back"]))

    model.encoder.backbone.embeddings.LayerNorm.register_forward_hook(count)
    gradients_of(model, batch, balancing)
    assert passes == {"forth": 1, "back": back}


def test_at_the_shared_states_rows_of_their_own_never_conflict(model, rows_of_their_own, rows_for_all, monkeypatch):
    seen = []
    monkeypatch.setattr(GradientBalance, "pass_on", lambda self, gradients: seen.append(gradients))
    for batch in (rows_of_their_own, rows_for_all):
        balance = GradientBalance(FACTORS)
        balance.backward(model.loss(model(balance.open(model, batch)), batch["labels"]))
    products = [[(a * b).sum().item() for a, b in itertools.combinations(gradients.values(), 2)] for gradients in seen]
    assert products[0] == [0.0] * 6
    assert all(gradient.abs().max() > 0 for gradient in seen[0].values())
    assert min(products[1]) < 0


def test_conflicts_are_the_share_of_ordered_pairs(model, rows_for_all):
    _, states = model.encoder(rows_for_all)
    balance = BALANCING["pcgrad"](FACTORS)
    balance.open(model, rows_for_all)
    shape = balance.leaf.shape
    basis = torch.zeros(3, shape.numel())
    basis[0, 0], basis[1, 0], basis[1, 1], basis[2, 1] = 1.0, -1.0, 1.0, 1.0  # only the first two conflict
    balance.pass_on({name: part.view(shape) for name, part in zip(NAMES, basis, strict=False)})
    assert balance.noted == {"conflicts": pytest.approx(1 / 3)}
    balance.open(model, rows_for_all)
    balance.pass_on({"topic": basis[0].view(shape)})
    assert balance.noted == {}  # there is no pair
    assert states[-1].shape == shape


@pytest.mark.parametrize("balancing", BALANCING)
def test_the_history_says_what_each_loss_was_multiplied_with(balancing: str, build, partly, validation):
    config = replace(CONFIG, balancing=balancing, task_weights={"topic": 0.5})
    steps = fit(build(), partly, validation, config).to_frame("steps")
    factors = {"topic": 0.5, "sentence_type": 1.0, "sentiment": 1.0, "entities": 10.0}
    found = steps[[f"{name}_weight" for name in NAMES]] / list(factors.values())
    assert found.iloc[0].tolist() == [1.0] * 4
    assert (found > 0).all(axis=None)
    assert (found.nunique() > 1).all() == (balancing in LEARNT)
    if balancing in ("dynamic_weight_average", "gradnorm"):
        assert found.sum(axis=1).tolist() == pytest.approx([4.0] * len(found))
    if balancing == "dynamic_weight_average":
        assert found[steps["epoch"] <= 2].eq(1).all(axis=None)
        assert found[steps["epoch"] == 3].nunique().tolist() == [1] * 4  # the same all through the epoch
    assert ("conflicts" in steps) == (balancing == "pcgrad")
    if balancing == "pcgrad":
        assert steps["conflicts"].between(0, 1).all()
        assert steps["conflicts"].nunique() > 1


@pytest.mark.parametrize("balancing", ["gradnorm", "pcgrad"])
def test_batches_of_one_task_train_as_with_fixed_factors(balancing: str, build, separate, validation):
    """There is nothing to compare its gradient with."""
    config = replace(CONFIG, epochs=2, sampling=TaskSampling(alpha=0.0, order="round_robin"))
    plain, found = (
        fit(build(PAIR), separate, validation, replace(config, balancing=name)).to_frame("steps")
        for name in ("fixed", balancing)
    )
    assert list(found) == list(plain)  # no conflicts among them
    for name in ("topic", "sentiment"):
        assert found[f"{name}_loss"].tolist() == pytest.approx(plain[f"{name}_loss"].tolist(), rel=1e-3, nan_ok=True)
        assert found[f"{name}_weight"].eq(1).all()


@pytest.mark.parametrize("balancing", ["gradnorm", "pcgrad"])
def test_with_a_frozen_backbone_nothing_is_shared_and_nothing_compared(balancing: str, build, partly, validation):
    ends = []
    for name in ("fixed", balancing):
        model = build()
        freeze(model, "backbone")
        before = weights(model)
        fit(model, partly, validation, replace(CONFIG, balancing=name, keep="last"))
        ends.append(weights(model))
        changed = {key for key, tensor in before.items() if not torch.equal(tensor, ends[-1][key])}
        assert changed == {key for key in before if key.startswith("heads.")}
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", ["full", "apart"])
@pytest.mark.parametrize("balancing", ["gradnorm", "pcgrad"])
def test_cached_states_of_frozen_layers_change_no_gradient(balancing: str, rows: str, model, request):
    freeze(model, "lower_layers", layers=2)
    examples = make_examples(request.getfixturevalue(rows), model.encoder.tokenizer, TASKS, 64)
    expected = gradients_of(model, collate(examples, 0), balancing)
    cache_states(model, examples)
    batch = collate(examples, 0)
    assert batch["frozen_layers"] == 2
    found = gradients_of(model, batch, balancing)
    assert any(name.startswith("encoder.") for name in found)
    assert_close(found, expected)
    if balancing == "gradnorm":
        assert_close(found, plain_gradients(model, batch))


@pytest.mark.parametrize("balancing", ["gradnorm", "pcgrad"])
def test_layers_that_thaw_later_are_balanced_from_then_on(balancing: str, build, partly, validation):
    model = build()
    freeze(model, "probe_then_finetune", epochs=1)
    steps = fit(model, partly, validation, replace(CONFIG, balancing=balancing)).to_frame("steps")
    if balancing == "pcgrad":
        assert steps[steps["epoch"] > 1]["conflicts"].notna().all()
        assert steps[steps["epoch"] == 1]["conflicts"].isna().all()
    else:
        assert (steps[steps["epoch"] == 1]["topic_weight"] == 1).all()
        assert steps[steps["epoch"] > 1]["topic_weight"].nunique() > 2


def test_a_step_without_a_label_has_no_conflicts(build, full, validation):
    """Not those of the step before, which a run that goes on from a checkpoint doesn't know."""
    rows = full[:5].copy()
    rows.loc[2, NAMES] = None
    config = replace(CONFIG, balancing="pcgrad", max_tokens=1, epochs=4)  # each row is a step
    steps = fit(build(), rows, validation, config).to_frame("steps")
    silent = (steps[[f"{name}_labels" for name in NAMES]] == 0).all(axis=1)
    assert silent.sum() == 4
    assert steps[~silent]["conflicts"].notna().all()
    assert steps[silent]["conflicts"].isna().all()


# ----------------------------------------------------------------------------------------- classes of unequal size

COUNTS = torch.tensor([400, 75, 25])


def test_inverse_class_weights_give_each_class_the_same_sum():
    found = class_weights(COUNTS, "inverse")
    assert found.tolist() == pytest.approx([500 / 1200, 500 / 225, 500 / 75])
    assert (found * COUNTS).tolist() == pytest.approx([500 / 3] * 3)


def test_effective_class_weights_follow_the_effective_number():
    """(1 - 0.99^n) / 0.01 is 98.20493, 52.94094 and 22.21786 for the three classes (Cui et al. 2019, equation 2)."""
    found = class_weights(COUNTS, "effective")
    inverse = [1 / 98.20493, 1 / 52.94094, 1 / 22.21786]
    mean = (400 * inverse[0] + 75 * inverse[1] + 25 * inverse[2]) / 500
    assert found.tolist() == pytest.approx([weight / mean for weight in inverse], rel=1e-4)


def test_near_one_the_effective_number_is_the_number_itself_and_near_zero_one():
    found = class_weights(COUNTS, "effective", beta=1 - 1e-7)
    torch.testing.assert_close(found, class_weights(COUNTS, "inverse"), rtol=1e-3, atol=0)
    assert class_weights(COUNTS, "effective", beta=0.0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["inverse", "effective"])
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=8))
def test_the_mean_over_the_labels_is_one(kind, counts):
    found = class_weights(torch.tensor(counts), kind)
    assert (found.double() * torch.tensor(counts)).sum().item() / sum(counts) == pytest.approx(1, rel=1e-6)
    assert found.dtype == torch.float32 and (found > 0).all()
    assert all(found[i] >= found[j] for i, j in itertools.permutations(range(len(counts)), 2) if counts[i] < counts[j])


@pytest.mark.parametrize("kind", ["inverse", "effective"])
def test_a_class_without_labels_counts_as_if_it_had_one(kind: str):
    found = class_weights(torch.tensor([400, 75, 0]), kind)
    number = (lambda n: n) if kind == "inverse" else (lambda n: (1 - 0.99**n) / 0.01)
    assert found[0] / found[1] == pytest.approx(number(75) / number(400))
    assert found[2] / found[1] == pytest.approx(number(75) / number(1))


@pytest.mark.parametrize("kind", ["inverse", "effective"])
def test_a_class_without_labels_takes_nothing_from_the_mean_over_the_labels(kind: str):
    counts = torch.tensor([400, 75, 0])
    assert (class_weights(counts, kind) * counts).sum().item() / 475 == pytest.approx(1, abs=1e-4)


def scores_of(*probabilities: float) -> Tensor:
    """One row of scores with that softmax, moved by a constant that must not matter."""
    return torch.tensor([probabilities]).log() + 3.0


def test_the_focal_loss_of_what_is_sure_is_small():
    found = focal_loss(scores_of(0.9, 0.06, 0.04), torch.tensor([0]))
    assert found.tolist() == pytest.approx([0.01 * 0.1053605], rel=1e-4)  # (1 - 0.9)^2 times -log 0.9
    found = focal_loss(scores_of(0.9, 0.06, 0.04), torch.tensor([2]))
    assert found.tolist() == pytest.approx([0.9216 * 3.2188758], rel=1e-4)  # (1 - 0.04)^2 times -log 0.04
    found = focal_loss(scores_of(0.75, 0.2, 0.05), torch.tensor([0]), gamma=0.5)
    assert found.tolist() == pytest.approx([0.5 * 0.2876821], rel=1e-4)


def test_without_gamma_the_focal_loss_is_the_cross_entropy():
    scores, target = torch.randn(20, 4), torch.tensor([0, 1, 2, 3, IGNORE] * 4)
    expected = F.cross_entropy(scores, target, ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(focal_loss(scores, target, gamma=0.0), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_focal_loss_of_what_is_certain_has_a_gradient_of_zero(gamma: float):
    scores = torch.tensor([[60.0, 0.0, 0.0], [1.0, 2.0, 3.0]], requires_grad=True)
    focal_loss(scores, torch.tensor([0, IGNORE]), gamma).sum().backward()
    assert scores.grad.abs().max() < 1e-9


def test_adjusted_scores_carry_the_log_frequencies():
    """The frequencies are 0.8, 0.15 and 0.05: what the loss of scores that say nothing consists of."""
    target = torch.tensor([0, 1, 2])
    found = adjusted_loss(torch.zeros(3, 3), target, COUNTS)
    assert found.tolist() == pytest.approx([-math.log(0.8), -math.log(0.15), -math.log(0.05)])
    scores = torch.randn(3, 3)
    expected = F.cross_entropy(scores + torch.tensor([0.8, 0.15, 0.05]).log(), target, reduction="none")
    torch.testing.assert_close(adjusted_loss(scores, target, COUNTS), expected)
    found = adjusted_loss(torch.zeros(1, 3), torch.tensor([2]), torch.tensor([6, 3, 0]))  # 6, 3 and 1 of 10
    assert found.tolist() == pytest.approx([-math.log(0.1)])


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
    found = class_criterion(kind, COUNTS)(scores, torch.tensor([IGNORE, 2, IGNORE]))
    assert found.tolist() == pytest.approx([0.0, expected, 0.0], rel=1e-3)
    found.sum().backward()
    assert scores.grad[[0, 2]].abs().max() == 0 and scores.grad[1].abs().max() > 0


def test_every_kind_has_a_test():
    assert set(CLASS_BALANCE) == {"inverse", "effective", "focal", "logit_adjustment"}
    assert tuple(name for name in BALANCING if name not in ("fixed", "pcgrad")) == LEARNT


def test_the_loss_of_the_model_is_the_mean_over_valid_labels(build):
    model = build((TASKS[0], TASKS[3])).eval()
    logits = {"topic": torch.randn(4, 6), "entities": torch.randn(2, 3, 7)}
    labels = {"topic": torch.tensor([1, IGNORE, 5, IGNORE]), "entities": torch.tensor([[IGNORE, 2, 0], [IGNORE] * 3])}
    criteria = {"topic": focal_loss, "entities": lambda scores, target: (target != IGNORE) * (1.0 + target)}
    found = model.loss(logits, labels, criteria)
    p = logits["topic"].softmax(1)[[0, 2], [1, 5]].tolist()
    assert found["topic"].item() == pytest.approx(sum(-((1 - x) ** 2) * math.log(x) for x in p) / 2, rel=1e-4)
    assert found["entities"].item() == pytest.approx((3.0 + 1.0) / 2)
    plain = model.loss(logits, labels, {"topic": focal_loss})["entities"]
    assert plain.item() == pytest.approx(-logits["entities"][0, [1, 2]].log_softmax(1)[[0, 1], [2, 0]].mean().item())


def test_classes_are_counted_over_texts_and_over_tokens(build):
    """Three labels of topic: two of class 0, one of class 4; seven tokens: five O and two of class 3."""
    model = build((TASKS[0], TASKS[2], TASKS[3]))
    examples = [
        {"labels": {"topic": 0, "sentiment": 1, "entities": [IGNORE, 0, 0, 3, IGNORE]}},
        {"labels": {"topic": IGNORE, "sentiment": 1, "entities": [IGNORE, IGNORE]}},
        {"labels": {"topic": 0, "sentiment": 1, "entities": [IGNORE, 3, 0, IGNORE]}},
        {"labels": {"topic": 4, "sentiment": 1, "entities": [IGNORE, 0, 0, IGNORE]}},
    ]
    config = replace(CONFIG, class_balance={"topic": "inverse", "entities": "logit_adjustment"})
    criteria = make_balance(model, config, examples).criteria
    assert set(criteria) == {"topic", "entities"}
    found = criteria["topic"](torch.zeros(2, 6), torch.tensor([0, 4]))
    assert (found[1] / found[0]).item() == pytest.approx(2.0)
    found = criteria["entities"](torch.zeros(2, 7), torch.tensor([0, 3]))
    total = 5 + 2 + 5  # and one for each class that doesn't occur
    assert found.tolist() == pytest.approx([-math.log(5 / total), -math.log(2 / total)])


def test_a_step_that_is_given_no_balance_takes_the_factors_of_a_class_balance_too(model, rows_for_all):
    """It has no training data to count classes in, and the focal loss needs none."""
    config = replace(CONFIG, class_balance={"topic": "focal"})
    losses, _ = train_step(model, make_optimizer(model, config), [rows_for_all], config)
    assert set(losses) == set(NAMES)


def test_fit_counts_the_classes_of_the_training_rows_alone(build, partly, validation, monkeypatch):
    seen = {}

    def spy(kind: str, counts: Tensor) -> Callable:
        seen[kind] = counts.tolist()
        return class_criterion(kind, counts)

    monkeypatch.setattr(training, "class_criterion", spy)
    config = replace(CONFIG, epochs=1, class_balance={"topic": "inverse", "entities": "effective"})
    fit(build(), partly, validation, config)
    expected = Counter(partly["topic"].dropna())
    assert seen["inverse"] == [expected[label] for label in TASKS[0].labels] and sum(seen["inverse"]) == 9
    begun = Counter(label for spans in partly["entities"].dropna() for _, _, label in spans)
    assert seen["effective"][1::2] == [begun[label] for label in TASKS[3].labels]  # classes B-PER, B-ORG, B-LOC
    assert seen["effective"][0] > sum(seen["effective"][1:]) > 0


@pytest.mark.parametrize("kind", CLASS_BALANCE)
def test_class_balance_changes_what_is_trained_and_not_what_is_measured(kind: str, build, full, validation):
    """With rates of 0 the model stays: its loss on validation is plain, that of training is balanced."""
    config = replace(CONFIG, epochs=1, learning_rate=0.0, head_learning_rate=0.0)
    plain, balanced = (
        fit(build(), full, validation, replace(config, class_balance=chosen)).to_frame().set_index("task")
        for chosen in ({}, {"topic": kind})
    )
    pd.testing.assert_series_equal(plain["validation_loss"], balanced["validation_loss"])
    changed = (plain["train_loss"] - balanced["train_loss"]).abs() > 1e-3
    assert changed.to_dict() == {name: name == "topic" for name in NAMES}


def test_oversampling_makes_all_classes_as_frequent_as_the_largest():
    labels = ["x"] * 11 + ["y"] * 4 + ["z"] + [None] * 3
    frame = pd.DataFrame({"id": range(19), "kind": labels, "text": [f"text {i}" for i in range(19)]}).sample(
        frac=1, random_state=1
    )
    found = oversample(frame, "kind")
    assert found["kind"].value_counts().to_dict() == {"x": 11, "y": 11, "z": 11}
    times = Counter(found["id"])
    assert [times[i] for i in range(11)] == [1] * 11
    assert sorted(times[i] for i in range(11, 15)) == [2, 3, 3, 3]
    assert times[15] == 11 and set(times) == set(range(16))
    assert found.index.tolist() == list(range(33)) and list(found) == list(frame)
    merged = found.merge(frame, on="id", suffixes=("", "_before"))
    assert (merged["text"] == merged["text_before"]).all() and (merged["kind"] == merged["kind_before"]).all()
    assert len(frame) == 19


def test_which_rows_come_once_more_is_a_matter_of_the_seed():
    frame = pd.DataFrame({"id": range(30), "kind": ["x"] * 17 + ["y"] * 13})
    pd.testing.assert_frame_equal(oversample(frame, "kind", seed=3), oversample(frame.copy(), "kind", seed=3))
    twice = {
        frozenset(i for i, n in Counter(oversample(frame, "kind", seed)["id"]).items() if n > 1) for seed in range(4)
    }
    assert len(twice) > 1


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "name, value",
    [
        *(("alpha", value) for value in (-0.1, 1.5, math.nan, math.inf, True, "1", None)),
        *(("final_alpha", value) for value in (-0.1, 1.5, math.nan, False, "1")),
        *((name, value) for name in ("cap", "rows") for value in (0, -1, 2.5, 3.0, True, "3")),
        *(("order", value) for value in ("random", "", None, 1, [])),
    ],
)
def test_an_impossible_sampling_is_refused_by_name(name: str, value: object):
    with pytest.raises(ValueError, match=rf"TaskSampling: {name} is ") as caught:
        TaskSampling(**{name: value})
    assert f"{name} is {value!r}, expected " in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"alpha": 0}, {"alpha": 1, "final_alpha": 0}, {"cap": 1, "rows": 1}, {"order": "mixed"}], ids=str
)
def test_a_possible_sampling_is_accepted(settings: dict):
    sampling = TaskSampling(**settings)
    assert {name: getattr(sampling, name) for name in settings} == settings


@pytest.mark.parametrize(
    "name, value",
    [
        *(("balancing", value) for value in ("x", "", None, [])),
        *(("keep", value) for value in ("x", "first", None)),
        *(("sampling", value) for value in ("uniform", 0.5, {"alpha": 1.0})),
        *(("class_balance", value) for value in ({"topic": "x"}, {"topic": None}, "focal", ["topic"], None)),
        ("class_balance", {"topic": ["focal"]}),
    ],
    ids=str,
)
def test_impossible_settings_are_refused_by_name(name: str, value: object):
    with pytest.raises(ValueError, match=rf"TrainingConfig: {name} is .*, expected "):
        TrainingConfig(**{name: value})


@pytest.mark.parametrize("balancing", ["gradnorm", "pcgrad"])
def test_gradients_are_compared_within_one_batch(balancing: str):
    with pytest.raises(ValueError, match=f"accumulation is 2, expected 1 with {balancing}"):
        TrainingConfig(balancing=balancing, accumulation=2)
    assert TrainingConfig(balancing=balancing, accumulation=1).balancing == balancing
    for other in set(BALANCING) - {"gradnorm", "pcgrad"}:
        assert TrainingConfig(balancing=other, accumulation=2).accumulation == 2


@pytest.mark.parametrize("name, value", [("class_balance", {"topics": "focal"}), ("task_weights", {"topics": 1.0})])
def test_a_task_that_the_model_does_not_have_is_refused(name: str, value: dict, build, full, validation):
    with pytest.raises(ValueError, match=f"{name} names 'topics', expected tasks of the model"):
        fit(build(), full, validation, replace(CONFIG, **{name: value}))


@pytest.mark.parametrize("balancing", ["gradnorm", "pcgrad"])
def test_gradients_can_not_be_compared_under_a_pooling_of_several_layers(balancing, build, full, validation):
    model = build(pooling="last_layers")
    before = weights(model)
    with pytest.raises(ValueError, match="pooling is 'last_layers', expected one of the last layer"):
        fit(model, full, validation, replace(CONFIG, balancing=balancing))
    assert_identical(weights(model), before)


# ------------------------------------------------------------------------------------------- which weights are kept


@pytest.fixture
def falling(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Validation that gets worse from epoch to epoch; the weights after each."""
    after: list[dict[str, Tensor]] = []

    def validate(model: MultiTaskModel, examples: list, precision: str) -> dict:
        after.append(weights(model))
        return {name: {"validation_loss": 1.0, "accuracy": 0.5, "score": 1 / len(after)} for name in NAMES}

    monkeypatch.setattr(training, "validate", validate)
    return after


@pytest.mark.parametrize("keep, epoch", [("best", 1), ("last", 3)])
def test_the_model_ends_with_the_weights_that_are_to_be_kept(keep, epoch, falling, build, full, validation, tmp_path):
    model = build()
    history = fit(model, full, validation, replace(CONFIG, keep=keep), tmp_path)
    assert history.best_epoch == 1
    assert_identical(weights(model), falling[epoch - 1])
    assert not torch.equal(falling[0]["heads.topic.1.weight"], falling[2]["heads.topic.1.weight"])
    state = load_file(max(tmp_path.glob("step-*.safetensors")))
    found = {name: state[f"model.{name}"] for name in falling[2]}
    assert_identical(found, falling[2])
    assert_identical({name: state[f"best.{name}"] for name in falling[2]}, falling[epoch - 1])
    again = build()
    fit(again, full, validation, replace(CONFIG, keep=keep), tmp_path)  # nothing is left to do
    assert len(falling) == 3
    assert_identical(weights(again), falling[epoch - 1])


@pytest.mark.parametrize("keep, epoch", [("best", 1), ("last", 2)])
def test_a_stopped_run_says_which_weights_it_holds(keep, epoch, falling, build, full, validation, tmp_path):
    config = replace(CONFIG, keep=keep, epochs=4)
    whole = fit(build(), full, validation, config)
    first = next(row["step"] for row in whole.steps if row["epoch"] == 3)
    falling.clear()
    model = build()
    with stopping_in_step(first + 1) as caught:
        fit(model, full, validation, config, tmp_path)
    assert f"the model holds the weights of epoch {epoch}, the {keep} so far" in str(caught.value)
    assert_identical(weights(model), falling[epoch - 1])


def test_patience_looks_at_the_best_epoch_whatever_is_kept(falling, build, full, validation):
    model = build()
    history = fit(model, full, validation, replace(CONFIG, keep="last", epochs=6, patience=2))
    assert len(falling) == 3 == history.to_frame()["epoch"].max()
    assert_identical(weights(model), falling[2])
