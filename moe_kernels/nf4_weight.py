"""A weight in NF4 (nf4.py has the format): its tensors, views of its experts, and bitsandbytes' forms of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import backend
from .nf4_format import FACTS_KEY, NF4, STORED_DTYPES, dtype_name, dynamic_map, dynamic_map_on, pack_facts, read_facts


@dataclass(frozen=True, eq=False)
class NF4Weight:
    """A weight of `shape` in NF4: [out, in], or a stack [E, out, in] quantised as one tensor.

    `packed` uint8 [ceil(n/2), 1], `absmax` uint8 [ceil(n/64)], `nested_absmax` fp32 [ceil(blocks/256)]. `dtype` is what the
    weight was, and what it is read as by default. `first_block` is not 0 only in a view of an expert (`expert`): how many
    blocks of its first group of 256 belong to the experts before it. `ValueError` for tables whose sizes or dtypes are not those of the
    shape, that are not contiguous or lie on several devices (kernels index memory by the shape), or that require gradients: an NF4 weight
    has none, LoRA factors beside it do.
    """

    packed: Tensor
    absmax: Tensor
    nested_absmax: Tensor
    nested_offset: float
    shape: tuple[int, ...]
    dtype: torch.dtype
    first_block: int = 0

    def __post_init__(self) -> None:
        _check_tables(self)
        if not backend.traced(self.packed):
            dynamic_map_on(self.device)  # copied now, and not within a CUDA graph's capture

    @property
    def device(self) -> torch.device:
        return self.packed.device

    @property
    def nbytes(self) -> int:
        """Bytes of the three tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The three tensors by field name: what an `nn.Module` registers as buffers."""
        return {"packed": self.packed, "absmax": self.absmax, "nested_absmax": self.nested_absmax}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "NF4Weight":
        """This weight on other `tensors` (as from `tensors()`, moved or loaded)."""
        return replace(self, packed=tensors["packed"], absmax=tensors["absmax"], nested_absmax=tensors["nested_absmax"])

    def to(self, device: torch.device | str) -> "NF4Weight":
        return self.with_tensors({name: tensor.to(device) for name, tensor in self.tensors().items()})

    def expert(self, e: int) -> "NF4Weight":
        """Expert `e` of a stack [E, out, in] as an [out, in] weight on the same memory.

        `ValueError` if out*in is not a multiple of 64: a block would then belong to two experts.
        """
        num_experts, rows, columns = self.shape
        size = rows * columns
        if size % NF4.block:
            raise ValueError(f"an expert of {rows}x{columns} values is not a whole number of NF4 blocks of {NF4.block}")
        if not 0 <= e < num_experts:
            raise ValueError(f"expert {e} is outside 0..{num_experts - 1}")
        begin, end = e * size // NF4.block + self.first_block, (e + 1) * size // NF4.block + self.first_block
        return NF4Weight(
            packed=self.packed[e * size // 2 : (e + 1) * size // 2],
            absmax=self.absmax[begin - self.first_block : end - self.first_block],
            nested_absmax=self.nested_absmax[begin // NF4.nested_block : -(-end // NF4.nested_block)],
            nested_offset=self.nested_offset,
            shape=(rows, columns),
            dtype=self.dtype,
            first_block=begin % NF4.nested_block,
        )

    def state_dict(self, name: str) -> dict[str, Tensor]:
        """The tensors under the keys of bitsandbytes' `Linear4bit` for a weight called `name`.

        `ValueError` for the view of an expert whose nested group began in another expert: bitsandbytes has no word for it.
        """
        if self.first_block:
            raise ValueError(f"{name} is a view into a stack that shares a nested group; save the stack itself")
        return {
            name: self.packed,
            f"{name}.absmax": self.absmax,
            f"{name}.nested_absmax": self.nested_absmax,
            f"{name}.nested_quant_map": dynamic_map().to(self.device, copy=True),
            f"{name}.quant_map": torch.tensor(NF4.levels, device=self.device),
            f"{name}.{FACTS_KEY}": pack_facts(self.shape, self.dtype, self.nested_offset),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], name: str) -> "NF4Weight":
        """The weight `name` of a bitsandbytes state; `ValueError` if it is absent, incomplete or of another format."""
        facts = read_facts(state, name)
        try:
            weight = cls(
                packed=state[name],
                absmax=state[f"{name}.absmax"],
                nested_absmax=state[f"{name}.nested_absmax"],
                nested_offset=float(facts["nested_offset"]),
                shape=tuple(facts["shape"]),
                dtype=getattr(torch, facts["dtype"]),
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if not ((weight.nested_absmax >= 0) & weight.nested_absmax.isfinite()).all():
            raise ValueError(f"{name}.nested_absmax has values that are negative, infinite or not numbers")
        return weight


def _check_tables(q: NF4Weight) -> None:
    if dtype_name(q.dtype) not in STORED_DTYPES:
        raise ValueError(f"an NF4 weight is read as {', '.join(STORED_DTYPES)}, not as {dtype_name(q.dtype)}")
    if not q.shape or min(q.shape) < 1 or q.first_block < 0:
        raise ValueError(f"an NF4 weight has a shape of numbers above 0 and a first_block of at least 0, not {q.shape} and {q.first_block}")
    values = math.prod(q.shape)
    blocks = -(-values // NF4.block)
    sizes = {"packed": -(-values // 2), "absmax": blocks, "nested_absmax": -(-(q.first_block + blocks) // NF4.nested_block)}
    for field, tensor in q.tensors().items():
        if tensor.numel() != sizes[field]:
            raise ValueError(f"shape {q.shape} needs {sizes[field]} entries of {field}, not {tensor.numel()}")
        expected = torch.float32 if field == "nested_absmax" else torch.uint8
        if tensor.dtype != expected:
            raise ValueError(f"{field} is {dtype_name(tensor.dtype)}; NF4 has it in {dtype_name(expected)}")
        if not tensor.is_contiguous() or tensor.device != q.device:
            facts = f"of strides {tensor.stride()} on {tensor.device}"
            raise ValueError(f"{field} {facts} does not fit: the tables of an NF4 weight are contiguous and on one device, here {q.device}")
        if tensor.requires_grad:
            raise ValueError(f"{field} requires a gradient; an NF4 weight has none")


def to_bitsandbytes(q: NF4Weight) -> tuple[Tensor, Any]:
    """(packed bytes, `bitsandbytes.functional.QuantState`) of `q`, on the same memory. `ValueError` for a view into a stack's group."""
    from bitsandbytes.functional import QuantState

    if q.first_block:
        raise ValueError("an expert that begins inside a nested group of its stack has no QuantState of its own")
    nested = QuantState(absmax=q.nested_absmax, blocksize=NF4.nested_block, code=dynamic_map_on(q.device), dtype=torch.float32)
    levels = torch.tensor(NF4.levels, device=q.device)
    offset = torch.tensor(q.nested_offset, device=q.device)
    state = QuantState(
        absmax=q.absmax, shape=torch.Size(q.shape), dtype=q.dtype, blocksize=NF4.block, code=levels, quant_type=NF4.quant_type,
        offset=offset, state2=nested,
    )  # fmt: skip
    return q.packed, state


def from_bitsandbytes(packed: Tensor, state: Any) -> NF4Weight:
    """The weight of `packed` bytes and their `QuantState`, on the same memory; `ValueError` unless that is NF4 with nested absmax."""
    if state.quant_type != NF4.quant_type or state.blocksize != NF4.block:
        raise ValueError(f"only nf4 in blocks of {NF4.block} is read, not {state.quant_type} in blocks of {state.blocksize}")
    if not state.nested or state.state2.blocksize != NF4.nested_block:
        raise ValueError(f"only nested absmax in groups of {NF4.nested_block} are read: quantise with compress_statistics=True")
    packed = packed.reshape(-1).view(torch.uint8)[:, None]  # bytes may be stored as another dtype, as FSDP wants them
    return NF4Weight(packed, state.absmax, state.state2.absmax, float(state.offset), tuple(state.shape), state.dtype)
