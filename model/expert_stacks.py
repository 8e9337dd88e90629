"""The stacked matrices [E, out, in] of a layer's experts, as tensors that modules, `.to`, and PEFT can hold.

PEFT's LoRA on a parameter W asks PyTorch for `baddbmm(W, B, A, alpha=s)` before every forward: for a plain tensor that is W + s·BA of
all experts. A stack of this file answers with a `LoRAStack`, which keeps W, B and A apart until a token meets them.

E experts, R LoRA rank.
"""

from typing import Any

import torch
from torch import Tensor, nn

from moe_kernels.experts import LoRA
from moe_kernels.nf4 import NF4Weight

IMPLEMENTATION = "moe_kernels"
_aten = torch.ops.aten


class _Opaque(Tensor):
    """A tensor with a shape, a dtype and a device, but without values to compute with."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        raise ValueError(
            f"{cls.__name__} has no {func}: only experts_implementation={IMPLEMENTATION!r} computes with experts in NF4 or with LoRA "
            "in factors. PEFT can have one adapter active on them, and cannot merge it."
        )

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # the default prints values
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"


class LoRAStack(_Opaque):
    """W_e + s·B_e A_e of every expert e, not multiplied out."""

    base: "NF4Stack | DenseStack"
    lora: LoRA

    @staticmethod
    def __new__(cls, base: "NF4Stack | DenseStack", lora: LoRA) -> "LoRAStack":
        stack = Tensor._make_wrapper_subclass(cls, base.shape, dtype=base.dtype, device=base.device)
        stack.base, stack.lora = base, lora
        return stack


class NF4Stack(_Opaque):
    """An NF4 weight as a tensor of the weight's shape. Only its device can be changed: a new dtype is what callers see, not other bytes.

    It has no gradient. `model.state_dict()` holds it as it is; `save_pretrained` writes bitsandbytes' keys.
    """

    weight: NF4Weight

    @staticmethod
    def __new__(cls, weight: NF4Weight, dtype: torch.dtype | None = None) -> "NF4Stack":
        stack = Tensor._make_wrapper_subclass(cls, weight.shape, dtype=dtype or weight.dtype, device=weight.device)
        stack.weight = weight
        return stack

    def element_size(self) -> float:  # type: ignore[override]
        """Bytes a value, a fraction, so that `model.get_memory_footprint()` is right."""
        return self.weight.nbytes / self.numel()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]  # how modules move; it knows nothing of our attribute
            args[0].weight = args[1].weight
        return _lora_or(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        if func in (_aten.detach.default, _aten.alias.default):
            return NF4Stack(args[0].weight, args[0].dtype)
        if func is _aten.clone.default:
            tensors = {name: tensor.clone() for name, tensor in args[0].weight.tensors().items()}
            return NF4Stack(args[0].weight.with_tensors(tensors), args[0].dtype)
        if func is _aten._to_copy.default:
            wanted = kwargs or {}
            return NF4Stack(args[0].weight.to(wanted.get("device") or args[0].device), wanted.get("dtype") or args[0].dtype)
        if func is _aten.set_.source_Tensor and args[0] is args[1]:  # as in registering a parametrization, which PEFT does
            return args[0]
        return super().__torch_dispatch__(func, types, args, kwargs)


class DenseStack(nn.Parameter):
    """A Parameter like any other, except that PEFT's LoRA on it stays in factors."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return _lora_or(func, args, kwargs or {})


def _lora_or(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.baddbmm(stack, b, a, alpha=s)` as a `LoRAStack`; any other call as PyTorch has it."""
    if func is torch.baddbmm and isinstance(args[0], NF4Stack | DenseStack):
        base, b, a = args
        return LoRAStack(base, LoRA(a, b, kwargs.get("alpha", 1.0)))
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)
