"""The pictures of the write-up: the map beside the architecture, the claims, the cheat sheet."""

import textwrap
import warnings
from collections import Counter
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtl_helpers import TASKS, SentenceEncoder, load_corpus
from mtl_helpers.intervals import Interval

from .figures import GREY, PALETTE, draw_architecture, headline, scatter_by_label

ANSWERS = {"holds": "hold", "undecided": "undecided", "fails": "fail"}
VERDICTS = {"shown": PALETTE[2], "likely": PALETTE[0], "undecided": GREY, "none": "black"}


def front() -> Figure:
    """The corpus as the pretrained encoder sees it (UMAP, McInnes et al. 2018), beside the model."""
    from umap import UMAP

    corpus = load_corpus()
    vectors = SentenceEncoder.from_pretrained().encode(corpus["text"]).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap says that a seed costs it its parallelism
        points = UMAP(metric="cosine", random_state=0).fit_transform(vectors)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1, 1.25))
    scatter_by_label(left, points, corpus["topic"], sorted(TASKS[0].labels))
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncol=3, fontsize=9, markerscale=1.2)
    left.set_title("what the encoder sees: sentences by topic (UMAP)")
    draw_architecture(right, TASKS)
    right.set_title("what is built on it: one encoder, four heads")
    plt.close(figure)
    return figure


def claims(table: pd.DataFrame) -> Figure:
    """Differences and intervals of all claims, coloured by verdict, each with its numbers in a row.

    Args:
        table: that of experiments.claims.
    """
    figure, (ax, right) = plt.subplots(1, 2, figsize=(11, 0.34 * len(table) + 1.1), width_ratios=(1, 2.8), sharey=True)
    columns = {0.0: "points (95 % interval)", 0.3: "verdict", 0.45: "visible from", 0.61: "where", 0.87: "on MPNet"}
    for x, title in columns.items():
        right.text(x, -0.8, title, color=GREY, va="center", fontsize=10)
    for place, row in enumerate(table.to_dict("records")):
        colour, ends = VERDICTS[row["verdict"].split()[0]], [[row["value"] - row["low"]], [row["high"] - row["value"]]]
        ax.errorbar(row["value"], place, xerr=ends, fmt="o", color=colour, capsize=3)
        interval = f"{row['value']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})"
        words = (interval, row["verdict"], f"{row['visible']:.1f}", row["where"], row["another_encoder"])
        for x, text in zip(columns, words, strict=True):
            right.text(x, place, text, color=colour, va="center", fontsize=10)
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
    ax.set_yticks(range(len(table)), table.index)
    ax.set(ylim=(len(table) - 0.5, -1), xlabel="difference in points")
    right.set(xlim=(0, 1))
    right.axis("off")
    headline(figure, "Ten comparisons: right of zero is a gain for the way that is named")
    plt.close(figure)
    return figure


def another_encoder(
    claimed: pd.DataFrame, same: Mapping[str, Interval], other: Mapping[str, Interval], answers: Mapping[str, str]
) -> Figure:
    """The claims that were asked again: another encoder, MiniLM in the same design, MiniLM as claimed, the answers.

    Args:
        claimed: the table of experiments.claims.
        same, other: {claim: its comparison} of MiniLM and of the other encoder in the design of another_encoder.
        answers: {claim: a word of ANSWERS} for the other encoder.
    """
    figure, ax = plt.subplots(figsize=(9.6, 0.8 * len(other) + 1.1))
    sides = {
        "MPNet": ([other[name] for name in other], "o", PALETTE[1]),
        "MiniLM, same design": ([same[name] for name in other], "s", PALETTE[0]),
        "MiniLM, as claimed": (claimed.loc[list(other), ["value", "low", "high"]].to_numpy(), "D", GREY),
    }
    for side, (label, (rows, marker, colour)) in enumerate(sides.items()):
        values, low, high = np.array([tuple(row) for row in rows]).T
        places = np.arange(len(other)) + 0.27 * (side - 1)
        bars = {"xerr": [values - low, high - values], "capsize": 3, "ls": "none"}
        ax.errorbar(values, places, marker=marker, markersize=5, color=colour, **bars)
        look = {"va": "center", "fontsize": 9, "bbox": {"fc": "white", "ec": "none", "pad": 0.5}, "zorder": 2.5}
        for number, (value, end, place) in enumerate(zip(values, high, places, strict=True)):
            text = f"{value:+.1f}" if number else f"{value:+.1f}  {label}"
            ax.annotate(
                text, (end, place), (5, 0), textcoords="offset points", **look, color="black" if number else colour
            )
    for place, name in enumerate(other):
        ax.text(1.02, place, answers[name], transform=ax.get_yaxis_transform(), va="center", fontsize=11)
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
    ax.set_yticks(range(len(other)), list(other))
    ax.set_ylim(len(other) - 0.5, -0.6)
    ax.margins(x=0.09)
    ax.set_xlabel("difference in points, 95 % interval")
    counts = Counter(answers[name] for name in other)
    words = ", ".join(f"{counts[answer]} {word}" for answer, word in ANSWERS.items())
    headline(figure, f"Asked again on another encoder: {words}")
    plt.close(figure)
    return figure


def box(ax: Axes, x: float, y: float, text: str, colour: str, width: int) -> None:
    """A rounded box around wrapped text, centred at (x, y)."""
    look = {"boxstyle": "round,pad=0.35", "fc": colour, "ec": "#444444", "lw": 0.8}
    ax.text(x, y, textwrap.fill(text, width), ha="center", va="center", fontsize=11, bbox=look)


QUESTIONS = (  # x, y, width in characters, text
    (5, 7.3, 52, "How many labels does the task that matters have?"),
    (2.6, 5.6, 32, "Few (50 here): do the answers of another task say something about this one?"),
    (7.9, 5.6, 32, "Thousands (2,084 here): do other tasks have labels on the same texts?"),
    (4.15, 2.0, 26, "Must one model serve both all the same?"),
    (8.4, 2.0, 32, "Will the vectors also be used for similarity?"),
)
ADVICE = (  # the same; {} stands for the verdict of the claim behind it
    (5, 9.1, 62, "Begin with heads alone on the frozen encoder, for sentences on the mean of its last four "
     "layers [{}]; even with 50 sentences training beats them in the mean [{}]",
     ("pooling on a frozen encoder", "frozen encoder, few labels")),
    (1.3, 3.7, 23, "Yes, if they are right: both together [{}; in natural requests {}], or one after the other",
     ("a related second task", "related tasks of natural requests")),
    (4.15, 3.8, 26, "No: alone; topic cost sentiment points [{}]", ("an unrelated second task",)),
    (8.1, 3.8, 38, "Yes: one model (no: one each); in three epochs entities lose some points [{}], the mean little "
     "[{}]; weigh token tasks up [{}]",
     ("entities shared", "one model against four", "a weight for the token task")),
    (4.15, 0.5, 30, "Yes: uniform shares [{}], or a frozen encoder: no task can hurt another",
     ("uniform against proportional shares",)),
    (8.3, 0.5, 38, "Yes: heads first [{} at 3e-4], at a low rate; in three epochs it costs a point or two of F1 [{}]",
     ("heads first: similarity kept", "heads first: mean score")),
)  # fmt: skip
ARROWS = (
    ((5, 8.55), (5, 7.68)), ((4, 6.93), (3.2, 6.22)), ((6, 6.93), (7.3, 6.22)), ((2.1, 4.98), (1.6, 4.55)),
    ((3.1, 4.98), (3.9, 4.42)), ((8, 4.98), (8.1, 4.58)), ((4.15, 3.18), (4.15, 2.62)), ((8.25, 3.02), (8.4, 2.62)),
    ((4.15, 1.38), (4.15, 1.06)), ((8.4, 1.38), (8.4, 1.06)),
)  # fmt: skip


def decision_tree(verdicts: Mapping[str, str]) -> Figure:
    """The cheat sheet: what you have, what to do; each leaf carries the verdict of the claim behind it.

    Args:
        verdicts: {claim: verdict} of experiments.claims, and of "entities shared".
    """
    figure, ax = plt.subplots(figsize=(10, 6.4))
    for x, y, width, text in QUESTIONS:
        box(ax, x, y, text, "#dce9f5", width)
    for x, y, width, text, behind in ADVICE:
        box(ax, x, y, text.format(*(verdicts[claim] for claim in behind)), "#fdf3dc", width)
    for start, end in ARROWS:
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#444444"})
    ax.set(xlim=(0, 10.3), ylim=(0, 9.9))
    ax.axis("off")
    headline(figure, "What you have (blue), what to do (yellow), how sure we are [in brackets]")
    plt.close(figure)
    return figure
