"""Comparisons to the last bit, of weights and of histories."""

import pandas as pd
import torch
from torch import Tensor, nn

from mtl_helpers import History


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_identical(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal to the bit."""
    assert list(found) == list(expected)
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []


def assert_same_history(found: History, expected: History) -> None:
    """Equal to the last digit, but for the seconds."""
    for which in ("epochs", "steps"):
        sides = [history.to_frame(which).drop(columns="seconds", errors="ignore") for history in (found, expected)]
        pd.testing.assert_frame_equal(*sides, check_exact=True)
