"""Would capitals help? MiniLM lower-cases everything; here a ^ in front of each capitalised word puts them back.

All four tasks are trained together, with the marks and without: first edition's rules, that is five epochs, one rate
for all seeds, and a factor of ten for the loss of entities.
"""

import re
from itertools import accumulate

import pandas as pd

from mtl_helpers import TASKS, MultiTaskModel, SentenceEncoder, TrainingConfig, evaluate, fit, load_corpus
from mtl_helpers.corpus import SPLITS

from .sweeps import Study


def mark_capitals(table: pd.DataFrame) -> pd.DataFrame:
    """The same table with ^ in front of each capitalised word, spans moved along."""
    texts, entities = [], []
    for text, spans in zip(table["text"], table["entities"], strict=True):
        places = {letter.start() for letter in re.finditer(r"(?<!\w)[^\W\d_]", text) if letter[0].isupper()}
        marks = list(accumulate(place in places for place in range(len(text))))  # up to and with each character
        texts.append("".join("^" * (place in places) + letter for place, letter in enumerate(text)))
        entities.append([(start + marks[start], end + marks[end - 1], label) for start, end, label in spans])
    return table.assign(text=texts, entities=entities)


def with_capitals(marked: bool, seed: int) -> list[dict]:
    """One model for the four tasks on marked texts, or on the texts as they are: a row a task."""
    corpus = mark_capitals(load_corpus()) if marked else load_corpus()
    train, validation, test = (corpus[corpus["split"] == split] for split in SPLITS)
    model = MultiTaskModel(SentenceEncoder.from_pretrained(), TASKS)
    config = TrainingConfig(learning_rate=2e-4, task_weights={"entities": 10.0}, seed=seed)
    fit(model, train, validation, config)
    scores = evaluate(model, test).query("metric in ['macro_f1', 'f1']")
    return [{"task": row.task, "test": row.value} for row in scores.itertuples()]


STUDY = Study(
    "with_capitals",
    "Does the model find entities better when it is told where the capitals are?",
    [{"marked": marked} for marked in (True, False)],
    with_capitals,
    seeds=range(5),
    minutes=40,
    tolerance=0.06,
)
