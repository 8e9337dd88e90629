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
        _chosen = "cpp" if extension_loaded() else "reference"
        if _chosen == "reference":
            logging.getLogger("moe_kernels").warning("moe_kernels: the C++ extension is not built; the reference operators run")
    return _chosen


@contextmanager
def use(name: str) -> Iterator[None]:
    """Puts `name` in force within the block (tests and benchmarks compare implementations so)."""
    global _chosen
    if name not in NAMES:
        raise ValueError(f"unknown implementation {name!r}; known: {', '.join(NAMES)}")
    if name == "cpp" and not extension_loaded():
        raise ValueError("the C++ extension is not built")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


@lru_cache
def extension_loaded() -> bool:
    """Loads the extension's operators into `torch.ops.moe_kernels`; False if it was not built."""
    spec = importlib.util.find_spec("moe_kernels._C")
    if spec is None or spec.origin is None:
        return False
    torch.ops.load_library(spec.origin)
    torch.library.register_fake("moe_kernels::dequantize_nf4", _dequantize_nf4_fake)
    return True


def _dequantize_nf4_fake(packed, absmax, nested_absmax, dynamic_map, nested_offset, shape, dtype, first_block):
    return packed.new_empty(shape, dtype=dtype)
