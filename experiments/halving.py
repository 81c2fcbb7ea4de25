"""Choosing a learning rate by sequential halving: tries go where they can still change the outcome.

All rates are tried with seed 0, the two best of them with seed 1 as well, and the better of these two with five seeds;
what is better is said by the mean over tasks and seeds of the score on validation (Karnin, Koren and Somekh 2013,
https://proceedings.mlr.press/v28/karnin13.html; Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943).
The rate is one for all seeds, so that an interval over seeds leaves out how the rate was chosen.
"""

from dataclasses import dataclass

import pandas as pd

RATES = (1e-4, 3e-4, 1e-3, 3e-3)  # of the encoder at its peak; heads learn at five times that rate
SEEDS = (5, 2, 1)  # of the rate that was chosen, of the one that came second, of the others


@dataclass(frozen=True)
class Halving:
    """What halving chose for each setting of a study, and the runs that it took.

    Args:
        keys: the columns that make a setting.
        chosen: {values of the keys: (rate, the one that came second)}; a single rate was given, not searched for.
    """

    keys: tuple[str, ...]
    chosen: dict[tuple, tuple[float, ...]]

    @property
    def settings(self) -> list[dict]:
        """The grid of a Study: every setting with every rate that was tried."""
        return [
            {**dict(zip(self.keys, values, strict=True)), "learning_rate": rate}
            for values, rates in self.chosen.items()
            for rate in (RATES if len(rates) > 1 else rates)
        ]

    def seeds(self, setting: dict) -> range:
        """Seeds of one setting of the grid, as Study takes them."""
        rates = self.chosen[tuple(setting[key] for key in self.keys)]
        place = rates.index(setting["learning_rate"]) if setting["learning_rate"] in rates else len(rates)
        return range(SEEDS[place])

    def settled(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows at the rate that was chosen, five seeds a setting."""
        rate = [self.chosen[values][0] for values in rows[list(self.keys)].itertuples(index=False, name=None)]
        return rows[rows["learning_rate"] == rate].reset_index(drop=True)

    def follows(self, rows: pd.DataFrame) -> bool:
        """Whether halving these rows chooses the rates that are written down here."""
        for values, rates in self.chosen.items():
            if len(rates) > 1:
                own = rows[(rows[list(self.keys)] == list(values)).all(axis=1)]
                two = best_rates(own[own["seed"] == 0])[:2]
                again = own[own["learning_rate"].isin(two) & (own["seed"] < 2)]
                if tuple(best_rates(again)) != rates:
                    return False
        return True


def best_rates(rows: pd.DataFrame) -> list[float]:
    """Rates from the best to the worst, by the mean score on validation."""
    return rows.groupby("learning_rate")["validation"].mean().sort_values(ascending=False).index.tolist()
