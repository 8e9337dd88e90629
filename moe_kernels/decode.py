"""NF4 experts and linear layers for few tokens, forward: each weight is read once, at the speed of memory. Kernels: `triton/_decode.py`.

An expert's tokens are found inside the kernels from the routing itself: no sort, no wait for the device, and CUDA graphs can
capture a layer once for every later routing. What is computed is W x with W as in `dequantize_nf4`, except that levels are rounded to fp16
(relative error at most 2**-11, 6e-5 on average) and nothing else is rounded below fp32 before h and y are.

T tokens, K experts per token, E experts, D model width, F expert hidden width, N = T*K token-expert pairs.
"""

import torch
import triton
from torch import Tensor

from .launch import Launch, arch_of, choose_launch, launch
from .nf4 import NF4Weight
from .nf4_format import NF4, dynamic_map_on
from .triton import _decode as kernels

MAX_DECODE_TOKENS = 4  # FMAs and conversions of x: 11 instructions a weight at 4, of the 15 for which an A10G's memory leaves time
_MAX_MATRIX = 1 << 32  # values of one matrix: within it a byte has a 32-bit offset
_COMBINE_BLOCK = 128


def fits_decode(q: NF4Weight, tokens: int) -> bool:
    """Whether these kernels take `q` ([out, in] or a stack of such) and `tokens` rows: whole blocks in every row, few tokens."""
    rows, columns = q.shape[-2:]
    whole = rows % NF4.block == 0 and columns % NF4.block == 0
    return len(q.shape) in (2, 3) and whole and rows * columns < _MAX_MATRIX and tokens <= MAX_DECODE_TOKENS


def decode_moe(x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, w_gate_up: NF4Weight, w_down: NF4Weight) -> Tensor:
    """y [T, D] in x's dtype of experts with matrices `w_gate_up` [E, 2F, D] (W1 above W3) and `w_down` [E, D, F].

    `weights_TK` fp32, `experts_TK` int64, distinct within a token and in 0..E-1. `ValueError` for weights or a number of tokens
    that do not fit (`fits_decode`), or for shapes that do not belong together.
    """
    _check(x_TD, w_gate_up, 3)
    _check(x_TD, w_down, 3)
    num_experts, width, hidden = w_down.shape
    if w_gate_up.shape != (num_experts, 2 * hidden, width) or x_TD.shape[1] != width:
        raise ValueError(f"x of width {x_TD.shape[1]} and experts of shapes {w_gate_up.shape} and {w_down.shape} do not belong together")
    tokens, top_k = experts_TK.shape
    slots = min(num_experts, tokens * top_k)
    x, weights, experts = _aligned(x_TD), weights_TK.float().contiguous(), experts_TK.contiguous()
    h_NF = x.new_empty(tokens * top_k, -(-hidden // 1024) * 1024, dtype=torch.float32)
    at = choose_launch("decode_gate_up", 2 * hidden, width, tokens, arch_of(x.device))
    launch(
        kernels.decode_gate_up_kernel,
        (hidden // at.block_n, slots),
        *(x, weights, experts, w_gate_up.packed, w_gate_up.absmax, w_gate_up.nested_absmax, dynamic_map_on(x.device), h_NF),
        *(w_gate_up.nested_offset, w_gate_up.first_block, tokens),
        **{"D": width, "F": hidden, **_token_constants(tokens, top_k), "BLOCK_N": at.block_n, "WARPS": at.num_warps},
        options=at.options,
    )
    at = choose_launch("decode_down", width, hidden, tokens, arch_of(x.device))
    return _split_product(h_NF, experts, w_down, tokens, top_k, slots, at)


def decode_linear(x_TD: Tensor, q: NF4Weight) -> Tensor:
    """`x_TD` times the transpose of `q` [out, in]: [T, out] in x's dtype. `ValueError` for what does not fit (`fits_decode`)."""
    _check(x_TD, q, 2)
    rows, columns = q.shape
    if x_TD.shape[1] != columns:
        raise ValueError(f"x of width {x_TD.shape[1]} does not fit an NF4 weight of shape {q.shape}")
    at = choose_launch("decode_linear", rows, columns, len(x_TD), arch_of(x_TD.device))
    return _split_product(_aligned(x_TD), None, q, len(x_TD), 1, 1, at)


def _split_product(x_NI: Tensor, experts: Tensor | None, q: NF4Weight, tokens: int, top_k: int, slots: int, at: Launch) -> Tensor:
    """The product of each pair's row with its expert's matrix, in parts that share the row, and the sum of parts and of a token's pairs."""
    rows, columns = q.shape[-2:]
    part = x_NI.new_empty(at.split_k, tokens * top_k, rows, dtype=torch.float32)
    launch(
        kernels.decode_down_kernel,
        (rows // at.block_n, slots, at.split_k),
        *(x_NI, experts, q.packed, q.absmax, q.nested_absmax, dynamic_map_on(x_NI.device), part, q.nested_offset, q.first_block, tokens),
        **{"IN": columns, "OUT": rows, **_token_constants(tokens, top_k), "ROUTED": experts is not None},
        **{"BLOCK_N": at.block_n, "SPLIT_K": at.split_k, "WARPS": at.num_warps},
        options=at.options,
    )
    y_TD = x_NI.new_empty(tokens, rows)
    launch(
        kernels.decode_combine_kernel,
        (triton.cdiv(rows, _COMBINE_BLOCK), tokens),
        *(part, y_TD, tokens),
        **{"OUT": rows, "TOP_K": top_k, "SPLIT_K": at.split_k, "BLOCK_N": _COMBINE_BLOCK},
        options={"num_warps": 1, "num_stages": 1},
    )
    return y_TD


def _token_constants(tokens: int, top_k: int) -> dict[str, int]:
    held = triton.next_power_of_2(tokens)
    return {"TOP_K": top_k, "TOKENS": held, "PAIRS": triton.next_power_of_2(held * top_k)}


def _aligned(x: Tensor) -> Tensor:
    """`x` contiguous and on a boundary of 16 bytes: the kernels read pairs of values."""
    x = x.contiguous()
    return x.clone() if x.storage_offset() * x.itemsize % 16 else x


def _check(x_TD: Tensor, q: NF4Weight, dims: int) -> None:
    if len(q.shape) != dims or not fits_decode(q, len(x_TD)):
        raise ValueError(f"the decode kernels do not take {len(x_TD)} tokens and an NF4 weight of shape {q.shape}")
