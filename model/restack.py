"""The tensors of a mixture after one of its experts was added, replaced or removed; the others keep their bits.

Shapes: E experts, D model width, R LoRA rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from moe_kernels.nf4 import NF4Weight, quantize_nf4
from moe_kernels.nf4_format import FACTS_KEY, NF4, dtype_name

from .adapters import Adapter
from .checkpoint import Checkpoint, check_finite
from .configuration_moe import MoEConfig
from .sources import ExpertSource

NEW = None  # in place of an old expert's index


@dataclass(frozen=True)
class Edit:
    """What becomes of the experts: `order` has the old index of each that there will be, or NEW."""

    config: MoEConfig
    order: list[int | None]
    source: ExpertSource | Adapter | None
    gate_rows: dict[str, Tensor]  # of each gate by its module's name: the new expert's [D]


def edited_tensors(weights: Checkpoint, edit: Edit) -> Iterator[dict[str, Tensor]]:
    """The tensors of the edited mixture, those of an NF4 weight together; what the edit does not touch is read and handed on."""
    parts = {name for name in weights if f"{name.rpartition('.')[0]}.{FACTS_KEY}" in weights}
    for name in weights:
        if name in parts or name.endswith(f".{FACTS_KEY}") or _is_unused(name, edit.config):
            continue  # the parts go with their weight
        owner, _, short = name.rpartition(".")
        stacked = owner.endswith(".experts") and edit.config.expert_layout == "dense"
        if f"{name}.{FACTS_KEY}" in weights:
            state = {key: weights.tensor(key) for key in weights if key == name or key.startswith(f"{name}.")}
            yield _restack_nf4(NF4Weight.from_state_dict(state, name), edit, name).state_dict(name) if stacked else state
        elif owner.endswith(".gate"):
            rows = [_gate_row(weights, edit, owner, short) if index is NEW else weights.tensor(name)[index] for index in _routed(edit)]
            yield {name: torch.stack(rows)}
        elif short.endswith(("_lora_A", "_lora_B")):
            yield {name: _restack_factors(weights.tensor(name), edit, name)}
        elif stacked:
            old = weights.tensor(name)
            yield {name: torch.stack([_new_matrix(edit, name, old.dtype) if index is NEW else old[index] for index in edit.order])}
        else:
            yield {name: weights.tensor(name)}


def _is_unused(name: str, config: MoEConfig) -> bool:
    """Whether it belongs to attention experts that the edited mixture no longer has."""
    attention, (_, _, part) = config.attention_experts or [], name.partition(".self_attn.")
    projection, _, factor = part.partition("_lora_")
    return projection not in attention if factor else part.startswith("gate.") and not attention


def _routed(edit: Edit) -> list[int | None]:
    return edit.order[: edit.config.num_local_experts]


def _gate_row(weights: Checkpoint, edit: Edit, gate: str, short: str) -> Tensor:
    """Wg's row of the new expert, or a row of zeros in Wnoise: it begins without noise."""
    old_ED = weights.tensor(f"{gate}.{short}")
    return torch.zeros_like(old_ED[0]) if short == "noise_weight" else _cast(edit.gate_rows[gate], old_ED.dtype, f"{gate}.{short}")


def _restack_factors(old: Tensor, edit: Edit, name: str) -> Tensor:
    """LoRA factors [E, R, in] or [E, out, R], padded with zeros where the rank grows."""
    axis = 1 if name.endswith("_A") else 2
    rank = edit.config.attention_lora_rank if ".self_attn." in name else edit.config.lora_rank
    shape = [len(edit.order), *old.shape[1:]]
    shape[axis] = rank
    stack = old.new_zeros(shape)
    for place, index in enumerate(edit.order):
        factor = _new_factor(edit, name, old.dtype) if index is NEW else old[index]
        if factor is not None:
            stack[place, : factor.shape[0], : factor.shape[1]] = factor
    return stack


def _new_factor(edit: Edit, name: str, dtype: torch.dtype) -> Tensor | None:
    adapter = edit.source.adapter if isinstance(edit.source, ExpertSource) else edit.source
    module = name[: -len("_lora_A")].replace(".experts.", ".")
    factors = adapter.factors(module) if adapter else None
    if factors is None or adapter is None:
        return None
    return _cast(factors[0] if name.endswith("_A") else factors[1] * adapter.scaling(module), dtype, name)


def _new_matrix(edit: Edit, name: str, dtype: torch.dtype) -> Tensor:
    """The new expert's matrix of the dense layout."""
    assert isinstance(edit.source, ExpertSource)
    layer = name.partition(".experts.")[0]
    modules = ("down_proj",) if name.endswith("down_proj") else ("gate_proj", "up_proj")
    return _cast(torch.cat([edit.source.matrix(f"{layer}.{module}") for module in modules]), dtype, name)


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The new expert's part of the tensor `name` in the mixture's dtype; ValueError if that cannot hold its values."""
    return check_finite(tensor.to(dtype), f"the new expert's part of {name}, in {dtype_name(dtype)},")


def _restack_nf4(old: NF4Weight, edit: Edit, name: str) -> NF4Weight:
    """The stack with its experts' bytes in their new places; a new expert takes the stack's nested offset, or the others would change."""
    _, rows, columns = old.shape
    if rows * columns % (NF4.block * NF4.nested_block):
        raise ValueError(
            f"{name}: an expert of {rows}x{columns} values shares a nested absmax with the next one; "
            f"experts can be edited whose values are multiples of {NF4.block * NF4.nested_block}"
        )
    experts = [
        quantize_nf4(_new_matrix(edit, name, old.dtype), nested_offset=old.nested_offset) if index is NEW else old.expert(index)
        for index in edit.order
    ]
    tensors: dict[str, Any] = {field: torch.cat([expert.tensors()[field] for expert in experts]) for field in old.tensors()}
    return replace(old, shape=(len(experts), rows, columns), **tensors)
