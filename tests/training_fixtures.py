"""Fixtures of tests that train: tables of a dozen sentences, tiny models. Test files name this in `pytest_plugins`.

The tables are shared: a test that changes one works on a copy.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from mtl_helpers import TASKS, MultiTaskModel, SentenceEncoder


@pytest.fixture(scope="session")
def full(short: pd.DataFrame) -> pd.DataFrame:
    """A dozen sentences with all their labels."""
    return short[short["split"] == "train"][:12].reset_index(drop=True)


@pytest.fixture(scope="session")
def partly(full: pd.DataFrame) -> pd.DataFrame:
    """The same dozen, some without some of their labels."""
    rows = full.copy()
    for name, missing in (("topic", [0, 3, 7]), ("sentiment", [3]), ("entities", [4, 5])):
        rows.loc[missing, name] = None
    return rows


@pytest.fixture(scope="session")
def separate(short: pd.DataFrame) -> pd.DataFrame:
    """Two data sets: 16 sentences labelled for the topic alone, 4 others for the sentiment alone."""
    rows = short[short["split"] == "train"][:20].reset_index(drop=True)
    rows.loc[16:, "topic"] = rows.loc[:15, "sentiment"] = None
    return rows


@pytest.fixture(scope="session")
def validation(short: pd.DataFrame) -> pd.DataFrame:
    return short[short["split"] == "validation"][:8].reset_index(drop=True)


@pytest.fixture(scope="session")
def build(family_dirs: dict[str, Path]) -> Callable[..., MultiTaskModel]:
    """Function that makes a tiny model in training mode; the seed determines its heads."""

    def build(
        seed: int = 0, tasks: tuple = TASKS, dropout: float = 0.1, family: str = "bert", **settings
    ) -> MultiTaskModel:
        torch.manual_seed(seed)
        encoder = SentenceEncoder.from_pretrained(family_dirs[family], **settings)
        return MultiTaskModel(encoder, tasks, dropout=dropout)

    return build
