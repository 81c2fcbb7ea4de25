"""The pictures of the write-up: the map beside the architecture, the claims, the cheat sheet."""

import textwrap
import warnings
from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtl_helpers import TASKS, SentenceEncoder, load_corpus

from .figures import GREY, PALETTE, draw_architecture, headline, scatter_by_label

VERDICTS = {"shown": PALETTE[2], "likely": PALETTE[0], "undecided": GREY, "none": "black"}


def front() -> Figure:
    """The corpus as the untrained encoder sees it (UMAP, McInnes et al. 2018), beside the model."""
    from umap import UMAP

    corpus = load_corpus()
    vectors = SentenceEncoder.from_pretrained().encode(corpus["text"]).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap says that a seed costs it its parallelism
        points = UMAP(metric="cosine", random_state=0).fit_transform(vectors)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1, 1.25))
    scatter_by_label(left, points, corpus["topic"], sorted(TASKS[0].labels))
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncol=3, fontsize=9, markerscale=1.2)
    left.set_title("what the encoder sees: 2,970 sentences by topic")
    draw_architecture(right, TASKS)
    right.set_title("what is built on it: one encoder, four heads")
    plt.close(figure)
    return figure


def claims(table: pd.DataFrame) -> Figure:
    """Differences and intervals of all claims, coloured by verdict; `table` is that of experiments.claims."""
    figure, ax = plt.subplots(figsize=(9.5, 0.42 * len(table) + 1))
    for place, row in enumerate(table.itertuples()):
        colour = VERDICTS[row.verdict.split()[0]]
        ax.errorbar(
            row.value, place, xerr=[[row.value - row.low], [row.high - row.value]], fmt="o", color=colour, capsize=3
        )
        ax.text(36, place, f"{row.value:+.1f}  {row.verdict}", color=colour, va="center", fontsize=10)
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
    ax.set_yticks(range(len(table)), table.index)
    ax.set(ylim=(len(table) - 0.5, -0.6), xlim=(-30, 35), xlabel="difference in points, with its 95 % interval")
    ax.set_title("Ten comparisons, each with its verdict")
    plt.close(figure)
    return figure


def box(ax: Axes, x: float, y: float, text: str, colour: str, width: int) -> None:
    """A rounded box around wrapped text, centred at (x, y)."""
    look = {"boxstyle": "round,pad=0.35", "fc": colour, "ec": "#444444", "lw": 0.8}
    ax.text(x, y, textwrap.fill(text, width), ha="center", va="center", fontsize=9.5, bbox=look)


QUESTIONS = (  # x, y, width in characters, text
    (5, 7.9, 40, "How many labels has the task that matters?"),
    (5, 6.2, 30, "50 to 400: is there a second task that knows something about this one?"),
    (8.4, 6.2, 26, "Thousands: several tasks on the same texts?"),
)
ADVICE = (  # the same, and the claim that stands behind it
    (5, 9.5, 60, "The score to beat: heads on the frozen encoder, last four layers", "pooling on a frozen encoder"),
    (1.7, 6.2, 30, "About 50, whole sentences: is the frozen encoder enough?", "frozen encoder, few labels"),
    (3.1, 3.9, 30, "Yes: train both together, and compare with alone for as many rows in all", "a related second task"),
    (6.2, 3.9, 24, "No: alone, long enough; more labels before any method", "an unrelated second task"),
    (8.9, 3.9, 25, "Yes: one model, a sum of losses, a larger weight for a token task", "one model against four"),
    (3.1, 1.5, 34, "One model must serve both all the same: uniform shares", "uniform against proportional shares"),
    (7.6, 1.5, 38, "Vectors are used for similarity too: heads first, then everything", "heads first: forgetting"),
)  # fmt: skip
ARROWS = (
    ((5, 9.0), (5, 8.3)), ((4, 7.6), (2, 7.0)), ((5, 7.5), (5, 6.95)), ((6, 7.6), (8, 6.75)), ((4.5, 5.45), (3.4, 4.8)),
    ((5.5, 5.45), (6.1, 4.75)), ((8.5, 5.7), (8.8, 4.9)), ((5.9, 3.05), (4, 2.1)), ((8.8, 2.95), (8, 2.15)),
)  # fmt: skip


def decision_tree(verdicts: Mapping[str, str]) -> Figure:
    """The cheat sheet: what you have, what to do; each leaf carries the verdict of the claim behind it.

    Args:
        verdicts: {claim: verdict} of experiments.claims.
    """
    figure, ax = plt.subplots(figsize=(10, 6.2))
    for x, y, width, text in QUESTIONS:
        box(ax, x, y, text, "#dce9f5", width)
    for x, y, width, text, claim in ADVICE:
        box(ax, x, y, f"{text} [{verdicts[claim]}]", "#fdf3dc", width)
    for start, end in ARROWS:
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#444444"})
    ax.set(xlim=(0, 10.3), ylim=(0.5, 10.1))
    ax.axis("off")
    headline(figure, "What you have (blue), what to do (yellow), how sure we are [in brackets]")
    plt.close(figure)
    return figure
