"""Tasks of a user's own, as declared on the command line and as the columns of a file show them."""

import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal

import pandas as pd

from .corpus import SPLITS, check_header, load_corpus
from .csv_file import read_rows
from .tables import CorpusError, listed, refuse, squeezed
from .tasks import TASKS, Task
from .warn import warn_caller

MOST_LABELS = 100  # a column with more different values is taken for free text

Declared = tuple[str, tuple[str, ...] | None, Literal["sentence", "token"]]  # name, labels (None: look), level


def declare(tasks: Sequence[str], token_tasks: Sequence[str]) -> list[Declared]:
    """Read each NAME=LABEL,LABEL,... or, for a sentence task, NAME. ValueError: what makes no task."""
    declared: dict[str, Declared] = {}
    for text, level in [*((text, "sentence") for text in tasks), *((text, "token") for text in token_tasks)]:
        name, given, labels = text.partition("=")
        labels = tuple(squeezed(label) for label in labels.split(",")) if given else None
        if labels is None and level == "token":
            raise ValueError(f"argument --token-task: {text!r} names no types, expected NAME=TYPE,TYPE")
        if name in declared:
            raise ValueError(f"found two tasks called {name}, expected a column for each; leave one out")
        Task(name, ("a", "b") if labels is None else labels, level)  # says what is wrong with the name or the labels
        declared[name] = name, labels, level
    return list(declared.values())


def find_tasks(path: Path, declared: Sequence[Declared]) -> list[Task]:
    """The declared tasks, or those of the course that the file has.

    Raises CorpusError for a column that isn't there or whose values are no labels, with all that is wrong besides.
    """
    header, rows, problems = read_rows(path)
    if not declared:
        return [task for task in TASKS if task.name in header] or list(TASKS)
    wanted = {name: Task(name, labels or ("a", "b"), level) for name, labels, level in declared}
    wrong = check_header(header, list(wanted.values()))
    for name in [] if wrong else [name for name in wanted if name not in header]:
        what = f"found no such column among {listed(header)}, expected one for this task; check the name"
        wrong.append((1, f"line 1, column {name}: {what}"))
    for name in [] if wrong else [name for name, labels, _ in declared if labels is None]:
        cells = [cells[header.index(name)] for _, cells in rows]
        labels = tuple(sorted({squeezed(cell) for cell in cells if cell.strip()}))
        if 2 <= len(labels) <= MOST_LABELS:
            wanted[name] = Task(name, labels)
            _warn_of_look_alikes(path, wanted[name])
        else:
            what = f"found {len(labels)} different values, expected 2 to {MOST_LABELS} labels"
            wrong.append((1, f"line 1, column {name}: {what}; list them yourself: --task {name}=LABEL,LABEL"))
    refuse(path, wrong + problems if wrong else [])
    return list(wanted.values())


def read_splits(path: Path, tasks: Sequence[Task]) -> dict[str, pd.DataFrame]:
    """{split: rows}; raises CorpusError if there is nothing to train on or to choose the best epoch on."""
    try:
        rows = load_corpus(path, tasks=tasks)
    except CorpusError as error:
        hint = "\n  --task NAME declares a column of your own" if "no column for any task" in str(error) else ""
        raise CorpusError(f"{error}{hint}") from error
    splits = {name: rows[rows["split"] == name].reset_index(drop=True) for name in SPLITS}
    for name in ("train", "validation"):
        if not len(splits[name]):
            remedy = "label more rows (without a column split, those of five different texts or more are divided)"
            raise CorpusError(f"{path}: found no row for {name} among {len(rows)}, expected some; {remedy}")
    return splits


def _warn_of_look_alikes(path: Path, task: Task) -> None:
    """One warning that names labels of a column which are most likely meant to be one."""
    alike: dict[object, list[str]] = {}
    for label in task.labels:
        alike.setdefault(look(label), []).append(label)
    texts = []
    for labels in alike.values():
        forms = {unicodedata.normalize("NFKC", label) for label in labels}  # fewer: some look the same on a screen
        texts += [" and ".join(map(repr if len(forms) == len(labels) else ascii, labels))] * (len(labels) > 1)
    if texts:
        what = "labels that differ only in case, number format or Unicode form are trained as different ones"
        warn_caller(f"{path}, column {task.name}: {what}: {listed(texts)}; make them equal in the file")


def look(label: str) -> str | Decimal:
    """What is left of a label without case, number format, Unicode form and invisible characters: 1 of 1.0 and 01."""
    plain = unicodedata.normalize("NFKC", squeezed(label)).casefold()
    plain = "".join(character for character in plain if unicodedata.category(character) != "Cf")
    try:
        number = Decimal(plain)
    except InvalidOperation:
        return plain
    return number if number.is_finite() else plain
