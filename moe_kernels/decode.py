"""NF4 experts and linear layers for few tokens, forward: each weight is read once, at the speed of memory. Kernels: `triton/_decode.py`.

An expert's tokens are found inside the kernels from the routing itself: no sort, no wait for the device, and CUDA graphs can
capture a layer once for every later routing. What is computed is W x with W as in `dequantize_nf4` in fp32, except that levels are
rounded to fp16 (relative error at most 2**-11); all else is fp32, h too, and y is rounded once.

T tokens, K experts per token, E experts, D model width, F expert hidden width, N = T*K token-expert pairs.
"""

import torch
import triton
from torch import Tensor

from .launch import Launch, arch_of, choose_launch, launch
from .nf4 import NF4Weight
from .nf4_format import NF4, dynamic_map_on
from .triton import _decode as kernels

MAX_DECODE_TOKENS = 4  # 12 instructions a weight at 4, of the 15 for which an A10G's memory leaves time; at 8 an FMA a token is 8 of them
_MAX_MATRIX = 1 << 32  # values of one matrix: within it a byte has a 32-bit offset
_STEP = kernels.STEP.value
_COMBINE_BLOCK = 128


def fits_decode(q: NF4Weight, tokens: int) -> bool:
    """Whether these kernels take `q` ([out, in] or a stack of such) and `tokens` rows: whole blocks in every row, few tokens."""
    rows, columns = q.shape[-2:]
    whole = rows % NF4.block == 0 and columns % NF4.block == 0
    return len(q.shape) in (2, 3) and whole and rows * columns < _MAX_MATRIX and tokens <= MAX_DECODE_TOKENS


def decode_moe(x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, w_gate_up: NF4Weight, w_down: NF4Weight) -> Tensor:
    """y [T, D] in x's dtype of experts with matrices `w_gate_up` [E, 2F, D] (W1 above W3) and `w_down` [E, D, F].

    `weights_TK` fp32, `experts_TK` int64 in 0..E-1 (one outside is taken for the nearest inside); one that a token has twice counts twice.
    `ValueError` for weights or a number of tokens
    that do not fit (`fits_decode`), or for shapes that do not belong together.
    """
    _check(x_TD, w_gate_up, 3)
    _check(x_TD, w_down, 3)
    num_experts, width, hidden = w_down.shape
    if w_gate_up.shape != (num_experts, 2 * hidden, width) or x_TD.shape[1] != width:
        raise ValueError(f"x of width {x_TD.shape[1]} and experts of shapes {w_gate_up.shape} and {w_down.shape} do not belong together")
    tokens, top_k = experts_TK.shape
    weights_TK, experts_TK = weights_TK.float().contiguous(), experts_TK.contiguous()
    slots = min(num_experts, tokens * top_k)  # experts that can have tokens; a slot that finds none does nothing
    at = choose_launch("decode_gate_up", 2 * hidden, width, tokens, arch_of(x_TD.device))
    h_NF = _empty_arranged(x_TD, tokens * top_k, hidden)
    launch(
        kernels.decode_gate_up_kernel,
        (hidden // at.block_n, slots),
        *(_readable(x_TD), weights_TK, experts_TK, *_tables(w_gate_up), h_NF),
        *(w_gate_up.nested_offset, w_gate_up.first_block, tokens, num_experts),
        **{"D": width, "F": hidden, **_token_constants(tokens, top_k), "BLOCK_N": at.block_n, "WARPS": at.num_warps},
        options=at.options,
    )
    at = choose_launch("decode_down", width, hidden, tokens, arch_of(x_TD.device))
    part = h_NF.new_empty(at.split_k, tokens * top_k, width)
    _launch_down(h_NF, experts_TK, w_down, part, tokens, top_k, slots, at)
    return _combined(part, experts_TK, x_TD.new_empty(tokens, width), top_k, num_experts)


def decode_linear(x_TD: Tensor, q: NF4Weight) -> Tensor:
    """`x_TD` times the transpose of `q` [out, in]: [T, out] in x's dtype. `ValueError` for what does not fit (`fits_decode`)."""
    _check(x_TD, q, 2)
    (rows, columns), tokens = q.shape, len(x_TD)
    if x_TD.shape[1] != columns:
        raise ValueError(f"x of width {x_TD.shape[1]} does not fit an NF4 weight of shape {q.shape}")
    y_TD = x_TD.new_empty(tokens, rows)
    if not tokens:
        return y_TD
    at = choose_launch("decode_linear", rows, columns, tokens, arch_of(x_TD.device))
    part = y_TD[None] if at.split_k == 1 else y_TD.new_empty(at.split_k, tokens, rows, dtype=torch.float32)
    _launch_down(_readable(x_TD), None, q, part, tokens, 1, 1, at)
    return y_TD if at.split_k == 1 else _combined(part, None, y_TD, 1, 1)


def _launch_down(x: Tensor, experts: Tensor | None, q: NF4Weight, part: Tensor, tokens: int, top_k: int, slots: int, at: Launch) -> None:
    """Fills `part` [split_k, N, out] with products of the rows of `x` and their expert's matrix, or the only one."""
    num_experts, rows, columns = (1, *q.shape)[-3:]
    launch(
        kernels.decode_down_kernel,
        (rows // at.block_n, slots, at.split_k),
        *(x, experts, *_tables(q), part, q.nested_offset, q.first_block, tokens, num_experts),
        **{"IN": columns, "OUT": rows, **_token_constants(tokens, top_k), "ROUTED": experts is not None},
        **{"BLOCK_N": at.block_n, "SPLIT_K": at.split_k, "WARPS": at.num_warps},
        options=at.options,
    )


def _combined(part: Tensor, experts_TK: Tensor | None, y_TD: Tensor, top_k: int, num_experts: int) -> Tensor:
    """Fills `y_TD` with the sums of `part` [split_k, T*K, D] over a token's pairs and the splits."""
    tokens, width = y_TD.shape
    launch(
        kernels.decode_combine_kernel,
        (triton.cdiv(width, _COMBINE_BLOCK), tokens),
        *(part, experts_TK, y_TD, tokens, num_experts),
        **{"OUT": width, "TOP_K": top_k, "K_PAD": triton.next_power_of_2(top_k), "SPLIT_K": len(part), "BLOCK_N": _COMBINE_BLOCK},
        options={"num_warps": 1, "num_stages": 1},
    )
    return y_TD


def _readable(x_TD: Tensor) -> Tensor:
    """`x_TD` in a form that the kernels read: as it is for one token in 16 bits, where a launch costs more than it saves, or arranged."""
    x_TD = x_TD.contiguous()
    tokens, width = x_TD.shape
    if tokens == 1 and x_TD.itemsize == 2:
        # Words of two values are read, 16 bytes at a time.
        return x_TD.clone() if not x_TD.is_meta and x_TD.data_ptr() % 16 else x_TD
    arranged = _empty_arranged(x_TD, tokens, width)
    grid = (arranged.shape[1] // _STEP, tokens)
    launch(kernels.arrange_kernel, grid, x_TD, arranged, COLUMNS=width, options={"num_warps": 4, "num_stages": 1})
    return arranged


def _empty_arranged(like: Tensor, rows: int, width: int) -> Tensor:
    return like.new_empty(rows, triton.cdiv(width, _STEP) * _STEP, dtype=torch.float32)


def _tables(q: NF4Weight) -> tuple[Tensor, ...]:
    return q.packed, q.absmax, q.nested_absmax, dynamic_map_on(q.device)


def _token_constants(tokens: int, top_k: int) -> dict[str, int]:
    held = triton.next_power_of_2(tokens)
    return {"TOP_K": top_k, "TOKENS": held, "PAIRS": triton.next_power_of_2(held * top_k)}


def _check(x_TD: Tensor, q: NF4Weight, dims: int) -> None:
    if len(q.shape) != dims or not fits_decode(q, len(x_TD)):
        raise ValueError(f"the decode kernels do not take {len(x_TD)} tokens and an NF4 weight of shape {q.shape}")
