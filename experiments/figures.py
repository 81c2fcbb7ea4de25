"""The house style and the figures that the course uses more than once.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), told apart by most colour-blind readers;
a task keeps its colour in all notebooks. Each colour has a marker, which tells lines apart in greyscale.
"""

import inspect
import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TASK_COLOURS = {"topic": "#0072B2", "sentence_type": "#D55E00", "sentiment": "#009E73", "entities": "#CC79A7"}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#777777"
MARKERS = dict(zip((*PALETTE, GREY), "osD^v>po", strict=True))


def use_house_style() -> None:
    """Set fonts, colours and sizes for every figure that follows."""
    sns.set_theme(context="notebook", style="ticks", palette=PALETTE)
    plt.rcParams.update(
        {
            "figure.figsize": (7.5, 3.6),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 11,
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "legend.frameon": False,
            "legend.fontsize": 10,
            "svg.fonttype": "none",
        }
    )


def show_source(*objects: object) -> Markdown:
    """The source of functions or classes, as a block of code in the rendered notebook."""
    return Markdown("\n".join(f"```python\n{inspect.getsource(thing).rstrip()}\n```" for thing in objects))


def dots_with_intervals(
    ax: Axes,
    labels: Sequence[str],
    rows: Sequence[tuple[float, float, float]],
    colour: str = PALETTE[0],
    unit: str = ".3f",
    reference: Sequence[tuple[float, float, float]] = (),
) -> None:
    """One dot and its interval per label, from top to bottom, the value written beside it.

    Args:
        ax: where to draw.
        labels: names of the rows.
        rows: (value, low, high) of each.
        colour: of dots and lines.
        unit: format of the values.
        reference: (value, low, high) of each to compare with, drawn in grey below it.
    """
    if len(reference):
        values, low, high = np.array(reference).T
        bars = {"xerr": [values - low, high - values], "capsize": 3}
        ax.errorbar(values, np.arange(len(labels)) + 0.25, fmt="D", markersize=5, color=GREY, **bars)
    values, low, high = np.array(rows).T
    places = np.arange(len(labels))
    ax.errorbar(values, places, xerr=[values - low, high - values], fmt="o", color=colour, capsize=3, zorder=3)
    look = {"ha": "center", "fontsize": 10, "zorder": 2.5, "bbox": {"fc": "white", "ec": "none", "pad": 0.5}}
    for place, value in zip(places, values, strict=True):
        ax.annotate(f"{value:{unit}}", (value, place), (0, 6), textcoords="offset points", **look)
    ax.set_yticks(places, labels)
    ax.set_ylim(len(labels) - 0.5, -0.6)


def scatter_by_label(ax: Axes, points: np.ndarray, labels: Sequence[str], order: Sequence[str]) -> None:
    """Points (N, 2) coloured by label, without scales (the axes of a map have no unit), with a legend."""
    labels = np.asarray(labels)
    rows = np.random.default_rng(0).permutation(len(labels))
    colours = dict(zip(order, PALETTE, strict=False))
    for part in np.array_split(rows, 20):  # layer by layer, so that no label lies on top of all the others
        for label, colour in colours.items():
            marker = MARKERS[colour]
            size = {"s": 6, "D": 5}.get(marker, 9)  # of about equal areas
            ax.scatter(*points[part[labels[part] == label]].T, color=colour, marker=marker, s=size, linewidths=0)
    for label, colour in colours.items():
        ax.scatter([], [], color=colour, marker=MARKERS[colour], s=25, label=label)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)


def curve_with_intervals(ax: Axes, x: Sequence, rows: Sequence[tuple[float, float, float]], **look) -> None:
    """A line through the values with the interval drawn at each point.

    Args:
        ax: where to draw.
        x: (N,) places.
        rows: (value, low, high) at each place.
        look: colour, label and so on, as for `Axes.errorbar`; the marker is the colour's unless given.
    """
    values, low, high = np.array(rows).T
    look = {"marker": MARKERS.get(look.get("color"), "o"), "markersize": 5, "capsize": 3} | look
    ax.errorbar(x, values, yerr=[values - low, high - values], **look)


def headline(figure: Figure, text: str) -> None:
    """One title for all panels: the finding."""
    figure.suptitle(text, x=0.01, ha="left", weight="bold")


def draw_history(epochs: pd.DataFrame, best: int) -> Figure:
    """Losses (dashed: train) and validation scores by epoch, from `History.to_frame()`, the best epoch marked."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    for (task, rows), spare in zip(epochs.groupby("task", sort=False), itertools.cycle(PALETTE)):
        colour = TASK_COLOURS.get(task, spare)
        look = {"color": colour, "marker": MARKERS[colour], "markersize": 4}
        left.plot(rows["epoch"], rows["train_loss"], "--", **look)
        left.plot(rows["epoch"], rows["validation_loss"], **look)
        right.plot(rows["epoch"], rows["score"], label=task.replace("_", " "), **look)
    left.set(xlabel="epoch", ylabel="loss per label (nats)", yscale="log", title="loss (dashed: training)")
    right.set(xlabel="epoch", ylabel="F1 on validation", title=f"score (best mean: epoch {best})")
    right.axvline(best, color=GREY, linestyle=":")
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.close(figure)  # returned, so a notebook shows it once
    return figure


def draw_architecture(ax: Axes, tasks: Sequence) -> None:
    """Boxes and arrows: one encoder, pooling, a head for each task (at most six)."""

    def box(x: float, y: float, width: float, label: str, colour: str) -> None:
        ax.add_patch(plt.Rectangle((x - width / 2, y - 0.35), width, 0.7, fc=colour, ec="black", alpha=0.85))
        ax.text(x, y, label, ha="center", va="center", fontsize=10)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black"})

    labels = ("tokens and mask\n(B, T)", "encoder: embeddings, 6 layers", "hidden states (B, T, 384)")
    for y, label, colour in zip((0, 1.2, 2.4), labels, ("#eeeeee", "#bbbbbb", "#dddddd"), strict=True):
        box(4, y, 4.4, label, colour)
    box(2.6, 3.6, 3, "pooling (B, 384)", "#dddddd")
    for start, end in (((4, 0.35), (4, 0.85)), ((4, 1.55), (4, 2.05)), ((3.4, 2.75), (2.8, 3.25))):
        arrow(start, end)
    for i, task in enumerate(tasks):
        x, token = 2.15 * i + 0.5, task.level == "token"
        box(
            x,
            5.2,
            1.9,
            f"{task.name}\n(B, {'T, ' if token else ''}{len(task.classes)})",
            TASK_COLOURS.get(task.name, GREY),
        )
        arrow((5.4, 2.75) if token else (2.6 + (x - 2.6) * 0.35, 3.95), (x, 4.85))
    ax.axhline(4.4, color=GREY, linestyle="--")
    ax.text(-1.7, 4.5, "one per task", color=GREY, fontsize=10)
    ax.text(-1.7, 4.1, "shared", color=GREY, fontsize=10)
    ax.set(xlim=(-1.7, 8.2), ylim=(-0.5, 5.7))
    ax.axis("off")


def reliability_diagram(ax: Axes, bins: pd.DataFrame, colour: str = PALETTE[0]) -> None:
    """Share that is right by predicted probability, from `evaluation.calibration`; dots as large as their bins."""
    ax.plot([0, 1], [0, 1], color=GREY, linestyle="--")
    ax.plot(bins["confidence"], bins["accuracy"], color=colour)
    ax.scatter(bins["confidence"], bins["accuracy"], s=20 + 300 * bins["n"] / bins["n"].sum(), color=colour)
    ax.set(xlabel="predicted probability", xlim=(0, 1.05), ylim=(0, 1.05), aspect="equal")
