"""What the course claims: one table, from which README and write-up take their sentences.

Each claim is a comparison of eight seeds on each side, its interval holds seeds and test sentences, and its verdict is
one of four words, after Holm's correction over the table.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import pandas as pd

from mtl_helpers import TASKS
from mtl_helpers.intervals import Interval

from . import (
    another_encoder,
    around_the_backbone,
    natural_pairs,
    samplers,
    second_task,
    sharing,
    token_weight,
    what_to_train,
)
from .evidence import Difference, holm, read_differences

NAMES = [task.name for task in TASKS]


@dataclass(frozen=True)
class Claim:
    """One comparison.

    Args:
        name: short, for the table.
        text: the finding in a sentence; {value} stands for the size of the difference, without its sign, {faster} for
            how many times as fast as four models one is.
        sign: the sign that the sentence gives it, +1 or -1.
        measure: gives the Difference, in points of F1 (or of Spearman's correlation times 100).
        where: data and labels.
    """

    name: str
    text: str
    sign: int
    measure: Callable[[], Difference]
    where: str


def weight() -> Difference:
    """Entities at the default weight minus those of a plain sum: the comparison of notebook 04 turned round."""
    other = token_weight.against("course", "mean", "root", ["entities"])
    value, low, high = other.interval
    return replace(other, interval=Interval(-value, -high, -low))


def natural() -> Difference:
    """Intents and slots of the same requests, one of them scarce: together minus alone for as many rows in all."""
    return read_differences(natural_pairs.GAINS)["mean"]


def one_model_is_faster() -> float:
    """How many times as fast as four models one predicts, with MiniLM in the faster precision."""
    return float(another_encoder.speed().loc["predict", ("MiniLM", "ratio")].iloc[-1])


CORPUS, FEW = "corpus, all labels", "corpus, 50 labels"
CLAIMS = (
    Claim(
        "a related second task",
        "Beside 1,000 sentences that only mark where entities are, 50 with their types gain {value} points over the 50 "
        "alone, trained as long.",
        1,
        second_task.gain,
        FEW,
    ),
    Claim(
        "related tasks of natural requests",
        "Where intents or slots were scarce, 1,000 requests labelled for the other brought {value} points over the "
        "scarce ones alone, trained as long (mean of three pairings).",
        1,
        natural,
        "SNIPS, 50 and 200 labels",
    ),
    Claim(
        "an unrelated second task",
        "Beside 1,000 sentences with topics, 50 with sentiment score {value} points lower than the 50 alone, "
        "trained as long.",
        -1,
        partial(samplers.against, "uniform", samplers.ALONE),
        FEW,
    ),
    Claim(
        "one model against four",
        "One model instead of four answers {faster} times as fast; in the mean it scored {value} points lower.",
        -1,
        lambda: sharing.against_four()["mean"],
        CORPUS,
    ),
    Claim(
        "a weight for the token task",
        "The default weight of a token task (the root of one over the share of its tokens in spans) brings entities "
        "{value} points over a plain sum of losses in three epochs.",
        1,
        weight,
        CORPUS,
    ),
    Claim(
        "heads first: similarity kept",
        "At the same rate (3e-4) heads first keeps {value} points more of the encoder's sense of similarity than full "
        "training (STS-B, Spearman's correlation times 100).",
        1,
        partial(what_to_train.public, "heads first", "stsb", None, 3, 3e-4),
        CORPUS,
    ),
    Claim(
        "heads first: mean score",
        "Heads first is {value} points behind full training for as many epochs (three; mean of four tasks; each seed "
        "at the rate that it chose).",
        -1,
        partial(what_to_train.against, "heads first"),
        CORPUS,
    ),
    Claim(
        "frozen encoder, few labels",
        "With 50 sentences, heads alone on the last four layers are {value} points behind full training (mean of "
        "three sentence tasks).",
        -1,
        partial(what_to_train.against, what_to_train.HEADS, what_to_train.FULL, NAMES[:3], 50, 3),
        "corpus, 50 sentences",
    ),
    Claim(
        "pooling on a frozen encoder",
        "Heads on a frozen encoder gain {value} points by reading the last four layers instead of the last (mean of "
        "three sentence tasks).",
        1,
        lambda: around_the_backbone.pooling_gains()["mean"],
        CORPUS,
    ),
    Claim(
        "uniform against proportional shares",
        "If they share a model, drawing as many rows of sentiment (50 labels) as of topic (1,000) brings sentiment "
        "{value} points over drawing rows in proportion.",
        1,
        partial(samplers.against, "uniform", "proportional"),
        FEW,
    ),
)


@cache
def table() -> pd.DataFrame:
    """All claims: name, text, verdict, value, low, high, visible (smallest effect seen 4 times in 5), where ....

    In the column another_encoder it says whether the comparison holds, fails or is undecided on MPNet; empty where it
    was not made.

    Raises:
        ValueError: a sentence says the opposite of its rows, or rows are missing.
    """
    differences = [claim.measure() for claim in CLAIMS]
    for claim, difference in zip(CLAIMS, differences, strict=True):
        if difference.interval.value * claim.sign < 0:
            raise ValueError(f"claim {claim.name!r}: the sentence gives the difference another sign than its rows do")
    adjusted = holm([difference.p for difference in differences])
    again, faster = another_encoder.asked(), f"{one_model_is_faster():.1f}"
    return pd.DataFrame(
        {
            "claim": [claim.name for claim in CLAIMS],
            "text": [
                claim.text.format(value=f"{abs(difference.interval.value):.1f}", faster=faster)
                for claim, difference in zip(CLAIMS, differences, strict=True)
            ],
            "verdict": [difference.verdict(p) for difference, p in zip(differences, adjusted, strict=True)],
            "value": [difference.interval.value for difference in differences],
            "low": [difference.interval.low for difference in differences],
            "high": [difference.interval.high for difference in differences],
            "p": adjusted,
            "visible": [difference.visible for difference in differences],
            "where": [claim.where for claim in CLAIMS],
            "another_encoder": [
                another_encoder.answer(difference.interval.value, again[claim.name]) if claim.name in again else ""
                for claim, difference in zip(CLAIMS, differences, strict=True)
            ],
        }
    ).set_index("claim")
