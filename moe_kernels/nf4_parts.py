"""NF4 of a weight that is never whole in memory: its values come in parts, one after the other.

Blocks of 64 values do not depend on each other, so a part of whole blocks has the bytes that it has within the whole weight. Only the
second quantisation, of the absmax, looks at all of them, and they are a 64th of the values.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from . import backend
from .nf4 import NF4Weight
from .nf4_format import NF4, dynamic_map


def quantize_nf4_parts(parts: Iterable[Tensor], shape: tuple[int, ...]) -> NF4Weight:
    """`quantize_nf4` of the weight of `shape` whose values in row-major order are those of `parts`; the same bytes.

    `ValueError` if a part is not a whole number of blocks of 64 values, or if the parts are not as many values as `shape`.
    Memory: the result, its absmax in fp32, and one part. Needs the bitsandbytes package where `quantize_nf4` does.
    """
    values = math.prod(shape)
    packed: Tensor | None = None
    absmax: list[Tensor] = []
    done, dtype = 0, torch.float32
    for part in parts:
        if part.numel() % NF4.block or done + part.numel() > values:
            raise ValueError(f"a part of {part.numel()} values after {done}: parts are whole blocks of {NF4.block}, {values} values in all")
        part_packed, part_absmax = _quantize_blocks(part.detach().reshape(-1))
        if packed is None:
            packed, dtype = part.new_empty((values // 2, 1), dtype=torch.uint8), part.dtype
        packed[done // 2 : done // 2 + len(part_packed)] = part_packed
        absmax.append(part_absmax)
        done += part.numel()
    if packed is None or done != values:
        raise ValueError(f"the parts have {done} values; a weight of shape {shape} has {values}")
    absmax8, nested_absmax, offset = _quantize_absmax(torch.cat(absmax))
    return NF4Weight(packed, absmax8, nested_absmax, offset, tuple(shape), dtype)


def _quantize_blocks(flat: Tensor) -> tuple[Tensor, Tensor]:
    """The bytes [n/2, 1] and the fp32 absmax [n/64] of n values."""
    if not backend.runs_cpp(flat):
        return torch.ops.bitsandbytes.quantize_4bit(flat, NF4.block, NF4.quant_type, torch.uint8)
    packed = torch.ops.moe_kernels.quantize_nf4(flat.contiguous(), dynamic_map())[0]
    blocks = flat.view(-1, NF4.block)
    return packed, torch.maximum(blocks.amax(dim=1), -blocks.amin(dim=1)).float()  # aminmax takes twice the time


def _quantize_absmax(absmax: Tensor) -> tuple[Tensor, Tensor, float]:
    """(8-bit absmax, nested absmax, offset), as `quantize_nf4` has them on this device."""
    if not backend.runs_cpp(absmax):
        from bitsandbytes.functional import quantize_blockwise

        offset = absmax.mean()
        absmax8, nested = quantize_blockwise(absmax - offset, blocksize=NF4.nested_block)
        return absmax8, nested.absmax, offset.item()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the C++ operator: the mean's last bits depend on the number of threads
    offset = absmax.mean()
    torch.set_num_threads(threads)
    return *_nearest_codes(absmax - offset), offset.item()


def _nearest_codes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of groups of 256, as bitsandbytes' CPU code: the entry of the dynamic map nearest to one of 65536 points."""
    groups = torch.nn.functional.pad(values, (0, -len(values) % NF4.nested_block)).view(-1, NF4.nested_block)
    scales = groups.abs().nan_to_num(nan=0.0, posinf=torch.inf).amax(dim=1)
    scaled = (groups * (1 / scales)[:, None]).clamp(-1, 1).nan_to_num(nan=-1.0)
    points = ((scaled + 1) * 0.5 * 65535 + 0.5).int()
    scaled = -1 + 2 * points.float() / 65535
    codes = dynamic_map()
    nearest = torch.searchsorted((codes[:-1] + codes[1:]) / 2, scaled, out_int32=True)
    return nearest.to(torch.uint8).view(-1)[: len(values)], scales
