"""What most studies do in a run: train a model on some tables, and write down a row a task with its predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from torch import Tensor

from mtl_helpers import History, MultiTaskModel, SentenceEncoder, Task, TrainingConfig, fit, freeze
from mtl_helpers.evaluation import labelled, main_score

RATES = (1e-4, 3e-4, 1e-3)  # of the encoder at its peak; heads of a frozen encoder bear ten times as much


def fitted(
    tasks: Sequence[Task],
    train: pd.DataFrame,
    validation: pd.DataFrame,
    config: TrainingConfig,
    strategy: str = "full_training",
    options: Mapping = {},
    pooling: str = "mean",
    start: dict[str, Tensor] | None = None,
    encoder: Path | None = None,
) -> tuple[MultiTaskModel, History]:
    """A model trained on the rows that carry a label of its tasks, and its history.

    Args:
        strategy, options: of `freeze`.
        start: weights of an encoder to begin with; default: the published ones.
        encoder: folder of another encoder than MiniLM.
    """
    model = MultiTaskModel(SentenceEncoder.from_pretrained(encoder, pooling=pooling), tasks)
    if start is not None:
        model.encoder.load_state_dict(start)
    freeze(model, strategy, **options)
    return model, fit(model, labelled_rows(train, tasks), labelled_rows(validation, tasks), config)


def labelled_rows(table: pd.DataFrame, tasks: Sequence[Task]) -> pd.DataFrame:
    """The rows that carry a label of one of the tasks."""
    return table.dropna(subset=[task.name for task in tasks if task.name in table], how="all")


def only(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The texts of a table with the labels of one task and no other."""
    return table[["id", "text", task.name, "split"]]


def task_rows(
    model: MultiTaskModel, history: History, test: pd.DataFrame, tasks: Sequence[Task] | None = None
) -> list[dict]:
    """For each task a row: score on validation, score on test, predictions on test.

    That on validation is of the epoch with the best mean there, also where a run keeps its last weights (then it
    serves to choose a rate, and is not the score of the weights that are tested).

    Args:
        tasks: those to write down; default: all of the model.
    """
    epochs = history.to_frame()
    last = epochs[epochs["epoch"] == history.best_epoch].set_index("task")
    test = labelled_rows(test, model.tasks)
    predicted, rows = model.predict(test["text"]), []
    for task in tasks or model.tasks:
        truth, guesses = labelled(task, test, predicted)
        coded = guesses if task.level == "token" else [task.index(label) for label in guesses]
        scores = {"validation": last.at[task.name, "score"], "test": main_score(task, truth, guesses)}
        rows.append({"task": task.name, **scores, "predictions": coded})
    return rows
