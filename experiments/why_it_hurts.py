"""Why does a second task hurt? Topic before or beside 50 labels of sentiment: is sentiment erased, or overlaid?"""

import pandas as pd
import torch
from scipy.stats.contingency import association

from mtl_helpers import SentenceEncoder, load_corpus
from mtl_helpers.evaluation import macro_f1
from mtl_helpers.runtime import bfloat16_is_fast

from .measures import linear_probe
from .scarce_task import run_way
from .sweeps import Study

WAYS = ("the encoder as it came", "alone", "alone, 25 labels", "first A, then B", "weights 1 : 1")


def probe_all(encoder: SentenceEncoder) -> float:
    """Macro-F1 on test of a linear probe for sentiment that has all training labels."""
    precision = "bfloat16" if bfloat16_is_fast(torch.device("cpu")) else "float32"
    corpus = load_corpus()
    vectors = encoder.encode(corpus["text"], precision=precision).numpy()
    train, validation, test = (
        (vectors[corpus["split"] == split], corpus.loc[corpus["split"] == split, "sentiment"].to_numpy())
        for split in ("train", "validation", "test")
    )
    return macro_f1(test[1], linear_probe(train, validation).predict(test[0]))


def why_it_hurts(method: str, seed: int) -> dict:
    """Sentiment from few labels: score, dependence of the answers on topic (Cramér's V), what a probe sees."""
    if method == "the encoder as it came":
        return {"score": None, "depends": None, "probe": probe_all(SentenceEncoder.from_pretrained())}
    size = 25 if method == "alone, 25 labels" else 50
    model, _ = run_way(method.removesuffix(", 25 labels"), "topic → sentiment", size, 1e-4, seed)
    corpus = load_corpus()
    test = corpus[corpus["split"] == "test"]
    guesses = model.predict(test["text"])["sentiment"].to_numpy()
    return {
        "score": macro_f1(test["sentiment"].to_numpy(), guesses),
        "depends": association(pd.crosstab(guesses, test["topic"].to_numpy()), method="cramer"),
        "probe": probe_all(model.encoder),
    }


STUDY = Study(
    "why_it_hurts",
    "Why does a second task hurt: is the scarce one erased or overlaid?",
    [{"method": way} for way in WAYS],
    why_it_hurts,
    seeds=range(5),
    minutes=8,
    tolerance=0.15,
)
