"""Launch of the dequantising kernel (`triton/_dequant.py`)."""

import math

import torch
import triton
from torch import Tensor

from .grouped import TL_DTYPES
from .launch import arch_of, choose_launch, launch
from .nf4 import NF4Weight
from .nf4_format import NF4, dynamic_map_on
from .triton import _dequant as kernels


def dequantize(q: NF4Weight, dtype: torch.dtype) -> Tensor:
    """The values of `q` in `dtype`, of its shape. Equal to bitsandbytes' bit for bit where `dtype` is q's own."""
    values = math.prod(q.shape)
    blocks = triton.cdiv(values, NF4.block)
    out = torch.empty(q.shape, dtype=dtype, device=q.device)
    at = choose_launch("dequantize", blocks, NF4.block, 1, arch_of(q.device))
    launch(
        kernels.dequantize,
        (triton.cdiv(blocks, at.block_m),),
        *(q.packed, q.absmax, q.nested_absmax, dynamic_map_on(q.device), q.nested_offset, q.first_block, out, blocks, values),
        **{"STORED": TL_DTYPES[dtype], "WHOLE": values % NF4.block == 0, "BLOCK_M": at.block_m},
        options=at.options,
    )
    return out
