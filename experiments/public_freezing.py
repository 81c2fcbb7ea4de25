"""Does it hold outside the corpus? Five ways to freeze on question types (TREC-6) and entities in posts (WNUT-17).

No text has both labels: half of the table is empty, and the model learns from what is there. A seed draws 1,000 texts
of each data set, the same for all ways; 300 of each choose rate and epoch; three epochs, the whole test sets.
"""

import pandas as pd

from .freezing_strategies import POOLING, f1, graded, similarity, trained
from .halving import Halving
from .public import ENTITIES, QUESTION_TYPE, questions_and_names
from .sweeps import Study

HALVING = Halving(
    ("strategy",),
    {
        ("full training",): (1e-4, 3e-4),
        ("heads first",): (3e-4, 1e-4),
        ("lower half frozen",): (3e-4, 1e-3),
        ("heads alone",): (3e-3, 1e-3),
        **{(way,): (3e-3, 1e-3) for way in POOLING},
    },
)


def public_freezing(strategy: str, learning_rate: float, seed: int) -> list[dict]:
    """Scores on both test sets, a row each, and what similarity is left."""
    train, validation = questions_and_names("train", 1000, seed), questions_and_names("validation", 300)
    tasks = (QUESTION_TYPE, ENTITIES)
    model, _, best = trained(strategy, learning_rate, seed, train, validation, tasks=tasks)
    rows = pd.DataFrame({"validation": best, "test": f1(model, questions_and_names("test"))})
    rows["stsb"] = similarity(model.encoder, graded()["stsb"])
    return rows.reset_index(names="task").to_dict("records")


STUDY = Study(
    "public_freezing",
    "Do the ways to freeze compare alike on public question types and entities?",
    HALVING.settings,
    public_freezing,
    HALVING.seeds,
    minutes=75,
    tolerance=0.1,
)
