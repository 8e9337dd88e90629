"""Confidence intervals of means, paired differences and ratios (Efron and Tibshirani 1993, percentile method).

Resampling calls 0 of n and n of n certain. A mean of 0 or 1 in all problems, of scores in [0, 1], therefore has Wilson's interval (1927),
and what is made of such means alone has none.

Percentile intervals of few values are too narrow (Hesterberg 2015, The American Statistician 69): of normal values those at 95 % hold the
mean in 90 % of cases at 10 problems, 83 % at 5, 50 % at 2. Those of fewer than FEW are marked in every table.

Resampled are problems, not rows: two wordings of one problem, or its versions in two languages, are not independent observations. All
systems are resampled together, so a difference or ratio is paired. R resamples, G problems.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

RESAMPLES = 10_000
LEVEL = 95  # per cent
FEW = 10  # problems; below it less than 90 % of the intervals hold the mean

Stratum = tuple[Sequence[str], Mapping[str, Sequence[float]]]  # the problem of each of N points, {system: N scores}


@dataclass(frozen=True)
class Estimate:
    """A figure and its bootstrap draws [RESAMPLES]; `draws` is None where an interval makes no sense.

    `problems` is how many were drawn, the least of those of several means. `alike`: the figure is a mean of values that are all 0 or all 1.
    """

    value: float | None
    draws: np.ndarray | None
    problems: int
    alike: bool = False

    def as_dict(self) -> dict[str, Any]:
        """{"value", "low", "high"}; low and high are None without an interval. "few": True is there for an interval that is too narrow."""
        if self.draws is None:
            return {"value": self.value, "low": None, "high": None}
        if self.alike and self.value is not None:
            low, high = wilson(self.value * self.problems, self.problems)
            return {"value": self.value, "low": low, "high": high}
        low, high = np.nanpercentile(self.draws, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
        few = {"few": True} if self.problems < FEW else {}
        return {"value": self.value, "low": float(low), "high": float(high), **few}


def wilson(passed: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of `passed` of `n`, in [0, 1]."""
    z2 = NormalDist().inv_cdf((100 + LEVEL) / 200) ** 2
    centre, half = passed + z2 / 2, (z2 * (passed * (n - passed) / n + z2 / 4)) ** 0.5
    return max((centre - half) / (n + z2), 0.0), min((centre + half) / (n + z2), 1.0)


def bootstrap(strata: Mapping[str, Stratum], seed: str) -> dict[str, dict[str, Estimate]]:
    """{stratum: {system: mean}} with draws; the strata are languages, and a problem is drawn in all of them at once.

    `seed` is any text. A stratum of a single problem gets no interval; a draw that holds none of a stratum's problems is NaN there.
    """
    names = sorted({group for groups, _ in strata.values() for group in groups})
    place = {name: index for index, name in enumerate(names)}
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big"))
    times_RG = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES).astype(float)
    estimates: dict[str, dict[str, Estimate]] = {}
    for stratum, (groups, scores) in strata.items():
        member = np.array([place[group] for group in groups])
        rows_R = times_RG @ np.bincount(member, minlength=len(names))
        rows_R[rows_R == 0] = np.nan
        estimates[stratum] = {}
        for system, values in scores.items():
            sums_G = np.bincount(member, weights=np.asarray(values, dtype=float), minlength=len(names))
            problems = len(set(groups))
            draws = times_RG @ sums_G / rows_R if problems > 1 else None
            estimates[stratum][system] = Estimate(float(np.mean(values)), draws, problems, alike=set(values) in ({0}, {1}))
    return estimates


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of the strata (the languages), each with equal weight."""
    values, draws = [e.value for e in estimates if e.value is not None], [e.draws for e in estimates if e.draws is not None]
    complete = len(draws) == len(estimates)
    value, mean_draws = float(np.mean(values)), np.mean(draws, axis=0) if complete else None
    if all(e.alike for e in estimates) and len(set(values)) == 1:
        return Estimate(value, mean_draws, min(e.problems for e in estimates), alike=True)
    return _uncertain(value, mean_draws, *estimates)


def difference(of: Estimate, minus: Estimate) -> Estimate:
    """Paired difference of two means; no interval where both are 0 or 1 in all problems."""
    assert of.value is not None and minus.value is not None
    draws = None if of.draws is None or minus.draws is None else of.draws - minus.draws
    return _uncertain(of.value - minus.value, draws, of, minus)


def ratio(of: Estimate, to: Estimate) -> Estimate:
    """Paired ratio of two means; no value where the lower is 0, no interval where it is 0 in any draw, or where the upper is 0 in all."""
    assert of.value is not None and to.value is not None
    draws = of.draws / to.draws if of.draws is not None and to.draws is not None and np.nanmin(to.draws) > 0 else None
    return _uncertain(of.value / to.value if to.value > 0 else None, draws, of, to)


def _uncertain(value: float | None, draws: np.ndarray | None, *means: Estimate) -> Estimate:
    """Of the figure of some means: no interval where all draws agree because a mean is 0 or 1 in all problems, 0 - 0 for example."""
    certain = draws is not None and any(mean.alike for mean in means) and np.nanmax(draws) == np.nanmin(draws)
    return Estimate(value, None if certain else draws, min(mean.problems for mean in means))
