"""Tiny kernels, good ones and ones with a defect that a check of cubins must see. As a script: compiles them, pickles {name: facts}.

A script of its own, because the tests may run under Triton's interpreter, whose kernels cannot be compiled.
"""

import pickle
import sys
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from moe_kernels.aot import build_of, compile_call, examine
from moe_kernels.launch import Call
from moe_kernels.shipped import OPERATIONS, Case, record
from moe_kernels.triton._nf4 import decode_levels


@triton.jit
def product(a_ptr, b_ptr, c_ptr, N: tl.constexpr, PRECISION: tl.constexpr):
    """c = a b of [N, N] matrices in one program."""
    n = tl.arange(0, N)
    place = n[:, None] * N + n[None, :]
    tl.store(c_ptr + place, tl.dot(tl.load(a_ptr + place), tl.load(b_ptr + place), input_precision=PRECISION))


@triton.jit
def row_sum(packed_ptr, out_ptr, steps, WORK: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of all levels: a decode kernel without its x; WORK useless integer operations a byte."""
    total = tl.zeros((BLOCK,), tl.float32)
    place = tl.arange(0, BLOCK)
    for step in range(steps):
        packed = tl.load(packed_ptr + step * BLOCK + place)
        for i in tl.static_range(WORK):
            packed = (packed ^ (packed >> 1)) + i
        even, odd = decode_levels(packed, False)
        total += even.to(tl.float32) + odd.to(tl.float32)
    tl.store(out_ptr + place, total)


@triton.jit
def where_sum(packed_ptr, out_ptr, steps, BLOCK: tl.constexpr):
    """`row_sum` by selects instead of the table: no lookup is to be found in it."""
    total = tl.zeros((BLOCK,), tl.float32)
    place = tl.arange(0, BLOCK)
    for step in range(steps):
        nibble = tl.load(packed_ptr + step * BLOCK + place) & 15
        level = tl.zeros((BLOCK,), tl.float32)
        for i in tl.static_range(16):
            level = tl.where(nibble == i, 0.1 * i * i, level)
        total += level
    tl.store(out_ptr + place, total)


def calls() -> dict[str, Call]:
    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def products(dtype: torch.dtype, n: int, warps: int, precision: str = "tf32", **options: int) -> Call:
        matrices = [empty(n, n, dtype=dtype) for _ in range(3)]
        return Call(product, (1,), tuple(matrices), {"N": n, "PRECISION": precision}, {"num_warps": warps, "num_stages": 1, **options})

    def sums(first: int, work: int) -> Call:
        packed = empty(1 << 20, dtype=torch.uint8)[first:]  # a first byte that is not 0 takes the alignment away
        out = empty(2048, dtype=torch.float32)
        return Call(row_sum, (1,), (packed, out, 100), {"WORK": work, "BLOCK": 2048}, {"num_warps": 4, "num_stages": 1})

    packed, out = empty(1 << 20, dtype=torch.uint8), empty(2048, dtype=torch.float32)
    return {
        "good product": products(torch.bfloat16, 64, 4),
        "spilling": products(torch.bfloat16, 128, 4, maxnreg=64),
        "no tensor cores": products(torch.float32, 32, 4, "ieee"),
        "good sum": sums(0, 0),
        "narrow loads": sums(1, 0),
        "too many integers": sums(0, 6),
        "selects": Call(where_sum, (1,), (packed, out, 100), {"BLOCK": 2048}, {"num_warps": 4, "num_stages": 1}),
    }


class NoDevice:
    """As much of Triton's driver as compiling for a launch asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 86, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def hashes() -> list[tuple[str, str, str]]:
    """(kernel, key in Triton's cache of what is compiled ahead of time, key of what a launch compiles); None arguments are among them."""
    triton.runtime.driver.set_active(NoDevice())
    recorded = [*calls().values(), *record(OPERATIONS["dense_inference"], Case(64), 86)]
    return [
        (
            call.kernel.__name__,
            compile_call(call, 86).hash,
            call.kernel.run(*call.args, grid=call.grid, warmup=True, **call.constants, **call.options).hash,
        )
        for call in recorded
    ]


if __name__ == "__main__":
    facts = {name: examine(build_of(call, 86)) for name, call in calls().items()}
    Path(sys.argv[1]).write_bytes(pickle.dumps((facts, hashes())))
