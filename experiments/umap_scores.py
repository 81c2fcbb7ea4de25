"""What can be read from a map of the corpus? The nearest neighbours' labels on UMAP, which differs with every seed."""

import warnings
from functools import cache

import numpy as np

from mtl_helpers import TASKS, SentenceEncoder, load_corpus

from .pictures_01 import readable
from .sweeps import Study


@cache
def vectors() -> np.ndarray:
    """(2970, 384) of the corpus, not scaled."""
    return SentenceEncoder.from_pretrained(normalize=False).encode(load_corpus()["text"]).numpy()


def umap_scores(n_neighbors: int, seed: int) -> dict[str, float]:
    """{task: macro-F1 on test} of the neighbours on one map."""
    from umap import UMAP

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap says that a seed costs it its parallelism
        points = UMAP(metric="cosine", n_neighbors=n_neighbors, random_state=seed).fit_transform(vectors())
    scores = readable(load_corpus(), TASKS[:3], {"map": points})["map"]
    return {task: interval.value for task, interval in scores.items()}


STUDY = Study(
    "umap_scores",
    "What can be read from a map of the corpus?",
    [{"n_neighbors": 15}],
    umap_scores,
    seeds=range(5),
    minutes=1,
    tolerance=0.08,
)
