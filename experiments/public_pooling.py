"""Which pooling serves a head on the frozen encoder on public data? A linear probe for types of questions (TREC-6)."""

import numpy as np

from mtl_helpers import SentenceEncoder
from mtl_helpers.corpus import SPLITS
from mtl_helpers.encoder import POOLINGS
from mtl_helpers.evaluation import macro_f1

from .measures import linear_probe
from .public import load_public
from .sweeps import Study


def public_pooling(pooling: str, seed: int) -> dict:
    """A probe on vectors pooled in one way, trained on four fifths of 1,500 questions."""
    encoder = SentenceEncoder.from_pretrained(pooling=pooling, normalize=False)
    table = load_public("trec6")
    splits = [table[table["split"] == split][:1500] for split in SPLITS]
    train, validation, test = (
        (encoder.encode(rows["text"]).numpy(), rows["question_type"].to_numpy()) for rows in splits
    )
    kept = np.random.default_rng(seed).choice(1500, 1200, replace=False)
    probe = linear_probe([column[kept] for column in train], validation)
    return {"test_f1": macro_f1(test[1], probe.predict(test[0]))}


STUDY = Study(
    "public_pooling",
    "Which pooling serves a head for question types (TREC-6) on the frozen encoder?",
    [{"pooling": pooling} for pooling in POOLINGS],
    public_pooling,
    seeds=range(5),
    minutes=5,
)
