"""What the machine can do at best, measured beside what is compared with it: reading memory, fp32 FMA, products of bf16 and int8."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HUGE = 1 << 21  # bytes of a huge page
MADV_HUGEPAGE = 14
READ, FMA, BF16, VNNI = "memory read", "fp32 FMA", "bf16 vdpbf16ps", "int8 vpdpbusd"


@cache
def compiled() -> Any:
    """The functions of `probe.cpp`; raises what the build raises where there is no compiler."""
    from torch.utils.cpp_extension import load

    source = Path(__file__).with_name("probe.cpp")
    return load("moe_bench_probe", [str(source)], extra_cflags=["-O3", *(["-fopenmp"] if sys.platform == "linux" else [])])


def make_buffer(size: int) -> Tensor:
    """`size` bytes that begin at a huge page, in huge pages where the system gives them on request."""
    memory = torch.empty(size + HUGE, dtype=torch.uint8)
    buffer = memory[-memory.data_ptr() % HUGE :][:size]
    if sys.platform == "linux":
        ctypes.CDLL(None).madvise(ctypes.c_void_p(buffer.data_ptr()), ctypes.c_size_t(size), MADV_HUGEPAGE)
    return buffer.fill_(1)


class Probe:
    """`runs`: what is to be timed; `amount`: the bytes or operations that one such run takes."""

    def __init__(self, threads: int, size: int = 1 << 29, turns: int = 4_000_000) -> None:
        self.runs: dict[str, Callable[[], Any]] = {}
        self.amount: dict[str, float] = {}
        module, buffer = compiled(), make_buffer(size)
        for streams in (1, 2, 4, 8):
            self._add(f"{READ}, {streams} streams", size, partial(module.read, buffer, streams, threads))
        for name, kernels in ((FMA, ("fma256", "fma512")), (BF16, ("bf16512",)), (VNNI, ("vnni256", "vnni512"))):
            for kernel in kernels:
                if module.supports(kernel):
                    count = module.compute(kernel, 1, threads) * turns
                    self._add(f"{name} {kernel[-3:]}", count, partial(module.compute, kernel, turns, threads))

    def _add(self, name: str, amount: float, run: Callable[[], Any]) -> None:
        self.runs[name] = run
        self.amount[name] = amount

    def best(self, medians: dict[str, float], kind: str) -> float | None:
        """Bytes or operations a second of the fastest variant of `kind`; None if the machine has none."""
        rates = [self.amount[name] / medians[name] for name in self.runs if name.startswith(kind) and name in medians]
        return max(rates, default=None)
