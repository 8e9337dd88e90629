"""Grouped matrix products: each row meets the matrix of its expert, NF4 or dense, read where it lies.

T tokens, K experts per token, E experts, N = T*K pairs in expert order (`order_N`, `offsets_E1` of `moe_kernels.grouping`), D model
width, F expert hidden width, R LoRA rank.

A program makes a tile [BLOCK_M, BLOCK_N] of the output. Its expert and first row follow from `offsets_E1`, so the host need not know how
many rows an expert has: the grid holds cdiv(N, BLOCK_M) + E - 1 tiles of rows, which is always enough, and a tile too many does nothing.
Sums are taken in fp32, in a fixed order, by one program: equal bits from run to run.
"""

import triton
import triton.language as tl

from ._common import cast, dot
from ._nf4 import BLOCK, decode_levels, load_absmax


@triton.jit
def find_tile(offsets_ptr, rows, tile, E: tl.constexpr, BLOCK_M: tl.constexpr):
    """(expert, first row, end of the expert's rows) of row tile `tile`; a tile too many has none. No offsets: one matrix, `rows` rows."""
    if offsets_ptr is None:
        expert, first, stop = tile * 0, tile * BLOCK_M, rows
    else:
        e = tl.arange(0, triton.next_power_of_2(E))
        begin = tl.load(offsets_ptr + e, mask=e < E, other=0).to(tl.int32)
        end = tl.load(offsets_ptr + e + 1, mask=e < E, other=0).to(tl.int32)
        tiles = (end - begin + BLOCK_M - 1) // BLOCK_M
        after = tl.cumsum(tiles, axis=0)
        mine = (after - tiles <= tile) & (tile < after)
        expert = tl.sum(tl.where(mine, e, 0), axis=0)
        first = tl.sum(tl.where(mine, begin + (tile - after + tiles) * BLOCK_M, 0), axis=0)
        stop = tl.sum(tl.where(mine, end, 0), axis=0)
    return expert, first, stop


@triton.jit
def swizzle(row_tiles, column_tiles, GROUP: tl.constexpr):
    """This program's (row tile, column tile): GROUP row tiles go through all columns together, so that both inputs stay in the L2."""
    pid = tl.program_id(0)
    group = pid // (GROUP * column_tiles)
    rows = min(GROUP, row_tiles - group * GROUP)
    inside = pid - group * GROUP * column_tiles
    return group * GROUP + inside % rows, inside // rows


@triton.jit
def load_weight(
    w_ptr, absmax_ptr, nested_ptr, map_ptr, nested_offset, first_block, expert, row, column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, NF4: tl.constexpr, STORED: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """A tile [rows, WIDTH] of expert `expert`'s matrix [ROWS, COLUMNS] from column `column` on, in DTYPE; zeros outside the matrix.

    NF4 values are those of bitsandbytes bit for bit: exact level times absmax in fp32, rounded to STORED, then to DTYPE.
    """
    matrix_row = expert.to(tl.int64) * ROWS + row
    if NF4:  # [rows, blocks of 64, bytes of a block]: one absmax for the whole last axis
        block = column // BLOCK + tl.arange(0, WIDTH // BLOCK)
        inside = (row < ROWS)[:, None] & (block < COLUMNS // BLOCK)[None, :]
        flat = matrix_row[:, None] * (COLUMNS // BLOCK) + block[None, :]
        byte = (flat * (BLOCK // 2))[:, :, None] + tl.arange(0, BLOCK // 2)[None, None, :]
        packed = tl.load(w_ptr + byte, mask=inside[:, :, None], other=0)
        scale = load_absmax(absmax_ptr, nested_ptr, map_ptr, nested_offset, flat, first_block, inside)[:, :, None]
        even, odd = decode_levels(packed, True)
        pairs = tl.join(cast(even * scale, STORED).to(DTYPE), cast(odd * scale, STORED).to(DTYPE))
        values = tl.reshape(pairs, (row.shape[0], WIDTH))
    else:
        columns = column + tl.arange(0, WIDTH)
        inside = (row < ROWS)[:, None] & (columns < COLUMNS)[None, :]
        values = tl.load(w_ptr + matrix_row[:, None] * COLUMNS + columns[None, :], mask=inside, other=0.0).to(DTYPE)
    return values


@triton.jit
def multiply(
    acc, x_ptr, x_row, x_inside,
    w_ptr, absmax_ptr, nested_ptr, map_ptr, nested_offset, first_block, expert, row, column,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TRANSPOSED: tl.constexpr, NF4: tl.constexpr, STORED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc [BLOCK_M, BLOCK_N] plus rows of x times the transpose of the matrix's rows `row`, or (TRANSPOSED) its columns from `column` on.

    `x_row` int64 [BLOCK_M]: where each row of x begins, in elements; `x_inside`: whether there is such a row.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    step = tl.arange(0, BLOCK_K)
    for k in range(0, ROWS if TRANSPOSED else COLUMNS, BLOCK_K):
        if TRANSPOSED:
            inside = x_inside[:, None] & (k + step < ROWS)[None, :]
            w = load_weight(w_ptr, absmax_ptr, nested_ptr, map_ptr, nested_offset, first_block, expert, k + step, column,
                            ROWS, COLUMNS, BLOCK_N, NF4, STORED, DTYPE)  # fmt: skip
        else:
            inside = x_inside[:, None] & (k + step < COLUMNS)[None, :]
            w = load_weight(w_ptr, absmax_ptr, nested_ptr, map_ptr, nested_offset, first_block, expert, row, k,
                            ROWS, COLUMNS, BLOCK_K, NF4, STORED, DTYPE).T  # fmt: skip
        x = tl.load(x_ptr + x_row[:, None] + (k + step)[None, :], mask=inside, other=0.0)
        acc = dot(x, w, acc)
    return acc


@triton.jit
def add_low_rank(
    acc, z_ptr, z_row, inside, factor_ptr, expert, column, WIDTH: tl.constexpr,
    RANK: tl.constexpr, TRANSPOSED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """acc [BLOCK_M, BLOCK_N] plus z [.., RANK] times the expert's factor: B [WIDTH, RANK] transposed, or (TRANSPOSED) A [RANK, WIDTH]."""
    columns = column + tl.arange(0, BLOCK_N)
    begin = expert.to(tl.int64) * (WIDTH * RANK)
    for first in range(0, RANK, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        z = tl.load(z_ptr + z_row[:, None] + r[None, :], mask=inside[:, None] & (r < RANK)[None, :], other=0.0)
        place = begin + (r[:, None] * WIDTH + columns[None, :] if TRANSPOSED else columns[None, :] * RANK + r[:, None])
        factor = tl.load(factor_ptr + place, mask=(r < RANK)[:, None] & (columns < WIDTH)[None, :], other=0.0)
        acc = dot(z, factor, acc)
    return acc


@triton.jit(do_not_specialize=["rows", "row_tiles", "first_block"])
def grouped_mm(
    x_ptr, x_stride, order_ptr, offsets_ptr, w_ptr, absmax_ptr, nested_ptr, map_ptr, nested_offset, first_block,
    z_ptr, factor_ptr, out_ptr, out_stride, rows, row_tiles, scale,
    E: tl.constexpr, TOP_K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr,
    TRANSPOSED: tl.constexpr, NF4: tl.constexpr, STORED: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out [rows, ROWS] = scale * (x W_e^T + z B_e^T), or (TRANSPOSED) [rows, COLUMNS] = scale * (x W_e + z A_e).

    With `order_ptr` a row's x is that of the pair's token, x[order // TOP_K]; without, x is in expert order itself.
    """
    WIDTH: tl.constexpr = COLUMNS if TRANSPOSED else ROWS
    row_tile, column_tile = swizzle(row_tiles, tl.cdiv(WIDTH, BLOCK_N), GROUP)
    expert, first, end = find_tile(offsets_ptr, rows, row_tile, E, BLOCK_M)
    if first >= end:
        return
    n = first + tl.arange(0, BLOCK_M)
    inside = n < end
    source = n.to(tl.int64)
    if order_ptr is not None:
        source = tl.load(order_ptr + n, mask=inside, other=0) // TOP_K
    column = column_tile * BLOCK_N
    columns = column + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc = multiply(acc, x_ptr, source * x_stride, inside, w_ptr, absmax_ptr, nested_ptr, map_ptr, nested_offset, first_block,
                   expert, columns, column, ROWS, COLUMNS, TRANSPOSED, NF4, STORED, BLOCK_N, BLOCK_K)  # fmt: skip
    if RANK:
        acc = add_low_rank(acc, z_ptr, n.to(tl.int64) * RANK, inside, factor_ptr, expert, column, WIDTH, RANK, TRANSPOSED, BLOCK_R, BLOCK_N)
    place = n.to(tl.int64)[:, None] * out_stride + columns[None, :]
    tl.store(out_ptr + place, cast(acc * scale, out_ptr.dtype.element_ty), mask=inside[:, None] & (columns < WIDTH)[None, :])


@triton.jit(do_not_specialize=["rows", "row_tiles", "first_block"])
def grouped_swiglu(
    x_ptr, base_ptr, order_ptr, offsets_ptr, w_ptr, absmax_ptr, nested_ptr, map_ptr, nested_offset, first_block,
    z1_ptr, b1_ptr, z3_ptr, b3_ptr, weights_ptr, preact_ptr, h_ptr, rows, row_tiles,
    E: tl.constexpr, TOP_K: tl.constexpr, D: tl.constexpr, F: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr,
    NF4: tl.constexpr, STORED: tl.constexpr, BASE_ROWS: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """h [N, F] = silu(g) u weight, where [g | u] = [W1_e; W3_e] x + [B1_e z1 | B3_e z3]; `preact_ptr` [N, 2F] takes [g | u] if it is there.

    x is that of the pair's token. `base_ptr`, if it is there, holds the product with W: [T, 2F] of a W that all experts share, or
    (BASE_ROWS) [N, 2F] in expert order.
    The matrix [W1_e; W3_e] is [2F, D]; its rows f and F + f are read side by side, so that g and u of one f meet in one thread.
    """
    HALF: tl.constexpr = BLOCK_N // 2
    row_tile, column_tile = swizzle(row_tiles, tl.cdiv(F, HALF), GROUP)
    expert, first, end = find_tile(offsets_ptr, rows, row_tile, E, BLOCK_M)
    if first >= end:
        return
    n = first + tl.arange(0, BLOCK_M)
    inside = n < end
    pair = tl.load(order_ptr + n, mask=inside, other=0)
    f = column_tile * HALF + tl.arange(0, HALF)
    mask = inside[:, None] & (f < F)[None, :]
    if base_ptr is not None:
        place = (n.to(tl.int64) if BASE_ROWS else pair // TOP_K)[:, None] * (2 * F) + f[None, :]
        g = tl.load(base_ptr + place, mask=mask, other=0.0).to(tl.float32)
        u = tl.load(base_ptr + place + F, mask=mask, other=0.0).to(tl.float32)
    else:
        both = tl.arange(0, BLOCK_N)
        row = column_tile * HALF + both // 2
        row = tl.where(row < F, row + (both % 2) * F, 2 * F)  # 2F: outside the matrix
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        acc = multiply(acc, x_ptr, (pair // TOP_K) * D, inside, w_ptr, absmax_ptr, nested_ptr, map_ptr, nested_offset, first_block,
                       expert, row, 0, 2 * F, D, False, NF4, STORED, BLOCK_N, BLOCK_K)  # fmt: skip
        g, u = tl.split(tl.reshape(acc, (BLOCK_M, HALF, 2)))
    if RANK:
        z_row = n.to(tl.int64) * RANK
        g = add_low_rank(g, z1_ptr, z_row, inside, b1_ptr, expert, column_tile * HALF, F, RANK, False, BLOCK_R, HALF)
        u = add_low_rank(u, z3_ptr, z_row, inside, b3_ptr, expert, column_tile * HALF, F, RANK, False, BLOCK_R, HALF)
    if preact_ptr is not None:
        place = n.to(tl.int64)[:, None] * (2 * F) + f[None, :]
        tl.store(preact_ptr + place, cast(g, preact_ptr.dtype.element_ty), mask=mask)
        tl.store(preact_ptr + place + F, cast(u, preact_ptr.dtype.element_ty), mask=mask)
    weight = tl.load(weights_ptr + pair, mask=inside, other=0.0)
    h = g / (1 + tl.exp(-g)) * u * weight[:, None]
    tl.store(h_ptr + n.to(tl.int64)[:, None] * F + f[None, :], cast(h, h_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "row_tiles", "first_block"])
def grouped_swiglu_backward(
    dy_ptr, base_ptr, order_ptr, offsets_ptr, w_ptr, absmax_ptr, nested_ptr, map_ptr, nested_offset, first_block,
    v_ptr, a2_ptr, weights_ptr, preact_ptr, dpreact_ptr, h_ptr, dweight_ptr, rows, row_tiles,
    E: tl.constexpr, TOP_K: tl.constexpr, D: tl.constexpr, F: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr,
    NF4: tl.constexpr, STORED: tl.constexpr, BASE_ROWS: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From dh = W2_e^T dy + A2_e^T v, dy that of the pair's token, the gradients of [g | u] [N, 2F] and of the pairs' weights.

    `base_ptr`, if it is there, holds W2^T dy: [T, F], or (BASE_ROWS) [N, F] in expert order. h = silu(g) u is made again from
    `preact_ptr`, so no expert's output is stored: the weight's gradient is <dh, h>, one partial sum a column tile in `dweight_ptr`
    [tiles, N]. `h_ptr` [N, F], if it is there, takes h times the weight.
    """
    row_tile, column_tile = swizzle(row_tiles, tl.cdiv(F, BLOCK_N), GROUP)
    expert, first, end = find_tile(offsets_ptr, rows, row_tile, E, BLOCK_M)
    if first >= end:
        return
    n = first + tl.arange(0, BLOCK_M)
    inside = n < end
    pair = tl.load(order_ptr + n, mask=inside, other=0)
    f = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = inside[:, None] & (f < F)[None, :]
    if base_ptr is not None:
        dh = tl.load(base_ptr + (n.to(tl.int64) if BASE_ROWS else pair // TOP_K)[:, None] * F + f[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
    else:
        dh = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        dh = multiply(dh, dy_ptr, (pair // TOP_K) * D, inside, w_ptr, absmax_ptr, nested_ptr, map_ptr, nested_offset, first_block,
                      expert, f, column_tile * BLOCK_N, D, F, True, NF4, STORED, BLOCK_N, BLOCK_K)  # fmt: skip
    if RANK:
        dh = add_low_rank(dh, v_ptr, n.to(tl.int64) * RANK, inside, a2_ptr, expert, column_tile * BLOCK_N, F, RANK, True, BLOCK_R, BLOCK_N)
    place = n.to(tl.int64)[:, None] * (2 * F) + f[None, :]
    g = tl.load(preact_ptr + place, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(preact_ptr + place + F, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weights_ptr + pair, mask=inside, other=0.0)[:, None]
    sigmoid = 1 / (1 + tl.exp(-g))
    silu = g * sigmoid
    tl.store(dweight_ptr + column_tile.to(tl.int64) * rows + n, tl.sum(dh * silu * u, axis=1), mask=inside)
    dh = dh * weight
    DTYPE: tl.constexpr = dpreact_ptr.dtype.element_ty
    tl.store(dpreact_ptr + place, cast(dh * u * (sigmoid + silu * (1 - sigmoid)), DTYPE), mask=mask)
    tl.store(dpreact_ptr + place + F, cast(dh * silu, DTYPE), mask=mask)
    if h_ptr is not None:
        tl.store(h_ptr + n.to(tl.int64)[:, None] * F + f[None, :], cast(silu * u * weight, DTYPE), mask=mask)


@triton.jit
def grouped_gram(
    a_ptr, a_stride, a_order_ptr, b_ptr, b_stride, b_order_ptr, offsets_ptr, out_ptr,
    TOP_K: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out [E, P, Q] = sum over the expert's rows n of a[n] b[n]^T; a row with an order is that of the pair's token. No rows: zeros."""
    expert = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    q = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin, end = tl.load(offsets_ptr + expert).to(tl.int32), tl.load(offsets_ptr + expert + 1).to(tl.int32)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(begin, end, BLOCK_K):
        n = first + tl.arange(0, BLOCK_K)
        inside = n < end
        a_row, b_row = n.to(tl.int64), n.to(tl.int64)
        if a_order_ptr is not None:
            a_row = tl.load(a_order_ptr + n, mask=inside, other=0) // TOP_K
        if b_order_ptr is not None:
            b_row = tl.load(b_order_ptr + n, mask=inside, other=0) // TOP_K
        a = tl.load(a_ptr + a_row[:, None] * a_stride + p[None, :], mask=inside[:, None] & (p < P)[None, :], other=0.0)
        b = tl.load(b_ptr + b_row[:, None] * b_stride + q[None, :], mask=inside[:, None] & (q < Q)[None, :], other=0.0)
        acc = dot(a.T, b, acc)
    place = expert * (P * Q) + p.to(tl.int64)[:, None] * Q + q[None, :]
    tl.store(out_ptr + place, cast(acc, out_ptr.dtype.element_ty), mask=(p < P)[:, None] & (q < Q)[None, :])


@triton.jit
def combine(y_ptr, inverse_ptr, base_ptr, out_ptr, WIDTH: tl.constexpr, TOP_K: tl.constexpr, BLOCK_N: tl.constexpr):
    """out [T, WIDTH] = base [T, WIDTH], if it is there, plus the K rows of y [N, WIDTH] of each token, in the order of k, in fp32."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < WIDTH
    total = tl.zeros((BLOCK_N,), tl.float32)
    if base_ptr is not None:
        total += tl.load(base_ptr + token * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    for k in tl.static_range(TOP_K):
        row = tl.load(inverse_ptr + token * TOP_K + k)
        total += tl.load(y_ptr + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * WIDTH + column, cast(total, out_ptr.dtype.element_ty), mask=inside)
