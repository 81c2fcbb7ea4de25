"""The corpus, anybody's CSV in the same shape, and the way from a table to padded batches.

One table holds every task. An empty cell means "not labelled for this task", and that single rule covers
separate data sets, scarce tasks and a user's own file: the loss skips what is missing.
"""

import csv
import difflib
import hashlib
import io
import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from .tasks import IGNORE, TASKS, Span, Task, trim_offsets

DATA = Path(__file__).resolve().parent.parent / "data"
SPLITS = ("train", "validation", "test")


class CorpusError(ValueError):
    """A file that can't be used. Names the file and, for each problem, line, column, found and expected."""


# ------------------------------------------------------------------------------------------ reading a CSV


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
        A file without a split column is divided 70/10/20, stratified over the labels, always the same way.

    Raises:
        CorpusError: all problems of the file together (the first 20).
        ValueError: an unknown split.
    """
    if split not in (None, *SPLITS):
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    path = Path(path) if path is not None else DATA / "sentences.csv"
    header, rows, problems = read_rows(path)
    wrong = _check_header(header, tasks)
    _refuse(path, wrong + problems if wrong else [])  # without its columns a file can't be read any further
    present = [task for task in tasks if task.name in header]
    first_line: dict[str, int] = {}
    table = []
    for number, (line, cells) in enumerate(rows, start=1):
        row = {"id": f"row{number}", **dict(zip(header, cells, strict=True))}
        found = []  # (column, what was found and what was expected)
        if not row["text"].strip():
            found.append(("text", "found no text, expected a sentence"))
        if not row["id"].strip():
            found.append(("id", "found an empty cell, expected an id"))
        elif row["id"] in first_line:
            found.append(
                (
                    "id",
                    f"found {row['id']!r} again, expected unique ids (first in line {first_line[row['id']]})",
                )
            )
        first_line.setdefault(row["id"], line)
        if row.get("split", "train") not in SPLITS:
            found.append(("split", _unknown(row["split"], SPLITS)))
        for task in present:
            cell, row[task.name] = row[task.name], None
            if task.level == "token" and cell.strip():
                row[task.name], wrong = _read_spans(cell, row["text"], task)
                found += [(task.name, text) for text in wrong]
            elif cell.strip() and cell not in task.labels:
                found.append((task.name, _unknown(cell, task.labels, " or an empty cell")))
            elif cell.strip():
                row[task.name] = cell
        problems += [(line, f"line {line}, column {column}: {text}") for column, text in found]
        table.append(row)
    _refuse(path, problems)
    columns = list(dict.fromkeys(["id", *header]))
    frame = pd.DataFrame({name: pd.Series([row[name] for row in table], dtype=object) for name in columns})
    for name in set(columns) - {task.name for task in present}:
        frame[name] = frame[name].astype("str")
    if "disputed" in set(columns) - {task.name for task in present} and frame["disputed"].isin(["0", "1"]).all():
        frame["disputed"] = frame["disputed"] == "1"
    if "split" not in frame:
        frame["split"] = _assign_splits(frame, present)
    return frame if split is None else frame[frame["split"] == split].reset_index(drop=True)


def load_pairs() -> pd.DataFrame:
    """240 sentence pairs: id, score (similarity, 0 to 5), kind, sentence_1, sentence_2."""
    return pd.read_csv(DATA / "pairs.csv")


def load_challenge() -> pd.DataFrame:
    """420 sentences for behavioural tests, never for training: group, capability, test_type, task, expected, text."""
    return pd.read_csv(DATA / "challenge.csv")


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], list[tuple[int, str]]]:
    """Header, (line, cells) of each row, and (line, problem) of each ragged row."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise CorpusError(f"{path}: found {what}, expected a CSV file; check the path (now in {Path.cwd()})")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = raw.count(b"\n", 0, error.start) + 1, raw[error.start]
        _refuse(path, [(line, f"line {line}: found byte 0x{byte:02x}, expected UTF-8; save the file as UTF-8")])
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        _refuse(path, [(line, f"line {line}: found a NUL byte, expected text; is this a CSV file?")])
    csv.field_size_limit(2**31 - 1)  # the default refuses a cell of more than 131,072 characters
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header, rows, problems, line = [], [], [], 1
    try:
        for cells in reader:
            if cells and not header:
                header = cells
            elif cells and len(cells) != len(header):
                expected = f"expected {len(header)} as in the header; put a text with commas in quotes"
                problems.append((line, f"line {line}: found {len(cells)} cells, {expected}"))
            elif cells:
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        expected = "expected every quote to be closed, and doubled inside a text"
        problems.append((line, f"line {line}: found broken quotes ({error}), {expected}"))
    if not header and not problems:
        _refuse(path, [(1, "line 1: found an empty file, expected a header and at least one row")])
    if header and not rows and not problems:
        _refuse(path, [(2, "line 2: found only a header, expected at least one row under it")])
    return header, rows, problems


def _check_header(header: list[str], tasks: Sequence[Task]) -> list[tuple[int, str]]:
    """Problems of the column names: repeated, missing, or nearly the name of a column that is missing."""
    names = [task.name for task in tasks]
    known = ["id", "text", "split", *names]
    problems = [
        f"column {name}: found {header.count(name)} times, expected once"
        for name in dict.fromkeys(header)
        if header.count(name) > 1
    ]
    near = {}
    for name in header:
        if name not in known:
            match = difflib.get_close_matches(name.strip().lower(), [k for k in known if k not in header], 1, 0.8)
            if match:
                near[match[0]] = name
                problems.append(f"column {name}: found {name!r}, expected {match[0]!r}; rename the column")
    if "text" not in header and "text" not in near:
        hint = "; separate the columns with commas" if len(header) == 1 and any(c in header[0] for c in ";\t|") else ""
        problems.append(f"column text: found no such column among {', '.join(header)}, expected one{hint}")
    elif not set(names) & {*header, *near}:
        problems.append(f"column {names[0]}: found no column for any task, expected one of {', '.join(names)}")
    return [(1, f"line 1, {text}") for text in problems]


def _read_spans(cell: str, text: str, task: Task) -> tuple[list[Span] | None, list[str]]:
    """Spans of a cell, sorted, and what is wrong with them."""
    form = '[[start, end, "LABEL"], ...] in JSON'
    try:
        items = json.loads(cell)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, thousands of brackets
        return None, [f"found {_short(cell)}, expected {form}"]
    if not isinstance(items, list):
        return None, [f"found {_short(cell)}, expected {form}"]
    spans, problems = [], []
    for item in items:
        if not (
            isinstance(item, list)
            and len(item) == 3
            and type(item[0]) is type(item[1]) is int
            and isinstance(item[2], str)
        ):
            problems.append(f"found {_short(json.dumps(item))}, expected [start, end, label] with whole numbers")
        elif not 0 <= item[0] < item[1] <= len(text):
            problems.append(f"found span {item}, expected 0 <= start < end <= {len(text)} (the length of the text)")
        elif text[item[0] : item[1]] != text[item[0] : item[1]].strip():
            problems.append(f"found span {item} {text[item[0] : item[1]]!r}, expected no spaces at its ends")
        elif item[2] not in task.labels:
            problems.append(_unknown(item[2], task.labels))
        else:
            spans.append(tuple(item))
    spans.sort()
    for before, after in pairwise(spans):
        if after[0] < before[1]:
            problems.append(
                f"found overlapping spans {list(before)} and {list(after)}, expected each character in one at most"
            )
    return spans, problems


def _unknown(value: str, known: Sequence[str], also: str = "") -> str:
    near = difflib.get_close_matches(value.strip().lower(), [name.lower() for name in known], 1)
    guess = "".join(f"; did you mean {name!r}?" for name in known if [name.lower()] == near)
    return f"found {_short(value)}, expected one of {', '.join(known)}{also}{guess}"


def _short(value: str) -> str:
    return repr(value if len(value) <= 60 else value[:57] + "...")


def _refuse(path: Path, problems: list[tuple[int, str]]) -> None:
    """Raise one CorpusError for all (line, problem), in the order of lines; do nothing if there are none."""
    if problems:
        texts = [text for _, text in sorted(problems, key=lambda problem: problem[0])]
        more = [f"... and {len(texts) - 20} more"] if len(texts) > 20 else []
        count = f"{len(texts)} problem{'s' * (len(texts) > 1)}"
        raise CorpusError("\n  ".join([f"{path}: {count}", *texts[:20], *more]))


def _assign_splits(frame: pd.DataFrame, tasks: Sequence[Task]) -> list[str]:
    """70/10/20 by dealing out texts in turn, sorted by their labels and then by hash.

    Neighbours in that order share their labels, so each split gets its part of every combination; the hash
    makes the result independent of the order of rows; equal texts go to the same split.
    """

    def labels(row: pd.Series) -> str:
        return repr([bool(row[task.name]) if task.level == "token" else row[task.name] for task in tasks])

    keys: dict[str, tuple[str, str]] = {}
    for _, row in frame.iterrows():
        key = labels(row), hashlib.sha256(row["text"].encode("utf-8", "replace")).hexdigest()
        keys[row["text"]] = min(key, keys.get(row["text"], key))
    turns = ("train", "test", "train", "train", "validation", "train", "train", "test", "train", "train")
    order = sorted(keys, key=keys.get)
    split = {text: turns[i % len(turns)] for i, text in enumerate(order)}
    return [split[text] for text in frame["text"]]


# ------------------------------------------------------------------------------- from texts to batches


def tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[dict]:
    """Subword ids of each text, special tokens included, cut after `max_length` tokens.

    Returns:
        One dict per text: `input_ids`; `offsets`, (start, end) in characters per token, start == end for
        special tokens; `complete`, False if the text was cut.

    Raises:
        TypeError: a single string instead of a list, or an element that is no string.
        ValueError: half a surrogate pair, which is no character and can't be encoded.
    """
    if isinstance(texts, str):
        raise TypeError("found one string, expected a list of strings: write [text] for a single text")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {i} is {text!r} of type {type(text).__name__}, expected a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text {i} holds half a surrogate pair, expected valid Unicode: {text!a:.60}") from error
    if not texts:
        return []
    encoded = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True)
    columns = zip(texts, encoded["input_ids"], encoded["offset_mapping"], encoded.encodings, strict=True)
    return [
        {"input_ids": ids, "offsets": trim_offsets(text, offsets), "complete": not encoding.overflowing}
        for text, ids, offsets, encoding in columns
    ]


def make_examples(
    frame: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task], max_length: int
) -> list[dict]:
    """Tokenise a table and turn its labels into class indices; what is missing becomes IGNORE.

    Returns:
        For each row what `tokenize` gives and `labels`, {task: one index, or one per token}. A span behind
        or across the cut of a long text is ignored, and one warning says how many there were.
    """
    examples = tokenize(frame["text"], tokenizer, max_length)
    lost = 0
    for task in tasks:
        values = frame[task.name] if task.name in frame else [None] * len(frame)
        for example, value in zip(examples, values, strict=True):
            value = None if value is pd.NA or value != value else value  # pandas' NaN is a missing label too
            offsets, complete = example["offsets"], example["complete"]
            example.setdefault("labels", {})[task.name] = task.encode(value, offsets, complete)
            if task.level == "token" and value and not complete:
                lost += sum(end > max(end for _, end in offsets) for _, end, _ in value)
    if lost:
        warnings.warn(
            f"{lost} spans lie behind the first {max_length} tokens of their texts and are ignored; split long texts",
            stacklevel=2,
        )
    return examples


def length_batches(
    lengths: Sequence[int], max_tokens: int = 1024, generator: torch.Generator | None = None
) -> list[list[int]]:
    """Group positions by length so that no batch, once padded, holds more than `max_tokens` tokens.

    Each position occurs exactly once. A text longer than the budget gets a batch of its own. Without a
    generator the longest come first (a batch too large for memory fails at once); with one, texts of equal
    length and the batches are shuffled, differently at each call.
    """
    shuffled = torch.randperm(len(lengths), generator=generator).tolist() if generator else range(len(lengths))
    batches: list[list[int]] = []
    for i in sorted(shuffled, key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > max_tokens:
            batches.append([])
        batches[-1].append(i)
    order = torch.randperm(len(batches), generator=generator).tolist() if generator else range(len(batches))
    return [batches[i] for i in order]


def collate(examples: Sequence[dict], pad_id: int) -> dict:
    """Pad examples to the longest of them.

    Returns:
        `input_ids` and `attention_mask` (1 for tokens, 0 for padding), both (B, T), and, where the examples
        are labelled, `labels`: {task: (B,) for a sentence task, (B, T) for a token task}, IGNORE for padding;
        where they have cached features (`freezing.cache_states`), `states` (B, T, H) and `frozen_layers`.
    """
    width = max(len(example["input_ids"]) for example in examples)

    def padded(rows: Iterable[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows])

    ids = [example["input_ids"] for example in examples]
    batch = {"input_ids": padded(ids, pad_id), "attention_mask": padded([[1] * len(row) for row in ids], 0)}
    if "labels" in examples[0]:
        columns = {name: [example["labels"][name] for example in examples] for name in examples[0]["labels"]}
        batch["labels"] = {
            name: padded(column, IGNORE) if isinstance(column[0], list) else torch.tensor(column)
            for name, column in columns.items()
        }
    if "states" in examples[0]:
        batch["frozen_layers"] = examples[0]["frozen_layers"]
        batch["states"] = torch.nn.utils.rnn.pad_sequence([example["states"] for example in examples], True)
    return batch


class _NotebookLine:
    """Shows what tqdm writes as one line of output that is replaced in place and empty in the end."""

    def __init__(self) -> None:
        self.handle = None

    def write(self, text: str) -> None:
        from IPython.display import DisplayHandle, Pretty

        shown = text.replace("\x1b[A", "").strip()  # a bar inside another one moves the cursor about
        if self.handle is not None:
            self.handle.update(Pretty(shown))
        elif shown:
            self.handle = DisplayHandle()  # before anything is shown, so that an interruption can't lose it
            self.handle.display(Pretty(shown))

    def flush(self) -> None:
        pass


def progress(items: Iterable, label: str, total: int | None = None) -> tqdm:
    """A text progress bar that appears after two seconds and leaves nothing behind, in a notebook neither."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    in_notebook = shell is not None and hasattr(shell, "kernel")
    quiet = None if not in_notebook else False  # None: only on a terminal
    return tqdm(
        items,
        label,
        total,
        leave=False,
        delay=2,
        bar_format="{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        ncols=120 if in_notebook else None,
        dynamic_ncols=not in_notebook,
        disable=quiet,
        file=_NotebookLine() if in_notebook else None,
    )
