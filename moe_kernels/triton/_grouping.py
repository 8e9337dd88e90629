"""Token-expert pairs in expert order on the device: a stable counting sort. Launched by `moe_kernels/grouping.py`.

E experts, N pairs, P programs of BLOCK pairs each. A pair's place is the number of pairs of lower experts, of earlier programs' pairs
of its expert, and of its own program's earlier pairs of its expert. An id outside 0..E-1 is taken for the nearest inside: every pair has a
place of its own then, and nothing reads outside the weights.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["N"])
def count_kernel(
    experts_ptr,  # [N] int64
    counts_ptr,  # [P, E] int32, out
    N,
    E: tl.constexpr,
    BLOCK: tl.constexpr,
    E_PAD: tl.constexpr,
):
    """The pairs of each expert in each block."""
    e = tl.arange(0, E_PAD)
    counts = tl.sum(_one_hot(experts_ptr, N, E, BLOCK, E_PAD), 0)
    tl.store(counts_ptr + tl.program_id(0) * E + e, counts, mask=e < E)


@triton.jit(do_not_specialize=["N"])
def place_kernel(
    experts_ptr,  # [N] int64
    counts_ptr,  # [P, E] int32 of `count_kernel`; not read where P is 1
    order_ptr,  # [N] int64, out
    inverse_ptr,  # [N] int64, out
    offsets_ptr,  # [E + 1] int64, out
    N,
    E: tl.constexpr,
    ALONE: tl.constexpr,  # P is 1
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,  # programs' counts read at a time
    E_PAD: tl.constexpr,
):
    """The place of each pair, its inverse, and where each expert begins."""
    program = tl.program_id(0)
    e = tl.arange(0, E_PAD)
    one_hot = _one_hot(experts_ptr, N, E, BLOCK, E_PAD)
    total = tl.zeros([E_PAD], tl.int32)
    earlier = tl.zeros([E_PAD], tl.int32)
    if ALONE:
        total += tl.sum(one_hot, 0)
    else:
        for first in range(0, tl.num_programs(0), ROWS):
            p = first + tl.arange(0, ROWS)
            there = (p < tl.num_programs(0))[:, None] & (e < E)[None, :]
            counts = tl.load(counts_ptr + p[:, None] * E + e[None, :], mask=there, other=0)
            total += tl.sum(counts, 0)
            earlier += tl.sum(tl.where((p < program)[:, None], counts, 0), 0)
    begin = tl.cumsum(total, 0) - total
    if program == 0:
        tl.store(offsets_ptr + e, begin.to(tl.int64), mask=e < E)
        tl.store(offsets_ptr + E, tl.sum(total, 0).to(tl.int64))
    place = tl.sum(one_hot * ((begin + earlier)[None, :] + tl.cumsum(one_hot, 0) - 1), 1).to(tl.int64)
    n = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(inverse_ptr + n, place, mask=n < N)
    tl.store(order_ptr + place, n, mask=n < N)


@triton.jit
def _one_hot(experts_ptr, N, E: tl.constexpr, BLOCK: tl.constexpr, E_PAD: tl.constexpr):
    """Whether each pair of this program goes to each expert, int32 [BLOCK, E_PAD]; zeros past N."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.minimum(tl.maximum(tl.load(experts_ptr + n, mask=n < N), 0), E - 1)
    return ((n < N)[:, None] & (expert[:, None] == tl.arange(0, E_PAD)[None, :])).to(tl.int32)
