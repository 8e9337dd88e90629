"""The layer that `benchmarks.cpu` times: its sizes, weights, inputs and right answers.

T tokens, K experts per token, E experts, D model width, F expert hidden width.
"""

import os
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from benchmarks.routings import uniform
from moe_kernels.nf4 import NF4Weight, dequantize_nf4, quantize_nf4
from moe_kernels.nf4_format import NF4
from moe_kernels.routing import Routing

E, K = 4, 2
D = int(os.environ.get("MOE_BENCH_WIDTH", "4096"))  # smaller ones try the harness; Q4_K needs multiples of 256
F = int(os.environ.get("MOE_BENCH_HIDDEN", "14336"))
THREADS = int(os.environ.get("MOE_BENCH_THREADS", "2"))


@dataclass(eq=False)
class Weights:
    """The same matrices in bf16 and NF4: `gate_up` [E, 2F, D] with gate above up, `down` [E, D, F], values N(0, 0.02)."""

    gate_up: Tensor = field(default_factory=lambda: normal(1, E, 2 * F, D))
    down: Tensor = field(default_factory=lambda: normal(2, E, D, F))

    @cached_property
    def nf4(self) -> tuple[NF4Weight, NF4Weight]:
        return quantize_nf4(self.gate_up), quantize_nf4(self.down)

    def expert(self, e: int) -> tuple[Tensor, Tensor, Tensor]:
        """Gate [F, D], up [F, D] and down [D, F] of an expert, in bf16."""
        gate, up = self.gate_up[e].chunk(2)
        return gate, up, self.down[e]


def normal(seed: int, *shape: int) -> Tensor:
    """N(0, 0.02) in bf16. Made in pieces: in fp32 at once it would be the largest tensor of the run."""
    draw = torch.Generator().manual_seed(seed)
    made = torch.empty(shape, dtype=torch.bfloat16)
    for piece in made.flatten(0, -2).split(4096):
        piece.copy_(torch.randn(piece.shape, generator=draw) * 0.02)
    return made


@dataclass(eq=False)
class Problem:
    """One call: `x` [T, D] fp32 N(0, 1), the routing, and the weights. `expected` is y [T, D] in fp32 on the weights of its name."""

    weights: Weights
    x: Tensor
    routing: Routing
    expected: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return len(self.x)

    @property
    def pairs_of_expert(self) -> list[tuple[int, Tensor, Tensor]]:
        """(expert, its tokens, their weights [n, 1]) of the experts with tokens."""
        found = []
        for e in range(E):
            tokens, slots = (self.routing.experts_TK == e).nonzero(as_tuple=True)
            if len(tokens):
                found.append((e, tokens, self.routing.weights_TK[tokens, slots][:, None]))
        return found

    @property
    def operations(self) -> int:
        """Multiplications and additions of the matrix products."""
        return 2 * self.tokens * K * 3 * D * F

    @property
    def nf4_bytes(self) -> float:
        """What reading the weights of the experts with tokens once takes, in NF4."""
        return len(self.pairs_of_expert) * 3 * D * F * NF4.bits / 8

    def error(self, y: Tensor, of: str) -> float:
        """Relative L2 distance of `y` from the right answer on the `of` weights, "nf4" or "dense"."""
        expected = self.expected[of]
        return float((y.float().view_as(expected) - expected).norm() / expected.norm())


def make_problem(weights: Weights, tokens: int, seed: int | None = None) -> Problem:
    """Inputs of `tokens` tokens, drawn from `seed` (default: `tokens`), with their right answers."""
    draw = torch.Generator().manual_seed(tokens if seed is None else seed)
    x = torch.randn(tokens, D, generator=draw)
    gates = torch.rand(tokens, K, generator=draw) + 0.5
    experts = torch.tensor(uniform(tokens, E, K))
    routing = Routing(gates / gates.sum(1, keepdim=True), experts, None, None, None)  # type: ignore[arg-type]
    problem = Problem(weights, x, routing)
    problem.expected = {of: reference(problem, of) for of in ("nf4", "dense")}
    return problem


def reference(problem: Problem, of: str) -> Tensor:
    """The layer in fp32, expert by expert and in blocks of rows, so that little of it is there in fp32 at a time."""
    gate_up, down = problem.weights.nf4 if of == "nf4" else (problem.weights.gate_up, problem.weights.down)
    y = torch.zeros_like(problem.x)
    for e, tokens, gates in problem.pairs_of_expert:
        gate, up = _product(problem.x[tokens], gate_up, e).chunk(2, dim=1)
        y.index_add_(0, tokens, _product(silu(gate) * up, down, e) * gates)
    return y


def _product(x: Tensor, stack: NF4Weight | Tensor, e: int) -> Tensor:
    dense = dequantize_nf4(stack.expert(e)) if isinstance(stack, NF4Weight) else stack[e]
    bounds = [*range(0, len(dense), 2048), len(dense)]
    return torch.cat([linear(x, dense[begin:end].float()) for begin, end in pairwise(bounds)], dim=1)
