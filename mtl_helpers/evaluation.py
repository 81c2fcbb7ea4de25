"""Scores: one way to score a task, for validation in the loop and for a test table."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from .batches import length_batches
from .intervals import bootstrap
from .multitask import MultiTaskModel, decode
from .runtime import inference
from .tables import check_table
from .tasks import IGNORE, Span, Task
from .warn import warn_caller


def evaluate(model: MultiTaskModel, test: pd.DataFrame, draws: int = 1000, intervals: bool = True) -> pd.DataFrame:
    """Score every task on the texts that are labelled for it.

    Args:
        model: anything whose `tasks` and `predict` are those of MultiTaskModel.
        test: a table as `load_corpus` gives it.
        draws: resamples behind the intervals.
        intervals: False leaves low and high out, which takes a fraction of the time.

    Returns:
        One row per task and metric: task, metric, value, low, high (95 % bootstrap interval over the texts), texts.
        Sentence tasks have accuracy and macro_f1, token tasks precision, recall and f1 of exact spans.

    Raises:
        CorpusError: a table with labels that can't be what they should be; names row and column.
        ValueError: no text is labelled for any task of the model.
    """
    test = check_table(test, model.tasks, "test")
    predicted, rows, without = model.predict(test["text"]), [], []
    for task in model.tasks:
        truth, guesses = labelled(task, test, predicted)
        if not truth:
            without.append(task.name)
            continue
        columns, metrics = scoring(task, truth, guesses)
        for metric, score in metrics.items():
            bounds = bootstrap(score, *columns, draws=draws) if intervals else (score(*columns),)
            rows.append([task.name, metric, *bounds, len(truth)])
    if not rows:
        names = ", ".join(task.name for task in model.tasks)
        raise ValueError(f"found no label for {names} in {len(test)} rows, expected some to compare predictions with")
    if without:
        warn_caller(f"test has no label for {', '.join(without)}")
    return pd.DataFrame(rows, columns=["task", "metric", "value", *["low", "high"] * intervals, "texts"])


def labelled(task: Task, test: pd.DataFrame, predicted: pd.DataFrame) -> tuple[list, list]:
    """Labels and predictions of the texts labelled for a task; of token tasks spans (start, end, label)."""
    if task.name not in test:
        return [], []
    pairs = zip(test[task.name], predicted[task.name], strict=True)
    pairs = [(a, b) for a, b in pairs if isinstance(a, list | str)]  # else missing: None, NaN or pandas' NA
    truth, guesses = [a for a, _ in pairs], [b for _, b in pairs]
    return truth, guesses if task.level == "sentence" else [[tuple(span[:3]) for span in spans] for spans in guesses]


def scoring(task: Task, truth: Sequence, predicted: Sequence) -> tuple[list[np.ndarray], dict[str, Callable]]:
    """How a task is scored, wherever it is: arrays with a row a text, and {metric: function of these arrays}.

    The last metric is the one by which models are compared: macro-F1, or F1 of exact spans.

    Args:
        truth, predicted: labels, or spans (start, end, label), text by text.
    """
    if task.level == "token":
        return [span_counts(truth, predicted)], {"precision": span_precision, "recall": span_recall, "f1": span_f1}
    columns = [np.array([task.index(label) for label in labels]) for labels in (truth, predicted)]
    return columns, {"accuracy": lambda a, b: float(np.mean(a == b)), "macro_f1": macro_f1}


def main_score(task: Task, truth: Sequence, predicted: Sequence) -> float:
    """The score by which models are compared, in 0 to 1; arguments as for `scoring`."""
    columns, metrics = scoring(task, truth, predicted)
    return list(metrics.values())[-1](*columns)


def validate(
    model: MultiTaskModel,
    examples: Sequence[dict],
    precision: str = "float32",
    hidden: Callable[[Sequence[int], dict], Sequence[Tensor]] | None = None,
) -> dict[str, dict]:
    """Loss, accuracy and score of each task on labelled examples (of `MultiTaskModel.examples`), in eval mode.

    Args:
        hidden: function of positions and their batch that gives hidden states; default: the model's encoder.

    Returns:
        {task: {"validation_loss": nats per label, "accuracy": share of labels (token task: of tokens) that are
        right, "score": as `evaluate` has it, from the labels as they stand in the table}}; NaN without labels.
    """
    losses, labels, right = Counter(), Counter(), Counter()
    truth, guesses = ({task.name: [] for task in model.tasks} for _ in range(2))
    with inference(model, precision):
        for rows in length_batches([len(example["input_ids"]) for example in examples], max_tokens=2048):
            batch = model.batch([examples[i] for i in rows])
            states = model.encoder.hidden(batch) if hidden is None else hidden(rows, batch)
            logits = model.answer(states, batch)
            means = model.loss(logits, batch["labels"])
            for task in model.tasks:
                codes, best = batch["labels"][task.name], logits[task.name].argmax(-1).cpu()
                valid = codes != IGNORE
                losses[task.name] += means[task.name].item() * int(valid.sum())
                labels[task.name] += int(valid.sum())
                right[task.name] += int((codes == best)[valid].sum())
                for i, guess in zip(rows, decode(task, best, [examples[i]["offsets"] for i in rows]), strict=True):
                    if examples[i]["gold"][task.name] is not None:
                        truth[task.name].append(examples[i]["gold"][task.name])
                        guesses[task.name].append(guess)
    return {
        task.name: {
            "validation_loss": losses[task.name] / labels[task.name] if labels[task.name] else np.nan,
            "accuracy": right[task.name] / labels[task.name] if labels[task.name] else np.nan,
            "score": main_score(task, truth[task.name], guesses[task.name]) if truth[task.name] else np.nan,
        }
        for task in model.tasks
    }


def macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Unweighted mean of the classes' F1, over the classes that occur in `truth`; both (N,), any labels.

    Each class counts the same, however rare it is (a class that is only predicted lowers the others' precision).
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    scores = [
        _f1(np.sum((truth == c) & (predicted == c)), np.sum(predicted == c), np.sum(truth == c))
        for c in np.unique(truth)
    ]
    return float(np.mean(scores))


def span_counts(truth: Sequence[list[Span]], predicted: Sequence[list[Span]]) -> np.ndarray:
    """(N, 3) counts per text: spans hit exactly (start, end and label), spans predicted, gold spans.

    The counting of the CoNLL-2003 shared task (Tjong Kim Sang and De Meulder 2003, https://aclanthology.org/W03-0419).
    """
    rows = [[len(set(a) & set(b)), len(set(b)), len(set(a))] for a, b in zip(truth, predicted, strict=True)]
    return np.array(rows, dtype=int).reshape(-1, 3)


def span_f1(counts: np.ndarray) -> float:
    """Entity-level F1 over all texts from `span_counts`, in 0 to 1."""
    return _f1(*counts.sum(axis=0))


def span_precision(counts: np.ndarray) -> float:
    """Share of the predicted spans that are right, from `span_counts`, in 0 to 1."""
    hits, predicted, _ = counts.sum(axis=0)
    return float(hits / predicted) if predicted else 0.0


def span_recall(counts: np.ndarray) -> float:
    """Share of the gold spans that were hit, from `span_counts`, in 0 to 1."""
    hits, _, gold = counts.sum(axis=0)
    return float(hits / gold) if gold else 0.0


def _f1(hits: int, predicted: int, gold: int) -> float:
    return float(2 * hits / (predicted + gold)) if predicted + gold else 0.0
