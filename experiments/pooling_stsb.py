"""Which pooling puts the pairs of STS-B in the order of their grades? Spearman of the cosines, intervals over pairs."""

import numpy as np

from mtl_helpers import SentenceEncoder
from mtl_helpers.encoder import POOLINGS
from mtl_helpers.intervals import bootstrap

from .pictures_01 import gain, rank_correlation
from .public import load_public
from .sweeps import Study


def pooling_stsb(data: str, seed: int) -> list[dict]:
    """A row a pooling: Spearman's correlation, and its difference from the mean's."""
    pairs, cosines = load_public(data), {}
    for pooling in POOLINGS:
        encoder = SentenceEncoder.from_pretrained(pooling=pooling)
        first, second = (encoder.encode(pairs[f"sentence_{side}"]) for side in (1, 2))
        cosines[pooling] = (first * second).sum(dim=1).numpy()
    rows, grades = [], np.asarray(pairs["score"])
    names = ["spearman", "low", "high", "minus mean", "minus mean, low", "minus mean, high"]
    for pooling, values in cosines.items():
        score = bootstrap(rank_correlation, values, grades, seed=seed)
        more = bootstrap(gain, values, cosines["mean"], grades, seed=seed)
        rows.append({"pooling": pooling, **dict(zip(names, (*score, *more), strict=True))})
    return rows


STUDY = Study(
    "pooling_stsb",
    "Which pooling puts the pairs of STS-B in the order of their grades?",
    [{"data": "stsb"}],
    pooling_stsb,
    seeds=[0],
    minutes=3,
)
