"""What is timed: an implementation of the layer, or the reason why it is not there."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.cpu.problem import Problem, Weights

EXACT, EXACT_BF16, INT8 = "ours exact", "ours exact, bf16", "ours int8"  # activations in fp32, in bf16, in fp32
BEST, DENSE, BNB, INFO = "best 4-bit peer", "transformers fp32", "bitsandbytes NF4", ""  # what a peer is measured against as


class Missing(Exception):
    """A peer that is not installed or not for this machine, and why."""


@dataclass(frozen=True)
class Contender:
    """`make` converts the weights, once; what it returns prepares a problem, and that is the call to be timed. The call's value becomes y
    [T, D] by `result`. `weights` says which right answer it must meet, within `bound` of relative L2 distance."""

    name: str
    make: Callable[[Weights], Callable[[Problem], Callable[[], Any]]]
    weights: str = "dense"  # quantised by itself from the bf16 weights; "nf4": of ours
    bound: float = 0.25  # the 4-bit formats are 0.13 to 0.20 away; a wrong routing or a wrong half is 0.5 and more
    kind: str = INFO
    tokens: tuple[int, int] = (1, 1 << 30)  # the first and last T for which it is timed: a format that is not the peer's best is left out
    result: Callable[[Any], Tensor] = lambda y: y

    def wanted(self, tokens: int) -> bool:
        return "MOE_BENCH_ALL" in os.environ or self.tokens[0] <= tokens <= self.tokens[1]
