"""Confidence intervals of means, paired differences and ratios (Efron and Tibshirani 1993, percentile method).

Resampled are problem groups, not rows: two wordings of one problem are not two independent observations. All systems are resampled
together, so a difference or ratio is paired.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
LEVEL = 95  # per cent


@dataclass(frozen=True)
class Estimate:
    """A figure and its bootstrap draws [RESAMPLES]; `draws` is None where an interval makes no sense."""

    value: float | None
    draws: np.ndarray | None

    def as_dict(self) -> dict[str, Any]:
        """{"value", "low", "high"}; low and high are None without an interval."""
        if self.draws is None:
            return {"value": self.value, "low": None, "high": None}
        low, high = np.percentile(self.draws, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
        return {"value": self.value, "low": float(low), "high": float(high)}


def bootstrap(scores: Mapping[str, Sequence[float]], groups: Sequence[str], stratum: str) -> dict[str, Estimate]:
    """The mean of each system's scores (N each, the same N points in the same order), `groups` naming each point's problem.

    `stratum` (such as "0/cpp/wording") seeds the resampling. A single group gives no interval.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(member)
    seed = int.from_bytes(hashlib.sha256(stratum.encode()).digest()[:8], "big")
    drawn = np.random.default_rng(seed).integers(len(names), size=(RESAMPLES, len(names)))
    estimates = {}
    for system, values in scores.items():
        sums = np.bincount(member, weights=np.asarray(values, dtype=float))
        draws = sums[drawn].sum(1) / sizes[drawn].sum(1) if len(names) > 1 else None
        estimates[system] = Estimate(float(np.mean(values)), draws)
    return estimates


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent strata (the languages), each with equal weight."""
    values, draws = [e.value for e in estimates if e.value is not None], [e.draws for e in estimates if e.draws is not None]
    complete = len(draws) == len(estimates)
    return Estimate(float(np.mean(values)), np.mean(draws, axis=0) if complete else None)


def difference(of: Estimate, minus: Estimate) -> Estimate:
    """Paired difference of two means."""
    assert of.value is not None and minus.value is not None
    draws = None if of.draws is None or minus.draws is None else of.draws - minus.draws
    return Estimate(of.value - minus.value, draws)


def ratio(of: Estimate, to: Estimate) -> Estimate:
    """Paired ratio of two means; no value where the lower is 0, no interval where it is 0 in any draw."""
    assert of.value is not None and to.value is not None
    draws = of.draws / to.draws if of.draws is not None and to.draws is not None and to.draws.min() > 0 else None
    return Estimate(of.value / to.value if to.value > 0 else None, draws)
