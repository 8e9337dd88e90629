"""NF4 to dense: a stack of matrices, or a single one, into a workspace."""

import triton
import triton.language as tl

from ._common import cast
from ._nf4 import BLOCK, decode_levels, load_absmax


@triton.jit(do_not_specialize=["first_block"])
def dequantize(
    packed_ptr, absmax_ptr, nested_ptr, map_ptr, nested_offset, first_block, out_ptr, blocks, values,
    STORED: tl.constexpr, WHOLE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """out [values] of `blocks` blocks of 64: exact level times absmax in fp32, rounded to STORED. WHOLE: the last block is full."""
    block = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = block < blocks
    byte, value = tl.arange(0, BLOCK // 2)[None, :], tl.arange(0, BLOCK)[None, :]
    # A mask that is the same for a whole block leaves loads and stores of 16 bytes; one of single values would not.
    mask_in, mask_out = inside[:, None], inside[:, None]
    if not WHOLE:
        mask_in, mask_out = (block * BLOCK)[:, None] + 2 * byte < values, (block * BLOCK)[:, None] + value < values
    packed = tl.load(packed_ptr + (block * (BLOCK // 2))[:, None] + byte, mask=mask_in, other=0)
    scale = load_absmax(absmax_ptr, nested_ptr, map_ptr, nested_offset, block, first_block, inside)[:, None]
    even, odd = decode_levels(packed, True)
    both = tl.reshape(tl.join(cast(even * scale, STORED), cast(odd * scale, STORED)), (BLOCK_M, BLOCK))
    tl.store(out_ptr + (block * BLOCK)[:, None] + value, both, mask=mask_out)
