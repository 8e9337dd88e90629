"""Whole programs and snippets in one set of rows, in given shares."""

import math
import random
from typing import TypeVar

from .sources import LEVELS

Row = TypeVar("Row")


def parse_levels(text: str) -> dict[str, float]:
    """The share of each level in "program", or "program:0.7,snippet:0.3" (any positive weights); `ValueError` otherwise."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        level, _, weight = part.strip().partition(":")
        try:
            value = float(weight) if weight or ":" in part else 1.0
        except ValueError:
            value = math.nan
        if level not in LEVELS or level in weights or not 0 < value < math.inf:
            raise ValueError(f"--level {text!r}: {part.strip()!r} must be one of {', '.join(LEVELS)}, each once, with a weight above 0")
        weights[level] = value
    return {level: weight / sum(weights.values()) for level, weight in weights.items()}


def mix(rows: dict[str, list[Row]], shares: dict[str, float], limit: int | None, seed: int) -> dict[str, list[Row]]:
    """The most rows (at most `limit`) that can be had of each level so that their numbers are as `shares`, within one row, and none is
    repeated. Which they are is drawn with `seed`; with one level they are the first.
    """
    total = min(math.floor(len(rows[level]) / share + 1e-9) for level, share in shares.items())
    total = total if limit is None else min(total, limit)
    if len(shares) == 1:
        return {level: rows[level][:total] for level in shares}
    counts = {level: math.floor(share * total + 1e-9) for level, share in shares.items()}
    for level in sorted(shares, key=lambda level: counts[level] - shares[level] * total)[: total - sum(counts.values())]:
        counts[level] += 1
    return {level: random.Random(f"mix {seed} {level}").sample(rows[level], count) for level, count in counts.items()}
