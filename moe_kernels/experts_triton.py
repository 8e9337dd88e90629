"""Both expert layouts on the grouped kernels, forward and backward. The formulas are in `moe_kernels.experts`.

T tokens, K experts per token, E experts, N = T*K pairs in expert order, D model width, F expert hidden width, R LoRA rank.

Which way a product with NF4 goes depends on T and on x's dtype, for the number of tokens of an expert is on the device:

    T <= decode_tokens(arch) weights streamed once, levels in fp16 (moe_kernels.decode); inference only
    T <= fused_tokens(arch)  weights decoded inside the product, equal to bitsandbytes' bit for bit
    more, or x in fp32       weights dequantised into a workspace first: decoding them again for every tile of rows costs more by then,
                             and in fp32 it would spill 4 to 9 KB a thread.
                             On compute capability 9.x and 10.x PyTorch's own grouped product then takes bf16
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import decode, grouped
from .dequant import dequantize
from .grouped import Rows
from .grouping import Grouping, group_tokens
from .launch import arch_of, decode_tokens, fused_tokens, recording
from .nf4 import NF4Weight
from .weights import Weight


@dataclass(frozen=True, eq=False)
class Factors:
    """LoRA factors in x's dtype: a [E, R, in], b [E, out, R], and the three scalings alpha / R."""

    a1: Tensor
    b1: Tensor
    a3: Tensor
    b3: Tensor
    a2: Tensor
    b2: Tensor
    s1: float
    s3: float
    s2: float


@dataclass(frozen=True, eq=False)
class Saved:
    """What a backward needs of its forward."""

    grouping: Grouping
    preact: Tensor  # [N, 2F]: [g | u]
    z1: Tensor | None  # s1 A1 x [N, R], and so on
    z3: Tensor | None
    z2: Tensor | None


def readable(weight: Weight, x: Tensor) -> Weight:
    """`weight` in the form that the products read for x's number of tokens: as it is, or dequantised into a workspace."""
    if not isinstance(weight, NF4Weight):
        return weight.to(x.dtype).contiguous()
    if grouped.fits_nf4(weight) and x.dtype != torch.float32 and len(x) <= fused_tokens(arch_of(x.device)):
        return weight
    return dequantize(weight, weight.dtype).to(x.dtype)


def decodes(weights: Sequence[Weight], x: Tensor) -> bool:
    """Whether `x` is few enough rows, of a dtype coarse enough for fp16 levels, for the decode kernels."""
    if x.dtype not in (torch.bfloat16, torch.float16) or len(x) > decode_tokens(arch_of(x.device)):
        return False
    return all(isinstance(weight, NF4Weight) and decode.fits_decode(weight, len(x)) for weight in weights)


def library_product(x: Tensor, weight: Weight, rows: Rows, *, gather: bool = False, transposed: bool = False) -> Tensor | None:
    """PyTorch's grouped product of rows of x in expert order, on a dense `weight` and cards that have a fast one; else None.

    On others than 9.x and 10.x PyTorch loops over the experts and waits for their sizes.
    """
    if (
        isinstance(weight, NF4Weight)
        or not (x.is_cuda or recording())
        or arch_of(x.device) // 10 not in (9, 10)
        or x.dtype != torch.bfloat16
    ):
        return None
    if any(size % 8 for size in weight.shape[1:]) or rows.grouping is None:
        return None
    if gather:
        x = x[rows.grouping.order_N // rows.top_k]
    ends = rows.grouping.offsets_E1[1:].int()
    return torch._grouped_mm(x, weight if transposed else weight.transpose(-2, -1), offs=ends)


def dense_forward(
    x: Tensor, routing_weights: Tensor, experts: Tensor, gate_up: Weight, down: Weight, lora: Factors | None, save: bool
) -> tuple[Tensor, Saved | None]:
    """y [T, D] of experts with their own matrices `gate_up` [E, 2F, D] and `down` [E, D, F]."""
    if lora is None and not save and decodes([gate_up, down], x):
        assert isinstance(gate_up, NF4Weight) and isinstance(down, NF4Weight)
        return decode.decode_moe(x, routing_weights, experts, gate_up, down), None
    rows = Rows(experts.numel(), group_tokens(experts, gate_up.shape[0]), experts.shape[1])
    hidden = down.shape[2]
    z1, z3 = _shrink_up(x, lora, rows)
    low_rank = (z1, lora.b1, z3, lora.b3) if lora and z1 is not None and z3 is not None else None
    weight = readable(gate_up, x)
    product = library_product(x, weight, rows, gather=True)
    preact = x.new_empty(rows.count, 2 * hidden) if save and (product is None or lora) else None
    if product is None:
        h = grouped.swiglu(x, weight, None, routing_weights, rows, hidden, low_rank, preact, x)
    else:
        h = grouped.swiglu(None, None, product, routing_weights, rows, hidden, low_rank, preact, x, base_in_order=True)
    z2 = grouped.linear("lora_shrink", h, lora.a2, rows, scale=lora.s2) if lora else None
    y = _linear(h, readable(down, x), rows, z2, lora.b2 if lora else None)
    if save and preact is None:
        preact = product  # nothing was added to it
    return grouped.combine(y, rows), _save(rows, preact, z1, z3, z2)


def dense_backward(
    dy: Tensor, x: Tensor, routing_weights: Tensor, gate_up: Weight, down: Weight, lora: Factors | None, saved: Saved, base_grads: bool
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Gradients of x [T, D], of the routing's weights [T, K], of dense matrices if `base_grads`, of the factors in their order."""
    rows = Rows(routing_weights.numel(), saved.grouping, routing_weights.shape[1])
    v2 = grouped.linear("lora_shrink", dy, lora.b2, rows, gather=True, transposed=True, scale=lora.s2) if lora else None
    low_rank, keep_h = (v2, lora.a2) if lora and v2 is not None else None, bool(lora) or base_grads
    weight = readable(down, x)
    product = library_product(dy, weight, rows, gather=True, transposed=True)
    if product is None:
        gradients = grouped.swiglu_backward(dy, weight, None, routing_weights, rows, saved.preact, low_rank, keep_h)
    else:
        gradients = grouped.swiglu_backward(None, None, product, routing_weights, rows, saved.preact, low_rank, keep_h, base_in_order=True)
    dpreact, dweights, h = gradients
    v13, dfactors = _lora_backward(x, dy, h, v2, dpreact, lora, saved, rows)
    a13 = torch.cat([lora.a1, lora.a3], dim=1) if lora else None
    dx = _linear(dpreact, readable(gate_up, x), rows, v13, a13, transposed=True)
    dbase: list[Tensor] = []
    if base_grads:
        assert h is not None
        dbase = [grouped.gram(dpreact, x, rows, gather_b=True), grouped.gram(dy, h, rows, gather_a=True)]
    return grouped.combine(dx, rows), dweights, dbase, dfactors


def lora_forward(
    x: Tensor, routing_weights: Tensor, experts: Tensor, base: Sequence[Weight], lora: Factors, save: bool
) -> tuple[Tensor, Saved | None]:
    """y [T, D] of experts that share `base` = w1, w3 [F, D] and w2 [D, F]: each of them meets a token once."""
    w1, w3, w2 = base
    hidden = w2.shape[1]
    rows = Rows(experts.numel(), group_tokens(experts, len(lora.a1)), experts.shape[1])
    shared = x.new_empty(len(x), 2 * hidden)
    shared_linear(x, w1, exact=save, out=shared[:, :hidden])
    shared_linear(x, w3, exact=save, out=shared[:, hidden:])
    preact = x.new_empty(rows.count, 2 * hidden) if save else None
    z1, z3 = _shrink_up(x, lora, rows)
    assert z1 is not None and z3 is not None
    h = grouped.swiglu(None, None, shared, routing_weights, rows, hidden, (z1, lora.b1, z3, lora.b3), preact, x)
    z2 = grouped.linear("lora_shrink", h, lora.a2, rows, scale=lora.s2)
    y = shared_linear(grouped.combine(h, rows), w2, exact=save)
    return grouped.combine(grouped.linear("lora_expand", z2, lora.b2, rows), rows, base=y), _save(rows, preact, z1, z3, z2)


def lora_backward(
    dy: Tensor, x: Tensor, routing_weights: Tensor, base: Sequence[Weight], lora: Factors, saved: Saved, base_grads: bool
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Gradients of x [T, D], of the routing's weights [T, K], of dense w1, w3, w2 if `base_grads`, of the LoRA factors."""
    w1, w3, w2 = base
    rows = Rows(routing_weights.numel(), saved.grouping, routing_weights.shape[1])
    hidden = saved.preact.shape[1] // 2
    v2 = grouped.linear("lora_shrink", dy, lora.b2, rows, gather=True, transposed=True, scale=lora.s2)
    dh = shared_linear(dy, w2, transposed=True)
    dpreact, dweights, h = grouped.swiglu_backward(None, None, dh, routing_weights, rows, saved.preact, (v2, lora.a2), keep_h=True)
    v13, dfactors = _lora_backward(x, dy, h, v2, dpreact, lora, saved, rows)
    dshared = grouped.combine(dpreact, rows)  # of W1 x and W3 x, [T, 2F]
    dgate, dup = dshared[:, :hidden], dshared[:, hidden:]
    dx = shared_linear(dgate, w1, transposed=True) + shared_linear(dup, w3, transposed=True)
    assert v13 is not None and h is not None
    low_rank = grouped.linear("lora_expand", v13, torch.cat([lora.a1, lora.a3], dim=1), rows, transposed=True)
    dbase = [dgate.T @ x, dup.T @ x, dy.T @ grouped.combine(h, rows)] if base_grads else []
    return grouped.combine(low_rank, rows, base=dx), dweights, dbase, dfactors


def shared_linear(x: Tensor, weight: Weight, *, transposed: bool = False, exact: bool = True, out: Tensor | None = None) -> Tensor:
    """x W^T [T, out], or `transposed` x W [T, in], of one matrix for all rows; not `exact` lets few rows take the decode kernels."""
    if isinstance(weight, NF4Weight):
        if not exact and not transposed and decodes([weight], x):
            y = decode.decode_linear(x.contiguous(), weight)
            return y if out is None else out.copy_(y)
        weight = readable(weight, x)
        if isinstance(weight, NF4Weight):
            return grouped.linear("linear", x, weight, Rows(len(x), None), transposed=transposed, out=out)
    weight = weight.to(x.dtype)
    y = x @ (weight if transposed else weight.T)
    return y if out is None else out.copy_(y)


def _linear(x: Tensor, weight: Weight, rows: Rows, z: Tensor | None, factor: Tensor | None, *, transposed: bool = False) -> Tensor:
    """x W_e^T + z B_e^T of rows in expert order, or `transposed` x W_e + z A_e."""
    product = library_product(x, weight, rows, transposed=transposed)
    if product is None:
        return grouped.linear("grouped", x, weight, rows, transposed=transposed, z=z, factor=factor)
    if z is None or factor is None:
        return product
    return product + grouped.linear("lora_expand", z, factor, rows, transposed=transposed)


def _shrink_up(x: Tensor, lora: Factors | None, rows: Rows) -> tuple[Tensor | None, Tensor | None]:
    """s1 A1 x and s3 A3 x [N, R]."""
    if lora is None:
        return None, None
    z1 = grouped.linear("lora_shrink", x, lora.a1, rows, gather=True, scale=lora.s1)
    return z1, grouped.linear("lora_shrink", x, lora.a3, rows, gather=True, scale=lora.s3)


def _save(rows: Rows, preact: Tensor | None, z1: Tensor | None, z3: Tensor | None, z2: Tensor | None) -> Saved | None:
    if preact is None:
        return None
    assert rows.grouping is not None
    return Saved(rows.grouping, preact, z1, z3, z2)


def _lora_backward(
    x: Tensor, dy: Tensor, h: Tensor | None, v2: Tensor | None, dpreact: Tensor, lora: Factors | None, saved: Saved, rows: Rows
) -> tuple[Tensor | None, list[Tensor]]:
    """([s1 B1^T dg | s3 B3^T du] [N, 2R], the factors' gradients)."""
    if lora is None:
        return None, []
    assert h is not None and v2 is not None and saved.z1 is not None and saved.z3 is not None and saved.z2 is not None
    rank, hidden = lora.a1.shape[1], h.shape[1]
    dg, du = dpreact[:, :hidden], dpreact[:, hidden:]
    v13 = x.new_empty(rows.count, 2 * rank)
    v1, v3 = v13[:, :rank], v13[:, rank:]
    grouped.linear("lora_shrink", dg, lora.b1, rows, transposed=True, out=v1, scale=lora.s1)
    grouped.linear("lora_shrink", du, lora.b3, rows, transposed=True, out=v3, scale=lora.s3)
    return v13, [
        grouped.gram(v1, x, rows, gather_b=True),
        grouped.gram(dg, saved.z1, rows),
        grouped.gram(v3, x, rows, gather_b=True),
        grouped.gram(du, saved.z3, rows),
        grouped.gram(v2, h, rows),
        grouped.gram(dy, saved.z2, rows, gather_a=True),
    ]
