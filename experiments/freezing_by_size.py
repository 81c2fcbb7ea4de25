"""Does it depend on the number of labels what should be frozen? Five ways and two controls with 50, 200 and 800.

A seed draws the sentences, each with the labels of all four tasks, the same for all ways; fewer sentences get more
epochs, of which heads first trains the heads alone for a third. Everything else as in `freezing_strategies`.
"""

import pandas as pd

from .freezing_strategies import LONGER, POOLING, f1, splits, trained
from .halving import Halving
from .sweeps import Study

SIZES = {50: 20, 200: 10, 800: 5}  # sentences: epochs
WAYS = ("full training", "heads first", "lower half frozen", "LoRA", "heads alone", *LONGER, *POOLING)
HALVING = Halving(
    ("strategy", "size"),
    {
        **{(way, size): (3e-3, 1e-3) for way in WAYS for size in SIZES},
        ("full training", 50): (3e-4, 1e-3),
        ("full training", 200): (3e-4, 1e-4),
        ("full training", 800): (3e-4, 1e-4),
        **{("heads first", size): (3e-4, 1e-3) for size in SIZES},
        **{("lower half frozen", size): (1e-3, 3e-4) for size in SIZES},
        ("heads alone, 10x epochs", 200): (3e-4, 1e-3),
        ("heads alone, 10x epochs", 800): (1e-3, 3e-3),
    },
)


def freezing_by_size(strategy: str, size: int, learning_rate: float, seed: int) -> list[dict]:
    """Few sentences, more epochs, another sample with every seed: a row a task."""
    data, epochs = splits(), SIZES[size] * LONGER.get(strategy, 1)
    few = data["train"].sample(size, random_state=seed)
    model, _, best = trained(strategy, learning_rate, seed, few, data["validation"], epochs)
    rows = pd.DataFrame({"validation": best, "test": f1(model, data["test"])})
    return rows.reset_index(names="task").to_dict("records")


STUDY = Study(
    "freezing_by_size",
    "Does it depend on the number of labels what should be frozen?",
    HALVING.settings,
    freezing_by_size,
    HALVING.seeds,
    minutes=160,
    tolerance=0.1,
)
