"""This machine's CPU as a card: what it reads, multiplies and dequantises a second, measured in about a second."""

import os
import time
from collections.abc import Callable

import torch

from .cards import Card
from .linear import linear_nf4
from .nf4 import NF4Weight, dequantize_nf4
from .nf4_format import NF4

_SIDE = 1024  # of the matrices that are multiplied
_READ = 1 << 27  # bytes: more than caches hold
_CALL = 10e-6  # s that eager PyTorch needs for an operation with its backward; assumed


def measure_cpu(*, decoding: bool) -> Card:
    """The card. `decoding`: `dram_share` is what products of one token with NF4 weights reach of the speed at which memory is read; else
    it is 1, and how fast NF4 is dequantised is measured.
    """
    ones = torch.ones(_READ // 4)
    dram = _READ / _best(lambda: ones.sum())
    bf16, fp32 = _product_rate(torch.bfloat16), _product_rate(torch.float32)
    weight, x = _weight(32 * _SIDE if decoding else 4 * _SIDE, _SIDE), torch.ones(1, _SIDE)
    share, values = 1.0, float("inf")
    if decoding:
        share = min(1.0, weight.nbytes / _best(lambda: linear_nf4(x, weight)) / dram)
    else:
        values = 4 * _SIDE**2 / _best(lambda: dequantize_nf4(weight, torch.float32))
    memory = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return Card("cpu", 0, memory, dram, bf16, gemm_fp32=fp32, dram_share=share, launch=_CALL, host_launch=0.0, dequantise=values)


def _product_rate(dtype: torch.dtype) -> float:
    """FLOP/s."""
    ones = torch.ones(_SIDE, _SIDE, dtype=dtype)
    return 2 * _SIDE**3 / _best(lambda: ones @ ones)


def _weight(rows: int, columns: int) -> NF4Weight:
    """Of random bytes: their values do not matter."""
    blocks = rows * columns // NF4.block
    packed, absmax = torch.randint(0, 256, (rows * columns // 2, 1), dtype=torch.uint8), torch.randint(0, 256, (blocks,), dtype=torch.uint8)
    return NF4Weight(packed, absmax, torch.ones(-(-blocks // NF4.nested_block)), 0.0, (rows, columns), torch.float32)


def _best(run: Callable[[], object], times: int = 4) -> float:
    """Seconds of the fastest of several calls."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return min(found)
