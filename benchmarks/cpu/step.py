"""A training step of the layer on a CPU: forward and backward to x and the router's weights, the matrices frozen in NF4."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks.cpu.contender import EXACT, EXACT_BF16
from benchmarks.cpu.layer import Bench, first_line, row
from benchmarks.cpu.problem import Problem, make_problem
from benchmarks.cpu.targets import IS_FULL_SIZE, STEP, Verdict
from benchmarks.cpu.timing import measure
from benchmarks.cpu.torch_peers import bitsandbytes, bnb_states, by_expert
from benchmarks.gpu_peers import Frozen
from moe_kernels.experts import moe_dense

DEQUANTISE = "bitsandbytes fp32, dequantise and multiply"
FOUR_BIT = "bitsandbytes fp32, MatMul4Bit"
FOUR_BIT_BF16 = "bitsandbytes bf16, MatMul4Bit"


def dequantise_loop(bench: Bench, problem: Problem) -> Callable[[], Tensor]:
    """`dequantize_4bit` and a dense product for each matrix, again in backward: nothing dequantised is kept."""
    functional = import_module("bitsandbytes.functional")
    states = bnb_states(bench.weights)
    for _, state in (pair for stack in states for pair in stack):
        state.dtype = torch.float32

    def product(rows: Tensor, which: int, e: int) -> Tensor:
        y: Tensor = Frozen.apply(rows, lambda: functional.dequantize_4bit(*states[which][e]))
        return y

    return partial(by_expert, problem, product)


def run_step(bench: Bench, tokens: int) -> dict[str, Any]:
    """Measures a step of T tokens, added to the run's; an error is the distance from bitsandbytes' gradients."""
    problem = make_problem(bench.weights, tokens)
    problem.x.requires_grad_()
    problem.routing = replace(problem.routing, weights_TK=problem.routing.weights_TK.clone().requires_grad_())
    leaves = [problem.x, problem.routing.weights_TK]
    dy = torch.randn(problem.x.shape, generator=torch.Generator().manual_seed(3))
    forwards: dict[str, Callable[[], Tensor]] = {
        DEQUANTISE: dequantise_loop(bench, problem),
        EXACT: partial(moe_dense, problem.x, problem.routing, *bench.weights.nf4),
        EXACT_BF16: lambda: moe_dense(problem.x.bfloat16(), problem.routing, *bench.weights.nf4).float(),
        FOUR_BIT: bitsandbytes(torch.float32, bench.weights)(problem),
        FOUR_BIT_BF16: bitsandbytes(torch.bfloat16, bench.weights)(problem),
    }
    runs: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
    errors: dict[str, float] = {}
    expected: tuple[Tensor, ...] = ()
    for name, forward in forwards.items():
        run = partial(step, forward, leaves, dy)
        try:
            found = run()
        except Exception as error:
            bench.left_out.setdefault(f"{name} (step)", first_line(error))
            continue
        expected = expected or found
        runs[name] = run
        errors[name] = max(float((f - e).norm() / e.norm()) for f, e in zip(found, expected, strict=True))
    times = measure(runs, bench.seconds)
    medians = times.medians
    peers = [medians[name] for name in (DEQUANTISE, FOUR_BIT) if name in medians]
    found_ratio = medians[EXACT] / min(peers) if peers and EXACT in medians else None
    ratio_bf16 = medians[EXACT_BF16] / medians[FOUR_BIT_BF16] if {EXACT_BF16, FOUR_BIT_BF16} <= medians.keys() else None
    target = STEP if IS_FULL_SIZE else None
    point = {
        "tokens": tokens,
        "rounds": len(times.rounds),
        "counted": len(times.counted),
        "rows": [row(times, name) | {"error": errors[name]} for name in runs],
        "verdicts": [
            Verdict(f"step: {EXACT} / bitsandbytes NF4 fp32", found_ratio, target),
            Verdict(f"step: {EXACT_BF16} / bitsandbytes NF4 bf16", ratio_bf16, target),
        ],
    }
    bench.steps.append(point)
    return point


def step(forward: Callable[[], Tensor], leaves: list[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(forward(), leaves, dy)


def show(point: dict[str, Any]) -> str:
    lines = [f"\ntraining step, T = {point['tokens']}: forward, dX and the router's gradient; error: distance from bitsandbytes' fp32"]
    for found in sorted(point["rows"], key=lambda found: found["median_ms"]):
        lines.append(f"  {found['name']:46}{found['median_ms']:11.2f}{found['min_ms']:10.2f} ms   error {found['error']:.1e}")
    return "\n".join([*lines, *map(str, point["verdicts"])])
