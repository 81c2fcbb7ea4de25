"""The table of claims: at most ten, four verdicts, sentences that agree with their rows."""

import os
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from experiments import claims, token_weight
from experiments.evidence import holm, over_seeds, power


def test_the_table_has_ten_claims_with_verdicts_that_follow_from_it():
    table = claims.table()
    assert 1 <= len(table) <= 10 and table.index.is_unique
    for claim, row in zip(claims.CLAIMS, table.itertuples(), strict=True):
        assert row.low <= row.value <= row.high and row.visible > 0 and row.seeds == claim.seeds
        assert f"{abs(row.value):.1f}" in row.text and "{" not in row.text
        apart = row.low > 0 or row.high < 0
        shown = row.p < 0.05 and claim.sentences and claim.seeds >= 8  # not over seeds alone, nor over few
        expected = "shown" if shown else "likely" if apart else r"undecided|none larger than \d+\.\d"
        assert re.fullmatch(expected, row.verdict)
        if row.verdict.startswith("none"):
            bound = float(row.verdict.split()[-1])
            assert max(-row.low, row.high) <= bound + 0.05 and bound <= 2
    raw = [claim.measure().p for claim in claims.CLAIMS]
    assert table["p"].tolist() == holm(raw)


def test_a_sentence_that_says_the_opposite_is_refused(monkeypatch):
    monkeypatch.setattr(claims, "CLAIMS", [replace(claims.CLAIMS[1], sign=-claims.CLAIMS[1].sign)])
    with pytest.raises(ValueError, match="another sign than its rows"):
        claims.table.__wrapped__()


def test_differences_over_seeds_paired_and_not():
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 10, 8)
    first, second = shared + generator.normal(2, 1, 8), shared + generator.normal(0, 1, 8)
    paired, apart = over_seeds(first, second, True), over_seeds(first, second, False)
    reference = ttest_1samp(first - second, 0)
    assert paired.p == pytest.approx(reference.pvalue)
    assert paired.interval == pytest.approx(
        (np.mean(first - second), reference.confidence_interval().low, reference.confidence_interval().high)
    )
    assert paired.visible == pytest.approx(power(7) * np.std(first - second, ddof=1) / 8**0.5)
    assert apart.interval.value == pytest.approx(paired.interval.value)
    assert apart.interval.high - apart.interval.low > 3 * (paired.interval.high - paired.interval.low)


@pytest.mark.parametrize("seeds", [5, 8])
def test_an_effect_called_visible_is_seen_in_four_of_five_repetitions(seeds: int):
    draws = np.random.default_rng(0).normal(power(seeds - 1) / seeds**0.5, 1, (5000, seeds))
    assert (ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.skipif("MTL_PUBLIC" not in os.environ, reason="no public data in the folder that MTL_PUBLIC names")
def test_the_tables_of_the_token_weight_are_those_of_its_rows():
    for table in (token_weight.gains, token_weight.harm):
        pd.testing.assert_frame_equal(table().round(4), token_weight.read(table.__name__), atol=2e-4)
