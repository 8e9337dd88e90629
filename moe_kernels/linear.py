"""A linear layer on an NF4 weight."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from .nf4 import NF4Weight, dequantize_nf4


class _LinearNF4(torch.autograd.Function):
    """Forward and dX read the same bytes; the dequantised weight lives only within each of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: NF4Weight) -> Tensor:
        ctx.q = q
        return linear(x, dequantize_nf4(q).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (dy,) = grads
        return dy @ dequantize_nf4(ctx.q).to(dy.dtype), None


def linear_nf4(x: Tensor, q: NF4Weight, bias: Tensor | None = None) -> Tensor:
    """`x` [..., in] times the transpose of `q` [out, in], plus `bias` [out]; differentiable in `x` and `bias`.

    The weight is what `dequantize_nf4(q)` says, cast to x's dtype, as in bitsandbytes' `Linear4bit`. `ValueError` if the widths differ.
    """
    if len(q.shape) != 2 or x.shape[-1] != q.shape[1]:
        raise ValueError(f"x of width {x.shape[-1]} does not fit an NF4 weight of shape {q.shape}")
    y: Tensor = _LinearNF4.apply(x, q)
    return y if bias is None else y + bias


def linear_any(x: Tensor, weight: Tensor | NF4Weight) -> Tensor:
    """`x` [..., in] times the transpose of a dense or NF4 `weight` [out, in]."""
    return linear_nf4(x, weight) if isinstance(weight, NF4Weight) else linear(x, weight)
