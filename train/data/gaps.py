"""Gaps for fill-in-the-middle (FIM): which rows get one, and where.

SantaCoder's transformation (arXiv:2301.03988): a row gets a gap with the probability `rate`; its two ends are drawn evenly from all places
between characters; the suffix comes first (SPM) with the probability `spm_rate`. What a row gets depends on the seed and its number
alone, so that a resumed run sees the same rows.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Gap:
    prefix: str
    middle: str
    suffix: str
    spm: bool


def draw_gaps(codes: Sequence[str], rate: float, spm_rate: float, seed: int, sentinels: Sequence[str]) -> list[Gap | None]:
    """A gap, or None, for each program; never for one that holds a sentinel, which could not be told from the marks of the gap."""
    gaps: list[Gap | None] = []
    for number, code in enumerate(codes):
        draw = random.Random(f"fim {seed} {number}")
        if draw.random() >= rate or any(sentinel in code for sentinel in sentinels):
            gaps.append(None)
            continue
        start, end = sorted(draw.randint(0, len(code)) for _ in range(2))
        gaps.append(Gap(code[:start], code[start:end], code[end:], spm=draw.random() < spm_rate))
    return gaps
