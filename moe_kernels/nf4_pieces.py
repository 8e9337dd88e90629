"""NF4 of a weight that is never in memory as a whole: given piece by piece, with the bytes that it would have at once.

Levels and bytes belong to single blocks of 64 values, but the offset of the absmax is the mean over all blocks of the weight, so
absmax wait in fp32 (half a bit a value) until the last piece is there.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from . import backend
from .nf4 import NF4Weight, quantize_blocks, quantize_nf4
from .nf4_format import NF4

_SMALLEST = 1e-38  # what bitsandbytes raises the absmax of a last block to that is not whole


def quantize_nf4_pieces(pieces: Iterable[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> NF4Weight:
    """`quantize_nf4` of the weight of `shape` and `dtype` (on the CPU) whose values in row-major order are `pieces`, one after the other.

    Needs the bitsandbytes package. `ValueError` if the pieces do not fill the shape, or one is of another dtype.
    """
    from bitsandbytes.functional import quantize_blockwise

    values = math.prod(shape)
    packed, absmax = torch.empty((values + 1) // 2, 1, dtype=torch.uint8), torch.empty(-(-values // NF4.block))
    done = 0
    for piece in _whole_blocks(pieces):
        if piece.dtype != dtype or done + piece.numel() > values:
            raise ValueError(f"a piece of {piece.numel()} {piece.dtype} values after {done} does not fit a weight {shape} in {dtype}")
        bytes_, scales = _packed_and_absmax(piece)
        packed[done // 2 : done // 2 + len(bytes_)] = bytes_
        absmax[done // NF4.block : done // NF4.block + len(scales)] = scales
        done += piece.numel()
    if done != values:
        raise ValueError(f"the pieces hold {done} values, but a weight of shape {shape} has {values}")
    offset = _mean(absmax)
    absmax8, nested = quantize_blockwise(absmax - offset, blocksize=NF4.nested_block)
    return NF4Weight(packed, absmax8, nested.absmax, offset.item(), shape, dtype)


def _whole_blocks(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same values, flat, in pieces of whole blocks; only the last may end within one."""
    rest: Tensor | None = None
    for piece in pieces:
        flat = piece.reshape(-1) if rest is None else torch.cat([rest, piece.reshape(-1)])
        whole = flat.numel() // NF4.block * NF4.block
        rest = flat[whole:].clone() if whole < flat.numel() else None
        if whole:
            yield flat[:whole]
    if rest is not None:
        yield rest


def _packed_and_absmax(flat: Tensor) -> tuple[Tensor, Tensor]:
    """(packed bytes [ceil(n/2), 1], fp32 absmax [ceil(n/64)]) of n values that begin at a block."""
    if not backend.runs_cpp(flat):
        return quantize_blocks(flat)
    missing = -flat.numel() % NF4.block  # the operator keeps its absmax to itself, so they are found once more
    absmax = torch.nn.functional.pad(flat, (0, missing)).view(-1, NF4.block).abs().amax(dim=1).float()
    if missing:
        absmax[-1].clamp_(min=_SMALLEST)
    return quantize_nf4(flat).packed, absmax


def _mean(absmax: Tensor) -> Tensor:
    """On one thread, as the operator takes it: at so many values the last bit depends on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return absmax.mean()
    finally:
        torch.set_num_threads(threads)
