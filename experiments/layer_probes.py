"""In which layer does a task's information lie? A linear probe on every layer, for every task.

The encoder stays as it was published. Sentence tasks are read from the mean of a layer's token vectors, entities from
the single tokens; layer 0 is the embeddings. Five draws of four fifths of the training sentences; the strength of the
regularisation is chosen on validation, test is read once.
"""

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtl_helpers import TASKS, SentenceEncoder, Task, load_corpus
from mtl_helpers.batches import collate, length_batches, make_examples
from mtl_helpers.corpus import SPLITS
from mtl_helpers.evaluation import macro_f1, span_counts, span_f1
from mtl_helpers.runtime import inference

from .measures import linear_probe
from .sweeps import Study

ENTITIES = TASKS[3]


class FrozenSplit(NamedTuple):
    """One split behind a frozen layer: its rows, their examples, and the vectors (T, H) of each."""

    table: pd.DataFrame
    examples: list[dict]
    vectors: list[Tensor]


@cache
def frozen_encoder() -> SentenceEncoder:
    """MiniLM as published."""
    return SentenceEncoder.from_pretrained()


def hidden_states(encoder: SentenceEncoder, examples: Sequence[dict], layers: slice = slice(None)) -> list[Tensor]:
    """For each example its states after the chosen layers, (layers, T, H), without padding."""
    states: list[Tensor | None] = [None] * len(examples)
    with inference(encoder):
        for rows in length_batches([len(example["input_ids"]) for example in examples]):
            batch = collate([examples[i] for i in rows], encoder.tokenizer.pad_token_id)
            for i, state in zip(rows, torch.stack(encoder.hidden(batch)[layers], dim=1), strict=True):
                states[i] = state[:, : len(examples[i]["input_ids"])].clone()
    return states


def behind_layer(table: pd.DataFrame, tasks: Sequence[Task], layer: int) -> FrozenSplit:
    """The rows of a table, tokenised and passed through the frozen encoder as far as a layer."""
    encoder = frozen_encoder()
    examples = make_examples(table, encoder.tokenizer, tasks, encoder.max_length)
    states = hidden_states(encoder, examples, slice(layer, layer + 1))
    return FrozenSplit(table, examples, [state[0] for state in states])


@lru_cache(maxsize=8)
def corpus_splits(layer: int) -> dict[str, FrozenSplit]:
    """The three splits of the course's corpus behind a layer."""
    corpus = load_corpus()
    return {split: behind_layer(corpus[corpus["split"] == split], TASKS, layer) for split in SPLITS}


def probe_sentences(task: Task, splits: Mapping[str, FrozenSplit], kept: Sequence[int]) -> dict[str, float]:
    """Macro-F1 on validation and test of a probe on mean token vectors, trained on the rows `kept`."""
    data = {
        split: (
            torch.stack([vectors.mean(0) for vectors in rows.vectors]).numpy(),
            np.array([example["labels"][task.name] for example in rows.examples]),
        )
        for split, rows in splits.items()
    }
    probe = linear_probe([column[kept] for column in data["train"]], data["validation"])
    return {f"{split}_f1": macro_f1(data[split][1], probe.predict(data[split][0])) for split in SPLITS[1:]}


def token_features(rows: FrozenSplit, casing: bool) -> list[np.ndarray]:
    """Vectors of each text's tokens, special tokens left out: (T - 2, H), or with casing (T - 2, H + 2).

    The two additional numbers say what MiniLM can't see: whether the token begins with a capital, and whether it
    opens the text, where a capital means nothing.
    """
    features = []
    for text, example, vectors in zip(rows.table["text"], rows.examples, rows.vectors, strict=True):
        inner = vectors[1:-1]
        if casing:
            starts = [start for start, _ in example["offsets"][1:-1]]
            flags = [[text[start].isupper(), place == 0] for place, start in enumerate(starts)]
            inner = torch.cat([inner, torch.tensor(flags, dtype=inner.dtype)], dim=1)
        features.append(inner.numpy())
    return features


def probe_tokens(
    task: Task, splits: Mapping[str, FrozenSplit], kept: Sequence[int], casing: bool = False
) -> dict[str, float]:
    """F1 of exact spans on validation and test of a probe on single tokens; that F1 also chooses the strength."""
    features = {split: token_features(rows, casing) for split, rows in splits.items()}
    labels = [np.array(example["labels"][task.name][1:-1]) for example in splits["train"].examples]
    train = [np.concatenate([column[i] for i in kept]) for column in (features["train"], labels)]

    def score(probe, split: str = "validation") -> float:
        spans = [
            task.decode(probe.predict(x).tolist(), example["offsets"][1:-1])
            for x, example in zip(features[split], splits[split].examples, strict=True)
        ]
        return span_f1(span_counts(splits[split].table[task.name], spans))

    probe = linear_probe(train, None, score=score)
    return {f"{split}_f1": score(probe, split) for split in SPLITS[1:]}


def probe_draw(task: Task, splits: Mapping[str, FrozenSplit], seed: int, **options: bool) -> dict:
    """A row: the probe of a task, trained on four fifths of the training texts, as the seed draws them."""
    n = len(splits["train"].examples)
    kept = np.random.default_rng(seed).choice(n, n * 4 // 5, replace=False)
    probe = probe_tokens if task.level == "token" else probe_sentences
    return {"task": task.name, **probe(task, splits, kept, **options)}


def probe_layer(layer: int, seed: int) -> list[dict]:
    """One layer, all tasks; entities a second time with casing added: a row each."""
    splits = corpus_splits(layer)
    rows = [probe_draw(task, splits, seed) for task in TASKS]
    with_casing = probe_draw(ENTITIES, splits, seed, casing=True)
    return [*rows, with_casing | {"task": "entities, casing added"}]


def probe_once(task: str, layer: int, sentences: int, seed: int = 0) -> float:
    """F1 on test of a probe for one task on one layer, trained on a few sentences drawn at random."""
    corpus, chosen = load_corpus(), next(candidate for candidate in TASKS if candidate.name == task)
    tables = {split: corpus[corpus["split"] == split] for split in SPLITS}
    tables["train"] = tables["train"].sample(sentences, random_state=seed)
    splits = {split: behind_layer(table, [chosen], layer) for split, table in tables.items()}
    probe = probe_tokens if chosen.level == "token" else probe_sentences
    return probe(chosen, splits, range(sentences))["test_f1"]


STUDY = Study(
    "layer_probes",
    "In which layer of the encoder does each task's information lie?",
    [{"layer": layer} for layer in range(7)],
    probe_layer,
    seeds=range(5),
    minutes=14,
)
