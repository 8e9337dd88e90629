"""4-bit NormalFloat weights, byte for byte as bitsandbytes stores them (Dettmers et al. 2023, arXiv:2305.14314).

A weight is read in row-major order, n values in blocks of 64. A value is one of 16 levels times the largest magnitude of
its block (`absmax`); values 2j and 2j+1 share byte j, the even one in the high nibble. The absmax are 8-bit themselves
("double quantisation"), in groups of 256 blocks:

    absmax[i] = DYNAMIC[absmax8[i]] * nested_absmax[i // 256] + nested_offset          in fp32, two roundings
    w[j]      = LEVELS[nibble j] * absmax[j // 64]                                     in fp32, then cast

That is 4.127 bits a value. Reading needs torch alone. Writing is bitsandbytes' own code, or on the CPU the C++ extension, which makes
the same bytes.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import backend
from .nf4_format import NF4, dtype_name, dynamic_map, level_pairs
from .nf4_weight import NF4Weight, from_bitsandbytes, to_bitsandbytes

__all__ = [
    "DTYPES",
    "NF4Weight",
    "dequantize_absmax",
    "dequantize_nf4",
    "dequantize_nf4_reference",
    "from_bitsandbytes",
    "quantize_nf4",
    "quantize_nf4_parts",
    "to_bitsandbytes",
]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_CHUNK = 1 << 22  # values quantised at a time: bitsandbytes' CPU code takes some 20 bytes of scratch a value


def quantize_nf4(weight: Tensor, *, nested_offset: float | None = None) -> NF4Weight:
    """`weight` (bf16, fp16 or fp32, any shape, either device) in NF4 with nested absmax, rounded as bitsandbytes does.

    `nested_offset` replaces the mean of the absmax, so that the weight can stand beside others in one stack.
    Needs the bitsandbytes package, but not on the CPU where the C++ extension is built. Scratch memory is small whatever the size.
    `ValueError` for another dtype, no values, or one that is NaN or infinite.
    """
    return quantize_nf4_parts([weight], tuple(weight.shape), nested_offset=nested_offset)


def quantize_nf4_parts(parts: Iterable[Tensor], shape: tuple[int, ...], *, nested_offset: float | None = None) -> NF4Weight:
    """`quantize_nf4` of the weight of `shape` whose values in row-major order are those of `parts`, which is never whole in memory.

    Blocks do not depend on each other; only the second quantisation, of their absmax, needs all of them. Memory: the result, its absmax
    in fp32, and two parts. `ValueError` also if the parts have another number of values than `shape`, or are of several dtypes.
    """
    values = math.prod(shape)
    dtype, done = None, 0
    packed, absmax = torch.empty(0), []
    for part in _whole_blocks(parts):
        if dtype is None:
            dtype, packed = part.dtype, torch.empty((values + 1) // 2, 1, dtype=torch.uint8, device=part.device)
        begin, done = done, done + part.numel()
        if part.dtype not in DTYPES:
            raise ValueError(f"NF4 is made from bfloat16, float16 or float32, not {dtype_name(part.dtype)}")
        if part.dtype != dtype or done > values:
            raise ValueError(f"a part of {dtype_name(part.dtype)} ends at value {done}; the weight of shape {shape} is {dtype_name(dtype)}")
        packed[begin // 2 : (done + 1) // 2], part_absmax = _quantize_blocks(part)
        # A NaN would be spread over the whole weight by the mean of the absmax; bitsandbytes' kernel on CUDA has absmax without it.
        extremes = part_absmax if backend.runs_cpp(part) else torch.stack(part.aminmax())
        if not extremes.isfinite().all():
            place = int(part.isfinite().logical_not().nonzero()[0])
            raise ValueError(f"value {begin + place} of a weight of shape {shape} is {part[place].item()}")
        absmax.append(part_absmax)
    if not done or dtype is None:
        raise ValueError(f"a weight of shape {shape} has no values to quantise")
    if done != values:
        raise ValueError(f"the parts have {done} values; a weight of shape {shape} has {values}")
    absmax8, nested_absmax, offset = _quantize_absmax(torch.cat(absmax), nested_offset)
    return NF4Weight(packed, absmax8, nested_absmax, offset.item(), shape, dtype)


def _whole_blocks(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same values, flat, in parts of whole blocks; only the last may end within one."""
    rest: Tensor | None = None
    for part in parts:
        flat = part.detach().reshape(-1)
        flat = flat if rest is None else torch.cat([rest, flat])
        whole = flat.numel() // NF4.block * NF4.block
        rest = flat[whole:].clone() if whole < flat.numel() else None
        if whole:
            yield flat[:whole]
    if rest is not None:
        yield rest


def _quantize_blocks(flat: Tensor) -> tuple[Tensor, Tensor]:
    """The bytes [ceil(n/2), 1] and the fp32 absmax [ceil(n/64)] of n values."""
    if backend.runs_cpp(flat):
        return torch.ops.moe_kernels.quantize_nf4_blocks(flat.contiguous())
    _import_bitsandbytes()
    pieces = [torch.ops.bitsandbytes.quantize_4bit(piece, NF4.block, NF4.quant_type, torch.uint8) for piece in flat.split(_CHUNK)]
    return torch.cat([packed for packed, _ in pieces]), torch.cat([absmax for _, absmax in pieces])


def _quantize_absmax(absmax: Tensor, nested_offset: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """(8-bit absmax, nested absmax, offset)."""
    if backend.runs_cpp(absmax):
        return torch.ops.moe_kernels.quantize_absmax(absmax, dynamic_map(), nested_offset)
    quantize_blockwise = _import_bitsandbytes().functional.quantize_blockwise
    offset = absmax.mean() if nested_offset is None else absmax.new_tensor(nested_offset)
    absmax8, nested = quantize_blockwise(absmax - offset, blocksize=NF4.nested_block)
    return absmax8, nested.absmax, offset


def _import_bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ModuleNotFoundError as error:
        remedies = "the C++ extension and a weight on the CPU (pip install . with a C++ compiler), or pip install bitsandbytes"
        raise ModuleNotFoundError(f"quantising to NF4 needs {remedies}", name=error.name) from error
    return bitsandbytes


def dequantize_nf4(q: NF4Weight, dtype: torch.dtype | None = None) -> Tensor:
    """The values of `q` as a tensor of its shape in `dtype` (default: its own), bit-equal to bitsandbytes."""
    dtype = q.dtype if dtype is None else dtype
    if backend.traced(q.packed):
        tables = (q.packed, q.absmax, q.nested_absmax)
        return torch.ops.moe_kernels.dequantize(*tables, q.nested_offset, q.first_block, q.shape, dtype)
    return _dequantize(q, dtype)


def _dequantize(q: NF4Weight, dtype: torch.dtype) -> Tensor:
    running = backend.active(q.device.type)
    if running == "triton" and dtype in backend.KERNEL_DTYPES:
        from .dequant import dequantize  # needs the package triton

        return dequantize(q, dtype)
    if q.device.type == "cpu" and running == "cpp":
        tables = (q.packed, q.absmax, q.nested_absmax, dynamic_map())
        return torch.ops.moe_kernels.dequantize_nf4(*tables, q.nested_offset, q.shape, dtype, q.first_block)
    return dequantize_nf4_reference(q, dtype)


@torch.library.custom_op("moe_kernels::dequantize", mutates_args=())
def dequantize_op(
    packed: Tensor, absmax: Tensor, nested_absmax: Tensor, nested_offset: float, first_block: int, shape: list[int], dtype: torch.dtype
) -> Tensor:
    return _dequantize(NF4Weight(packed, absmax, nested_absmax, nested_offset, tuple(shape), dtype, first_block), dtype)


@dequantize_op.register_fake
def _dequantize_fake(packed, absmax, nested_absmax, nested_offset, first_block, shape, dtype):
    return packed.new_empty(shape, dtype=dtype)


def dequantize_nf4_reference(q: NF4Weight, dtype: torch.dtype) -> Tensor:
    """The formula at the head of this file."""
    values = math.prod(q.shape)
    levels = level_pairs(q.device).index_select(0, q.packed.reshape(-1).int())  # [bytes, 2]
    absmax = dequantize_absmax(q)
    missing = absmax.numel() * NF4.block - levels.numel()
    if missing > 0:
        levels = torch.nn.functional.pad(levels.view(-1), (0, missing))
    return (levels.view(-1, NF4.block) * absmax[:, None]).view(-1)[:values].view(q.shape).to(dtype)


def dequantize_absmax(q: NF4Weight) -> Tensor:
    """The absmax of every block, fp32 [ceil(n/64)]."""
    absmax = dynamic_map().to(q.device).index_select(0, q.absmax.int())
    group = (torch.arange(absmax.numel(), device=q.device) + q.first_block) // NF4.nested_block
    return absmax * q.nested_absmax[group] + q.nested_offset
