"""The one place that checks settings."""

import math
from collections.abc import Callable, Mapping

Rule = tuple[Callable[[object], bool], str]  # what a value must fulfil, and how to say so


def check_settings(settings: object, rules: Mapping[str, Rule]) -> None:
    """Raise ValueError for the first field of `settings` that breaks its rule; names field, value and rule."""
    for name, (fits, expected) in rules.items():
        value = getattr(settings, name)
        if not fits(value):
            raise ValueError(f"{type(settings).__name__}: {name} is {value!r}, expected {expected}")


def whole(least: int) -> Rule:
    """A whole number; not True, which Python counts as 1."""
    return lambda value: type(value) is int and least <= value < 2**31, f"a whole number of at least {least}"


def number(low: float = 0.0, high: float = math.inf) -> Rule:
    """A finite number from `low` to `high`."""
    expected = f"a finite number of at least {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
    return lambda value: is_number(value) and low <= value <= high, expected


def one_of(choices: tuple[str, ...]) -> Rule:
    """One of some names."""
    return lambda value: value in choices, f"one of {', '.join(choices)}"


def or_none(rule: Rule) -> Rule:
    """What the rule allows, or None."""
    fits, expected = rule
    return lambda value: value is None or fits(value), f"{expected}, or None"


def is_number(value: object) -> bool:
    """Whether a value is a finite number (and no truth value)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
