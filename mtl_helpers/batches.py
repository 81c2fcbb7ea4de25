"""From texts to padded batches."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .tasks import IGNORE, Task, trim_offsets
from .warn import warn_caller


def tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[dict]:
    """Subword ids of each text, special tokens included, cut after `max_length` tokens.

    Returns:
        One dict per text: `input_ids`; `offsets`, (start, end) in characters per token as `trim_offsets` gives them,
        start == end for special tokens; `complete`, False if the text was cut.

    Raises:
        TypeError: a single string or a table instead of a list of strings, or an element that is no string.
        ValueError: half a surrogate pair, which is no character and can't be encoded.
    """
    if isinstance(texts, str | bytes):
        raise TypeError("found one string, expected a list of strings: write [text] for a single text")
    if isinstance(texts, pd.DataFrame | Mapping):
        kind = type(texts).__name__
        raise TypeError(f"found a {kind}, expected a list of strings: write table['text'] for the texts of a table")
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
    table: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task], max_length: int
) -> list[dict]:
    """Tokenise a table of `check_table` and turn its labels into class indices; what is missing becomes IGNORE.

    Returns:
        For each row what `tokenize` gives; `labels`, {task: one index, or one per token}; and `gold`, {task: the
        label or spans as they stand in the table}. Spans that tokens can't express (they begin or end inside one, or
        lie behind the cut of a long text) are learnt as the whole tokens or not at all; one warning counts them.
    """
    examples, distorted = tokenize(table["text"], tokenizer, max_length), []
    for task in tasks:
        column = table[task.name] if task.name in table else [None] * len(table)
        for row, (example, gold) in enumerate(zip(examples, column, strict=True)):
            gold = gold if isinstance(gold, str | list) else None  # NaN and pandas' NA are missing labels too
            codes = task.encode(gold, example["offsets"], example["complete"])
            example.setdefault("labels", {})[task.name] = codes
            example.setdefault("gold", {})[task.name] = gold
            if task.level == "token" and gold:
                learnt = task.decode(codes, example["offsets"])
                distorted += [(row, task.name, span, learnt) for span in gold if span not in learnt]
    if distorted:
        warn_caller(_describe(distorted, table, max_length))
    return examples


def _describe(distorted: list[tuple], table: pd.DataFrame, max_length: int) -> str:
    """What to tell of (row, task, span, learnt spans) of each span that doesn't come back from its tokens."""
    row, name, (start, end, label), learnt = distorted[0]
    text = table["text"].iloc[row]
    near = [f"{span} {text[span[0] : span[1]]!r}" for span in learnt if span[0] < end and span[1] > start]
    return (
        f"{len(distorted)} spans don't begin and end where tokens do, or lie behind the first {max_length} tokens of "
        f"their text, and can't be learnt as they are. The first: row {row}, column {name}, text {text!r:.80}: "
        f"({start}, {end}, {label!r}) {text[start:end]!r} became {near[0] if near else 'nothing'}. "
        "Correct the spans, or split long texts"
    )


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
        are labelled, `labels`: {task: (B,) for a sentence task, (B, T) for a token task}, IGNORE for padding.
    """
    width = max(len(example["input_ids"]) for example in examples)

    def padded(rows: Iterable[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in rows])

    ids = [example["input_ids"] for example in examples]
    batch = {"input_ids": padded(ids, pad_id), "attention_mask": padded([[1] * len(row) for row in ids], 0)}
    if "labels" in examples[0]:
        columns = {name: [example["labels"][name] for example in examples] for name in examples[0]["labels"]}
        batch["labels"] = {
            name: padded(column, IGNORE) if isinstance(column[0], list) else torch.tensor(column)
            for name, column in columns.items()
        }
    return batch
