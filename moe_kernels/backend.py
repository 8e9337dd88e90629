"""Which implementation of an operator runs on the CPU: `reference` (plain torch) or `cpp` (the extension of `csrc/`).

The choice is made once, at the first operator that has both: `cpp` if the extension was built, else `reference`.
"""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

NAMES = ("reference", "cpp")
_chosen: str | None = None


def active() -> str:
    """The implementation in force."""
    global _chosen
    if _chosen is None:
        problem = extension_problem()
        _chosen = "reference" if problem else "cpp"
        if problem:
            logging.getLogger("moe_kernels").warning("moe_kernels: %s; the reference operators run", problem)
    return _chosen


@contextmanager
def use(name: str) -> Iterator[None]:
    """Puts `name` in force within the block (tests and benchmarks compare implementations so)."""
    global _chosen
    if name not in NAMES:
        raise ValueError(f"unknown implementation {name!r}; known: {', '.join(NAMES)}")
    if name == "cpp" and (problem := extension_problem()):
        raise ValueError(problem)
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


@lru_cache
def extension_problem() -> str:
    """Loads the extension's operators into `torch.ops.moe_kernels`; returns why that fails, or the empty string."""
    spec = importlib.util.find_spec("moe_kernels._C")
    if spec is None or spec.origin is None:
        return "the C++ extension is not built"
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:  # as after another torch was installed
        return f"the C++ extension does not load and needs a rebuild ({error})"
    torch.library.register_fake("moe_kernels::dequantize_nf4", _dequantize_nf4_fake)
    return ""


def _dequantize_nf4_fake(packed, absmax, nested_absmax, dynamic_map, nested_offset, shape, dtype, first_block):
    return packed.new_empty(shape, dtype=dtype)
