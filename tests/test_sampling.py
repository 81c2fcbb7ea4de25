"""Sampling of tasks: shares worked out by hand, and what an epoch must hold whatever the sizes are."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from exactly import CONFIG, NAMES
from hypothesis import given
from hypothesis import strategies as st

from mtl_helpers import TASKS, History, TaskSampling, fit
from mtl_helpers.tasks import IGNORE
from mtl_helpers.training import epoch_batches

pytest_plugins = ["training_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")
ANNEALED = TaskSampling(alpha=1.0, final_alpha=0.2)  # Stickland and Murray 2019: 1 - 0.8 (e - 1) / (E - 1)


@pytest.mark.parametrize(
    "sampling, epoch, epochs, ratio",
    [  # of 100,000 rows to 1,000
        (TaskSampling(alpha=1.0), 1, 1, 100),
        (TaskSampling(), 1, 1, 10),  # the default is the square root
        (TaskSampling(alpha=0.25), 4, 9, 3.16227766),  # a temperature of 4: the fourth root
        (TaskSampling(alpha=0.0), 1, 1, 1),
        (TaskSampling(alpha=1.0, cap=4_000), 1, 1, 4),
        (TaskSampling(alpha=0.5, cap=4_000), 1, 1, 2),  # 4,000 to 1,000, then the root
        (TaskSampling(alpha=1.0, cap=500), 1, 1, 1),
        (TaskSampling(alpha=1.0, cap=100_000), 1, 1, 100),
        (ANNEALED, 1, 1, 100),
        *((ANNEALED, 1 + i, 5, 100 ** (1 - 0.2 * i)) for i in range(5)),
        *((TaskSampling(alpha=0.0, final_alpha=1.0), 1 + i, 3, 10**i) for i in range(3)),
    ],
    ids=str,
)
def test_shares_are_powers_of_the_capped_sizes(sampling: TaskSampling, epoch: int, epochs: int, ratio: float):
    shares = sampling.shares({"none": 0, "a": 100_000, "b": 1_000}, epoch, epochs)
    assert shares == pytest.approx({"none": 0, "a": ratio / (1 + ratio), "b": 1 / (1 + ratio)}, abs=1e-6)


samplings = st.builds(
    TaskSampling,
    alpha=st.floats(0, 1),
    final_alpha=st.none() | st.floats(0, 1),
    cap=st.none() | st.integers(1, 30),
    rows=st.none() | st.integers(1, 90),
)
some_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any)


@given(samplings, some_sizes, st.integers(0, 2**31 - 1), st.integers(1, 6), st.integers(1, 90))
def test_every_row_comes_before_any_comes_again(sampling, sizes, seed, epochs, total):
    """Across the epochs: no row is left out, no small task ends an epoch, each task gets its share of each."""
    decks = {str(i): list(range(1000 * i, 1000 * i + n)) for i, n in enumerate(sizes)}
    drawn = [sampling.draw(decks, seed, epoch, epochs, total) for epoch in range(1, epochs + 1)]
    torch.rand(3), np.random.rand(3)  # what is drawn depends on seed and epoch alone
    backwards = [replace(sampling).draw(decks, seed, epoch, epochs, total) for epoch in range(epochs, 0, -1)]
    assert backwards[::-1] == drawn
    for epoch, by_task in enumerate(drawn, start=1):
        rows, shares = sampling.rows or total, sampling.shares({n: len(d) for n, d in decks.items()}, epoch, epochs)
        assert list(by_task) == list(decks) and sum(map(len, by_task.values())) == rows
        assert all(abs(len(positions) - shares[name] * rows) < 1 + 1e-6 for name, positions in by_task.items())
    for name, deck in decks.items():
        dealt = [i for by_task in drawn for i in by_task[name]]
        assert set(dealt) <= set(deck)
        times, even = Counter(dealt), len(dealt) / max(1, len(deck))
        assert {times[i] for i in deck} <= {math.floor(even), math.ceil(even)}
        rounds = [dealt[i : i + len(deck)] for i in range(0, len(dealt), max(1, len(deck)))]
        assert all(len(set(cards)) == len(cards) for cards in rounds)


def test_each_seed_each_task_and_each_turn_has_an_order_of_its_own():
    """Also if two tasks have the same rows: else each row would be drawn for both at once."""
    decks, orders = {"a": list(range(20)), "b": list(range(20))}, []
    for seed, epoch in itertools.product(range(5), (1, 2, 3)):
        drawn = TaskSampling(alpha=1.0, rows=40).draw(decks, seed, epoch, 3, 0)  # each deck once an epoch
        assert {name: sorted(positions) for name, positions in drawn.items()} == decks
        orders += drawn.values()
    assert len({tuple(order) for order in orders}) == 30
    assert len({order[0] for order in orders}) > 8


@given(
    st.sampled_from(["shuffled", "round_robin", "mixed"]),
    st.lists(st.lists(st.integers(0, 29), max_size=40), min_size=1, max_size=4),
    st.lists(st.integers(2, 60), min_size=30, max_size=30),
    st.integers(1, 200),
    st.integers(0, 1000),
)
def test_batches_keep_the_budget_and_every_row_that_was_drawn(order, columns, lengths, max_tokens, seed):
    drawn = {str(t): [30 * t + i for i in column] for t, column in enumerate(columns)}  # rows repeat within a task
    generator, sampling, lengths = torch.Generator(), TaskSampling(order=order), lengths * len(columns)
    batches, again = (sampling.batches(drawn, lengths, max_tokens, generator.manual_seed(seed)) for _ in range(2))
    assert again == batches and all(batches)
    assert Counter(i for batch in batches for i in batch) == Counter(i for column in drawn.values() for i in column)
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= max_tokens for batch in batches)
    assert order == "mixed" or all(len({i // 30 for i in batch}) == 1 for batch in batches)


def tasks_in_turn(order: str, sizes: Sequence[int], seed: int = 0) -> str:
    """The tasks of each batch, as digits; four rows make a batch."""
    drawn = {str(t): list(range(100 * t, 100 * t + n)) for t, n in enumerate(sizes)}
    batches = TaskSampling(order=order).batches(drawn, [5] * 1000, 20, torch.Generator().manual_seed(seed))
    return " ".join("".join(sorted({str(i // 100) for i in batch})) for batch in batches)


def test_batches_come_in_turns_or_at_random_or_mixed():
    for sizes, turns in (
        ([20, 20], "0 1 0 1 0 1 0 1 0 1"),
        ([17, 20], "0 1 0 1 0 1 0 1 0 1"),
        ([8] * 3, "0 1 2 0 1 2"),
    ):
        assert tasks_in_turn("round_robin", sizes) == turns
    turns = tasks_in_turn("round_robin", [60, 20, 4]).split()  # spread
    assert Counter(turns) == {"0": 15, "1": 5, "2": 1} and 9 <= turns.index("2") <= 11
    assert [turns[i : i + 7].count("1") for i in (0, 7, 14)] == [2, 1, 2]
    shuffled = [tasks_in_turn("shuffled", [40, 40], seed).split() for seed in range(10)]
    assert all(Counter(turns) == {"0": 10, "1": 10} for turns in shuffled)
    assert len({tuple(turns) for turns in shuffled} - {("0", "1") * 10, ("0",) * 10 + ("1",) * 10}) == 10
    assert tasks_in_turn("mixed", [40, 40]).split().count("01") > 12


def examples_of(lengths: Sequence[int], labels: Sequence[dict] = ({"topic": 0},) * 200) -> list[dict]:
    """What `epoch_batches` looks at: a text's length and which tasks it is labelled for."""
    return [{"input_ids": [1] * n, "labels": own} for n, own in zip(lengths, labels, strict=False)]


def test_each_epoch_and_each_seed_has_batches_of_its_own():
    lengths = [3 + (7 * i) % 23 for i in range(120)]
    chosen = itertools.product((None, TaskSampling()), range(4), range(1, 6))
    orders = [epoch_batches(examples_of(lengths), replace(CONFIG, sampling=s, seed=i), epoch) for s, i, epoch in chosen]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert len({lengths[order[0][0]] for order in orders}) > 5  # not the longest first, and not the shortest


@pytest.mark.parametrize("rows, expected", [(None, 9), (31, 31)])
def test_a_sampled_epoch_has_as_many_rows_as_the_table_unless_told_otherwise(rows: int | None, expected: int):
    """Those without a label are never drawn; a text with a token that is O is labelled."""
    kinds = [(3, 2, IGNORE), (2, IGNORE, 0), (4, IGNORE, IGNORE)]
    labels = [{"topic": topic, "entities": [IGNORE, code]} for n, topic, code in kinds for _ in range(n)]
    config = replace(CONFIG, sampling=TaskSampling(rows=rows), max_tokens=10)
    batches = epoch_batches(examples_of([5] * 9, labels), config, 1)
    assert sum(map(len, batches)) == expected and max(map(len, batches)) == 2
    assert {i for batch in batches for i in batch} == {0, 1, 2, 3, 4}


def seen(history: History, *names: str) -> tuple[list, list]:
    """Labels of each task that were trained on in each epoch, and `epochs_seen` of each task."""
    sums = history.to_frame("steps").groupby("epoch")[[f"{name}_labels" for name in names]].sum()
    table = history.to_frame().pivot(index="epoch", columns="task", values="epochs_seen")
    return [tuple(row) for row in sums.to_numpy().tolist()], [table[name].tolist() for name in names]


@pytest.mark.parametrize("order", ["shuffled", "round_robin", "mixed"])
def test_separate_data_sets_are_seen_as_often_as_their_shares_say(order: str, build, separate, validation):
    """16 topics and 4 sentiments: 16 : 4, then 4 : 2 (13.33 : 6.67), then 1 : 1."""
    sampling = TaskSampling(alpha=1.0, final_alpha=0.0, order=order)
    history = fit(build(tasks=(TASKS[0], TASKS[2])), separate, validation, replace(CONFIG, sampling=sampling))
    labels, (topic, sentiment) = seen(history, "topic", "sentiment")
    assert labels == [(16, 4), (13, 7), (10, 10)]
    assert topic == pytest.approx([1.0, 29 / 16, 39 / 16]) and sentiment == pytest.approx([1.0, 11 / 4, 21 / 4])
    steps = history.to_frame("steps")
    assert ((steps["topic_labels"] > 0) & (steps["sentiment_labels"] > 0)).any() == (order == "mixed")


def test_labels_of_every_task_are_seen_as_often_as_its_rows(build, full, partly, validation):
    sampled = fit(build(), full, validation, replace(CONFIG, sampling=TaskSampling(rows=18)))
    assert seen(sampled, *NAMES) == ([(18,) * 4] * 3, [[1.5, 3.0, 4.5]] * 4)
    plain = fit(build(), partly, validation, CONFIG)  # without sampling each row comes once
    assert seen(plain, *NAMES) == ([(9, 12, 11, 10)] * 3, [[1.0, 2.0, 3.0]] * 4)
    # Eight topics, two of the rows with a sentiment: in two epochs each deck gives eight cards. The topic's deck
    # passes by the two sentiments once, the sentiment's deck has a topic on each card.
    rows = full[:8].copy()
    rows.loc[2:, "sentiment"] = None
    config, model = replace(CONFIG, epochs=2, sampling=TaskSampling(alpha=0.0)), build(tasks=(TASKS[0], TASKS[2]))
    labels, (topic, sentiment) = seen(fit(model, rows, validation, config), "topic", "sentiment")
    assert [topics for topics, _ in labels] == [8, 8] and sum(own for _, own in labels) == 2 + 8
    assert topic == [1.0, 2.0] and sentiment[-1] == 5.0
