"""The pictures of notebook 05 and of appendices A4 and A5."""

from collections.abc import Callable, Sequence
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtl_helpers.intervals import Interval, seed_interval

from . import natural_pairs, samplers, scarce_task, second_task
from .evidence import Difference, Scores, compare, corpus_gold, read_differences, scores_by
from .figures import GREY, PALETTE, TASK_COLOURS, curve_with_intervals, dots_with_intervals, headline
from .pictures_02 import OUTSIDE

PANELS = [(pair, size) for pair in scarce_task.PAIRS for size in (50, 200)]
LONGER = "alone, as many rows in all"
UNRELATED = {  # scarce task, number of labels: how it is called, and the task beside it
    ("sentiment", 50): ("sentiment, 50 labels", "topic"),
    ("sentiment", 200): ("sentiment, 200 labels", "topic"),
    ("entities", 50): ("entities, 50 labels", "sentence type"),
    ("question_type", 120): ("question types, 120 labels", "intents"),
}


def main_runs() -> list[dict]:
    """Those of the dose-response study at the rate that was chosen."""
    return [run for run in second_task.STUDY.runs if run["rate"] == second_task.RATE]


@cache
def doses() -> dict[tuple[str, str], Scores]:
    """{(way, share of wrong marks): scores of the scarce task}, all at one rate."""
    study = second_task.STUDY
    rows = study.rows(main_runs()).astype({"noise": str})
    by_setting = scores_by(rows, list(study.predictions()), ["way", "noise"], corpus_gold)
    return {setting: tasks["entities"] for setting, tasks in by_setting.items()}


def users() -> int:
    """How many users the dose-response study has."""
    return len({run["seed"] for run in main_runs()})


def points(scores: Scores) -> np.ndarray:
    """F1 on test in points, a number a seed."""
    return 100 * scores(np.ones((1, scores.sentences)))[0]


def against_longer(way: str, noise: float = 0.0) -> Difference:
    """A way minus the scarce task alone for as many rows in all, in points (same users, same sentences)."""
    return compare({"entities": doses()[way, str(noise)]}, {"entities": doses()[LONGER, "0.0"]})["entities"]


def dose_response(yours: tuple[float, float] | None = None) -> Figure:
    """F1 of scarce entities by how many marks of the second task are right, beside the ways without it.

    Args:
        yours: share of wrong marks (0 to 1) and F1 (points) of a run of your own.
    """
    figure, ax = plt.subplots(figsize=(8.2, 3.9))
    noises = sorted((noise for way, noise in doses() if way == "together"), key=float, reverse=True)
    places = [100 - 100 * float(noise) for noise in noises]
    rows = [seed_interval(points(doses()["together", noise])) for noise in noises]
    colour = TASK_COLOURS["entities"]
    curve_with_intervals(ax, places, rows, color=colour, linewidth=1.2, linestyle="--")
    ax.text(25, (rows[0].value + rows[1].value) / 2 - 5, "together", color=colour)
    for place, noise in zip(places, noises, strict=True):
        users_own = points(doses()["together", noise])
        ax.plot([place - 2] * len(users_own), users_own, ".", color=colour, alpha=0.4, zorder=1)
    bar, short, after = (seed_interval(points(doses()[way, "0.0"])) for way in (LONGER, "alone", "first A, then B"))
    ax.axhline(bar.value, color=GREY, linewidth=1.2, zorder=1)
    ax.axhspan(bar.low, bar.high, color=GREY, alpha=0.15, linewidth=0, zorder=0)
    ax.axhline(short.value, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
    curve_with_intervals(ax, [106], [after], color="#444444", marker="s", linestyle="")
    words = {
        "first the marks,\nthen the types": after.value,
        "alone (dotted)": short.value + 1.6,
        f"{LONGER} (bar)": bar.value - 1.6,
    }
    for text, height in words.items():
        ax.text(113, height, text, va="center", fontsize=10, color="#444444")
    if yours:
        ax.plot(100 - 100 * yours[0], yours[1], "k*", markersize=14, zorder=4)
        ax.annotate(
            f"yours: {yours[1]:.0f}",
            (100 - 100 * yours[0], yours[1]),
            (-10, 12),
            textcoords="offset points",
            ha="right",
        )
    ax.set(
        xlim=(-6, 111),
        ylim=(0, 60),
        xticks=(0, 50, 100),
        xlabel="marks of the second task that are right (%)",
        ylabel="F1 of entities on test (points)",
    )
    ax.set_title("Marks of where an entity is help its type while they are right")
    plt.close(figure)
    return figure


def natural() -> Figure:
    """What the other task of the same requests (SNIPS) is worth to a scarce one, by task and number of labels."""
    gains = read_differences(natural_pairs.GAINS)
    figure, ax = plt.subplots(figsize=(7.5, 2.8))
    names = [what.replace("intent,", "intents,").replace("mean", "mean of the three") for what in gains]
    dots_with_intervals(ax, names, [one.interval for one in gains.values()], OUTSIDE, "+.1f")
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
    ax.set(xlabel="together minus alone for as many rows in all, points of F1")
    ax.set_title("In natural requests only intents with 200 labels are likely to gain")
    plt.close(figure)
    return figure


@cache
def users_best() -> pd.DataFrame:
    """A row for each user and way of the study scarce_task."""
    return scarce_task.all_rows()


def scores(pair: str, size: int, way: str, column: str = "scarce") -> pd.Series:
    """Test scores of a way in points, by user."""
    way = scarce_task.TOGETHER[pair] if way == "together" else way
    rows = users_best().query("pair == @pair and size == @size and method == @way")
    return 100 * rows.set_index("seed")[column].sort_index()


def against(pair: str, size: int, way: str, other: str, column: str = "scarce") -> Interval:
    """Difference of two ways in points: mean and paired 95 % interval over users."""
    return seed_interval(scores(pair, size, way, column) - scores(pair, size, other, column))


BY_RATE = {  # way: how it is called, colour
    "uniform, weights 1 : 10": ("uniform shares,\nweights 1 : 10", PALETTE[0]),
    "uniform": ("uniform shares", TASK_COLOURS["sentiment"]),
    "proportional": ("proportional shares", PALETTE[1]),
}


def by_rate() -> Figure:
    """Sentiment with 50 labels beside topic minus alone for as many rows in all, both at one rate."""
    figure, ax = plt.subplots(figsize=(8.2, 3.6))
    rates = samplers.FOUR_RATES
    for shift, (way, (name, colour)) in zip((0.98, 1.0, 1.02), BY_RATE.items(), strict=True):
        intervals = [samplers.against(way, LONGER, rate=rate).interval for rate in rates]
        curve_with_intervals(ax, [shift * rate for rate in rates], intervals, color=colour)
        place = (0.95 * rates[0], intervals[0].value)
        ax.text(*place, name, color=colour, va="center", ha="right", fontsize=10)
    ax.axhline(0, color=GREY, linestyle="--", linewidth=1)
    ax.text(0.95 * rates[0], 0.7, "alone for as many rows", ha="right", color=GREY, fontsize=10)
    ax.set(
        xscale="log",
        xlim=(2.6e-6, 3.4e-4),
        ylim=(-38, 4),
        xlabel="learning rate of the encoder, for all users and both ways",
    )
    ax.set_ylabel("points of F1 from alone")
    ax.set_xticks(rates, [f"{rate:.0e}".replace("e-0", "e-") for rate in rates])
    ax.minorticks_off()
    ax.set_title("Beside topic sentiment loses at every rate, least at a low one with a weight")
    plt.close(figure)
    return figure


def by_size() -> Figure:
    """What an unrelated second task does to a scarce one, by number of labels, beside both ways alone."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
    ways = (("alone", ":", 0.95), ("alone, twice as long", "-", 1.0), ("together", "-", 1.05))
    for ax, (pair, (abundant, scarce)) in zip(axes, scarce_task.PAIRS.items(), strict=True):
        for height, (way, line, shift) in enumerate(ways):
            rows = [seed_interval(scores(pair, size, way)) for size in scarce_task.SIZES]
            colour = TASK_COLOURS[scarce] if way == "together" else GREY
            places = [shift * size for size in scarce_task.SIZES]
            curve_with_intervals(ax, places, rows, color=colour, linestyle=line)
            if way == "together" or ax is axes[0]:  # the grey lines are named once
                names = {"alone": "alone (dotted)", "together": f"beside {abundant.replace('_', ' ')}"}
                place = (0.02, 0.9) if ax is axes[1] else (0.98, 0.04 + 0.09 * height)
                look = {"color": colour, "ha": "left" if ax is axes[1] else "right", "fontsize": 10}
                ax.text(*place, names.get(way, f"{LONGER} (solid)"), transform=ax.transAxes, **look)
        ax.set(xscale="log", xlabel="labels of the scarce task", title=scarce, ylim=(0, 100))
        ax.set_xticks(scarce_task.SIZES, scarce_task.SIZES)
        ax.minorticks_off()
    axes[0].set_ylabel("F1 on test (points)")
    headline(figure, "An unrelated task costs sentiment points; for entities most is undecided")
    plt.close(figure)
    return figure


def from_zero(ax: Axes, rows: dict[str, Difference], xlabel: str, title: str = "") -> None:
    """Differences and their intervals, one a row, beside a line at zero."""
    dots_with_intervals(ax, list(rows), [one.interval for one in rows.values()], PALETTE[0], "+.1f")
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
    ax.set_xlabel(xlabel)
    ax.set_title(title, fontsize=11)


def harm() -> Figure:
    """What training beside an unrelated task does to a scarce one, against alone for as many rows in all."""
    figure, ax = plt.subplots(figsize=(8.2, 2.7))
    rows = {
        f"{task}, beside {other}": samplers.against("uniform", LONGER, *place)
        for place, (task, other) in UNRELATED.items()
    }
    from_zero(ax, rows, "together (uniform shares) minus alone for as many rows in all, points of F1")
    headline(figure, "Beside an unrelated task sentiment and entities lose points")
    plt.close(figure)
    return figure


def shares() -> Figure:
    """What other shares, and weights, change against uniform shares and equal weights."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 2.9), sharex=True)
    rows = {task: samplers.against("proportional", "uniform", *place) for place, (task, _) in UNRELATED.items()}
    from_zero(left, rows, "points of F1 from uniform shares", "proportional shares")
    ways = {way.removeprefix("uniform, "): way for way in samplers.WAYS if way not in samplers.MAIN}
    others = {name: samplers.against(way, "uniform") for name, way in ways.items()}
    from_zero(right, others, "points of F1 from uniform shares", "sentiment, 50 labels: other ways")
    headline(figure, "Proportional shares can leave a scarce task far behind")
    plt.close(figure)
    return figure


def dots(ways: dict[str, str], other: str, title: str, colour: str = PALETTE[0]) -> Figure:
    """Differences to one way, a panel for each pair and size.

    Args:
        ways: {way: label}.
        other: the way at zero.
    """
    figure, axes = plt.subplots(1, 4, figsize=(10, 1.2 + 0.42 * len(ways)), sharex=True, sharey=True)
    for ax, (pair, size) in zip(axes, PANELS, strict=True):
        rows = [against(pair, size, way, other) for way in ways]
        dots_with_intervals(ax, list(ways.values()), rows, colour, "+.0f")
        ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
        ax.set_title(f"{scarce_task.TASKS_OF[pair][1]}, {size} labels", fontsize=11)
        ax.set_xlabel(f"points from {other}")
    headline(figure, title)
    plt.close(figure)
    return figure


def mean_of_panels(ways: Callable[[str, int], pd.Series], other: Callable[[str, int], pd.Series]) -> Interval:
    """Difference of two ways in points, in the mean of the four panels, user by user."""
    gaps = [ways(pair, size) - other(pair, size) for pair, size in PANELS]
    return seed_interval(sum(gaps) / len(gaps))


def chosen_among(ways: Sequence[str], pair: str, size: int) -> pd.Series:
    """Test scores of what each user would choose from some ways on her own validation data, in points."""
    rows = users_best()[users_best()["method"].isin(ways)].query("pair == @pair and size == @size")
    return 100 * scarce_task.choose(rows.assign(method="chosen")).set_index("seed")["scarce"].sort_index()
