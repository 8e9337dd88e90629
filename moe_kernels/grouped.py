"""Launches of the grouped kernels (`triton/_grouped.py`): each row of x times the matrix of its expert.

T tokens, K experts per token, E experts, N = T*K pairs in expert order, D model width, F expert hidden width, R LoRA rank.
Nothing here reads a device value: grids follow from shapes alone, so all of it can be captured in a CUDA graph.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grouping import Grouping
from .launch import Launch, arch_of, choose_launch, launch
from .nf4 import NF4Weight
from .nf4_format import NF4, dynamic_map_on
from .triton import _grouped as kernels
from .weights import Weight, stacked

TL_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
GROUP = 8  # row tiles that go through the columns together: 8 x 128 rows of 4096 bf16 are 8 MB, about the A10G's L2
COMBINE_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of x that meet the experts: in expert order, and how many there are."""

    count: int  # N, or T where there is one matrix
    grouping: Grouping | None  # None: one matrix for all rows
    top_k: int = 1

    def tiles(self, block_m: int, experts: int) -> int:
        """Row tiles of the grid: no grouping needs more."""
        return triton.cdiv(self.count, block_m) + (experts - 1 if self.grouping else 0)

    @property
    def offsets(self) -> Tensor | None:
        return self.grouping.offsets_E1 if self.grouping else None

    @property
    def order(self) -> Tensor | None:
        return self.grouping.order_N if self.grouping else None


def fits_nf4(weight: NF4Weight) -> bool:
    """Whether the kernels read this weight where it lies: its rows are whole blocks."""
    return weight.shape[-1] % NF4.block == 0


def weight_args(weight: Weight | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(positional arguments, constants) that say what `load_weight` reads, if there is a weight."""
    if weight is None:
        return (None, None, None, None, 0.0, 0), {"NF4": False, "STORED": None}
    if isinstance(weight, NF4Weight):
        tables = (weight.packed, weight.absmax, weight.nested_absmax, dynamic_map_on(weight.device))
        return (*tables, weight.nested_offset, weight.first_block), {"NF4": True, "STORED": TL_DTYPES[weight.dtype]}
    return (weight, None, None, None, 0.0, 0), {"NF4": False, "STORED": TL_DTYPES[weight.dtype]}


def rank_constants(rank: int) -> dict[str, int]:
    """A dot takes at least 16 of the rank, padded with zeros, and at most 64, so that no rank outgrows shared memory."""
    return {"RANK": rank, "BLOCK_R": min(64, max(16, triton.next_power_of_2(rank)))}


def blocks(at: Launch) -> dict[str, int]:
    return {"BLOCK_M": at.block_m, "BLOCK_N": at.block_n, "BLOCK_K": at.block_k}


def linear(
    op: str,
    x: Tensor,
    weight: Weight,
    rows: Rows,
    *,
    gather: bool = False,
    transposed: bool = False,
    out: Tensor | None = None,
    z: Tensor | None = None,
    factor: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """scale * (W_e x + B_e z) [rows, out] of each row's expert, or `transposed` scale * (W_e^T x + A_e^T z) [rows, in].

    `weight` [E, out, in] or [out, in]. `gather`: x is [T, ...] and a row's is that of its pair's token. `z` [rows, R] with `factor`
    B [E, out, R], or A [E, R, in] when `transposed`. `out` may have a row stride.
    """
    stack = stacked(weight)
    experts, matrix_rows, columns = stack.shape
    width = columns if transposed else matrix_rows
    if out is None:
        out = x.new_empty(rows.count, width)
    at = choose_launch(op, matrix_rows, columns, rows.count // rows.top_k, arch_of(x.device))
    row_tiles = rows.tiles(at.block_m, experts)
    args, constants = weight_args(stack)
    launch(
        kernels.grouped_mm,
        (row_tiles * triton.cdiv(width, at.block_n),),
        *(x, x.stride(0), rows.order if gather else None, rows.offsets, *args),
        *(z, factor, out, out.stride(0), rows.count, row_tiles, scale),
        **{"E": experts, "TOP_K": rows.top_k, "ROWS": matrix_rows, "COLUMNS": columns, "TRANSPOSED": transposed},
        **rank_constants(0 if z is None else z.shape[1]),
        **{**constants, "GROUP": GROUP, **blocks(at)},
        options=at.options,
    )
    return out


def swiglu(
    x: Tensor | None,
    weight: Weight | None,
    base: Tensor | None,
    routing_weights: Tensor,
    rows: Rows,
    hidden: int,
    low_rank: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    preact: Tensor | None,
    like: Tensor,
    base_in_order: bool = False,
) -> Tensor:
    """h [N, F] = silu(g) u weight of all pairs, [g | u] from x [T, D] and `weight` [E, 2F, D], or from `base` [T, 2F].

    `base_in_order`: the base is [N, 2F], a row for each pair in expert order.

    `low_rank`: (z1 [N, R], B1 [E, F, R], z3, B3) to add. `preact` [N, 2F], if it is there, takes [g | u]. h has the dtype of `like`.
    """
    assert rows.grouping is not None
    experts = len(rows.grouping.offsets_E1) - 1
    width = 1 if weight is None else weight.shape[-1]
    args, constants = weight_args(weight)
    op = "swiglu" if weight is not None else "swiglu_base"
    at = choose_launch(op, 2 * hidden, width, rows.count // rows.top_k, arch_of(like.device))
    row_tiles = rows.tiles(at.block_m, experts)
    h = like.new_empty(rows.count, hidden)
    z1, b1, z3, b3 = low_rank or (None, None, None, None)
    launch(
        kernels.grouped_swiglu,
        (row_tiles * triton.cdiv(hidden, at.block_n // 2),),
        *(x, base, rows.order, rows.offsets, *args, z1, b1, z3, b3, routing_weights, preact, h, rows.count, row_tiles),
        **{"E": experts, "TOP_K": rows.top_k, "D": width, "F": hidden, "BASE_ROWS": base_in_order},
        **rank_constants(0 if z1 is None else z1.shape[1]),
        **{**constants, "GROUP": GROUP, **blocks(at)},
        options=at.options,
    )
    return h


def swiglu_backward(
    dy: Tensor | None,
    weight: Weight | None,
    base: Tensor | None,
    routing_weights: Tensor,
    rows: Rows,
    preact: Tensor,
    low_rank: tuple[Tensor, Tensor] | None,
    keep_h: bool,
    base_in_order: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(gradient of [g | u] [N, 2F], gradient of the routing's weights [T, K], h [N, F] if `keep_h`).

    From dy [T, D] and `weight` W2 [E, D, F], or from `base` = W2^T dy [T, F] (`base_in_order`: [N, F] in expert order).
    `low_rank`: (v [N, R], A2 [E, R, F]) to add.
    """
    assert rows.grouping is not None
    experts = len(rows.grouping.offsets_E1) - 1
    hidden = preact.shape[1] // 2
    width = 1 if weight is None else weight.shape[-2]
    args, constants = weight_args(weight)
    op = "swiglu_backward" if weight is not None else "swiglu_backward_base"
    at = choose_launch(op, width, hidden, rows.count // rows.top_k, arch_of(preact.device))
    row_tiles, column_tiles = rows.tiles(at.block_m, experts), triton.cdiv(hidden, at.block_n)
    dpreact = torch.empty_like(preact)
    h = preact.new_empty(rows.count, hidden) if keep_h else None
    partial = torch.empty(column_tiles, rows.count, dtype=torch.float32, device=preact.device)
    v, a2 = low_rank or (None, None)
    launch(
        kernels.grouped_swiglu_backward,
        (row_tiles * column_tiles,),
        *(dy, base, rows.order, rows.offsets, *args, v, a2, routing_weights, preact, dpreact, h, partial, rows.count, row_tiles),
        **{"E": experts, "TOP_K": rows.top_k, "D": width, "F": hidden, "BASE_ROWS": base_in_order},
        **rank_constants(0 if v is None else v.shape[1]),
        **{**constants, "GROUP": GROUP, **blocks(at)},
        options=at.options,
    )
    return dpreact, partial.sum(0)[rows.grouping.inverse_N].view(-1, rows.top_k), h


def gram(a: Tensor, b: Tensor, rows: Rows, *, gather_a: bool = False, gather_b: bool = False) -> Tensor:
    """[E, P, Q]: sum over each expert's rows of a[n] b[n]^T; zeros where it has none. Gathered sides are [T, ...]."""
    assert rows.grouping is not None
    experts, p, q = len(rows.grouping.offsets_E1) - 1, a.shape[1], b.shape[1]
    at = choose_launch("gram", p, q, rows.count // rows.top_k, arch_of(a.device))
    out = a.new_empty(experts, p, q)
    launch(
        kernels.grouped_gram,
        (triton.cdiv(p, at.block_m), triton.cdiv(q, at.block_n), experts),
        *(a, a.stride(0), rows.order if gather_a else None, b, b.stride(0), rows.order if gather_b else None, rows.offsets, out),
        **{"TOP_K": rows.top_k, "P": p, "Q": q, **blocks(at)},
        options=at.options,
    )
    return out


def combine(y: Tensor, rows: Rows, base: Tensor | None = None) -> Tensor:
    """[T, width]: the sum over each token's K rows of y [N, width], and `base` [T, width] if it is there, in fixed order and fp32."""
    assert rows.grouping is not None
    tokens, width = rows.count // rows.top_k, y.shape[1]
    out = y.new_empty(tokens, width)
    launch(
        kernels.combine,
        (tokens, triton.cdiv(width, COMBINE_BLOCK)),
        *(y, rows.grouping.inverse_N, base, out),
        **{"WIDTH": width, "TOP_K": rows.top_k, "BLOCK_N": COMBINE_BLOCK},
        options={"num_warps": 4, "num_stages": 1},
    )
    return out
