"""What can be set, and what is refused: one table over one checker."""

import math
from dataclasses import FrozenInstanceError, fields
from types import SimpleNamespace

import pytest

from mtl_helpers import TaskSampling, TrainingConfig
from mtl_helpers.checks import check_settings, number, one_of, or_none, whole

RATES = (-1e-4, math.nan, math.inf, -math.inf, "0.001", None, True, [0.1])
SHARES = (-0.1, 1.5, math.nan, math.inf, True, "1")
COUNTS = (0, -1, 2.5, 3.0, True, "3", math.nan, 2**31)
NAMES = ("", "x", "AdamW", "Linear", "float16", "Best", None, 1, [], ["adam"])
WEIGHTS = [{"topic": weight} for weight in (-1, math.nan, math.inf, "1", None, True)]
IMPOSSIBLE = {
    TrainingConfig: {
        **dict.fromkeys(("epochs", "max_tokens", "checkpoint_every"), (*COUNTS, None)),
        "patience": COUNTS,
        "seed": (-1, 0.0, False, "0", None, 2**31),
        **dict.fromkeys(("learning_rate", "head_learning_rate", "weight_decay"), RATES),
        "warmup": (*RATES, 1.0, 1, 10),
        "max_norm": (0, 0.0, -1.0, -math.inf, math.nan, "1", None, True),
        **dict.fromkeys(("optimizer", "schedule", "precision", "balancing", "keep"), NAMES),
        "task_weights": (None, 1.0, [1.0], "topic", {"topic": 1.0, "sentiment": -0.1}, *WEIGHTS),
        "sampling": ("uniform", 0.5, {"alpha": 1.0}),
        "class_balance": ({"topic": "x"}, {"topic": None}, {"topic": ["focal"]}, "focal", ["topic"], None),
    },
    TaskSampling: {
        "alpha": (*SHARES, None),
        "final_alpha": SHARES,
        **dict.fromkeys(("cap", "rows"), COUNTS),
        "order": ("random", "", None, 1, []),
    },
}


@pytest.mark.parametrize("kind, name", [(kind, field.name) for kind in IMPOSSIBLE for field in fields(kind)])
def test_impossible_settings_are_refused_by_name(kind: type, name: str):
    for value in IMPOSSIBLE[kind][name]:
        with pytest.raises(ValueError) as caught:
            kind(**{name: value})
        assert str(caught.value).startswith(f"{kind.__name__}: {name} is {value!r}, expected "), value


def test_possible_settings_are_accepted_and_frozen():
    for kind, settings in (
        (TrainingConfig, {"epochs": 1, "max_tokens": 1, "checkpoint_every": 1, "patience": 1, "seed": 2**31 - 1}),
        (TrainingConfig, {"learning_rate": 0, "head_learning_rate": 0.0, "weight_decay": 0, "warmup": 0}),
        (TrainingConfig, {"patience": None, "warmup": 0.999, "task_weights": {"topic": 0, "entities": 2.5}}),
        (TrainingConfig, {"optimizer": "adam", "schedule": "cosine", "precision": "bfloat16", "max_norm": math.inf}),
        (TrainingConfig, {"sampling": TaskSampling(), "class_balance": {"topic": "focal"}, "keep": "last"}),
        (TaskSampling, {"alpha": 0, "final_alpha": None}),
        (TaskSampling, {"alpha": 1, "final_alpha": 0, "cap": 1, "rows": 1, "order": "mixed"}),
    ):
        config = kind(**settings)
        assert {name: getattr(config, name) for name in settings} == settings
        with pytest.raises(FrozenInstanceError):
            setattr(config, next(iter(settings)), 1)
    assert TrainingConfig().task_weights is not TrainingConfig().task_weights


@pytest.mark.parametrize(
    "change, message",
    [
        ({"a": 1, "b": 2}, "a is 1, expected a whole number of at least 2"),  # the first of two
        ({"b": 1.01}, "b is 1.01, expected a number from 0 to 1"),
        ({"c": 2.5}, "c is 2.5, expected a finite number of at least 3"),
        ({"d": "z"}, "d is 'z', expected one of x, y"),
        ({"e": 0}, "e is 0, expected a whole number of at least 1, or None"),
    ],
)
def test_a_broken_rule_is_told_with_what_was_expected(change: dict, message: str):
    rules = {"a": whole(2), "b": number(0, 1), "c": number(3), "d": one_of(("x", "y")), "e": or_none(whole(1))}
    fine = {"a": 2, "b": 1, "c": 3.0, "d": "y", "e": None}
    check_settings(SimpleNamespace(**fine), rules)
    with pytest.raises(ValueError, match=f"^SimpleNamespace: {message}$"):
        check_settings(SimpleNamespace(**fine | change), rules)
