"""What happened during training."""

import math
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd


@dataclass
class History:
    """What happened during training: `steps`, one dict per optimizer step, and `epochs`, one per epoch and task."""

    steps: list[dict] = field(default_factory=list)
    epochs: list[dict] = field(default_factory=list)

    def to_frame(self, which: Literal["epochs", "steps"] = "epochs") -> pd.DataFrame:
        """As a table.

        Returns:
            "epochs": one row per epoch and task: epoch, task, train_loss (mean over the epoch, with dropout),
            validation_loss (nats per label), accuracy (of labels or tokens), score (macro-F1, or F1 of spans),
            epochs_seen (labels trained on so far / labels there are). A task without validation labels has NaN.
            "steps": step, epoch, seconds (since the run started), learning_rate (of the encoder), gradient_norm
            (before clipping), and for each task TASK_loss, TASK_weight (what the loss was multiplied with) and
            TASK_labels (texts labelled for it in this step). With gradient surgery also conflicts, the share of
            ordered pairs of tasks whose gradients point against each other.
        """
        return pd.DataFrame(getattr(self, which))

    def add_step(self, about: dict, losses: dict, weights: dict, labels: dict) -> None:
        """Add an optimizer step: what is to be said of it, losses and weights by task, {TASK_labels: number}."""
        named = {f"{name}_loss": loss for name, loss in losses.items()}
        named |= {f"{name}_weight": weight for name, weight in weights.items()}
        self.steps.append(about | named | labels)

    def close_epoch(self, epoch: int, total: dict[str, int], validated: dict[str, dict]) -> None:
        """Add an epoch's rows, one per task.

        Args:
            epoch: its number.
            total: {TASK_labels: texts that are labelled for it in the training data}.
            validated: {task: what `validate` says of it}.
        """
        for name, scores in validated.items():
            seen = [(row["epoch"], row[f"{name}_labels"], row.get(f"{name}_loss", 0.0)) for row in self.steps]
            now = [(labels, loss) for number, labels, loss in seen if number == epoch]
            labels = sum(labels for labels, _ in now)
            self.epochs.append(
                {
                    "epoch": epoch,
                    "task": name,
                    "train_loss": sum(labels * loss for labels, loss in now) / labels if labels else math.nan,
                    **scores,
                    "epochs_seen": sum(labels for _, labels, _ in seen) / max(1, total[f"{name}_labels"]),
                }
            )

    def train_losses(self, epoch: int) -> dict[str, float]:
        """Mean loss of each task in an epoch."""
        return {row["task"]: row["train_loss"] for row in self.epochs if row["epoch"] == epoch}

    @property
    def scores(self) -> pd.Series:
        """Validation score of each epoch: mean over the tasks that have validation labels."""
        return self.to_frame().groupby("epoch")["score"].mean()

    @property
    def best_epoch(self) -> int:
        """The (first) epoch with the best mean score, whose weights `fit` leaves in the model (keep="best")."""
        return int(self.scores.idxmax())
