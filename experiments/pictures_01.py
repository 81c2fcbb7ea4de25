"""Notebook 01: its measures that are a loop and nothing more, and its pictures."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from mtl_helpers import SentenceEncoder, Task
from mtl_helpers.corpus import SPLITS
from mtl_helpers.encoder import pool
from mtl_helpers.evaluation import macro_f1
from mtl_helpers.intervals import Interval, bootstrap

from .figures import GREY, PALETTE, TASK_COLOURS, dots_with_intervals, headline, scatter_by_label
from .measures import linear_probe

PADDINGS = (0, 4, 8, 16, 32, 64)


# ---------------------------------------------------------------- measures


def cosines_after_padding(encoder: SentenceEncoder, texts: Sequence[str], tokens: int = 12) -> pd.DataFrame:
    """What padding does to a sentence's vector, by the number of padding tokens and the way of pooling.

    Args:
        encoder: any; it gets the attention mask in all cases, only pooling forgets it.
        texts: those with exactly `tokens` tokens are used, the first hundred.
        tokens: length, special tokens included.

    Returns:
        One row per number of padding tokens: the cosine of the mean-pooled vectors with and without padding; `masked`
        is the mean over tokens (its lowest value), `low`, `plain` and `high` the 5 %, 50 % and 95 % quantiles of the
        mean over all positions.
    """
    same = [text for text in texts if len(encoder.tokenizer(text)["input_ids"]) == tokens][:100]
    rows, reference = {}, None
    for padding in PADDINGS:
        length = {"padding": "max_length", "max_length": tokens + padding}
        batch = encoder.tokenizer(same, return_tensors="pt", **length)
        with torch.inference_mode():
            states, mask = encoder.hidden(batch), batch["attention_mask"]
            reference = pool(states, mask) if reference is None else reference
            masked, plain = (
                torch.cosine_similarity(reference, pool(states, m)).numpy() for m in (mask, torch.ones_like(mask))
            )
        rows[padding] = [masked.min(), *np.quantile(plain, [0.05, 0.5, 0.95])]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["masked", "low", "plain", "high"])


def rank_correlation(similarity: np.ndarray, grades: np.ndarray) -> float:
    """Spearman's rank correlation."""
    return float(spearmanr(similarity, grades)[0])


def gain(similarity: np.ndarray, reference: np.ndarray, grades: np.ndarray) -> float:
    """By how much one similarity ranks pairs better than another."""
    return rank_correlation(similarity, grades) - rank_correlation(reference, grades)


def compare_similarities(similarities: Mapping[str, np.ndarray], grades: np.ndarray) -> dict[str, Interval]:
    """What each similarity of the same pairs gains in Spearman over the first, with paired intervals."""
    (_, reference), *others = similarities.items()
    return {name: bootstrap(gain, similarity, reference, grades) for name, similarity in others}


def readable(
    corpus: pd.DataFrame, tasks: Sequence[Task], features: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Interval]]:
    """How well classifiers read the labels of the test sentences from features that stay fixed.

    Regularisation and the number of neighbours are chosen on the validation sentences.

    Args:
        corpus: from `load_corpus`.
        tasks: sentence tasks.
        features: name: (N, D); of two columns (a map) the nearest neighbours are asked, of more a linear classifier.

    Returns:
        {name: {task: macro-F1 and its interval over the test sentences}}, last for "words", a linear classifier on
        TF-IDF.
    """
    bag = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]").fit(corpus.text[corpus.split == "train"])
    rows = [(corpus.split == split).to_numpy() for split in SPLITS]
    scores: dict[str, dict[str, Interval]] = {}
    for name, x in [*features.items(), ("words", bag.transform(corpus.text))]:
        fit = _words if name == "words" else _neighbours if x.shape[1] == 2 else linear_probe
        for task in tasks:
            labels = corpus[task.name].to_numpy(dtype=str)
            train, validation, test = ((x[part], labels[part]) for part in rows)
            guesses = fit(train, validation).predict(test[0])
            scores.setdefault(name, {})[task.name] = bootstrap(macro_f1, test[1], guesses)
    return scores


def _neighbours(train: tuple, validation: tuple) -> KNeighborsClassifier:
    return _best((KNeighborsClassifier(k).fit(*train) for k in (5, 15, 45)), validation)


def _words(train: tuple, validation: tuple) -> LogisticRegression:
    return _best((LogisticRegression(C=c, max_iter=1000).fit(*train) for c in (1, 10, 100, 1000)), validation)


def _best(classifiers: Sequence, validation: tuple) -> object:
    return max(classifiers, key=lambda classifier: macro_f1(validation[1], classifier.predict(validation[0])))


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Padding per real token, if texts of these lengths are computed in these batches."""
    padded = sum(len(rows) * max(lengths[i] for i in rows) for rows in batches)
    return padded / sum(lengths) - 1


def sentences_per_second(
    ways: Mapping[str, Callable[[], object]], sentences: int, rounds: int = 3
) -> tuple[dict[str, float], dict[str, object]]:
    """Median speed of each way of embedding, and what it made; by turns, so that a busy neighbour disturbs all."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    made = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a processor without bfloat16 says so
        for _ in range(rounds):
            for name, run in ways.items():
                start = time.perf_counter()
                made[name] = run()
                seconds[name].append(time.perf_counter() - start)
    return {name: sentences / float(np.median(times)) for name, times in seconds.items()}, made


# ---------------------------------------------------------------- pictures


def picture_padding(rows: pd.DataFrame, usual: float) -> Figure:
    """Cosine of a sentence with itself by padding, from `cosines_after_padding`; `usual` padding is marked."""
    figure, ax = plt.subplots(figsize=(7.5, 3.4))
    ax.fill_between(rows.index, rows["low"], rows["high"], color=PALETTE[1], alpha=0.2, linewidth=0)
    ax.plot(rows.index, rows["plain"], "s-", color=PALETTE[1])
    ax.plot(rows.index, rows["masked"], "o-", color=PALETTE[0])
    ax.axvline(usual, color=GREY, linestyle=":")
    ax.annotate("a usual batch of 32", (usual, 0.02), (4, 0), textcoords="offset points", color=GREY)
    ax.annotate("mean over tokens", (64, 0.93), color=PALETTE[0], ha="right", va="top")
    ax.annotate("mean over all positions", (31, 0.76), color=PALETTE[1])
    ax.set(
        title="Without the mask a sentence's vector drifts with its padding",
        xlabel="padding tokens behind the sentence",
        ylabel="cosine with itself unpadded",
        ylim=(0, 1.05),
    )
    plt.close(figure)
    return figure


def picture_poolings(panels: Mapping[str, Mapping[str, Interval]], mine: Mapping[str, float] | None = None) -> Figure:
    """Gains over the mean by pooling, a panel each; `mine` = {name: gain} is added to the first panel."""
    figure, axes = plt.subplots(1, len(panels), figsize=(9.6, 3.2), sharex=True, sharey=True)
    for ax, (title, gains) in zip(axes, panels.items(), strict=True):
        names = [name.replace("_", " ") for name in gains]
        dots_with_intervals(ax, names, list(gains.values()), unit="+.3f")
        ax.axvline(0, color=GREY, linestyle="--")
        ax.set(xlabel="Spearman, minus that of the mean")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set_title(title, fontsize=11, weight="normal")
    for name, value in (mine or {}).items():
        side = -1 if value > -0.06 else 1  # of the label
        place, look = (value, len(gains) - 0.25), {"color": PALETTE[1], "va": "center"}
        axes[0].plot(*place, "D", color=PALETTE[1], markersize=9)
        look |= {"ha": "right" if side < 0 else "left", "textcoords": "offset points"}
        axes[0].annotate(f"{name}: {value:+.3f}", place, (10 * side, 0), **look)
        axes[0].set_ylim(len(gains) + 0.1, -0.6)
    headline(figure, "No pooling gains on both sets over the mean, with which the model was trained")
    plt.close(figure)
    return figure


def picture_cosines(sentences: Sequence[str], cosines: np.ndarray) -> Figure:
    """Heat map of the cosine of each sentence with each."""
    figure, ax = plt.subplots(figsize=(8.6, 4))
    names = [f"{sentence}  {i}" for i, sentence in enumerate(sentences, start=1)]
    look = {"annot": True, "fmt": ".2f", "cmap": "Blues", "vmin": 0, "vmax": 1, "cbar": False}
    sns.heatmap(cosines, ax=ax, xticklabels=range(1, len(sentences) + 1), yticklabels=names, **look)
    ax.tick_params(length=0)
    headline(figure, "The subject decides; what is said about it counts for little")
    plt.close(figure)
    return figure


def picture_maps(maps: Mapping[str, np.ndarray], corpus: pd.DataFrame, tasks: Sequence[Task]) -> Figure:
    """Each map (rows) coloured by each task (columns)."""
    figure, axes = plt.subplots(len(maps), len(tasks), figsize=(10.4, 6.6), dpi=80)
    for row, (name, points) in zip(axes, maps.items(), strict=True):
        for ax, task in zip(row, tasks, strict=True):
            scatter_by_label(ax, points, corpus[task.name], task.labels)
            ax.set_title(f"{name}: {task.name.replace('_', ' ')}")
    for ax in axes[-1]:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncol=2, handletextpad=0.2, columnspacing=0.8)
    headline(figure, "UMAP shows topic, PCA shows sentiment, and neither shows sentence type")
    plt.close(figure)
    return figure


def picture_readers(scores: Mapping[str, Mapping[str, Interval]], tasks: Sequence[Task]) -> Figure:
    """Scores of `readable`, a panel a task; chance is dotted."""
    figure, axes = plt.subplots(1, len(tasks), figsize=(9.6, 3.2), sharex=True, sharey=True)
    for ax, task in zip(axes, tasks, strict=True):
        rows = [row[task.name] for row in scores.values()]
        dots_with_intervals(ax, list(scores), rows, TASK_COLOURS[task.name], ".2f")
        _chance(ax, 1 / len(task.labels))
        ax.set(xlabel="macro-F1, test sentences", xlim=(0, 1))
        ax.set_title(task.name.replace("_", " "), color=TASK_COLOURS[task.name])
    headline(figure, "The vectors hold all three labels; a map keeps one and loses most of the others")
    plt.close(figure)
    return figure


def _chance(ax: Axes, share: float) -> None:
    ax.axvline(share, color=GREY, linestyle=":")
    ax.annotate("chance", (share, ax.get_ylim()[0]), (3, 3), textcoords="offset points", color=GREY, fontsize=9)
