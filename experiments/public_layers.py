"""Are the middle layers the ones to read on public data too? The probes of `layer_probes`, outside the corpus.

Types of questions (TREC-6) are read from the mean of a layer's token vectors, entities in tweets and other noisy text
(WNUT-17) from the single tokens: 1,500 texts to train on, of which each seed draws four fifths, 500 to choose the
regularisation on, and the test part.
"""

from functools import lru_cache

from mtl_helpers.corpus import SPLITS

from .layer_probes import FrozenSplit, behind_layer, probe_draw
from .public import ENTITIES, QUESTION_TYPE, load_public
from .sweeps import Study

DATA = {"trec6": QUESTION_TYPE, "wnut17": ENTITIES}
SIZES = dict(zip(SPLITS, (1500, 500, None), strict=True))


@lru_cache(maxsize=2)
def public_splits(data: str, layer: int) -> dict[str, FrozenSplit]:
    """The three splits of a public data set behind a layer."""
    table = load_public(data)
    return {
        split: behind_layer(table[table["split"] == split][:most], [DATA[data]], layer) for split, most in SIZES.items()
    }


def public_layers(layer: int, seed: int) -> list[dict]:
    """One layer, both data sets: a row each."""
    return [probe_draw(task, public_splits(data, layer), seed) for data, task in DATA.items()]


STUDY = Study(
    "public_layers",
    "Which layers hold what question types (TREC-6) and entities in tweets (WNUT-17) need?",
    [{"layer": layer} for layer in range(7)],
    public_layers,
    seeds=range(5),
    minutes=26,
)
