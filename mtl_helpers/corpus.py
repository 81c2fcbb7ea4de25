"""The corpus, and anybody's CSV in the same shape.

One table holds every task. An empty cell means "not labelled for this task", and that single rule covers
separate data sets, scarce tasks and a user's own file: the loss skips what is missing.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from .csv_file import read_rows
from .tables import OTHER_SEPARATORS, check_cells, check_names, listed, refuse, short, unknown
from .tasks import TASKS, Task
from .warn import warn_caller

DATA = Path(__file__).resolve().parent.parent / "data"
SPLITS = ("train", "validation", "test")


def load_corpus(
    path: str | Path | None = None, split: str | None = None, tasks: Sequence[Task] = TASKS
) -> pd.DataFrame:
    """Read the course's corpus, or any CSV with a `text` column and a column for at least one task.

    Args:
        path: a UTF-8, comma-separated file with a header; default: the corpus that comes with the course.
        split: return only "train", "validation" or "test".
        tasks: the tasks to look for. Spans are JSON: [[start, end, "LABEL"], ...], [] where there are none.

    Returns:
        One row per text: `id` (numbered if the file has none), `text`, a column for each task found (None
        where the cell is empty; spans as (start, end, label) in order), other columns as strings, `split`.
        A file without a split column is divided 70/10/20, stratified over the labels, always the same way; of each
        class train has a row. One warning names classes that a split lacks.

    Raises:
        CorpusError: all problems of the file together (the first 20).
        ValueError: an unknown split.
    """
    if split not in (None, *SPLITS):
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    path = DATA / "sentences.csv" if path is None else path
    frame = read_corpus(path, tasks)
    judged, remedy = ("train",), "label more rows, or move some there"
    if "split" not in frame:
        frame["split"] = assign_splits(frame, tasks)
        judged, remedy = ("validation", "test"), "label more rows"
    if lacking := _lacking(frame, tasks, judged):
        warn_caller(f"{path}: {lacking}; {remedy}")
    return frame if split is None else frame[frame["split"] == split].reset_index(drop=True)


def read_corpus(path: str | Path, tasks: Sequence[Task]) -> pd.DataFrame:
    """What `load_corpus` returns, without dividing a file that has no split column."""
    if not tasks:
        raise ValueError("tasks is empty, expected at least one task")
    header, rows, problems = read_rows(path)
    wrong = check_header(header, tasks)
    refuse(path, wrong + problems if wrong else [])  # without its columns a file can't be read any further
    columns = {"id": [f"row{number}" for number in range(1, len(rows) + 1)]}
    columns |= {name: [cells[i] for _, cells in rows] for i, name in enumerate(header)}
    checked, in_cells = check_cells(path, columns, tasks)
    first_line: dict[str, int] = {}
    for row, (cell, (line, _)) in enumerate(zip(columns["id"], rows, strict=True)):
        if not cell.strip():
            in_cells.append((row, "id", "found an empty cell, expected an id; fill it in, or delete the column"))
        elif (first := first_line.setdefault(cell, line)) != line:
            what = f"found {short(cell)} again, expected unique ids (first in line {first})"
            in_cells.append((row, "id", f"{what}; rename one, or delete the column"))
    for row, cell in enumerate(columns.get("split", ())):
        if cell not in SPLITS:
            in_cells.append((row, "split", unknown(cell, SPLITS)))
    lines = [line for line, _ in rows]
    problems += [(lines[row], f"line {lines[row]}, column {column}: {text}") for row, column, text in in_cells]
    refuse(path, problems)
    kinds = dict.fromkeys(checked, "str") | {task.name: object for task in tasks}
    frame = pd.DataFrame({name: pd.Series(cells, dtype=kinds[name]) for name, cells in checked.items()})
    if kinds.get("disputed") == "str" and frame["disputed"].isin(["0", "1"]).all():
        frame["disputed"] = frame["disputed"] == "1"
    return frame


def load_pairs() -> pd.DataFrame:
    """240 sentence pairs: id, score (similarity, 0 to 5), kind, sentence_1, sentence_2."""
    return pd.read_csv(DATA / "pairs.csv")


def load_challenge() -> pd.DataFrame:
    """420 sentences for behavioural tests, never for training: group, capability, test_type, task, expected, text."""
    return pd.read_csv(DATA / "challenge.csv")


def check_header(header: list[str], tasks: Sequence[Task]) -> list[tuple[int, str]]:
    """(1, problem) for each problem of a file's column names: repeated, missing, misspelt, not separated by commas."""
    problems = check_names(header, tasks, alike=0.81, also=("id", "split"))
    names = [task.name for task in tasks]
    misspelt = " ".join(problems)
    if "text" not in header and "expected 'text'" not in misspelt:
        hint = "separate the columns with commas" if OTHER_SEPARATORS & set("".join(header)) else "rename one to text"
        problems.append(f"column text: found no such column among {listed(header)}, expected one; {hint}")
    elif not set(names) & set(header) and not any(f"expected {name!r}" in misspelt for name in names):
        what = f"column {names[0]}: found no column for any task, expected one of {', '.join(names)}"
        problems.append(f"{what}; rename one of {listed(header)}, or declare tasks of your own")
    return [(1, f"line 1, {text}") for text in problems]


def assign_splits(frame: pd.DataFrame, tasks: Sequence[Task]) -> list[str]:
    """70/10/20 by dealing out texts in turn, sorted by their labels and then by hash.

    Neighbours in that order share their labels, so each split gets its part of every combination; the hash
    makes the result independent of the order of rows; equal texts go to the same split. Last, train gets the first
    text of each class that it would lack: what is never trained can't be learnt.
    """
    tasks, rows = [task for task in tasks if task.name in frame], frame.to_dict("records")
    keys: dict[str, tuple[str, str]] = {}
    classes: dict[str, set] = {}
    for row in rows:
        labels = [bool(row[task.name]) if task.level == "token" else row[task.name] for task in tasks]
        key = repr(labels), hashlib.sha256(row["text"].encode("utf-8", "replace")).hexdigest()
        keys[row["text"]] = min(key, keys.get(row["text"], key))
        classes.setdefault(row["text"], set()).update(_classes(row, tasks))
    turns = ("train", "test", "train", "train", "validation", "train", "train", "test", "train", "train")
    order = sorted(keys, key=keys.get)
    split = {text: turns[i % len(turns)] for i, text in enumerate(order)}
    trained = set().union(*(classes[text] for text in order if split[text] == "train"))
    for text in order:
        if not classes[text] <= trained:
            split[text] = "train"
            trained |= classes[text]
    return [split[row["text"]] for row in rows]


def _classes(row: dict, tasks: Sequence[Task]) -> set[tuple[str, str]]:
    """(label, task) of each label that a row has; of a token task, those of its spans."""
    spans = {(span[2], task.name) for task in tasks if task.level == "token" for span in row.get(task.name) or ()}
    return spans | {(row[task.name], task.name) for task in tasks if task.level == "sentence" and row.get(task.name)}


def _lacking(frame: pd.DataFrame, tasks: Sequence[Task], splits: Sequence[str]) -> str:
    """Which classes of the table these splits lack, in words; splits without any row are left out."""
    classes: dict[str, set] = {}
    for row in frame.to_dict("records"):
        classes.setdefault(row["split"], set()).update(_classes(row, tasks))
    missing = {split: sorted(set().union(*classes.values()) - classes[split]) for split in splits if split in classes}
    names = {split: listed(f"{label} ({task})" for label, task in pairs) for split, pairs in missing.items() if pairs}
    return "; ".join(f"{split} has no row of {names[split]}" for split in names)
