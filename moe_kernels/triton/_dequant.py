"""NF4 to dense: a stack of matrices, or a single one, into a workspace."""

import triton
import triton.language as tl

from ._common import cast
from ._nf4 import BLOCK, decode_levels, load_absmax


@triton.jit
def dequantize(
    packed_ptr,
    absmax_ptr,
    nested_ptr,
    map_ptr,
    nested_offset,
    first_block,
    out_ptr,
    blocks,
    values,
    STORED: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """out [values] of `blocks` blocks of 64: exact level times absmax in fp32, rounded to STORED, then to out's dtype."""
    block = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = block < blocks
    byte = (block * (BLOCK // 2))[:, None] + tl.arange(0, BLOCK // 2)[None, :]
    packed = tl.load(packed_ptr + byte, mask=byte * 2 < values, other=0)
    scale = load_absmax(absmax_ptr, nested_ptr, map_ptr, nested_offset, block, first_block, inside)[:, None]
    even, odd = decode_levels(packed, True)
    both = tl.reshape(tl.join(cast(even * scale, STORED), cast(odd * scale, STORED)), (BLOCK_M, BLOCK))
    place = (block * BLOCK)[:, None] + tl.arange(0, BLOCK)[None, :]
    tl.store(out_ptr + place, both, mask=place < values)
