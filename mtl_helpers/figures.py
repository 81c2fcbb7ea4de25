"""The house style and the figures that the course uses more than once.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), told apart by most colour-blind readers;
a task keeps its colour in all notebooks.
"""

import inspect
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import Markdown
from matplotlib.axes import Axes

TASK_COLOURS = {"topic": "#0072B2", "sentence_type": "#D55E00", "sentiment": "#009E73", "entities": "#CC79A7"}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#777777"


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
) -> None:
    """One dot and its interval per label, from top to bottom, the value written beside it.

    Args:
        ax: where to draw.
        labels: names of the rows.
        rows: (value, low, high) of each.
        colour: of dots and lines.
        unit: format of the values.
    """
    values, low, high = np.array(rows).T
    places = np.arange(len(labels))
    ax.errorbar(values, places, xerr=[values - low, high - values], fmt="o", color=colour, capsize=3)
    for place, value in zip(places, values, strict=True):
        ax.annotate(f"{value:{unit}}", (value, place), (0, 6), textcoords="offset points", ha="center", fontsize=10)
    ax.set_yticks(places, labels)
    ax.set_ylim(len(labels) - 0.5, -0.6)


def scatter_by_label(ax: Axes, points: np.ndarray, labels: Sequence[str], order: Sequence[str]) -> None:
    """Points (N, 2) coloured by label, without scales (the axes of a map have no unit), with a legend."""
    labels = np.asarray(labels)
    rows = np.random.default_rng(0).permutation(len(labels))  # so that no label lies on top of all the others
    colours = dict(zip(order, PALETTE, strict=False))
    ax.scatter(*points[rows].T, c=[colours[label] for label in labels[rows]], s=5, alpha=0.6, linewidths=0)
    for label in order:
        ax.scatter([], [], color=colours[label], s=25, label=label)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
