"""Modules whose matrices are either Parameters or bitsandbytes' NF4 bytes, under the same names and state-dict keys."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_kernels.linear import linear_any
from moe_kernels.nf4 import NF4Weight
from moe_kernels.nf4_format import FACTS_KEY

from .checkpoint import some


class MatrixModule(nn.Module):
    """Base of modules with matrices that may be quantised.

    A quantised matrix `name` is kept as buffers `name_packed`, `name_absmax`, ... that follow the module between devices but never
    change their dtype; in a state dict it has bitsandbytes' keys (`name`, `name.absmax`, ...). It is absent until it is loaded.
    """

    def __init__(self, quantized: bool) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which would make a weight
        self.precision = "exact"  # of products with NF4: one of moe_kernels.backend.PRECISIONS
        self._quantized = quantized
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._formats: dict[str, dict[str, Any]] = {}  # what an `NF4Weight` has beside tensors and shape
        self._pieces: dict[str, dict[str, Tensor]] = {}  # of matrices whose keys come in several state dicts, until all are there

    def add_matrix(self, name: str, *shape: int) -> None:
        """Declares matrix `name` of `shape` [..., out, in]."""
        self._shapes[name] = shape
        if self._quantized:  # without bytes, but on the device that they will be loaded to
            self.register_buffer(f"{name}_packed", torch.empty(0, dtype=torch.uint8), persistent=False)
        else:
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def matrices(self) -> Iterable[str]:
        """The names of all matrices."""
        return self._shapes

    def quantized_matrices(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every matrix that is kept in NF4."""
        return self._shapes if self._quantized else {}

    def matrix(self, name: str) -> Tensor | NF4Weight:
        if not self._quantized:
            return getattr(self, name)
        if name not in self._formats:
            self.check_loaded()
        packed, absmax, nested_absmax = (getattr(self, f"{name}_{field}") for field in ("packed", "absmax", "nested_absmax"))
        return NF4Weight(packed, absmax, nested_absmax, shape=self._shapes[name], **self._formats[name])

    def check_loaded(self) -> None:
        """ValueError if a matrix has no values yet: those in NF4 come from a checkpoint alone."""
        if absent := [name for name in self.quantized_matrices() if name not in self._formats]:
            raise ValueError(
                f"{type(self).__name__} has no values of {', '.join(absent)}: a model in NF4 is made by from_pretrained(quantize='nf4'), "
                "from_pretrained of one that was saved, or load_state_dict"
            )

    def set_nf4(self, name: str, weight: NF4Weight) -> None:
        """Gives the quantised matrix `name` its bytes; ValueError if the shape is another."""
        if tuple(weight.shape) != self._shapes[name]:
            raise ValueError(f"{name} has shape {tuple(weight.shape)}; expected {self._shapes[name]}")
        for field, tensor in weight.tensors().items():
            self.register_buffer(f"{name}_{field}", tensor, persistent=False)
        self._formats[name] = {"nested_offset": weight.nested_offset, "dtype": weight.dtype, "first_block": weight.first_block}

    def _apply(self, fn: Any, recurse: bool = True) -> "MatrixModule":
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._formats:
            weight = self.matrix(name)
            assert isinstance(weight, NF4Weight)
            destination.update(weight.state_dict(prefix + name))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: list, *rest: Any) -> None:
        # If PEFT had a place for these, they would lie outside: it would have wrapped this module.
        check_no_factors([key for key in state_dict if key.startswith(prefix) and ".lora_" in key[len(prefix) - 1 :]])
        for name in self.quantized_matrices():
            key = prefix + name
            own = {other: state_dict.pop(other) for other in list(state_dict) if other == key or other.startswith(f"{key}.")}
            own = self._pieces.pop(name, {}) | own
            absent = [part for part in (key, f"{key}.absmax", f"{key}.nested_absmax", f"{key}.{FACTS_KEY}") if part not in own]
            if absent and (key not in own or own[key].dtype == torch.uint8):
                missing += absent
                self._pieces[name] = own  # the rest may come in another shard
                continue
            weight = NF4Weight.from_state_dict(own, key)
            self.set_nf4(name, weight if metadata.get("assign_to_params_buffers") else weight.to(getattr(self, f"{name}_packed").device))
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)


def check_no_factors(keys: Iterable[str]) -> None:
    """ValueError naming the tensors of an adapter that found no place in the model, of which PEFT says nothing."""
    if lost := sorted(keys):
        raise ValueError(
            f"the adapter has tensors that this model has no place for: {some(lost)}; "
            "experts in NF4 have none (quantize='none' loads plain ones)"
        )


class QuantizedMatrix(NamedTuple):
    prefix: str  # of `module` in the model
    module: MatrixModule
    name: str  # in `module`
    shape: tuple[int, ...]

    @property
    def full_name(self) -> str:
        return f"{self.prefix}.{self.name}"


def quantized_matrices(model: nn.Module) -> Iterator[QuantizedMatrix]:
    """Every matrix of `model` that is kept in NF4."""
    for prefix, module in model.named_modules():
        if isinstance(module, MatrixModule):
            for name, shape in module.quantized_matrices().items():
                yield QuantizedMatrix(prefix, module, name, shape)


class _Bytes(Tensor):
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        raise ValueError(
            "the bytes of NF4 are no matrix: no adapter can be merged into them, nor be a DoRA; load it with quantize='none' for that"
        )


class NF4Linear(MatrixModule, nn.Linear):
    """`nn.Linear` without bias on an NF4 weight [out, in]; it is one by class so that PEFT adapts it."""

    def __init__(self, in_features: int, out_features: int) -> None:
        MatrixModule.__init__(self, quantized=True)
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("bias", None)
        self.add_matrix("weight", out_features, in_features)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The bytes as PEFT may see them: with a device, and without values."""
        packed = self.get_buffer("weight_packed")
        return Tensor._make_wrapper_subclass(_Bytes, packed.shape, dtype=packed.dtype, device=packed.device)

    def forward(self, x: Tensor) -> Tensor:
        return linear_any(x, self.matrix("weight"), precision=self.precision)
