"""The pictures of notebook 04 and of appendix A3."""

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtl_helpers import TASKS
from mtl_helpers.intervals import Interval, seed_interval

from . import baselines, sharing, what_to_train
from .evidence import unpaired_interval
from .figures import GREY, MARKERS, PALETTE, TASK_COLOURS, dots_with_intervals, headline

NAMES = [task.name for task in TASKS]
CHANGES = {
    "entity loss x 10": "entity loss times 10",
    "entity loss x 30": "entity loss times 30",
    "epochs x 2": "twice the epochs",
    "entities alone": "a model of its own",
}


def weight_gains(rows: pd.DataFrame) -> dict[str, dict[str, Interval]]:
    """{panel: {change: points of F1 on validation against the plain sum}} of entities and of the other three tasks."""
    wide = 100 * rows.pivot(index=["variant", "seed"], columns="task", values="validation")
    panels = {"entities": wide["entities"], "mean of the other three tasks": wide[NAMES[:3]].mean(axis=1)}
    return {
        title: {
            change: unpaired_interval(values.loc[change], values.loc["plain sum"])
            for change in CHANGES
            if not values.loc[change].isna().any()
        }
        for title, values in panels.items()
    }


def weights(rows: pd.DataFrame) -> Figure:
    """What a larger weight, more time, and a model of its own bring to entities, and cost the others."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.3), sharex=True, sharey=True)
    for ax, (title, gains) in zip(axes, weight_gains(rows).items(), strict=True):
        colour = TASK_COLOURS["entities"] if title == "entities" else GREY
        dots_with_intervals(ax, [CHANGES[change] for change in gains], list(gains.values()), colour, "+.1f")
        ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
        ax.set(title=title, xlabel="points of F1 against the plain sum, validation")
        ax.set_ylim(len(CHANGES) - 0.5, -0.6)
        if len(gains) < len(CHANGES):
            ax.text(12, len(CHANGES) - 1, "(no other tasks)", color=GREY, ha="center", va="center", fontsize=10)
    axes[0].set_yticks(range(len(CHANGES)), CHANGES.values())
    headline(figure, "More weight, more time or a model of their own bring entities about as much")
    plt.close(figure)
    return figure


DATA = {"course": "corpus", "trec6_wnut17": "TREC-6, WNUT-17", "snips_200": "SNIPS, 200", "snips_1000": "SNIPS, 1,000"}
FACTORS = {"mean": "1 (plain sum)", "three": "3", "ten": "10", "uncertainty": "learnt"}


def factors(gains: pd.DataFrame) -> Figure:
    """What other factors than the square root do to the token task and to the sentence tasks of four data sets.

    Args:
        gains: as experiments.token_weight has them.
    """
    figure, axes = plt.subplots(1, 4, figsize=(10, 3.6), sharex=True, sharey=True)
    looks = {"token task": (TASK_COLOURS["entities"], -0.16), "sentence tasks": (PALETTE[0], 0.16)}
    rows = gains.set_index(["data", "way", "kind"])
    for ax, data in zip(axes, DATA, strict=True):
        for place, way in enumerate(FACTORS):
            for kind, (colour, shift) in looks.items():
                value, low, high = rows.loc[data, way, kind]
                bar = [[value - low], [high - value]]
                ax.errorbar(value, place + shift, xerr=bar, fmt=MARKERS[colour], color=colour, capsize=3)
        ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
        ax.set(title=DATA[data], xlabel="points from the root")
    axes[0].set_yticks(range(len(FACTORS)), FACTORS.values())
    axes[0].set_ylim(len(FACTORS) - 0.5, -0.6)
    for (kind, (colour, _)), height in zip(looks.items(), (0.93, 0.84), strict=True):
        axes[3].text(0.02, height, kind, color=colour, fontsize=10, transform=axes[3].transAxes)
    headline(figure, "A factor of three stays near the root; one, ten and a learnt one each fail somewhere")
    plt.close(figure)
    return figure


def absolute() -> pd.DataFrame:
    """F1 on test in points, a row a task: baselines, a model of its own, one model (means over seeds)."""
    rows = baselines.STUDY.rows().pivot(index="task", columns="kind", values="test")
    table = 100 * rows[["majority", "words", "frozen vectors"]]
    together = what_to_train.chosen().query("way == @sharing.ONE")
    for column, runs in {"own model": sharing.chosen(), "one model": together}.items():
        table[column] = 100 * runs.groupby("task")["test"].mean()
    return table.loc[NAMES]


def one_or_four(yours: tuple[str, float] | None = None) -> Figure:
    """What sharing costs each task.

    Args:
        yours: a task and a difference of your own, in points, to mark with a star.
    """
    differences = {name: difference.interval for name, difference in sharing.against_four().items()}
    figure, ax = plt.subplots(figsize=(8, 3.4))
    labels = [name.replace("_", " ") for name in differences]
    for place, (name, interval) in enumerate(differences.items()):
        ax.errorbar(
            interval.value,
            place,
            xerr=[[interval.value - interval.low], [interval.high - interval.value]],
            fmt="o",
            color=TASK_COLOURS.get(name, "black"),
            capsize=3,
        )
        ax.annotate(f"{interval.value:+.1f}", (interval.value, place), (0, 6), textcoords="offset points", ha="center")
    if yours:
        place, value = list(differences).index(yours[0]), min(max(yours[1], -12), 12)
        ax.set_xlim(min(-4, value - 2), max(2, value + 2))
        ax.plot(value, place, "k*", markersize=14, zorder=4)
        ax.annotate(f"yours: {yours[1]:+.1f}", (value, place), (0, -15), textcoords="offset points", ha="center")
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
    ax.set_yticks(range(len(labels)), labels)
    ax.set(ylim=(len(labels) - 0.4, -0.7), xlabel="one model minus a model of its own, points of F1 on test")
    ax.set_title(
        "Your single try beside what was measured"
        if yours
        else "Three tasks lose little or nothing by sharing, entities some points"
    )
    plt.close(figure)
    return figure


def gradients(rows: pd.DataFrame) -> Figure:
    """Length of each task's gradient, angles, and where the entity loss lies, along runs with the plain sum."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6))
    for name in NAMES:
        log = np.log(rows[rows["task"] == name].pivot(index="step", columns="seed", values="length"))
        band(axes[0], log, TASK_COLOURS[name], np.exp)
        axes[0].text(log.index[-1] + 6, np.exp(log.iloc[-3:].mean().mean()), name.replace("_", " "), fontsize=9)
    once = rows[rows["task"] == "entities"]
    angles = {"entities_twice": TASK_COLOURS["entities"], "others_twice": GREY, "entities_others": "black"}
    for column, colour in angles.items():
        band(axes[1], once.pivot(index="step", columns="seed", values=column), colour)
    for text, height, colour in zip(
        ("entities, two batches", "other three, two batches", "entities with other three"),
        (0.95, 0.87, 0.79),
        angles.values(),
        strict=True,
    ):
        axes[1].text(0.98, height, text, color=colour, ha="right", fontsize=9, transform=axes[1].transAxes)
    band(axes[2], once.pivot(index="step", columns="seed", values="share_of_names"), TASK_COLOURS["entities"])
    axes[0].set(title="length", xlabel="step", yscale="log", xlim=(0, 400))
    axes[1].set(title="cosine", xlabel="step")
    axes[1].axhline(0, color="black", linewidth=0.8, linestyle=":")
    axes[2].set(title="entity loss on tokens in spans", xlabel="step", ylim=(0, 1))
    headline(figure, "The gradient of entities becomes short, not opposed")
    plt.close(figure)
    return figure


def band(ax: Axes, table: pd.DataFrame, colour: str, back: Callable = np.asarray) -> None:
    """Mean over seeds (columns) at each step (rows) and its interval as a band; `back` undoes a transformation."""
    mean, low, high = back([seed_interval(row) for row in table.to_numpy()]).T
    ax.plot(table.index, mean, color=colour)
    ax.fill_between(table.index, low, high, color=colour, alpha=0.2, linewidth=0)
