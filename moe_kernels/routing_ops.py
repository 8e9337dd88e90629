"""Routing as operators of PyTorch: which implementation runs, shapes for tracing, and the derivative. T, K, E, D as in `routing.py`."""

from typing import Any

import torch
from torch import Tensor

from . import backend
from .grouping import MOST_KERNEL_EXPERTS
from .launch import recording
from .routing_launch import route_backward_by_kernels, route_by_kernels
from .routing_reference import Forward, Gradients, route_backward_reference, route_reference

cpp = torch.ops.moe_kernels  # the operators of csrc/, once the extension is loaded


@torch.library.custom_op("moe_kernels::route", mutates_args=())
def route_op(
    x_TD: Tensor,
    w_gate_ED: Tensor,
    w_noise_ED: Tensor | None,
    seed: Tensor | None,
    sequence_ids_T: Tensor | None,
    mask_T: Tensor | None,
    kind: str,
    top_k: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    run = route_by_kernels if _runs_kernels(x_TD, w_gate_ED, w_noise_ED) else route_reference
    if backend.runs_cpp(x_TD):
        run = cpp.route_cpp
    return run(x_TD, w_gate_ED, w_noise_ED, seed, sequence_ids_T, mask_T, kind, top_k)


def run_route(x_TD: Tensor, w_gate_ED: Tensor, w_noise_ED: Tensor | None, *arguments: Any) -> Forward:
    """`route_op`; where there is nothing to differentiate or trace, without its wrapper: that takes twice as long as a token in C++."""
    if backend.runs_cpp_directly(x_TD) and not _wants_gradient(x_TD, w_gate_ED, w_noise_ED):
        return cpp.route_cpp(x_TD, w_gate_ED, w_noise_ED, *arguments)
    return route_op(x_TD, w_gate_ED, w_noise_ED, *arguments)


@route_op.register_fake
def _(x_TD, w_gate_ED, w_noise_ED, seed, sequence_ids_T, mask_T, kind, top_k):
    if recording():
        return route_by_kernels(x_TD, w_gate_ED, w_noise_ED, seed, sequence_ids_T, mask_T, kind, top_k)
    tokens, num_experts = x_TD.shape[0], w_gate_ED.shape[0]
    wide = x_TD.new_empty((), dtype=torch.promote_types(x_TD.dtype, torch.float32))
    saved = wide.new_empty(2 if seed is not None else 1 if kind == "sequence" else 0, tokens, num_experts)
    weights_TK, experts_TK = wide.new_empty(tokens, top_k), wide.new_empty(tokens, top_k, dtype=torch.int64)
    return weights_TK, experts_TK, wide.new_empty(tokens, num_experts), wide.new_empty(num_experts), wide.new_empty(num_experts), saved


@torch.library.custom_op("moe_kernels::route_backward", mutates_args=())
def route_backward_op(
    dweights_TK: Tensor | None,
    dlogits_TE: Tensor | None,
    dimportance_E: Tensor | None,
    dload_E: Tensor | None,
    x_TD: Tensor,
    w_gate_ED: Tensor,
    w_noise_ED: Tensor | None,
    seed: Tensor | None,
    sequence_ids_T: Tensor | None,
    mask_T: Tensor | None,
    experts_TK: Tensor,
    logits_TE: Tensor,
    saved: Tensor,
    kind: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, Wg and Wnoise; one that `needs` does not ask for is an empty tensor."""
    grads = dweights_TK, dlogits_TE, dimportance_E, dload_E
    kept = experts_TK, logits_TE, saved
    if _runs_kernels(x_TD, w_gate_ED, w_noise_ED):
        return route_backward_by_kernels(*grads, x_TD, w_gate_ED, w_noise_ED, sequence_ids_T, mask_T, *kept, kind, seed is not None, needs)
    if backend.runs_cpp(x_TD):
        return cpp.route_backward_cpp(*grads, x_TD, w_gate_ED, w_noise_ED, seed, sequence_ids_T, mask_T, *kept, kind, needs)
    top_k = experts_TK.shape[1]
    return route_backward_reference(*grads, x_TD, w_gate_ED, w_noise_ED, seed, sequence_ids_T, mask_T, kind, top_k, needs)


@route_backward_op.register_fake
def _(
    dweights_TK, dlogits_TE, dimportance_E, dload_E, x_TD, w_gate_ED, w_noise_ED,
    seed, sequence_ids_T, mask_T, experts_TK, logits_TE, saved, kind, needs,
) -> Gradients:  # fmt: skip
    if recording():
        grads = dweights_TK, dlogits_TE, dimportance_E, dload_E
        kept = experts_TK, logits_TE, saved
        return route_backward_by_kernels(*grads, x_TD, w_gate_ED, w_noise_ED, sequence_ids_T, mask_T, *kept, kind, seed is not None, needs)
    inputs = x_TD, w_gate_ED, w_noise_ED
    dx, dgate, dnoise = (
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if need and tensor is not None else x_TD.new_empty(0)
        for tensor, need in zip(inputs, needs, strict=True)
    )
    return dx, dgate, dnoise


def _save(ctx: Any, inputs: tuple[Any, ...], output: Forward) -> None:
    x_TD, w_gate_ED, w_noise_ED, seed, sequence_ids_T, mask_T, kind, top_k = inputs
    _, experts_TK, logits_TE, _, load_E, saved = output
    # Its value is read by the reference's backward alone; that it was there, by all. It may be stepped in place, which a compiler sees.
    if seed is not None and not torch.compiler.is_compiling():
        kernels = backend.runs_cpp(x_TD) or _runs_kernels(x_TD, w_gate_ED, w_noise_ED)
        seed = torch.empty_like(seed) if kernels else seed.clone()
    ctx.save_for_backward(x_TD, w_gate_ED, w_noise_ED, seed, sequence_ids_T, mask_T, experts_TK, logits_TE, saved)
    ctx.kind = kind
    ctx.set_materialize_grads(False)
    without_gradient = [experts_TK, saved]
    if seed is None or top_k == w_gate_ED.shape[0]:
        without_gradient.append(load_E)  # a count of tokens
    ctx.mark_non_differentiable(*without_gradient)


def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    dweights_TK, _, dlogits_TE, dimportance_E, dload_E, _ = grads
    needs = list(ctx.needs_input_grad[:3])
    found = route_backward_op(dweights_TK, dlogits_TE, dimportance_E, dload_E, *ctx.saved_tensors, ctx.kind, needs)
    return *(grad if need else None for grad, need in zip(found, needs, strict=True)), None, None, None, None, None


route_op.register_autograd(_differentiate, setup_context=_save)


def _runs_kernels(x_TD: Tensor, w_gate_ED: Tensor, w_noise_ED: Tensor | None) -> bool:
    weights = (w_gate_ED,) if w_noise_ED is None else (w_gate_ED, w_noise_ED)
    return backend.runs_triton(x_TD) and len(w_gate_ED) <= MOST_KERNEL_EXPERTS and all(w.dtype in backend.KERNEL_DTYPES for w in weights)


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
