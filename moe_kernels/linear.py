"""A linear layer on an NF4 weight."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import backend
from .nf4 import NF4Weight, dequantize_nf4
from .weights import Weight, flatten, restore


def linear_nf4(x: Tensor, q: NF4Weight, bias: Tensor | None = None, *, precision: str = "exact") -> Tensor:
    """`x` [..., in] times the transpose of `q` [out, in], plus `bias` [out]; differentiable in `x` and `bias`.

    The weight is what `dequantize_nf4(q)` says, cast to x's dtype as in bitsandbytes' `Linear4bit` (C++ may not); for a few rows without
    gradients on CUDA its levels are rounded to fp16 (`moe_kernels.decode`). `precision` is one of `backend.PRECISIONS`; other than `exact`
    it is for inference on a CPU. `ValueError` if the widths differ, or for a precision that cannot be had.
    """
    if not isinstance(q, NF4Weight):
        raise ValueError(f"the weight must be an NF4Weight, not a {type(q).__name__}: torch.nn.functional.linear takes tensors")
    if len(q.shape) != 2 or not x.dim() or x.shape[-1] != q.shape[1] or (bias is not None and bias.shape != q.shape[:1]):
        beside = "" if bias is None else f" and a bias of shape {list(bias.shape)}"
        raise ValueError(f"x of shape {list(x.shape)}{beside} do not fit an NF4 weight of shape {list(q.shape)}")
    backend.refuse_tangents(x)
    training = torch.is_grad_enabled() and x.requires_grad
    learns = training or (torch.is_grad_enabled() and bias is not None and bias.requires_grad)
    code = backend.precision_code(precision, x, training=learns, weights=[q])
    y: Tensor
    if not training and backend.runs_cpp_directly(x):
        y = _product_cpp(backend.as_autocast(x), flatten([q]), transposed=False, precision=code)  # without a custom operator's wrapper
    elif backend.traced(x) or backend.runs_cpp(x) or backend.runs_triton(x):
        exact = training  # the backward's weights are exact, so the forward's must be
        y = linear_op(backend.as_autocast(x), *flatten([q]), exact, code)
    else:
        y = _LinearNF4.apply(x, q)
    return y if bias is None else y + bias.to(y.dtype)


def linear_any(x: Tensor, weight: Weight, *, precision: str = "exact") -> Tensor:
    """`x` [..., in] times the transpose of a dense or NF4 `weight` [out, in], in x's dtype; `precision` is that of a product with NF4."""
    return linear_nf4(x, weight, precision=precision) if isinstance(weight, NF4Weight) else linear(x, weight.to(x.dtype))


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


@torch.library.custom_op("moe_kernels::linear_nf4", mutates_args=())
def linear_op(x: Tensor, tensors: list[Tensor], offsets: list[float], ints: list[int], exact: bool, precision: int) -> Tensor:
    if backend.runs_cpp(x):
        return _product_cpp(x, (tensors, offsets, ints), transposed=False, precision=precision)
    return _product(x, restore(tensors, offsets, ints)[0], transposed=False, exact=exact)


@linear_op.register_fake
def _linear_fake(x, tensors, offsets, ints, exact, precision):
    return x.new_empty(*x.shape[:-1], ints[-2])


@torch.library.custom_op("moe_kernels::linear_nf4_backward", mutates_args=())
def linear_backward_op(dy: Tensor, tensors: list[Tensor], offsets: list[float], ints: list[int]) -> Tensor:
    if backend.runs_cpp(dy):
        return _product_cpp(dy, (tensors, offsets, ints), transposed=True, precision=0)
    return _product(dy, restore(tensors, offsets, ints)[0], transposed=True, exact=True)


@linear_backward_op.register_fake
def _linear_backward_fake(dy, tensors, offsets, ints):
    return dy.new_empty(*dy.shape[:-1], ints[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, tensors, *ctx.facts, _, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | list[None] | None, ...]:
    tensors = list(ctx.saved_tensors)
    return torch.ops.moe_kernels.linear_nf4_backward(dy, tensors, *ctx.facts), [None] * len(tensors), None, None, None, None


linear_op.register_autograd(_backward, setup_context=_setup_context)


def _product(x: Tensor, weight: Weight, *, transposed: bool, exact: bool) -> Tensor:
    """x W^T, or `transposed` x W, of [..., width]; `exact` keeps few rows from the decode kernels."""
    rows = x.reshape(-1, x.shape[-1])
    with torch.autocast(x.device.type, enabled=False):
        if backend.runs_triton(x) and len(rows):
            from .experts_triton import shared_linear

            y = shared_linear(rows.contiguous(), weight, transposed=transposed, exact=exact)
        else:
            assert isinstance(weight, NF4Weight)
            dense = dequantize_nf4(weight).to(x.dtype)
            y = rows @ (dense if transposed else dense.T)
    return y.view(*x.shape[:-1], y.shape[-1])


def _product_cpp(x: Tensor, flattened: tuple[list[Tensor], list[float], list[int]], *, transposed: bool, precision: int) -> Tensor:
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    y: Tensor = torch.ops.moe_kernels.linear_cpp(rows, *flattened, transposed, precision)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[-1])
