"""What does overfitting fifty labels look like, and what helps? Loss and score after every epoch."""

import pandas as pd
import torch

from mtl_helpers import MultiTaskModel, SentenceEncoder, TaskSampling, TrainingConfig, fit, freeze, load_corpus

from .scarce_task import BY_NAME, labelled_for, user
from .sweeps import Study

REMEDIES = {
    "nothing": {},
    "weight decay 0.1": {"weight_decay": 0.1},
    "a third of the steps": {"epochs": 4},
    "more dropout": {},
    "lower half frozen": {},
    "trained with the other task": {},
}


def overfitting(remedy: str, seed: int) -> list[dict]:
    """All 50 labels of a user, 150 rows of each task an epoch; sentiment on the large validation set."""
    many, few, held_out = user("topic → sentiment", 50, seed)
    corpus = load_corpus()
    validation = corpus[corpus["split"] == "validation"]
    names, rows, watched = ["sentiment"], pd.concat([few, held_out]), labelled_for("sentiment", validation)
    if remedy == "trained with the other task":
        names, rows = ["topic", "sentiment"], pd.concat([many, rows])
        watched = pd.concat([labelled_for("topic", validation[:20]), watched])
    torch.manual_seed(seed)
    dropout = 0.5 if remedy == "more dropout" else 0.1
    model = MultiTaskModel(SentenceEncoder.from_pretrained(), [BY_NAME[name] for name in names], dropout=dropout)
    if remedy == "lower half frozen":
        freeze(model, "lower_layers", layers=3)
    sampling = TaskSampling(alpha=0.0, order="mixed", rows=150 * len(names))
    usual = {"epochs": 12, "learning_rate": 3e-4, "head_learning_rate": 1.5e-3, "max_tokens": 256}
    usual |= {"patience": None, "keep": "last", "seed": seed, "sampling": sampling}
    history = fit(model, rows, watched, TrainingConfig(**(usual | REMEDIES[remedy]))).to_frame()
    columns = ["epoch", "train_loss", "validation_loss", "score", "epochs_seen"]
    return history[history["task"] == "sentiment"][columns].to_dict("records")


STUDY = Study(
    "overfitting",
    "What does overfitting fifty labels look like, and what helps?",
    [{"remedy": remedy} for remedy in REMEDIES],
    overfitting,
    seeds=range(5),
    minutes=10,
    tolerance=0.15,
)
