"""The feed-forward experts of a mixture, weighted and summed:

    y = Σ_k g_k E_{e_k}(x),   E_e(x) = W2_e h,   h = silu(W1_e x) ⊙ (W3_e x)

in two layouts. `moe_dense`: every expert has its own three matrices. `moe_lora`: W_e = W + s·B_e A_e on one base W, the same
function before rounding; W1 and W3 then meet each token once, and W2 meets Σ_k g_k h_k once.

T tokens, K experts per token, E experts, D model width, F expert hidden width, N = T*K pairs, R LoRA rank.
The sum over k is a gather and an addition in fixed order, forward and backward: no atomics, equal bits from run to run.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from .grouping import group_tokens
from .linear import linear_any
from .nf4 import NF4Weight
from .routing import Routing


@dataclass(frozen=True, eq=False)
class LoRA:
    """Low-rank factors of one matrix in every expert: W_e + scaling * b[e] @ a[e] (Hu et al. 2021, arXiv:2106.09685)."""

    a: Tensor  # [E, R, in]
    b: Tensor  # [E, out, R]
    scaling: float  # alpha / R


@dataclass(frozen=True, eq=False)
class ExpertLoRA:
    """The factors of an expert's three matrices; None leaves a matrix as it is."""

    w1: LoRA | None  # gate, [F, D]
    w3: LoRA | None  # up, [F, D]
    w2: LoRA | None  # down, [D, F]


def moe_dense(
    x_TD: Tensor, routing: Routing, w_gate_up: Tensor | NF4Weight, w_down: Tensor | NF4Weight, lora: ExpertLoRA | None = None
) -> Tensor:
    """y [T, D] of experts with their own matrices `w_gate_up` [E, 2F, D] (W1 above W3) and `w_down` [E, D, F].

    Differentiable in x, the routing's weights, dense matrices and LoRA factors; an expert without tokens gets zero gradients.
    """
    if not len(x_TD):
        return x_TD.clone()
    top_k = routing.experts_TK.shape[1]
    gate_up_E, down_E = _by_expert(w_gate_up), _by_expert(w_down)
    grouping = group_tokens(routing.experts_TK, len(gate_up_E))
    x_ND = _Dispatch.apply(x_TD, grouping.order_N, grouping.inverse_N, top_k)
    weight_N1 = _Dispatch.apply(routing.weights_TK.reshape(-1, 1), grouping.order_N, grouping.inverse_N, 1)
    offsets = grouping.offsets_E1.tolist()
    outputs = []
    for e, (begin, end) in enumerate(zip(offsets, offsets[1:], strict=False)):
        if begin == end:
            continue
        x = x_ND[begin:end]
        gate, up = linear_any(x, gate_up_E[e]).chunk(2, dim=-1)
        if lora is not None:
            gate, up = gate + _expert_delta(x, lora.w1, e), up + _expert_delta(x, lora.w3, e)
        h = (silu(gate) * up * weight_N1[begin:end]).to(x.dtype)
        y = linear_any(h, down_E[e])
        outputs.append(y if lora is None else y + _expert_delta(h, lora.w2, e))
    return _Combine.apply(torch.cat(outputs), grouping.order_N, grouping.inverse_N, top_k)
