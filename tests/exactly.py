"""Short runs, runs that are stopped, and comparisons of weights and histories to the last bit."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from mtl_helpers import TASKS, History, MultiTaskModel, TrainingConfig, training

NAMES = [task.name for task in TASKS]
CONFIG = TrainingConfig(
    epochs=3, learning_rate=3e-3, head_learning_rate=1e-2, max_tokens=80, precision="float32", checkpoint_every=3
)
STEPS = 15  # that CONFIG takes on `partly`: three epochs of five, so that most checkpoints lie inside an epoch


@contextmanager
def stopping(call: int, function: str = "train_step", error: type[BaseException] = KeyboardInterrupt) -> Iterator:
    """Call number `call` of a function of `training` raises an error, and it has to come out."""
    original, calls = getattr(training, function), itertools.count(1)

    def stop(*args, **kwargs):
        if next(calls) == call:
            raise error
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(error) as caught:
        patch.setattr(training, function, stop)
        yield caught


def scripted(scores: list[float] | list[dict], after: list) -> Callable:
    """A `validate` with given scores, one per epoch; keeps the weights after each epoch in `after`."""

    def validate(model: MultiTaskModel, *_) -> dict:
        score = scores[len(after)]
        after.append(weights(model))
        each = score if isinstance(score, dict) else dict.fromkeys(NAMES, score)
        return {name: {"validation_loss": 1.0, "accuracy": 0.5, "score": each[name]} for name in NAMES}

    return validate


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_identical(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal to the bit."""
    assert list(actual) == list(expected)
    assert [name for name, tensor in actual.items() if not torch.equal(tensor, expected[name])] == []


def assert_same_history(actual: History, expected: History) -> None:
    """Equal to the last digit, but for the seconds."""
    for which in ("epochs", "steps"):
        sides = [history.to_frame(which).drop(columns="seconds", errors="ignore") for history in (actual, expected)]
        pd.testing.assert_frame_equal(*sides, check_exact=True)
