"""Tensors in blocks, on all cores: a merge's arithmetic is small for its bytes, so what it touches should stay in the cache."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
BLOCK = 1 << 17  # entries that are combined at a time; four models' in fp32 fit a second-level cache
PIECE = 1 << 20  # entries that are summed or counted at a time
Run = Callable[[Callable[[Any], Any], list[slice]], Iterator[Any]]  # `map`, or that of an executor
Some = slice | Tensor  # rows of a tensor, by a slice or by their numbers
Rows = Callable[[Some], Tensor]  # a tensor that is made when it is looked at: some rows of it
_thread = threading.local()


def blocks(shape: torch.Size | tuple[int, ...]) -> list[slice]:
    """Slices of the first dimension that hold about `BLOCK` entries each."""
    return _slices(shape[0], max(1, BLOCK * shape[0] // max(1, torch.Size(shape).numel())))


def pieces(entries: int) -> list[slice]:
    """Slices of `PIECE` entries of a flat tensor."""
    return _slices(entries, PIECE)


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """The precision in which tensors of `dtype` are added up: fp32, or their own if that is fp64."""
    return torch.promote_types(dtype, torch.float32)


def scratch_copies(*tensors: Tensor) -> list[Tensor]:
    """Copies in fp32 (of fp64: in fp64) of a piece of each flat tensor, in memory of this thread that the next call takes again.

    New pages would cost more than the arithmetic.
    """
    dtype = at_least_fp32(tensors[0].dtype)
    buffers = _thread.__dict__.setdefault(str(dtype), [])
    buffers += [torch.empty(PIECE, dtype=dtype) for _ in tensors[len(buffers) :]]
    return [buffer[: len(tensor)].copy_(tensor) for buffer, tensor in zip(buffers, tensors, strict=False)]


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


@contextmanager
def several_cores() -> Iterator[Run]:
    """Yields a `map` over as many threads as torch was to use; meanwhile torch itself uses one in each thread.

    Its own division of every operation waits at the end of each, and would let the order of a sum depend on the number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that start take it over
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, the next of which is made in another thread while the caller is at the one before."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item
