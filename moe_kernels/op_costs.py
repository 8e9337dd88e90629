"""What one operation of PyTorch, or one operator of this package, has to move and to multiply: bytes and FLOPs, from its tensors' shapes.

T tokens, N = T*K token-expert pairs, E experts, R LoRA rank.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import flop_registry

from .grouping import active_experts
from .weights import Weight, restore

FREE = {"zeros", "empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "_reshape_alias", "_unsafe_view", "t"}
_FLOPS: dict[str, Callable[..., float]] = {str(operator).removeprefix("aten."): count for operator, count in flop_registry.items()}
_CPU_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"  # not in PyTorch's registry


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of nested tuples and lists."""
    if isinstance(tree, Tensor):
        return [tree]
    return [tensor for branch in tree for tensor in tensors_in(branch)] if isinstance(tree, tuple | list) else []


def cost(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> tuple[float, float] | None:
    """(bytes, FLOPs) of a call that a `TorchDispatchMode` sees; None for views, allocations and questions, which cost nothing.

    Bytes are those of every tensor once, of a table of embeddings those of its rows.
    """
    name = func.overloadpacket.__name__
    if func.namespace == "prim" or (func.namespace == "aten" and (name in FREE or func.is_view)):
        return None
    if func.namespace == "moe_kernels" and name in _OURS:
        return _OURS[name](args, out)
    if name.startswith("embedding"):
        return 2.0 * min(tensor.nbytes for tensor in [*tensors_in(out), args[0]] if tensor.is_floating_point()), 0.0
    moved = sum(tensor.nbytes for tensor in [*tensors_in(args), *tensors_in(out)])
    flops = _FLOPS[name](*args, **kwargs, out_val=out) if name in _FLOPS else 0.0
    if name.startswith(_CPU_ATTENTION):  # two products of [S, S]; backward has five
        query, key = args[:2] if name == _CPU_ATTENTION else args[1:3]
        flops = (4 if name == _CPU_ATTENTION else 10) * query.numel() * key.shape[-2]
    return float(moved), float(flops)


def _linear(args: tuple[Any, ...], out: Tensor) -> tuple[float, float]:
    """`linear_nf4` and its backward: x or dy, then the weight's tensors, and [out, in] at the end of its description."""
    x, tensors, _, ints = args[:4]
    moved = sum(tensor.nbytes for tensor in [x, *tensors, out])
    return float(moved), 2.0 * x.numel() // x.shape[-1] * math.prod(ints[-2:])


def _experts(args: tuple[Any, ...], out: Any) -> tuple[float, float]:
    """Every matrix meets every token in the `lora` layout, else every pair; factors meet every pair."""
    x, _, experts, tensors, offsets, ints, factors = args[:7]
    return _products(x, experts, restore(tensors, offsets, ints), factors, tensors_in(out), passes=1, factor_passes=1)


def _experts_backward(args: tuple[Any, ...], out: Any) -> tuple[float, float]:
    """dX, and the gradients of the factors and, where they are asked for, of the matrices."""
    dy, x, _, experts, tensors, offsets, ints, factors, _, saved, base_grads = args
    others = [dy, *saved, *tensors_in(out)]
    return _products(x, experts, restore(tensors, offsets, ints), factors, others, passes=2 if base_grads else 1, factor_passes=2)


def _products(
    x: Tensor, experts: Tensor, base: list[Weight], factors: list[Tensor], others: list[Tensor], *, passes: int, factor_passes: int
) -> tuple[float, float]:
    pairs, stored = experts.numel(), base[0].shape[0] if len(base) == 2 else 1
    rows = pairs if len(base) == 2 else len(x)
    matrices = sum(math.prod(weight.shape) for weight in base) / stored
    low_rank = sum(factor.numel() / factor.shape[0] for factor in factors)
    read = active_experts(len(x), min(experts.shape[1], stored), stored) / stored
    moved = passes * read * sum(weight.nbytes for weight in base) + sum(tensor.nbytes for tensor in [x, *factors, *others])
    return float(moved), 2.0 * (passes * rows * matrices + factor_passes * pairs * low_rank)


_OURS = {"linear_nf4": _linear, "linear_nf4_backward": _linear, "experts": _experts, "experts_backward": _experts_backward}
