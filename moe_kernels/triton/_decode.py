"""Products of NF4 weights with few tokens: each packed byte is read once and the products are FMAs, as memory is the limit.

A warp owns whole rows of the weight. A step is 1024 values of each of its rows: a lane reads a group of 32, 16 bytes, and
the same values of x, so that nothing crosses lanes before a row's last step, and warps share nothing.

x comes in one of two forms. As it is, in 16 bits: a lane reads words of an even and an odd value, as a byte of the weight holds them.
Or arranged, in fp32 (`_place`): 32 lanes read 512 consecutive bytes, where 64 bytes of x a lane lie on 16 cache lines, which at 4 tokens
would keep L1 busier than the memory; and nothing is left to convert, which at 4 tokens takes 1.6 integer instructions a weight.

Arithmetic: levels rounded to fp16 (relative error at most 2**-11; exact ones take 2 instructions more), products and sums in
fp32, the block's fp32 absmax on the sum of a group. Every sum has a fixed order and nothing is atomic: equal bits from run to run.

T tokens, K experts per token, E experts, D model width, F expert hidden width, N = T*K token-expert pairs.
"""

# mypy: disable-error-code="assignment"
# (tuples of tensors grow in loops that are unrolled)

import triton
import triton.language as tl

from ._nf4 import BLOCK, NESTED_BLOCK, decode_levels, load_absmax

LANES = tl.constexpr(32)
GROUP = tl.constexpr(32)  # values of a row that a lane reads at a time; two groups are a block
STEP = tl.constexpr(1024)  # values of a row in a step: 32 lanes of 32
NO_EXPERT = tl.constexpr(1 << 30)


@triton.jit
def _place(n):
    """Where value n of a row stands in the row's arranged form: a step is eight pieces of 32 lanes of 4 values, in `_quarters`' order."""
    j = n % GROUP // 2
    piece = n % 2 * 4 + j % 2 * 2 + j // 2 % 2
    return n // STEP * STEP + piece * (STEP // 8) + n % STEP // GROUP * 4 + j // 4


@triton.jit
def _float_pairs(words, dtype: tl.constexpr):
    """(even, odd) values, fp32, of int32 words of two values of `dtype`, the even one in the low half."""
    if dtype == tl.bfloat16:
        even, odd = (words << 16).to(tl.float32, bitcast=True), (words & -65536).to(tl.float32, bitcast=True)
    else:
        even = words.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        odd = (words >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return even, odd


@triton.jit
def _quarters(v):
    """`v` [W, 32, 16] as four tensors [W, 32, 4]; no data moves, as a lane holds all 16."""
    low, high = tl.split(tl.reshape(v, (v.shape[0], v.shape[1], 8, 2)))
    v0, v1 = tl.split(tl.reshape(low, (v.shape[0], v.shape[1], 4, 2)))
    v2, v3 = tl.split(tl.reshape(high, (v.shape[0], v.shape[1], 4, 2)))
    return v0, v1, v2, v3


@triton.jit
def _dot_groups(weights, x):
    """Dots of groups given as `_quarters` of the even and of the odd values: [W, 32].

    Four chains of 8 FMAs and three additions: 1.1 instructions a weight. `tl.sum` over products takes 1.5.
    """
    total = weights[0] * x[0]
    for i in tl.static_range(1, 8):
        total += weights[i] * x[i]
    return tl.sum(total, axis=2)


@triton.jit
def _row_dots(
    rows, x_rows, x_ptr, packed_ptr, absmax_ptr, nested_ptr, map_ptr, nested_offset, first_block, expert,
    begin, end, NUM_ROWS: tl.constexpr, COLUMNS: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """Dots of weight rows with rows of x over the steps begin..end-1: a tuple of len(rows)*len(x_rows) tensors fp32 [WARPS], x fastest.

    `rows` are tensors int32 [WARPS] of row numbers in the expert, `x_rows` scalars. An expert has NUM_ROWS x COLUMNS values.
    x is arranged if it is fp32; then its rows are STEP-aligned and only the places of the COLUMNS values hold any.
    """
    GROUPS: tl.constexpr = COLUMNS // GROUP
    BLOCKS: tl.constexpr = NUM_ROWS * COLUMNS // BLOCK
    expert = expert.to(tl.int64)
    first_block += expert * BLOCKS
    packed_ptr += expert * (NUM_ROWS * COLUMNS // 2)
    absmax_ptr += expert * BLOCKS
    nested_ptr += first_block // NESTED_BLOCK
    first_block = (first_block % NESTED_BLOCK).to(tl.int32)  # from here on 32 bits hold every index
    ARRANGED: tl.constexpr = x_ptr.dtype.element_ty == tl.float32

    lane = tl.arange(0, LANES)
    byte = tl.arange(0, GROUP // 2)
    # x takes the weights' shape, so that Triton gives it their layout: the same lane then holds the factors of a product.
    every_warp = (tl.arange(0, WARPS) * 0)[:, None, None]
    totals = (tl.zeros((WARPS, LANES), tl.float32),) * (len(rows) * len(x_rows))
    for step in range(begin, end):
        group = step * LANES + lane
        inside = tl.full((LANES,), True, tl.int1)
        if GROUPS % LANES:
            inside = group < GROUPS
        at = group[None, :, None] * (GROUP // 2) + byte[None, None, :]
        packed, scales, x = (), (), ()
        for r in tl.static_range(len(rows)):
            packed += (tl.load(packed_ptr + (rows[r][:, None, None] * (COLUMNS // 2) + at), mask=inside[None, :, None], other=0),)
            block = rows[r][:, None] * (COLUMNS // BLOCK) + (group // 2)[None, :]
            scales += (load_absmax(absmax_ptr, nested_ptr, map_ptr, nested_offset, block, first_block, inside[None, :]),)
        for i in tl.static_range(len(x_rows)):
            if ARRANGED:
                pieces, x_at = (), x_ptr + x_rows[i].to(tl.int64) * (tl.cdiv(COLUMNS, STEP) * STEP) + step * STEP
                for p in tl.static_range(8):
                    places = every_warp + (p * (STEP // 8) + lane[None, :, None] * 4 + tl.arange(0, 4)[None, None, :])
                    pieces += (tl.load(x_at + places, mask=inside[None, :, None], other=0.0),)
                x += (pieces,)
            else:
                x_at = (x_ptr + x_rows[i].to(tl.int64) * COLUMNS).to(tl.pointer_type(tl.int32))
                words = tl.load(x_at + (every_warp + at), mask=inside[None, :, None], other=0)
                x_even, x_odd = _float_pairs(words, x_ptr.dtype.element_ty)
                x += (_quarters(x_even) + _quarters(x_odd),)
        sums = ()
        for r in tl.static_range(len(rows)):
            even, odd = decode_levels(packed[r], False)
            weights = _quarters(even.to(tl.float32)) + _quarters(odd.to(tl.float32))
            for i in tl.static_range(len(x_rows)):
                sums += (totals[r * len(x_rows) + i] + _dot_groups(weights, x[i]) * scales[r],)
        totals = sums
    dots = ()
    for i in tl.static_range(len(rows) * len(x_rows)):
        dots += (tl.sum(totals[i], axis=1),)
    return dots


@triton.jit
def _load_experts(ptr, num_experts, mask=None):
    """Ids at `ptr`, int32. One outside 0..E-1 is taken for the nearest inside, or memory outside the weights would be read."""
    return tl.minimum(tl.maximum(tl.load(ptr, mask=mask), 0), num_experts - 1).to(tl.int32)


@triton.jit
def _find_expert(experts_ptr, num_experts, num_pairs, slot, TOP_K: tl.constexpr, TOKENS: tl.constexpr, PAIRS: tl.constexpr):
    """The slot-th smallest of the distinct experts among the pairs, or NO_EXPERT; and for each token its (last) pair with it, or -1."""
    pair = tl.arange(0, PAIRS)
    expert_P = tl.where(pair < num_pairs, _load_experts(experts_ptr + pair, num_experts, pair < num_pairs), NO_EXPERT)
    expert = tl.full((), -1, tl.int32)
    for _ in range(slot + 1):
        expert = tl.min(tl.where(expert_P > expert, expert_P, NO_EXPERT), axis=0)
    pairs = ()
    for i in tl.static_range(TOKENS):
        pairs += (tl.max(tl.where((expert_P == expert) & (pair // TOP_K == i) & (pair < num_pairs), pair, -1), axis=0),)
    return expert, pairs


@triton.jit
def _weight_of(weights_ptr, experts_ptr, num_experts, token, expert, TOP_K: tl.constexpr):
    """The weight of `expert` for `token`: that of its pair, or the sum where a routing names it twice."""
    total = 0.0
    for k in tl.static_range(TOP_K):
        same = _load_experts(experts_ptr + token * TOP_K + k, num_experts) == expert
        total += tl.where(same, tl.load(weights_ptr + token * TOP_K + k), 0.0)
    return total


@triton.jit
def arrange_kernel(x_ptr, out_ptr, COLUMNS: tl.constexpr):
    """Rows of x [T, COLUMNS] in fp32 and arranged. Program (step, row)."""
    n = tl.program_id(0) * STEP + tl.arange(0, STEP)
    row = tl.program_id(1).to(tl.int64)
    x = tl.load(x_ptr + row * COLUMNS + n, mask=n < COLUMNS)
    tl.store(out_ptr + row * (tl.cdiv(COLUMNS, STEP) * STEP) + _place(n), x.to(tl.float32), mask=n < COLUMNS)


@triton.jit(do_not_specialize=["num_tokens", "num_experts", "first_block"])
def decode_gate_up_kernel(
    x_ptr, weights_ptr, experts_ptr, packed_ptr, absmax_ptr, nested_ptr, map_ptr, h_ptr, nested_offset, first_block,
    num_tokens, num_experts, D: tl.constexpr, F: tl.constexpr, TOP_K: tl.constexpr, TOKENS: tl.constexpr, PAIRS: tl.constexpr,
    BLOCK_N: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """h [N, F] = silu(W1 x) * (W3 x) * weight, arranged, for the pairs of one expert and BLOCK_N rows of its W1 and W3 (stack [E, 2F, D]).

    Program (block of rows, slot): see `_find_expert`. x [T, D], weights fp32 and experts int64 [T, K]; TOKENS >= T, PAIRS >= T*K.
    """
    expert, pairs = _find_expert(experts_ptr, num_experts, num_tokens * TOP_K, tl.program_id(1), TOP_K, TOKENS, PAIRS)
    if expert == NO_EXPERT:
        return
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, WARPS)
    rows, tokens = (), ()
    for r in tl.static_range(BLOCK_N // WARPS):
        rows += (n + r * WARPS, n + r * WARPS + F)
    for i in tl.static_range(TOKENS):
        tokens += (tl.minimum(i, num_tokens - 1),)
    dots = _row_dots(
        rows, tokens, x_ptr, packed_ptr, absmax_ptr, nested_ptr, map_ptr, nested_offset, first_block, expert,
        0, tl.cdiv(D, STEP), NUM_ROWS=2 * F, COLUMNS=D, WARPS=WARPS,
    )  # fmt: skip
    for i in tl.static_range(TOKENS):
        if pairs[i] >= 0:
            weight = _weight_of(weights_ptr, experts_ptr, num_experts, i, expert, TOP_K)
            for r in tl.static_range(BLOCK_N // WARPS):
                gate, up = dots[2 * r * TOKENS + i], dots[(2 * r + 1) * TOKENS + i]
                h = gate / (1 + tl.exp(-gate)) * up * weight
                tl.store(h_ptr + pairs[i].to(tl.int64) * (tl.cdiv(F, STEP) * STEP) + _place(n + r * WARPS), h)


@triton.jit(do_not_specialize=["num_tokens", "num_experts", "first_block"])
def decode_down_kernel(
    x_ptr, experts_ptr, packed_ptr, absmax_ptr, nested_ptr, map_ptr, part_ptr, nested_offset, first_block, num_tokens, num_experts,
    IN: tl.constexpr, OUT: tl.constexpr, TOP_K: tl.constexpr, TOKENS: tl.constexpr, PAIRS: tl.constexpr, ROUTED: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLIT_K: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """part [SPLIT_K, N, OUT]: for each pair's row of x [N, IN], its expert's matrix (stack [E, OUT, IN]) times one part of the row.

    Program (block of rows, slot, split). Without ROUTED there is one matrix for all rows of x, and K = 1.
    """
    num_pairs = num_tokens * TOP_K
    if ROUTED:
        expert, pairs = _find_expert(experts_ptr, num_experts, num_pairs, tl.program_id(1), TOP_K, TOKENS, PAIRS)
        if expert == NO_EXPERT:
            return
    else:
        expert, pairs = tl.program_id(1), ()
        for i in tl.static_range(TOKENS):
            pairs += (tl.where(i < num_tokens, i, -1),)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, WARPS)
    rows, x_rows = (), ()
    for r in tl.static_range(BLOCK_N // WARPS):
        rows += (n + r * WARPS,)
    for i in tl.static_range(TOKENS):
        x_rows += (tl.maximum(pairs[i], 0),)
    STEPS: tl.constexpr = (IN + STEP - 1) // (STEP)
    EACH: tl.constexpr = (STEPS + SPLIT_K - 1) // SPLIT_K
    begin = tl.program_id(2) * EACH
    dots = _row_dots(
        rows, x_rows, x_ptr, packed_ptr, absmax_ptr, nested_ptr, map_ptr, nested_offset, first_block, expert,
        begin, tl.minimum(begin + EACH, STEPS), NUM_ROWS=OUT, COLUMNS=IN, WARPS=WARPS,
    )  # fmt: skip
    for i in tl.static_range(TOKENS):
        if pairs[i] >= 0:
            at = (tl.program_id(2) * num_pairs + pairs[i]).to(tl.int64) * OUT + n
            for r in tl.static_range(BLOCK_N // WARPS):
                tl.store(part_ptr + at + r * WARPS, dots[r * TOKENS + i].to(part_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["num_tokens", "num_experts"])
def decode_combine_kernel(
    part_ptr, experts_ptr, y_ptr, num_tokens, num_experts,
    OUT: tl.constexpr, TOP_K: tl.constexpr, K_PAD: tl.constexpr, SPLIT_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y [T, OUT] of part [SPLIT_K, T*K, OUT]: sum over k, for each over the splits, in order. Program (block of OUT, token).

    An expert that a token names twice stands, with both weights, in the part of the last of these pairs; the others hold nothing.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(1)
    place = tl.arange(0, K_PAD)
    if TOP_K > 1:
        expert_K = _load_experts(experts_ptr + token * TOP_K + place, num_experts, place < TOP_K)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for k in range(TOP_K):  # unrolled, K = 64 would be 10,000 instructions
        last = True
        if TOP_K > 1:
            expert = _load_experts(experts_ptr + token * TOP_K + k, num_experts)
            last = tl.max(tl.where((expert_K == expert) & (place < TOP_K), place, -1), axis=0) == k
        for split in tl.static_range(SPLIT_K):
            row = (split * num_tokens + token) * TOP_K + k
            total += tl.load(part_ptr + row.to(tl.int64) * OUT + n, mask=(n < OUT) & last, other=0.0)
    tl.store(y_ptr + token.to(tl.int64) * OUT + n, total.to(y_ptr.dtype.element_ty), mask=n < OUT)
