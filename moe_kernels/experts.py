"""The feed-forward experts of a mixture, weighted and summed:

    y = Σ_k g_k E_{e_k}(x),   E_e(x) = W2_e h,   h = silu(W1_e x) ⊙ (W3_e x)

in two layouts. `moe_dense`: every expert has its own three matrices. `moe_lora`: W_e = W + s·B_e A_e on one base W, the same
function before rounding; W1 and W3 then meet each token once, and W2 meets Σ_k g_k h_k once.

T tokens, K experts per token, E experts, D model width, F expert hidden width, N = T*K pairs, R LoRA rank.
The sum over k is a gather and an addition in fixed order, forward and backward: no atomics, equal bits from run to run.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from . import backend, experts_ops
from .grouping import check_expert_ids, group_tokens
from .linear import linear_any
from .nf4 import NF4Weight
from .routing import Routing
from .weights import Weight, flatten


@dataclass(frozen=True, eq=False)
class LoRA:
    """Low-rank factors of one matrix in every expert: W_e + scaling * b[e] @ a[e] (Hu et al. 2021, arXiv:2106.09685)."""

    a: Tensor  # [E, R, in]
    b: Tensor  # [E, out, R]
    scaling: float  # alpha / R


@dataclass(frozen=True, eq=False)
class ExpertLoRA:
    """The factors of an expert's three matrices."""

    w1: LoRA  # gate
    w3: LoRA  # up
    w2: LoRA  # down


def moe_dense(
    x_TD: Tensor, routing: Routing, w_gate_up: Weight, w_down: Weight, lora: ExpertLoRA | None = None, *, precision: str = "exact"
) -> Tensor:
    """y [T, D] of experts with their own matrices `w_gate_up` [E, 2F, D] (W1 above W3) and `w_down` [E, D, F].

    Differentiable in x, the routing's weights, dense matrices and LoRA factors; an expert without tokens gets zero gradients.
    `precision` is one of `backend.PRECISIONS`; other than `exact` it is for inference on a CPU, with NF4 weights.
    `ValueError` if the shapes do not fit, or for a precision that cannot be had.
    """
    shapes = [tuple(part.shape) for part in (x_TD, w_gate_up, w_down)]
    num_experts, width, hidden = shapes[2] if len(shapes[2]) == 3 else (0, 0, 0)
    if shapes[0][1:] != (width,) or shapes[1] != (num_experts, 2 * hidden, width) or 0 in (num_experts, width, hidden):
        raise ValueError(
            f"x, w_gate_up and w_down of shapes {_listed(shapes)} do not fit: they are [T, D], [E, 2F, D] and [E, D, F], of E, D, F above 0"
        )
    if lora is not None:
        _check_lora(lora, num_experts, hidden, width)
    return _run(x_TD, routing, [w_gate_up, w_down], lora, num_experts, precision)


def moe_lora(x_TD: Tensor, routing: Routing, w1: Weight, w3: Weight, w2: Weight, lora: ExpertLoRA, *, precision: str = "exact") -> Tensor:
    """y [T, D] of experts that share `w1`, `w3` [F, D] and `w2` [D, F] and differ by `lora`.

    Differentiable in x, the routing's weights, dense matrices and LoRA factors; an expert without tokens gets zero gradients.
    `precision` as in `moe_dense`, of products with the base. `ValueError` if the shapes do not fit, or for a precision that cannot be had.
    """
    shapes = [tuple(part.shape) for part in (x_TD, w1, w3, w2)]
    width, hidden = shapes[3] if len(shapes[3]) == 2 else (0, 0)
    if shapes[0][1:] != (width,) or shapes[1:3] != [(hidden, width)] * 2 or 0 in (width, hidden):
        raise ValueError(
            f"x, w1, w3 and w2 of shapes {_listed(shapes)} do not fit: they are [T, D], [F, D], [F, D] and [D, F], of D and F above 0"
        )
    num_experts = (*lora.w1.a.shape, 0)[0]
    _check_lora(lora, num_experts, hidden, width)
    return _run(x_TD, routing, [w1, w3, w2], lora, num_experts, precision)


def _listed(shapes: Iterable[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)


def _check_lora(lora: ExpertLoRA, num_experts: int, hidden: int, width: int) -> None:
    for name, part, inside, outside in (("w1", lora.w1, width, hidden), ("w3", lora.w3, width, hidden), ("w2", lora.w2, hidden, width)):
        rank = part.a.shape[1] if part.a.dim() == 3 else 0
        if (part.a.shape, part.b.shape) != ((num_experts, rank, inside), (num_experts, outside, rank)):
            found = _listed((tuple(part.a.shape), tuple(part.b.shape)))
            wanted = f"[{num_experts}, R, {inside}] and [{num_experts}, {outside}, R]"
            raise ValueError(f"the LoRA factors a and b of {name} have the shapes {found}; they must be {wanted}")


def _check_routing(routing: Routing, num_tokens: int) -> None:
    """That ids lie within 0..E-1 is checked where they are read."""
    shapes = [tuple(routing.weights_TK.shape), tuple(routing.experts_TK.shape)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][0] != num_tokens:
        raise ValueError(
            f"the routing's weights and experts have the shapes {_listed(shapes)}; for {num_tokens} tokens both are [{num_tokens}, K]"
        )
    if routing.experts_TK.is_floating_point():
        raise ValueError(f"the routing's experts must be integers, not {routing.experts_TK.dtype}")


def _run(x_TD: Tensor, routing: Routing, base: list[Weight], lora: ExpertLoRA | None, num_experts: int, precision: str) -> Tensor:
    """The operator of `experts_ops`; without kernels and tracing the reference, whose autograd needs no second forward."""
    if not x_TD.is_floating_point():
        raise ValueError(f"x must be a floating-point tensor, not {x_TD.dtype}")
    for weight in base:
        if weight.device != x_TD.device or not (isinstance(weight, NF4Weight) or weight.is_floating_point()):
            facts = f"{weight.dtype} on {weight.device} does not fit x of {x_TD.dtype} on {x_TD.device}"
            raise ValueError(f"a weight of {facts}: it is floating-point or an NF4Weight, on x's device")
    _check_routing(routing, len(x_TD))
    parts = [lora.w1, lora.w3, lora.w2] if lora else []
    wanted = [x_TD, routing.weights_TK, *base, *(factor for part in parts for factor in (part.a, part.b))]
    backend.refuse_tangents(*wanted)
    training = torch.is_grad_enabled() and any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in wanted)
    code = backend.precision_code(precision, x_TD, training=training, weights=base)
    if not len(x_TD):  # part of the graph all the same: every gradient is zero then, not absent
        nothing = sum((tensor.sum() for tensor in wanted[1:] if isinstance(tensor, Tensor)), start=torch.zeros((), device=x_TD.device))
        return backend.as_autocast(x_TD) + nothing.to(x_TD.dtype)
    if not (backend.traced(x_TD) or backend.runs_cpp(x_TD) or backend.runs_triton(x_TD)):
        return run_reference(x_TD, routing.weights_TK, routing.experts_TK, base, lora)
    x_TD = backend.as_autocast(x_TD)
    dense = [weight for weight in base if not isinstance(weight, NF4Weight)]
    if len(dense) < len(base) and any(weight.requires_grad for weight in dense):
        raise ValueError("an expert's matrices must be all dense to be trained: one of them is in NF4")
    tensors, offsets, ints = flatten(base)
    factors = [factor.to(x_TD.dtype) for part in parts for factor in (part.a, part.b)]
    scalings = [float(part.scaling) for part in parts] or [1.0]  # an empty list would be taken for one of tensors
    given = x_TD, routing.weights_TK, routing.experts_TK, tensors, offsets, ints, factors, scalings
    # The wrapper of a custom operator takes as long as a small layer: 60 µs.
    direct = not training and backend.runs_cpp_directly(x_TD)
    y: Tensor = (torch.ops.moe_kernels.experts_cpp(*given, False, code) if direct else experts_ops.experts_op(*given, training, code))[0]
    return y


def run_reference(x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, base: list[Weight], lora: ExpertLoRA | None) -> Tensor:
    """The reference of the layout that `base` is of; `ValueError` as `check_expert_ids` has it."""
    num_experts = base[0].shape[0] if lora is None else len(lora.w1.a)
    check_expert_ids(experts_TK, num_experts)
    experts_TK = experts_TK.clamp(0, num_experts - 1)  # as the kernels do where the ids have not been checked
    if len(base) == 2:
        return moe_dense_reference(x_TD, weights_TK, experts_TK, base[0], base[1], lora)
    assert lora is not None
    return moe_lora_reference(x_TD, weights_TK, experts_TK, base[0], base[1], base[2], lora)


def moe_dense_reference(
    x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, w_gate_up: Weight, w_down: Weight, lora: ExpertLoRA | None
) -> Tensor:
    """`moe_dense`'s formula, expert by expert."""
    top_k, num_experts = experts_TK.shape[1], w_gate_up.shape[0]
    grouping = group_tokens(experts_TK, num_experts)
    order_N, inverse_N, offsets = grouping.order_N, grouping.inverse_N, grouping.offsets_E1.tolist()
    x_ND = _Dispatch.apply(x_TD, order_N, inverse_N, top_k)
    weights_N1 = _Dispatch.apply(weights_TK.reshape(-1, 1), order_N, inverse_N, 1)
    absent_NE1 = _absent(experts_TK.reshape(-1)[order_N], num_experts)

    gate_NF, up_NF = _grouped_linear(x_ND, w_gate_up, offsets).chunk(2, dim=1)
    if lora is not None:
        gate_NF = gate_NF + _expand(_shrink(x_ND, lora.w1, absent_NE1), lora.w1)
        up_NF = up_NF + _expand(_shrink(x_ND, lora.w3, absent_NE1), lora.w3)
    h_NF = (silu(gate_NF) * up_NF * weights_N1).to(x_TD.dtype)
    y_ND = _grouped_linear(h_NF, w_down, offsets)
    if lora is not None:
        y_ND = y_ND + _expand(_shrink(h_NF, lora.w2, absent_NE1), lora.w2)
    y_TD: Tensor = _Combine.apply(y_ND, order_N, inverse_N, top_k)
    return y_TD


def moe_lora_reference(
    x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, w1: Weight, w3: Weight, w2: Weight, lora: ExpertLoRA
) -> Tensor:
    """`moe_lora`'s formula: base products once a token, factors once a pair."""
    absent_TKE1 = _absent(experts_TK, lora.w1.a.shape[0])
    x_T1D = x_TD[:, None]
    gate_TKF = linear_any(x_T1D, w1) + _expand(_shrink(x_T1D, lora.w1, absent_TKE1), lora.w1)
    up_TKF = linear_any(x_T1D, w3) + _expand(_shrink(x_T1D, lora.w3, absent_TKE1), lora.w3)
    h_TKF = (silu(gate_TKF) * up_TKF * weights_TK[..., None]).to(x_TD.dtype)
    return linear_any(h_TKF.sum(1), w2) + _expand(_shrink(h_TKF, lora.w2, absent_TKE1).sum(1), lora.w2)


def _absent(experts: Tensor, num_experts: int) -> Tensor:
    """Whether each of `experts` [...] is not expert e, bool [..., E, 1]."""
    return experts[..., None, None] != torch.arange(num_experts, device=experts.device)[:, None]


def _shrink(x: Tensor, lora: LoRA, absent: Tensor) -> Tensor:
    """s·A_e x for the expert of each row and zeros for the others, [..., E*R]: one product for all experts, no loop over them."""
    z = linear(x, lora.a.flatten(0, 1).to(x.dtype)).unflatten(-1, lora.a.shape[:2])
    return (z * lora.scaling).masked_fill(absent, 0).flatten(-2)


def _expand(z: Tensor, lora: LoRA) -> Tensor:
    """B_e z_e summed over the experts, [..., out], of `z` [..., E*R] as made by `_shrink`."""
    return linear(z, lora.b.transpose(0, 1).flatten(1).to(z.dtype))


def _grouped_linear(x_NI: Tensor, weights: Tensor | NF4Weight, offsets: list[int]) -> Tensor:
    """Rows offsets[e]..offsets[e+1]-1 of `x_NI` times expert e's matrix of `weights` [E, out, in]; experts without rows are skipped."""
    experts = [weights.expert(e) for e in range(weights.shape[0])] if isinstance(weights, NF4Weight) else weights.unbind(0)
    spans = [(e, begin, end) for e, (begin, end) in enumerate(pairwise(offsets)) if begin < end]
    return torch.cat([linear_any(x_NI[begin:end], experts[e]) for e, begin, end in spans])


class _Dispatch(torch.autograd.Function):
    """The row of each pair's token, in expert order; backward adds a token's K rows in the order of k."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_N: Tensor, inverse_N: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(inverse_N)
        ctx.top_k = top_k
        return x_TD[order_N // top_k]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse_N,) = ctx.saved_tensors
        return grads[0][inverse_N].unflatten(0, (-1, ctx.top_k)).sum(1), None, None, None


class _Combine(torch.autograd.Function):
    """The transpose of `_Dispatch`: adds the K rows of each token, in the order of k."""

    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, order_N: Tensor, inverse_N: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(order_N)
        ctx.top_k = top_k
        return y_ND[inverse_N].unflatten(0, (-1, top_k)).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (order_N,) = ctx.saved_tensors
        return grads[0][order_N // ctx.top_k], None, None, None
