"""The pictures of notebook 03 and of appendix A2, each from tables of one row per way, seed and task.

Columns, wherever a table is asked for: way (as in WAYS), seed, task, test (F1, 0 to 1), where needed size (training
sentences) and stsb (Spearman's correlation that is left on STS-B). Rows of another study with these columns will do.
"""

import warnings
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtl_helpers import TASKS
from mtl_helpers.intervals import Interval, seed_interval

from . import what_to_train
from .figures import GREY, TASK_COLOURS, curve_with_intervals, dots_with_intervals, headline
from .halving import Halving
from .pictures_02 import OUTSIDE, unpaired_interval

FULL, FROZEN = "full training", "heads alone, last four layers"
WAYS = {  # colour and marker
    FULL: ("#000000", "s"),
    "heads first": ("#8e3fb0", "o"),
    "lower half frozen": ("#8c510a", "^"),
    "LoRA": ("#E69F00", "v"),
    FROZEN: ("#56B4E9", "D"),
    "heads alone": ("#56B4E9", "D"),
}
SHOWN = ("heads first", "LoRA", "lower half frozen", FROZEN)
NAMES = [task.name for task in TASKS]
MEAN = "mean of four"
FROM_FULL = {  # training sentences: what the picture shows
    None: "Where the encoder moves, the ways differ above all on entities",
    50: "With 50 sentences heads first gains on topic and sentiment",
}
OPENED = {  # from the top down: way, what trains besides the heads
    "heads alone": "nothing",
    "only the top layer": "layer 6",
    "lower half frozen": "layers\n4 to 6",
    "embeddings frozen": "all six\nlayers",
    FULL: "and word\nvectors",
}


def tidy(rows: pd.DataFrame, halving: Halving) -> pd.DataFrame:
    """The rows of a study at the rates that were chosen, in the columns that the pictures take."""
    return halving.settled(rows).rename(columns={"strategy": "way"})


def points(rows: pd.DataFrame, way: str) -> pd.DataFrame:
    """F1 on test of one way in points, seeds x tasks, and the mean over the tasks."""
    wide = 100 * rows[rows["way"] == way].pivot(index="seed", columns="task", values="test")
    return wide.assign(**{MEAN: wide.mean(axis=1)})


def left_over(rows: pd.DataFrame, way: str) -> pd.Series:
    """Spearman's correlation that one way leaves on STS-B, by seed."""
    return rows[rows["way"] == way].groupby("seed")["stsb"].first()


def against(rows: pd.DataFrame, way: str, task: str, paired: bool = False) -> Interval:
    """One way minus full training in points of F1, on a task or on MEAN.

    Args:
        paired: whether equal seeds have something in common, such as the sentences that were drawn.
    """
    ours, theirs = points(rows, way)[task], points(rows, FULL)[task]
    return seed_interval(ours - theirs) if paired else unpaired_interval(ours, theirs)


def forgets_less(rows: pd.DataFrame, way: str, paired: bool = False) -> Interval:
    """How much more of STS-B's correlation one way leaves than full training does."""
    ours, theirs = left_over(rows, way), left_over(rows, FULL)
    if paired:
        return seed_interval(ours - theirs)
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # an encoder that stays: five equal numbers
        return unpaired_interval(ours, theirs)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, a row a way: F1 on test of each task and MEAN, F1 elsewhere (points), and STS-B.

    Args:
        rows: with the columns stsb and elsewhere, as `what_to_train.tidy` gives them.
    """
    wide = 100 * rows.pivot_table(index="way", columns="task", values="test", sort=False)[NAMES]
    wide[MEAN] = wide.mean(axis=1)
    once = rows.groupby("way")[["elsewhere", "stsb"]].mean()
    return wide.assign(elsewhere=100 * once["elsewhere"], stsb=once["stsb"])


# ---------------------------------------------------------------------------------------------------------- pictures


def frozen_head(rows: pd.DataFrame) -> Figure:
    """What an epoch without its labels does to a task whose head is frozen, and to the other three.

    Args:
        rows: of the study frozen_head: seed, task, backbone (moving or frozen), and before, after, others_before and
            others_after (F1, 0 to 1).
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), sharex=True, sharey=True)
    panels = {"the task whose head is frozen": "", "the mean of the other three": "others_"}
    for ax, (title, whose) in zip(axes, panels.items(), strict=True):
        change = rows.assign(change=100 * (rows[f"{whose}after"] - rows[f"{whose}before"]))
        wide = change.pivot(index="seed", columns=["backbone", "task"], values="change")
        moving, still = ([seed_interval(wide[kind, task]) for task in NAMES] for kind in ("moving", "frozen"))
        dots_with_intervals(ax, _written(NAMES), moving, "black", "+.1f", still)
        ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
        ax.set(title=title, xlabel="change on test, points of F1", xlim=(-23, 5))
    axes[0].text(-12, -0.42, "encoder moving", fontsize=10, ha="center")
    axes[0].text(-1, 3.32, "encoder frozen too", color=GREY, fontsize=10, ha="right")
    headline(figure, "A frozen head does not protect its task from a moving encoder")
    plt.close(figure)
    return figure


def from_full(size: int | None = None, yours: dict[str, float] | None = None) -> Figure:
    """F1 on test of some ways minus that of full training, a panel a task; intervals over seeds and test sentences.

    Args:
        size: training sentences; None: all.
        yours: {task: difference in points} of a model to add.
    """
    ways = [way for way in SHOWN if way in what_to_train.measured(size, public=False)]
    figure, axes = plt.subplots(1, len(NAMES), figsize=(9.5, 1.3 + 0.45 * len(ways)), sharex=True, sharey=True)
    left = -22
    for ax, task in zip(axes, NAMES, strict=True):
        for place, way in enumerate(ways):
            value, low, high = what_to_train.against(way, FULL, [task], size).interval
            colour, marker = WAYS[way]
            shown = max(value, left + 1.5)  # what lies outside the panel becomes an arrow at its edge
            bars = {"xerr": [[max(0, shown - low)], [max(0, high - shown)]], "capsize": 3} if value > left else {}
            ax.errorbar(shown, place, fmt=marker if value > left else "<", color=colour, markersize=6, **bars)
            look = {"ha": "center", "fontsize": 10, "bbox": {"fc": "white", "ec": "none", "pad": 0.5}}
            ax.annotate(f"{value:+.1f}", (max(shown, left + 4), place), (0, 7), textcoords="offset points", **look)
        if yours:
            place, inside = (np.clip(yours[task], left + 2, 11), len(ways)), left < yours[task] <= 11
            marker = "*" if inside else "<" if yours[task] < 0 else ">"
            ax.plot(*place, marker, color="#CC0000", markersize=13 if inside else 7)
            ax.annotate(f"{yours[task]:+.0f}", place, (0, 8), textcoords="offset points", **look, color="#CC0000")
        ax.axvline(0, color="black", linewidth=1.2)
        ax.set(title=task.replace("_", " "), xlim=(left, 12), xticks=(-20, -10, 0, 10))
        ax.set_ylim(len(ways) + (0.4 if yours else -0.5), -0.8)
    names = [*_two_lines(ways), *["yours"] * bool(yours)]
    axes[0].set_yticks(range(len(names)), names)
    figure.supxlabel("points of F1 on test from full training (the line); an arrow lies further out", fontsize=11)
    headline(figure, FROM_FULL[size])
    plt.close(figure)
    return figure


def kept_and_learnt(at: Mapping[float, pd.DataFrame], untouched: float) -> Figure:
    """What is left on STS-B by the mean score of the four tasks, a line a way, a dot a learning rate.

    Args:
        at: {learning rate: rows of the ways that were trained at it, with stsb}.
        untouched: what the encoder scores on STS-B before any training.
    """
    figure, ax = plt.subplots(figsize=(7.5, 4.2))
    for way in (*SHOWN[:3], FULL):
        colour, marker = WAYS[way]
        rates = [rate for rate, rows in at.items() if way in set(rows["way"])]
        score = [seed_interval(points(at[rate], way)[MEAN]) for rate in rates]
        left = [seed_interval(left_over(at[rate], way)) for rate in rates]
        ax.plot([one.value for one in score], [one.value for one in left], color=colour, lw=1.3)
        for rate, x, y in zip(rates, score, left, strict=True):
            bars = {"xerr": [[x.value - x.low], [x.high - x.value]], "yerr": [[y.value - y.low], [y.high - y.value]]}
            ax.errorbar(x.value, y.value, fmt=marker, color=colour, markersize=6, elinewidth=0.8, **bars)
            below = way == "LoRA" or (rate == 1e-3 and way in (FULL, "heads first"))  # where no line crosses the text
            place = {"textcoords": "offset points", "fontsize": 9, "color": colour}
            ax.annotate(f"{rate:.0e}".replace("e-0", "e-"), (x.value, y.value), (3, -12) if below else (5, 4), **place)
        best = 1 if way == FULL else 0  # where its name has room
        shift, side = ((8, -14), "left") if way == FULL else ((-6, 8), "right")
        place = (score[best].value, left[best].value)
        ax.annotate(way, place, shift, textcoords="offset points", color=colour, ha=side, fontsize=10)
    ax.axhline(untouched, color=GREY, linestyle="--", linewidth=1)
    across = ax.get_yaxis_transform()
    ax.text(0.98, untouched + 0.01, "before training", color=GREY, fontsize=10, ha="right", transform=across)
    alone = points(at[3e-3], FROZEN)[MEAN].mean()
    look = {"color": WAYS[FROZEN][0], "fontsize": 10, "transform": across}
    ax.text(0.02, untouched + 0.01, f"← heads alone, mean F1 {alone:.0f}: vectors as they were", **look)
    ax.set(xlabel="mean F1 of the four tasks on test, points", ylabel="similarity left (STS-B)", ylim=(0.35, 0.87))
    ax.set_xlim(right=88.5)
    ax.set_title("Higher rates forget more, and heads first less than full training")
    plt.close(figure)
    return figure


def from_the_top(rows: pd.DataFrame) -> Figure:
    """F1 on test by how much of the encoder trains, from the heads alone to everything, a line a task."""
    figure, ax = plt.subplots(figsize=(7.5, 3.8))
    shifts = {"sentence_type": 2, "sentiment": -2, "topic": 3, "entities": -2}
    for task in NAMES:
        own = [seed_interval(points(rows, way)[task]) for way in OPENED]
        curve_with_intervals(ax, range(len(OPENED)), own, color=TASK_COLOURS[task])
        place = (len(OPENED) - 0.88, own[-1].value + shifts[task])
        ax.text(*place, task.replace("_", " "), color=TASK_COLOURS[task], va="center", fontsize=10)
    ax.set_xticks(range(len(OPENED)), OPENED.values())
    ax.set(xlabel="what trains besides the heads", ylabel="F1 on test, points", ylim=(15, 103), xlim=(-0.2, 5))
    ax.set_title("From the top down: the upper half is enough for sentence tasks")
    plt.close(figure)
    return figure


def outside(rows: pd.DataFrame, ways: Sequence[str] = (FULL, "heads first", "lower half frozen", FROZEN)) -> Figure:
    """F1 on public data: question types and entities, a row a way."""
    figure, ax = plt.subplots(figsize=(7.5, 3))
    for task, colour, marker in (("question_type", OUTSIDE, "^"), ("entities", TASK_COLOURS["entities"], "o")):
        for place, way in enumerate(ways):
            value, low, high = seed_interval(points(rows, way)[task])
            bars = {"xerr": [[value - low], [high - value]], "capsize": 3}
            ax.errorbar(value, place, fmt=marker, color=colour, markersize=6, **bars)
            ax.annotate(f"{value:.0f}", (value, place), (0, 6), textcoords="offset points", ha="center", fontsize=10)
    ax.set_yticks(range(len(ways)), _two_lines(ways))
    ax.set(xlim=(0, 100), ylim=(len(ways) - 0.5, -0.9), xlabel="F1 on test, points")
    ax.text(84, -0.62, "question types", color="#8a5f00", ha="center", fontsize=10)
    ax.text(33, -0.62, "entities in posts", color=TASK_COLOURS["entities"], ha="center", fontsize=10)
    ax.set_title("Outside the corpus only heads alone fall behind, on entities")
    plt.close(figure)
    return figure


def moved(rows: pd.DataFrame, ways: Sequence[str] = (FULL, "heads first", "lower half frozen", "LoRA")) -> Figure:
    """How alike each layer is to what it was before training (CKA), from columns cka_0 to cka_6."""
    figure, ax = plt.subplots(figsize=(7.5, 3.8))
    columns = [f"cka_{layer}" for layer in range(7)]
    for way in ways:
        own = rows[rows["way"] == way].groupby("seed")[columns].first()
        colour, marker = WAYS[way]
        curve_with_intervals(ax, range(7), [seed_interval(own[name]) for name in columns], color=colour, marker=marker)
        height = own["cka_6"].mean() + {FULL: -0.03, "lower half frozen": 0.045}.get(way, 0)
        ax.text(6.15, height, way, color=colour, va="center", fontsize=10)
    ax.set(xlabel="layer (0: embeddings)", ylabel="CKA with the pretrained encoder", ylim=(0, 1.03), xlim=(-0.2, 7.6))
    ax.set_xticks(range(7))
    ax.set_title("Training changes the upper layers most, whatever the way")
    plt.close(figure)
    return figure


def _written(names: Sequence[str]) -> list[str]:
    return [name.replace("_", " ") for name in names]


def _two_lines(ways: Sequence[str]) -> list[str]:
    return [way.replace(", last", ",\nlast") for way in ways]
