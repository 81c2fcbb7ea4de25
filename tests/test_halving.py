"""Sequential halving: the runs it takes, the rate it chooses, and whether what is on file is what it asks for."""

import pandas as pd
import pytest

from experiments import freezing_by_size, freezing_cost, freezing_strategies, frozen_head, public_freezing
from experiments.halving import RATES, Halving

HALVING = Halving(("way", "size"), {("deep", 50): (3e-4, 1e-3), ("flat", 50): (1e-3,)})
TASKS = (("topic", 0.1), ("entities", -0.1))
HALVED = (freezing_strategies, freezing_by_size, public_freezing)


def rows(**scores: float) -> pd.DataFrame:
    """Two tasks a run; the score on validation falls with the distance from 3e-4, and is `scores` where they say so."""
    table = []
    for setting in HALVING.settings:
        for seed in HALVING.seeds(setting):
            usual = 1 - abs(RATES.index(setting["learning_rate"]) - 1.1) / 10
            score = scores.get(f"seed_{seed}_rate_{RATES.index(setting['learning_rate'])}", usual)
            table += [{**setting, "seed": seed, "task": task, "validation": score + shift} for task, shift in TASKS]
    return pd.DataFrame(table)


def test_the_runs_of_halving():
    runs = [(s["way"], s["learning_rate"], len(HALVING.seeds(s))) for s in HALVING.settings]
    assert runs == [("deep", 1e-4, 1), ("deep", 3e-4, 5), ("deep", 1e-3, 2), ("deep", 3e-3, 1), ("flat", 1e-3, 5)]
    settled = HALVING.settled(rows())
    assert settled.groupby(["way", "learning_rate"]).seed.nunique().to_dict() == {("deep", 3e-4): 5, ("flat", 1e-3): 5}


def test_what_was_chosen_follows_from_the_rows():
    assert HALVING.follows(rows())
    assert HALVING.follows(rows(seed_4_rate_1=0.0))  # the third seed and later choose nothing
    assert not HALVING.follows(rows(seed_1_rate_2=1.3))  # the second is ahead over two seeds
    assert not HALVING.follows(rows(seed_0_rate_3=1.2))  # another rate is among the best two


@pytest.mark.parametrize("module", HALVED, ids=lambda module: module.STUDY.name)
def test_the_rates_on_file_follow_from_their_rows(module):
    assert module.HALVING.follows(module.STUDY.rows())


@pytest.mark.parametrize("module", [*HALVED, frozen_head], ids=lambda module: module.STUDY.name)
def test_no_row_on_file_is_without_a_definition(module):
    keys = list(module.STUDY.runs[0])
    on_file = pd.read_csv(module.STUDY.path)[keys].drop_duplicates()
    assert len(on_file) == len(module.STUDY.runs) and not module.STUDY.missing()


def test_no_cost_on_file_is_without_a_definition():
    costs = pd.read_csv(freezing_cost.STUDY.path)
    assert set(costs.strategy) == set(freezing_cost.WAYS) and not freezing_cost.STUDY.missing()
