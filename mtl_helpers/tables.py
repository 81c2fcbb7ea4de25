"""The one check of a table, for `load_corpus`, `fit` and `evaluate`: one form of labels, or one list of problems."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd

from .tasks import Span, Task
from .warn import warn_caller

OTHER_SEPARATORS = frozenset(";\t|")  # of files that call themselves CSV


class CorpusError(ValueError):
    """A file or table that can't be used. Says of each problem where it is, what was found and expected, what to do."""


def check_table(table: pd.DataFrame, tasks: Sequence[Task], name: str = "table") -> pd.DataFrame:
    """Check a table to train on or to score, and bring its labels into one form.

    Args:
        table: a column `text` and one for each task; a task whose column is missing has no labels here. Sentence
            tasks: text. Token tasks: lists or tuples of (start, end, label), or the same as JSON text, as in a CSV.
            None, NaN, NA and text of white space: not labelled.
        name: what messages call the table.

    Returns:
        A copy with the same index: `text` as str; labels as str or None; spans as a sorted list of
        (start, end, label), or None. A label that differs from a known one only in white space is taken for it,
        and one warning names those.

    Raises:
        CorpusError: all problems together (the first 20), with row (counted from 0, as iloc does), id and column.
    """
    if not isinstance(table, pd.DataFrame):
        remedy = 'load_corpus(path) reads a file, pd.DataFrame({"text": [...], "topic": [...]}) takes lists'
        raise CorpusError(f"{name}: found {_typed(table)}, expected a pandas DataFrame; {remedy}")
    columns = list(table.columns)
    if "text" not in columns or not len(table):
        what = f"found {len(table)} rows with the columns {listed(columns)}"
        raise CorpusError(f"{name}: {what}, expected some with text; the texts belong in a column of that name")
    refuse(name, [(0, problem) for problem in check_names(columns, tasks, alike=1.0)])
    wanted = ["text", *(task.name for task in tasks if task.name in columns)]
    checked, problems = check_cells(name, {column: table[column].tolist() for column in wanted}, tasks)
    ids = [f" (id {short(value)})" for value in table["id"]] if "id" in columns else [""] * len(table)
    refuse(name, [(row, f"row {row}{ids[row]}, column {column}: {text}") for row, column, text in problems])
    copy = table.copy()
    for column in wanted:
        copy[column] = pd.Series(checked[column], table.index, "str" if column == "text" else object)
    return copy


def check_names(columns: Sequence, tasks: Sequence[Task], alike: float, also: Sequence[str] = ()) -> list[str]:
    """Problems of column names: repeated, or nearly the name of a column that is missing.

    Args:
        alike: how much alike (difflib's ratio) two names must be; 1.0: they differ in case or white space alone.
        also: names that are known besides `text` and those of the tasks.
    """
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ValueError(f"found tasks named {listed(names)}, expected a different name for each")
    known = ["text", *names, *also]
    problems = []
    for name, times in Counter(columns).items():
        if times > 1:
            remedy = "name these columns, or delete empty ones" if name == "" else "rename or delete the others"
            problems.append(f"column {name or '(no name)'}: found {times} times, expected once; {remedy}")
    missing = {name.lower(): name for name in known if name not in columns}
    for name in columns:
        if name not in known and len(str(name)) < 100 and not OTHER_SEPARATORS & set(str(name)):
            for match in difflib.get_close_matches(str(name).strip().lower(), missing, 1, alike):
                problems.append(f"column {name}: found {name!r}, expected {missing.pop(match)!r}; rename the column")
    return problems


def check_cells(
    name: str | Path, columns: dict[str, list], tasks: Sequence[Task]
) -> tuple[dict[str, list], list[tuple[int, str, str]]]:
    """Bring each cell of `text` and of the tasks' columns into its one form.

    Returns:
        The columns anew, and a (row, column, problem) for each problem. Warns once of labels that were taken for
        known ones in spite of their white space.
    """
    checked, problems, respelt = dict(columns), [], Counter()
    for column, task in [("text", None), *((task.name, task) for task in tasks if task.name in columns)]:
        cells = []
        for row, value in enumerate(columns[column]):
            if task is None:
                cell, wrong = _read_text(value)
            elif task.level == "token":
                cell, wrong = _read_spans(value, checked["text"][row], task, respelt)
            else:
                cell, wrong = _read_label(value, task, respelt)
            cells.append(cell)
            problems += [(row, column, text) for text in wrong]
        checked[column] = cells
    if respelt:
        labels = listed(f"{short(label)} ({column}, {times} times)" for (column, label), times in respelt.items())
        what = "these labels differ from known ones in white space alone and are taken for them"
        warn_caller(f"{name}: {what}: {labels}")
    return checked, problems


def refuse(where: str | Path, problems: Iterable[tuple[int, str]]) -> None:
    """Raise one CorpusError for all (line or row, problem), in that order; do nothing if there are none."""
    texts = [text for _, text in sorted(problems, key=lambda problem: problem[0])]
    if texts:
        more = [f"... and {len(texts) - 20} more"] * (len(texts) > 20)
        raise CorpusError("\n  ".join([f"{where}: {len(texts)} problem{'s' * (len(texts) > 1)}", *texts[:20], *more]))


def _read_text(value: object) -> tuple[str | None, list[str]]:
    if is_missing(value):
        return None, ["found no text, expected a sentence; fill in the cell or delete the row"]
    if not isinstance(value, str):
        return None, [f"found {_typed(value)}, expected text"]
    if half := re.search("[\ud800-\udfff]", value):
        what = f"found half a surrogate pair at character {half.start()}, expected valid Unicode"
        return None, [f"{what}; delete it, or read the text again as UTF-8"]
    return str.__str__(value), []  # not a subclass, such as NumPy's


def _read_label(value: object, task: Task, respelt: Counter) -> tuple[str | None, list[str]]:
    if is_missing(value):
        return None, []
    if not isinstance(value, str):
        remedy = "load_corpus(path, tasks=...) and pd.read_csv(path, dtype=str) read labels as text"
        return None, [f"found {_typed(value)}, expected text, one of {listed(task.labels)}; {remedy}"]
    label = _match(value, task, respelt)
    return label, [] if label is not None else [unknown(value, task.labels, " or an empty cell")]


def _read_spans(value: object, text: str | None, task: Task, respelt: Counter) -> tuple[list[Span] | None, list[str]]:
    """Spans of a cell, sorted, and what is wrong with them. Without a text nothing can be said of them."""
    if is_missing(value) or text is None:
        return None, []
    items, form = value.tolist() if isinstance(value, np.ndarray) else value, "[[start, end, label], ...]"
    if isinstance(value, str):
        form += " in JSON"
        try:
            items = json.loads(value)
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, thousands of brackets
            return None, [f"found {short(value)}, expected {form}; json.dumps(spans) writes it"]
        if items is None:  # json.dumps(None): not labelled
            return None, []
    if not isinstance(items, list | tuple):
        return None, [f"found {_typed(items)}, expected {form}"]
    spans, problems = [], []
    for item in items:
        span = _read_span(item, text, task, respelt, json.dumps if isinstance(value, str) else repr)
        (problems if isinstance(span, str) else spans).append(span)
    spans.sort()
    clashes = [f"found overlapping spans {list(a)} and {list(b)}" for a, b in pairwise(spans) if b[0] < a[1]]
    problems += [f"{clash}, expected each character in one at most; keep one of the two" for clash in clashes]
    return spans, problems


def _read_span(item: object, text: str, task: Task, respelt: Counter, show: Callable) -> Span | str:
    """One span, or what is wrong with it."""
    start, end, label = item if isinstance(item, list | tuple | np.ndarray) and len(item) == 3 else (None,) * 3
    whole = all(isinstance(place, Integral) and not isinstance(place, bool) for place in (start, end))
    if not whole or not isinstance(label, str):
        return f"found {squeezed(show(item)):.60}, expected [start, end, label] with whole numbers"
    start, end, surface = int(start), int(end), text[start:end]
    found = f"found span {short([start, end, str.__str__(label)])}"
    if not 0 <= start < end <= len(text):
        return f"{found}, expected 0 <= start < end <= {len(text)} (the length of the text), counted in characters"
    if surface != surface.strip():
        return f"{found} {short(surface)}, expected no spaces at its ends; leave them out of the span"
    known = _match(label, task, respelt)
    return unknown(label, task.labels) if known is None else (start, end, known)


def _match(value: str, task: Task, respelt: Counter) -> str | None:
    """The task's label that this is, white space aside (which is counted); None if it is none."""
    if value in task.labels:
        return str.__str__(value)
    alike = [label for label in task.labels if squeezed(label) == squeezed(value)]
    if len(alike) != 1:
        return None
    respelt[task.name, value] += 1
    return alike[0]


def is_missing(value: object) -> bool:
    """Whether a cell is empty: None, NaN, NA, NaT, or text of white space."""
    return not value.strip() if isinstance(value, str) else bool(pd.api.types.is_scalar(value) and pd.isna(value))


def squeezed(label: str) -> str:
    """A label without white space at its ends, and with one space for each run within it (no-break ones too)."""
    return " ".join(label.split())


def unknown(value: str, known: Sequence[str], also: str = "") -> str:
    """What is said of a name that is none of those known, with a guess at the one that was meant."""
    lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(value[:100].strip().lower(), lower, 1)
    guess = f"; did you mean {lower[near[0]]!r}?" if near else ""
    return f"found {short(value)}, expected one of {listed(known)}{also}{guess}"


def listed(values: Iterable, most: int = 20) -> str:
    """Values in a row, cut where there are many or long ones."""
    texts = [text if len(text) <= 60 else text[:57] + "..." for text in map(str, values)]
    return ", ".join(texts[:most]) + f" and {len(texts) - most} more" * (len(texts) > most)


def short(value: object) -> str:
    """A text in quotes, or another value as Python writes it, cut after 60 characters."""
    text = value if isinstance(value, str) else squeezed(repr(value))
    text = text if len(text) <= 60 else text[:57] + "..."
    return repr(text) if isinstance(value, str) else text


def _typed(value: object) -> str:
    return f"{short(value)} of type {type(value).__name__}"
