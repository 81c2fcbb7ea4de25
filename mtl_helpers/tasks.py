"""Tasks as data: what is predicted, at which level, and how labels become numbers and numbers labels.

A sentence task has one label per text. A token task has labelled spans of characters; the model sees them
as one BIO class per token (Tjong Kim Sang and Veenstra 1999, https://aclanthology.org/E99-1023): B- opens a span,
I- continues it, O is outside. All subwords of a span are labelled, the first with B- and the others with I-:
no subword is thrown away, and a span that starts or ends inside a word ("Zsófia's") comes back exactly.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

IGNORE = -100  # the class index that PyTorch's cross-entropy skips: missing labels, special tokens, padding

Span = tuple[int, int, str]  # start and end in characters of the text (end excluded), label


@dataclass(frozen=True)
class Task:
    """One thing to predict.

    Args:
        name: column of the corpus and key of the model's outputs.
        labels: the label names, strings in a fixed order; for a token task the entity types, without B- and I-.
        level: "sentence" (one label per text) or "token" (labelled spans).

    Raises:
        ValueError: no name, no labels, a repeated or empty label, one that is no string or has spaces at its ends,
            a set (which has no order), an unknown level.
    """

    name: str
    labels: tuple[str, ...]
    level: Literal["sentence", "token"] = "sentence"

    def __post_init__(self) -> None:
        if self.level not in ("sentence", "token"):
            raise ValueError(f"task {self.name!r}: level is {self.level!r}, expected 'sentence' or 'token'")
        if not isinstance(self.name, str) or not self.name.isidentifier() or self.name in ("id", "text", "split"):
            raise ValueError(f"task name {self.name!r}: expected a Python identifier other than id, text, split")
        if not isinstance(self.labels, Sequence) or isinstance(self.labels, str | bytes):
            raise ValueError(f"task {self.name!r}: labels is {self.labels!r}, expected a tuple of labels")
        object.__setattr__(self, "labels", tuple(self.labels))
        for label in self.labels:
            if not isinstance(label, str) or label != label.strip() or not label:
                expected = "a non-empty string without spaces at its ends; numbers are written as text: '1'"
                raise ValueError(
                    f"task {self.name!r}: label {label!r} of type {type(label).__name__}, expected {expected}"
                )
        fewest = 2 if self.level == "sentence" else 1
        if len(self.labels) < fewest or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"task {self.name!r}: expected {fewest} or more different labels, found {self.labels}")

    @property
    def classes(self) -> tuple[str, ...]:
        """What the head tells apart: the labels themselves, or O and B-, I- for every entity type."""
        if self.level == "sentence":
            return self.labels
        return ("O", *(f"{prefix}-{label}" for label in self.labels for prefix in "BI"))

    def index(self, label: str) -> int:
        """Class index of a label (token task: of a BIO class). Raises ValueError for an unknown one."""
        if label not in self.classes:
            raise ValueError(f"task {self.name!r} has no label {label!r}, expected one of {', '.join(self.classes)}")
        return self.classes.index(label)

    def encode(
        self, value: "str | list[Span] | None", offsets: list[tuple[int, int]], complete: bool = True
    ) -> "int | list[int]":
        """Turn a corpus label into class indices.

        Args:
            value: a label, a list of spans, or None where the text is not labelled for this task.
            offsets: (start, end) in characters for each token; (0, 0) for special tokens.
            complete: False if the text was truncated: a span that continues behind the last token is then
                ignored rather than learnt as if it ended there.

        Returns:
            One index (sentence task) or one per token (token task); IGNORE where there is nothing to learn.
        """
        if self.level == "sentence":
            return IGNORE if value is None else self.index(value)
        if value is None:
            return [IGNORE] * len(offsets)
        codes = [IGNORE if start == end else 0 for start, end in offsets]
        last = max((end for _, end in offsets), default=0)
        for start, end, label in value:
            inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
            whole = complete or end <= last
            for n, i in enumerate(inside):
                codes[i] = self.index(("I-" if n else "B-") + label) if whole else IGNORE
        return codes

    def decode(self, codes: list[int], offsets: list[tuple[int, int]]) -> list[Span]:
        """Turn one class index per token back into spans, in order of the text.

        An I- that continues nothing opens a span, as in the CoNLL evaluation script; special tokens (offset
        (0, 0)) are passed over. Inverse of `encode` wherever spans start and end at token borders.
        """
        spans: list[list] = []
        previous = "O"
        for code, (start, end) in zip(codes, offsets, strict=True):
            if start == end:
                continue
            current = self.classes[code] if code != IGNORE else "O"
            prefix, _, label = current.partition("-")
            if prefix == "I" and previous.partition("-")[2] == label:
                spans[-1][1] = end
            elif current != "O":
                spans.append([start, end, label])
            previous = current
        return [tuple(span) for span in spans]


def trim_offsets(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where each token begins and ends for a reader: tokenizers differ in what they count as a token's own.

    White space at the ends of a token is cut off (byte-level and SentencePiece tokenizers count the space before a
    word). Marks, variation selectors and format characters (Unicode categories M and Cf) that no token covers are
    added to the token before them: a tokenizer that drops an accent would otherwise shorten the word.

    Args:
        text: what was tokenised.
        offsets: (start, end) in characters for each token; start == end for special tokens.

    Returns:
        The same for each token, in the same order.
    """
    trimmed = []
    for start, end in offsets:
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        trimmed.append((start, end))
    if text.isascii():
        return trimmed
    covered = {i for start, end in trimmed for i in range(start, end)}
    for n, (start, end) in enumerate(trimmed):
        while start < end < len(text) and end not in covered and unicodedata.category(text[end]) in _UNCOVERED:
            end += 1
        trimmed[n] = start, end
    return trimmed


_UNCOVERED = ("Mn", "Mc", "Me", "Cf")

TASKS = (
    Task("topic", ("business", "entertainment", "health", "politics", "sports", "technology")),
    Task("sentence_type", ("statement", "question", "command")),
    Task("sentiment", ("negative", "neutral", "positive")),
    Task("entities", ("PER", "ORG", "LOC"), level="token"),
)
