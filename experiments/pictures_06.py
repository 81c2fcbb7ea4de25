"""The pictures of notebook 06, and what they are made of."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtl_helpers import TASKS

from .figures import GREY, MARKERS, PALETTE, TASK_COLOURS, curve_with_intervals, dots_with_intervals, headline
from .sweeps import RESULTS

COLOURS = {"torch": GREY, "fp32": PALETTE[0], "int8 in blocks": PALETTE[2], "int8": PALETTE[4]}
NAMES = {"torch": "torch", "fp32": "ONNX", "int8 in blocks": "int8 in blocks", "int8": "int8"}
TASK_NAMES = {task.name: task.name.replace("_", " ") for task in TASKS}


def rows(name: str) -> pd.DataFrame:
    """Rows of data/results/serving_NAME.csv."""
    return pd.read_csv(RESULTS / f"serving_{name}.csv")


def time_and_agreement(speed: pd.DataFrame, yours: dict | None = None) -> Figure:
    """Milliseconds a text beside the share of texts with the same answer as in fp32, task by task.

    Args:
        speed: rows of serving_speed.csv.
        yours: a row of your own: `backend` (its name), `ms_a_text` and a share for each task.
    """
    labels = [*NAMES.values(), *([yours["backend"]] if yours else [])]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 1.3 + 0.55 * len(labels)), sharey=True)
    for place, name in enumerate(NAMES):
        own = speed[speed["backend"] == name].set_index("batch")["ms_a_text"]
        look = {"color": COLOURS[name], "markersize": 8}
        left.plot(own[1], place, marker="o", **look)
        left.plot(own[32], place, marker="o", fillstyle="none", **look)
        left.annotate(f"{own[1]:.1f}", (own[1], place), (0, 7), textcoords="offset points", ha="center", fontsize=10)
    if yours:
        left.plot(yours["ms_a_text"], len(NAMES), "k*", markersize=13)
    one = speed[speed["batch"] == 1].set_index("backend")
    share = [one.loc[name] for name in list(NAMES)[1:]] + ([yours] if yours else [])
    for shift, (task, title) in zip((-0.18, -0.06, 0.06, 0.18), TASK_NAMES.items(), strict=True):
        look = {"color": TASK_COLOURS[task], "linestyle": "", "marker": MARKERS[TASK_COLOURS[task]], "label": title}
        right.plot([100 * row[task] for row in share], np.arange(1, len(labels)) + shift, **look)
    left.set_yticks(range(len(labels)), labels)
    left.set(xlabel="ms a text on one thread", xlim=(0, None), ylim=(len(labels) - 0.5, -0.6))
    left.set_title("filled: one text a call, open: 32")
    right.set(xlabel="texts with the same answer, %", title="same answers as ONNX in 32 bits")
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    headline(figure, "One text takes less than half of torch's time; rounding saves more and changes answers")
    plt.close(figure)
    return figure


def gate(table: pd.DataFrame, may_lose: float = 1.0) -> Figure:
    """What each form of int8 costs each task, with intervals; what reaches left of the line is refused."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.1), sharex=True, sharey=True)
    for ax, name in zip(axes, ("int8", "int8 in blocks"), strict=True):
        own = table[table["backend"] == name].set_index("task").loc[list(TASK_NAMES)]
        intervals = 100 * own[["difference", "low", "high"]].to_numpy()
        dots_with_intervals(ax, list(TASK_NAMES.values()), intervals, COLOURS[name], "+.1f")
        ax.axvline(0, color=GREY, linewidth=1)
        ax.axvline(-may_lose, color="black", linestyle="--", linewidth=1)
        ax.set(title=name, xlabel="points of F1 against fp32")
    refused = table[100 * table["low"] < -may_lose].groupby("backend").size()
    said = {0: "The gate lets both forms through", 1: f"The gate refuses {' '.join(refused.index)}"}
    headline(figure, said.get(len(refused), "The gate refuses both forms: each may cost a task more than a point"))
    plt.close(figure)
    return figure


def under_load(load: pd.DataFrame) -> Figure:
    """Requests a second and the 95th percentile of the latency by number of clients, four servers on one core."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.9))
    for ax, column in zip(axes, ("per_second", "p95_ms"), strict=True):
        median = load.groupby(["backend", "clients"])[column].median().unstack()
        for name, colour in COLOURS.items():
            ax.plot(median.columns, median.loc[name], color=colour, marker=MARKERS[colour], markersize=6)
        ax.set(xscale="log", xlabel="clients at once")
        ends = {name: median.loc[name].iloc[-1] for name in COLOURS}
        if column == "per_second":
            ax.set_ylim(0, None)
            for name, value in ends.items():
                ax.text(median.columns[-1] * 1.12, value, NAMES[name], color=COLOURS[name], va="center", fontsize=10)
        else:
            ax.set_yscale("log")
            _name_lines(ax, ends, median.columns[-1])
            ticks = [t for t in (5, 10, 20, 50, 100, 200, 500, 1000) if ax.get_ylim()[0] <= t <= ax.get_ylim()[1]]
            ax.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        ax.set_xticks(median.columns, [str(number) for number in median.columns])
        ax.minorticks_off()
    axes[0].set_title("requests a second")
    axes[1].set_title("95 % are answered within … ms (logarithmic)")
    headline(figure, "A busy core answers no faster to more clients: they wait")
    plt.close(figure)
    return figure


def _name_lines(ax: Axes, ends: dict[str, float], x: float) -> None:
    """Names beside the ends of lines on a logarithmic axis, moved apart where they would overlap."""
    low, high = ax.get_ylim()
    place, least = 0.0, (high / low) ** 0.07
    for name, value in sorted(ends.items(), key=lambda end: end[1]):
        place = max(value, place * least)
        ax.text(x * 1.12, place, NAMES[name], color=COLOURS[name], va="center", fontsize=10)


def memory(server: pd.DataFrame, file: pd.DataFrame, other: pd.DataFrame) -> Figure:
    """Memory of a server by requests answered, of `predict` by rows of a file, of two runtimes by shapes of batches."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.5, 3), sharey=True)
    for name, own in server.groupby("backend"):
        left.plot(own["requests"], own["memory_mb"], color=COLOURS[name], marker=MARKERS[COLOURS[name]], markersize=5)
        above = name == "fp32"
        place = (10_000, own["memory_mb"].iloc[-1] + (30 if above else -60))
        left.text(*place, NAMES[name], color=COLOURS[name], ha="right", fontsize=10)
    colour = COLOURS["int8 in blocks"]
    middle.plot(file["rows"], file["memory_mb"], color=colour, marker=MARKERS[colour], markersize=5)
    for name, colour in (("ONNX Runtime", COLOURS["fp32"]), ("OpenVINO", PALETTE[1])):
        own = other[(other["runtime"] == name) & (other["what"] == "memory_mb")]
        right.plot(own["n"], own["value"], color=colour, marker=MARKERS[colour], markersize=5)
        right.text(own["n"].max(), own["value"].iloc[-1] + 30, name, color=colour, ha="right", fontsize=10)
    left.set(title="a server", xlabel="requests answered", ylabel="MB")
    middle.set(title="predict on a file (int8 in blocks)", xlabel="rows labelled")
    right.set(title="two runtimes", xlabel="shapes of batches seen")
    for ax, step in ((left, 5000), (middle, 10_000), (right, 200)):
        ax.set(xlim=(-0.06 * step, 2.06 * step), ylim=(0, None))
        ax.set_xticks(range(0, 2 * step + 1, step), [f"{value:,}" for value in range(0, 2 * step + 1, step)])
    headline(figure, "Memory does not grow with the work; in another runtime it would")
    plt.close(figure)
    return figure


def watched(table: pd.DataFrame) -> Figure:
    """What users get beside what can be seen without labels, by share of garbled words.

    Args:
        table: index share of garbled words in percent; columns of the tasks (F1 in points), `unsure`
            (percent of the answers) and `far` (percent of the texts).
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), sharex=True)
    for task, name in TASK_NAMES.items():
        colour = TASK_COLOURS[task]
        left.plot(table.index, table[task], color=colour, marker=MARKERS[colour], markersize=5)
        left.text(table.index[-1] + 1.5, table[task].iloc[-1], name, color=colour, va="center", fontsize=10)
    signals = {"unsure": "unsure answers", "far": "texts far from training"}
    for (name, text), colour in zip(signals.items(), PALETTE[4:6], strict=True):
        right.plot(table.index, table[name], color=colour, marker=MARKERS[colour], markersize=6)
        right.text(table.index[-1] + 1.5, table[name].iloc[-1], text, color="black", va="center", fontsize=10)
    left.set(title="needs labels: F1 in points", xlabel="words garbled, %", ylim=(0, 100))
    right.set(title="needs no labels: share, %", xlabel="words garbled, %", ylim=(0, None))
    headline(figure, "Doubt and distance rise as the answers get worse")
    plt.close(figure)
    return figure


def kept(frozen_head: pd.DataFrame) -> Figure:
    """What a frozen head's task loses when the other tasks train on, encoder moving or frozen (five seeds)."""
    from mtl_helpers.intervals import seed_interval

    change = frozen_head.assign(change=100 * (frozen_head["after"] - frozen_head["before"]))
    figure, ax = plt.subplots(figsize=(7.5, 3.2))
    for backbone, colour in (("moving", PALETTE[1]), ("frozen", PALETTE[0])):
        own = change[change["backbone"] == backbone].pivot(index="seed", columns="task", values="change")
        intervals = [seed_interval(own[task]) for task in TASK_NAMES]
        curve_with_intervals(ax, range(4), intervals, color=colour, linestyle="", markersize=7)
        ax.text(3.15, intervals[-1].value, f"encoder {backbone}", color=colour, va="center", fontsize=10)
    ax.set_xticks(range(4), TASK_NAMES.values())
    ax.set(xlim=(-0.4, 4), ylabel="change of F1, points (test)")
    ax.set_title("A frozen head keeps its task only on a frozen encoder")
    plt.close(figure)
    return figure
