"""How far does one get without training the encoder? Majority, words, frozen vectors.

Sentence tasks: the most frequent class; logistic regression on TF-IDF; a linear probe on the frozen sentence vectors.
Entities: none at all; every entity of the training data wherever it occurs again; logistic regression on the token
vectors of layer 4. Strengths of regularisation are chosen on validation.
"""

import re
from functools import cache

import numpy as np
import pandas as pd
import torch
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from mtl_helpers import TASKS, MultiTaskModel, SentenceEncoder, load_corpus
from mtl_helpers.evaluation import macro_f1, span_counts, span_f1

from .measures import linear_probe
from .sweeps import Study

ENTITIES = TASKS[-1]
KINDS = ("majority", "words", "frozen vectors")


@cache
def tables() -> dict[str, pd.DataFrame]:
    """The corpus by split."""
    corpus = load_corpus()
    return {split: corpus[corpus["split"] == split] for split in ("train", "validation", "test")}


@cache
def read(kind: str) -> dict:
    """Each split as this kind of baseline reads it: texts, or vectors (N, 384)."""
    texts = {split: table["text"] for split, table in tables().items()}
    if kind != "frozen vectors":
        return texts
    frozen = SentenceEncoder.from_pretrained()
    return {split: frozen.encode(column).numpy() for split, column in texts.items()}


@cache
def sentence_baseline(kind: str, task: str) -> object:
    """A classifier fitted on train, with the strength that is best on validation."""
    inputs, labels = read(kind), {split: table[task] for split, table in tables().items()}
    if kind == "majority":
        return DummyClassifier().fit(inputs["train"], labels["train"])
    if kind == "frozen vectors":
        return linear_probe((inputs["train"], labels["train"]), (inputs["validation"], labels["validation"]))
    words = [
        make_pipeline(TfidfVectorizer(token_pattern=r"\w+|[^\w\s]"), LogisticRegression(C=c, max_iter=1000))
        for c in (1, 10, 100, 1000)
    ]
    for model in words:
        model.fit(inputs["train"], labels["train"])
    return max(words, key=lambda model: macro_f1(labels["validation"], model.predict(inputs["validation"])))


def known_entities(table: pd.DataFrame) -> list[list[tuple[int, int, str]]]:
    """Spans of every entity of the training data, the longest first, with its most recent label."""
    labels = {row.text[a:b]: label for row in tables()["train"].itertuples() for a, b, label in row.entities}
    longest_first = sorted(labels, key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(surface)}(?!\w)" for surface in longest_first))
    return [[(*m.span(), labels[m[0]]) for m in pattern.finditer(text)] for text in table["text"]]


@cache
def token_scores() -> dict[str, float]:
    """Span F1 on validation and test of a logistic regression on the token vectors of layer 4."""
    model, read_by_split = MultiTaskModel(SentenceEncoder.from_pretrained(), [ENTITIES]).eval(), {}
    for split, table in tables().items():
        rows = []
        for example in model.examples(table):
            with torch.inference_mode():
                states = model.encoder.hidden(model.batch([example]))
            rows.append((states[4][0].numpy(), example["labels"]["entities"], example["offsets"]))
        read_by_split[split] = rows
    inputs = np.concatenate([vectors[1:-1] for vectors, _, _ in read_by_split["train"]])
    codes = np.concatenate([codes[1:-1] for _, codes, _ in read_by_split["train"]])

    def score(probe: LogisticRegression, split: str = "validation") -> float:
        spans = [ENTITIES.decode(probe.predict(v).tolist(), offsets) for v, _, offsets in read_by_split[split]]
        return span_f1(span_counts(tables()[split]["entities"], spans))

    probe = linear_probe((inputs, codes), None, score=score)
    return {split: score(probe, split) for split in ("validation", "test")}


def baseline(kind: str, seed: int) -> list[dict]:
    """One kind: a row a task."""
    rows, splits = [], ("validation", "test")
    for task in [task.name for task in TASKS[:3]]:
        model = sentence_baseline(kind, task)
        scores = {split: macro_f1(tables()[split][task], model.predict(read(kind)[split])) for split in splits}
        rows.append({"task": task, **scores})
    if kind == "frozen vectors":
        scores = token_scores()
    else:
        spans = known_entities if kind == "words" else lambda table: [[] for _ in range(len(table))]
        scores = {s: span_f1(span_counts(tables()[s]["entities"], spans(tables()[s]))) for s in splits}
    return [*rows, {"task": "entities", **scores}]


STUDY = Study(
    "baselines",
    "How far does one get without training the encoder?",
    [{"kind": kind} for kind in KINDS],
    baseline,
    seeds=[0],
    minutes=3,
)
