"""Paired tests of claims that one system is better than another. G problems.

Sign-flip permutation test (Fisher 1935; for language models Dror et al. 2018, ACL): if two systems are alike, each problem's difference
could as well have the other sign. Problems are flipped whole, as in `bootstrap`: their rows are not independent observations.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

FLIPS = 10_000


def paired_test(differences: Mapping[str, float], seed: str) -> float | None:
    """Two-sided p-value of the sum of {problem: its share of the difference}; None for a single problem, which has no test.

    From `FLIPS` random flips, the observed one counted too: never below 1 / (FLIPS + 1).
    """
    if len(differences) < 2:
        return None
    values_G = np.array([differences[problem] for problem in sorted(differences)])
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big"))
    sums = rng.choice((-1.0, 1.0), size=(FLIPS, len(values_G))) @ values_G
    observed = abs(values_G.sum())
    as_extreme = np.abs(sums) >= observed * (1 - 1e-9)  # equal sums in another order differ in their last bits
    return float((1 + as_extreme.sum()) / (FLIPS + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being so many (Holm 1979), each at least its own."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
