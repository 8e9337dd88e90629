"""The experts as one PyTorch operator with a fake and an autograd formula, so that `torch.compile` sees no Python inside a layer.

`moe_kernels::experts` computes both layouts: two base weights are `moe_dense`'s, three are `moe_lora`'s. Its implementation is the
Triton one on CUDA, that of `csrc/` on the CPU, else the reference of `moe_kernels.experts`, whose backward is autograd over a second
forward.

T tokens, K experts per token, E experts, N = T*K pairs, D model width, F expert hidden width, R LoRA rank.
"""

from typing import Any

import torch
from torch import Tensor

from . import backend
from .grouping import Grouping, check_expert_ids
from .routing_reference import inside_an_operator
from .weights import Weight, restore

NUM_SAVED = 7


@torch.library.custom_op("moe_kernels::experts", mutates_args=())
def experts_op(
    x: Tensor,
    routing_weights: Tensor,
    experts: Tensor,
    tensors: list[Tensor],
    offsets: list[float],
    ints: list[int],
    factors: list[Tensor],
    scalings: list[float],
    save: bool,
    precision: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y [T, D] and what the kernels' backward needs: order, inverse, offsets, preact [N, 2F], z1, z3, z2 [N, R]; empty if unused."""
    if backend.runs_cpp(x):
        call = x, routing_weights, experts, tensors, offsets, ints, factors, scalings
        return tuple(torch.ops.moe_kernels.experts_cpp(*call, save, precision))
    base = restore(tensors, offsets, ints)
    if not backend.runs_triton(x):
        return _padded(_reference(x, routing_weights, experts, base, factors, scalings))
    from . import experts_triton as kernels

    check_expert_ids(experts, len(factors[0]) if len(base) == 3 else base[0].shape[0])  # decoding has no other look at them
    x, routing_weights, lora = x.contiguous(), routing_weights.float().contiguous(), _factors(factors, scalings)
    with torch.autocast(x.device.type, enabled=False):
        if len(base) == 2:
            y, saved = kernels.dense_forward(x, routing_weights, experts, base[0], base[1], lora, save)
        else:
            assert lora is not None
            y, saved = kernels.lora_forward(x, routing_weights, experts, base, lora, save)
    if saved is None:
        return _padded(y)
    z = [part for part in (saved.z1, saved.z3, saved.z2) if part is not None]
    return _padded(y, saved.grouping.order_N, saved.grouping.inverse_N, saved.grouping.offsets_E1, saved.preact, *z)


@experts_op.register_fake
def _experts_fake(x, routing_weights, experts, tensors, offsets, ints, factors, scalings, save, precision):
    cpp = backend.runs_cpp(x)
    if not save or not (cpp or backend.runs_triton(x)):
        return _padded(_like(x))
    base = restore(tensors, offsets, ints)
    num_experts, hidden = (base[1].shape[0], base[1].shape[2]) if len(base) == 2 else (len(factors[0]), base[2].shape[1])
    pairs = experts.numel()
    ids = [experts.new_empty(size, dtype=torch.int64) for size in (pairs, pairs, num_experts + 1)]
    saved = [*ids, x.new_empty(pairs, 2 * hidden)]
    z_dtype = torch.promote_types(x.dtype, torch.float32) if cpp else x.dtype
    return _padded(_like(x), *saved, *(x.new_empty(pairs, a.shape[1], dtype=z_dtype) for a in factors[::2]))


@torch.library.custom_op("moe_kernels::experts_backward", mutates_args=())
def experts_backward_op(
    dy: Tensor,
    x: Tensor,
    routing_weights: Tensor,
    experts: Tensor,
    tensors: list[Tensor],
    offsets: list[float],
    ints: list[int],
    factors: list[Tensor],
    scalings: list[float],
    saved: list[Tensor],
    base_grads: bool,
) -> list[Tensor]:
    """Gradients of x, of the routing's weights, of the base's tensors if `base_grads` (then all dense), and of the factors."""
    if backend.runs_cpp(x):
        call = dy, x, routing_weights, tensors, offsets, ints, factors, scalings
        return list(torch.ops.moe_kernels.experts_backward_cpp(*call, saved, base_grads))
    base = restore(tensors, offsets, ints)
    if not backend.runs_triton(x):
        return _reference_backward(dy, x, routing_weights, experts, base, factors, scalings, base_grads)
    from . import experts_triton as kernels

    order, inverse, ends, preact, *z = saved
    z1, z3, z2 = z if factors else (None, None, None)
    kept = kernels.Saved(Grouping(order, inverse, ends), preact, z1, z3, z2)
    given = routing_weights
    lora, dy, x, routing_weights = _factors(factors, scalings), dy.contiguous(), x.contiguous(), given.float().contiguous()
    if len(base) == 2:
        dx, dweights, dbase, dfactors = kernels.dense_backward(dy, x, routing_weights, base[0], base[1], lora, kept, base_grads)
    else:
        assert lora is not None
        dx, dweights, dbase, dfactors = kernels.lora_backward(dy, x, routing_weights, base, lora, kept, base_grads)
    wanted = [x, given, *(tensors if base_grads else []), *factors]
    return [grad.to(tensor.dtype) for grad, tensor in zip([dx, dweights, *dbase, *dfactors], wanted, strict=True)]


@experts_backward_op.register_fake
def _experts_backward_fake(dy, x, routing_weights, experts, tensors, offsets, ints, factors, scalings, saved, base_grads):
    like = [x, routing_weights, *(tensors if base_grads else []), *factors]
    return [_like(tensor) for tensor in like]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, routing_weights, experts, tensors, offsets, ints, factors, scalings, _, _ = inputs
    ctx.set_materialize_grads(False)  # or the backward is handed zeros for what it only kept: 235 MB for [g | u] at T = 2048
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, routing_weights, experts, *tensors, *factors, *output[1:])
    ctx.counts = len(tensors), len(factors)
    ctx.facts = offsets, ints, scalings
    ctx.base_grads = any(tensor.requires_grad for tensor in tensors)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    num_tensors, num_factors = ctx.counts
    if grads[0] is None:
        return None, None, None, [None] * num_tensors, None, None, [None] * num_factors, None, None, None
    x, routing_weights, experts, *rest = ctx.saved_tensors
    offsets, ints, scalings = ctx.facts
    tensors, factors = rest[:num_tensors], rest[num_tensors : num_tensors + num_factors]
    saved = rest[num_tensors + num_factors :]
    dx, dweights, *others = torch.ops.moe_kernels.experts_backward(
        grads[0], x, routing_weights, experts, tensors, offsets, ints, factors, scalings, saved, ctx.base_grads
    )
    dtensors = others[:num_tensors] if ctx.base_grads else [None] * num_tensors
    return dx, dweights, None, dtensors, None, None, others[len(others) - num_factors :], None, None, None


experts_op.register_autograd(_backward, setup_context=_setup_context)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _padded(y: Tensor, *saved: Tensor) -> Any:
    return (y, *saved, *(y.new_empty(0) for _ in range(NUM_SAVED - len(saved))))


def _factors(factors: list[Tensor], scalings: list[float]) -> Any:
    from .experts_triton import Factors

    if not factors:
        return None
    a1, b1, a3, b3, a2, b2 = (factor.contiguous() for factor in factors)
    return Factors(a1, b1, a3, b3, a2, b2, *scalings)


def _reference(
    x: Tensor, routing_weights: Tensor, experts: Tensor, base: list[Weight], factors: list[Tensor], scalings: list[float]
) -> Tensor:
    from .experts import ExpertLoRA, LoRA, run_reference

    parts = [LoRA(a, b, s) for a, b, s in zip(factors[::2], factors[1::2], scalings, strict=False)]
    return run_reference(x, routing_weights, experts, base, ExpertLoRA(*parts) if parts else None).contiguous()


def _reference_backward(dy, x, routing_weights, experts, base, factors, scalings, base_grads) -> list[Tensor]:
    wanted = [x, routing_weights, *(base if base_grads else []), *factors]
    leaves = [tensor.detach().requires_grad_() for tensor in wanted]
    x_leaf, weights_leaf, *others = leaves
    base_leaves = others[: len(base)] if base_grads else base
    with inside_an_operator():
        y = _reference(x_leaf, weights_leaf, experts, base_leaves, others[len(others) - len(factors) :], scalings)
    return [grad.contiguous() for grad in torch.autograd.grad(y, leaves, dy, materialize_grads=True)]
