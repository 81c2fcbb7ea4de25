"""The pictures of notebook 02 and of appendix A1."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from mtl_helpers import TASKS, Task
from mtl_helpers.encoder import POOLINGS
from mtl_helpers.intervals import Interval, seed_interval

from .evidence import unpaired_interval
from .figures import (
    GREY,
    MARKERS,
    PALETTE,
    TASK_COLOURS,
    curve_with_intervals,
    dots_with_intervals,
    draw_architecture,
    headline,
)

LAST = 6
OUTSIDE = PALETTE[4]  # the colour of public data
DEFAULT = {"pooling": "mean", "scaling": "as pooled", "head": "linear"}
CHANGES = (("scaling", "unit length"), ("head", "mlp"), ("head", "projection"))
PANELS = (  # data, task, title
    ("corpus", "topic", "topic"),
    ("corpus", "sentence_type", "sentence type"),
    ("corpus", "sentiment", "sentiment"),
    ("corpus", "entities", "entities"),
    ("public", "question_type", "public: question type"),
    ("public", "entities", "public: entities in tweets"),
)


def architecture(tasks: Sequence[Task] = TASKS) -> Figure:
    """The whole model: what is shared, and what each task has for itself."""
    figure, ax = plt.subplots(figsize=(8.5, 4.6))
    draw_architecture(ax, tasks)
    ax.set_title("One encoder, three sentence heads, one token head")
    plt.close(figure)
    return figure


def layer_scores(rows: pd.DataFrame, task: str) -> tuple[pd.DataFrame, int]:
    """F1 on test of one task, layers x seeds, in points; and the layer that is best on validation."""
    wide = 100 * rows[rows["task"] == task].pivot(index="layer", columns="seed", values=["validation_f1", "test_f1"])
    return wide["test_f1"], int(wide["validation_f1"].mean(axis=1).idxmax())


def gain_over_last(rows: pd.DataFrame, task: str) -> tuple[int, Interval]:
    """The layer that is best on validation, and what it gains over the last one on test, in points (draws paired)."""
    scores, best = layer_scores(rows, task)
    return best, seed_interval(scores.loc[best] - scores.loc[LAST])


def layers(corpus: pd.DataFrame, public: pd.DataFrame, yours: tuple[str, int, float] | None = None) -> Figure:
    """What probes read from each layer, in points of F1 above or below the last layer; one panel a task.

    Args:
        corpus, public: rows of the studies layer_probes and public_layers.
        yours: task of the corpus, layer and F1 on test (0 to 1) of a probe to add.
    """
    figure, axes = plt.subplots(2, 3, figsize=(9.5, 5.4), sharex=True, sharey=True)
    for ax, (data, task, title) in zip(axes.flat, PANELS, strict=True):
        scores, best = layer_scores(corpus if data == "corpus" else public, task)
        colour = TASK_COLOURS[task] if data == "corpus" else OUTSIDE
        rows = [seed_interval(scores.loc[layer] - scores.loc[LAST]) for layer in range(LAST)]
        curve_with_intervals(ax, range(LAST), rows, color=colour)
        ax.plot([LAST - 1, LAST], [rows[-1].value, 0], color=colour)
        ax.plot(LAST, 0, color=colour, marker=MARKERS[colour], markersize=5)
        ax.axhline(0, color=GREY, linestyle="--", linewidth=1)
        for layer in {best, LAST}:
            height = scores.loc[layer].mean() - scores.loc[LAST].mean()
            ax.annotate(
                f"{scores.loc[layer].mean():.0f}",
                (layer, height),
                (0, 9),
                textcoords="offset points",
                ha="center",
                weight="bold" if layer == best else "normal",
            )
        if yours and data == "corpus" and yours[0] == task:
            ax.plot(yours[1], 100 * yours[2] - scores.loc[LAST].mean(), "k*", markersize=13, zorder=4)
            ax.annotate(
                f"yours: {100 * yours[2]:.0f}",
                (yours[1], 100 * yours[2] - scores.loc[LAST].mean()),
                (0, -16),
                textcoords="offset points",
                ha="center",
            )
        ax.set(title=title, xticks=range(LAST + 1), ylim=(-21, 22))
    for ax in axes[1]:
        ax.set_xlabel("layer (0: embeddings)")
    figure.supylabel("points of F1 against layer 6, test", fontsize=11)
    headline(figure, "Only topic is read best from the last layer")
    plt.close(figure)
    return figure


def pooling_gains(around: pd.DataFrame, public: pd.DataFrame) -> tuple[dict[str, Interval], dict[str, Interval]]:
    """Each pooling against the mean, in points of F1: mean of three sentence tasks; question type (draws paired)."""
    outside = 100 * public.pivot(index="pooling", columns="seed", values="test_f1")
    others = [pooling for pooling in POOLINGS if pooling != "mean"]
    ours = {pooling: gain(around, pooling=pooling) for pooling in others}
    return ours, {pooling: seed_interval(outside.loc[pooling] - outside.loc["mean"]) for pooling in others}


def mean_scores(around: pd.DataFrame) -> pd.DataFrame:
    """Mean macro-F1 of the three sentence tasks in points, (pooling, scaling, head) x seeds (some have fewer)."""
    mean = 100 * around[[task.name for task in TASKS[:3]]].mean(axis=1)
    return around.assign(mean=mean).pivot(index=list(DEFAULT), columns="seed", values="mean")


def gain(around: pd.DataFrame, **change: str) -> Interval:
    """A setting that differs in some choice from the default against it, in points of F1."""
    wide = mean_scores(around)
    changed, base = (wide.loc[tuple(setting.values())].dropna() for setting in (DEFAULT | change, DEFAULT))
    return unpaired_interval(changed, base)


def other_gains(around: pd.DataFrame) -> dict[str, Interval]:
    """Scaling and heads against the default, everything else as it is."""
    return {value: gain(around, **{name: value}) for name, value in CHANGES}


def around_the_backbone(around: pd.DataFrame, public: pd.DataFrame) -> Figure:
    """What one change from the default does: pooling (in the corpus and outside) beside scaling and heads."""
    ours, outside = pooling_gains(around, public)
    others = other_gains(around)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.9), sharex=True)
    names = {"cls": "first token", "max": "maximum", "weighted": "weighted mean", "last_layers": "last four layers"}
    dots_with_intervals(left, [names[key] for key in ours], list(ours.values()), PALETTE[0], "+.1f")
    values, low, high = zip(*outside.values(), strict=True)
    places = [place + 0.3 for place in range(len(values))]
    bars = [[v - a for v, a in zip(values, low, strict=True)], [b - v for v, b in zip(values, high, strict=True)]]
    left.errorbar(values, places, xerr=bars, fmt="^", color=OUTSIDE, capsize=3, markersize=5)
    left.text(values[0] + 4, places[0], "public: question type", color="#8a5f00", va="center", fontsize=10)
    left.set(title="pooling, instead of the mean (blue: corpus)")
    names = {"unit length": "scaled to length 1", "mlp": "MLP heads", "projection": "shared projection"}
    dots_with_intervals(right, [names[key] for key in others], list(others.values()), PALETTE[0], "+.1f")
    right.set(title="scaling and heads (corpus)", ylim=(3.5, -0.6))
    for ax in (left, right):
        ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
        ax.set(xlabel="points of F1 against the default, test", xlim=(-29, 12))
    headline(figure, "On a frozen encoder the pooling decides, scaling and heads hardly matter")
    plt.close(figure)
    return figure


def gradient_angles(rows: pd.DataFrame) -> Figure:
    """Cosines of gradients by block of the encoder, with random and with trained heads."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), sharey=True)
    for ax, (title, epochs) in zip(axes, {"random heads": 0, "trained heads": 5}.items(), strict=True):
        chosen = rows[rows["epochs"] == epochs]
        blocks = chosen["block"].unique()
        means = chosen.groupby(["a", "b", "block"])["cosine"].mean().unstack()[blocks]
        pairs = means[[a != b for a, b in means.index]]
        ax.fill_between(range(7), pairs.min(), pairs.max(), color=GREY, alpha=0.4, linewidth=0)
        for task, own in chosen[chosen["a"] == chosen["b"]].groupby("a"):
            values = own.pivot(index="block", columns="seed", values="cosine").loc[blocks].to_numpy()
            curve_with_intervals(ax, range(7), [seed_interval(v) for v in values], color=TASK_COLOURS[task])
            if epochs:
                place = {"topic": 0.18, "sentence_type": 0.1, "sentiment": 0.02}.get(task, values[-1].mean())
                ax.text(6.25, place, task.replace("_", " "), color=TASK_COLOURS[task], va="center", fontsize=10)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(title=title, xlabel="block of the encoder", ylim=(-0.15, 1.05), xlim=(-0.3, 6.3))
        ax.set_xticks(range(7), ["emb.", *range(1, 7)])
    axes[1].text(0.2, 0.97, "coloured: a task with itself", fontsize=10, va="center")
    axes[0].text(0, -0.08, "grey: the six pairs of different tasks", color=GREY, fontsize=10, va="center")
    axes[0].set_ylabel("cosine of gradients")
    headline(figure, "No two tasks pull the encoder in opposite directions")
    plt.close(figure)
    return figure
