"""Fills a `MoEForCausalLM` from a checkpoint, whichever of Mixtral's three layouts it has, or our own with NF4.

model.layers.L.block_sparse_moe.experts.E.w1.weight      transformers 4, mergekit 0.1.4 (gate w1, up w3, down w2)
model.layers.L.mlp.experts.E.gate_proj.weight            per expert
model.layers.L.mlp.experts.gate_up_proj                  fused [E, 2F, D], transformers 5, mergekit 0.1.5, and ours
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from moe_kernels.nf4 import NF4Weight, dequantize_nf4, quantize_nf4_parts
from moe_kernels.nf4_format import FACTS_KEY

from .checkpoint import HEAD, Checkpoint, some
from .quantization import quantized_matrices

_EXPERT = re.compile(r"(.+\.mlp\.experts)\.(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)\.weight")
_ATTENTION = re.compile(r"\.self_attn\.[qkvo]_proj\.weight$")
_NF4 = re.compile(rf"(.+)\.(absmax|quant_map|nested_absmax|nested_quant_map|{re.escape(FACTS_KEY)})")
# A constant that old checkpoints carry along, and the noise that a model without noise has no use for.
_LEFT_OUT = ("rotary_emb.inv_freq", ".gate.noise_weight")
_FUSED = {
    "w1": ("gate_up_proj", 0),
    "w3": ("gate_up_proj", 1),
    "w2": ("down_proj", 0),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
    "down_proj": ("down_proj", 0),
}
_FLOATS = ("F64", "F32", "F16", "BF16")
_PIECE = 1 << 24  # values quantised at a time


class Part(NamedTuple):
    """What a tensor of a checkpoint is of a tensor of the model."""

    nf4: str = ""  # which component of an NF4 weight; "" for values
    expert: int = -1  # whose; -1 for the whole tensor
    half: int = 0  # of the fused gate and up


WHOLE = Part()
NF4_FACTS = Part(nf4=FACTS_KEY)


def own_name(key: str) -> tuple[str, Part]:
    """The name in our model of a checkpoint's tensor, and which part of that tensor it is."""
    key = key.replace(".block_sparse_moe.", ".mlp.")
    if match := _EXPERT.fullmatch(key):
        fused, half = _FUSED[match[3]]
        return f"{match[1]}.{fused}", Part(expert=int(match[2]), half=half)
    if match := _NF4.fullmatch(key):
        return match[1], Part(nf4=match[2])
    return key, WHOLE


def stored_quantization(checkpoint: Checkpoint) -> str | None:
    """How another program stored the experts: `nf4`, or None for plain ones, whatever it made of attention.

    ValueError if they are in NF4 and attention is not: a model here has both or neither, and to choose would change a function or its size.
    """
    own = [own_name(key) for key in checkpoint]
    nf4 = {name for name, part in own if part == NF4_FACTS}
    if not any(".experts." in name for name in nf4):
        return None
    if plain := [name for name, _ in own if _ATTENTION.search(name) and name not in nf4]:
        raise ValueError(f'{checkpoint.path} has experts in NF4 beside plain {some(plain)}; quantize="nf4" or "none" makes them alike')
    return "nf4"


@dataclass
class _Mistakes:
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)
    mistyped: list[str] = field(default_factory=list)

    def raise_any(self, checkpoint: Checkpoint) -> None:
        parts = [f"{title} {some(names)}" for title, names in vars(self).items() if names]
        if parts:
            raise ValueError(f"{checkpoint.path} does not fit the model: {'; '.join(parts)}")


def load_weights(
    model: PreTrainedModel, checkpoint: Checkpoint, device_of: Callable[[str], torch.device], optional: str | None = None
) -> None:
    """Streams every tensor of `checkpoint` into `model` (parameters on the meta device), in the model's dtypes, onto `device_of(name)`.

    Tensors are quantised or dequantised on the way where the model's form differs from the checkpoint's. Tensors whose name ends in
    `optional` may be absent and are then zero; tied ones are left to `tie_weights`, and a model without a head ignores the head. Raises
    ValueError naming all missing, unexpected and mis-shaped tensors, before any is read.
    """
    tied = set(model.all_tied_weights_keys)
    parameters = {name: parameter for name, parameter in model.named_parameters() if name not in tied}
    quantized = {matrix.full_name: matrix for matrix in quantized_matrices(model)}
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    shapes |= {name: matrix.shape for name, matrix in quantized.items()}
    sources = _find_sources(checkpoint, shapes, optional, ignored=tied if model.can_generate() else {HEAD})
    for name, shape in tqdm(shapes.items(), desc="Loading", unit="tensor", leave=False):
        parts = sources[name]
        if NF4_FACTS in parts:
            stored = _read_nf4(checkpoint, parts)
            if stored.shape != shape:  # only NF4 says its shape inside
                raise ValueError(
                    f"{checkpoint.path} does not fit the model: misshaped {name} {list(stored.shape)} instead of {list(shape)}"
                )
        if name in quantized:
            weight = stored.to(device_of(name)) if NF4_FACTS in parts else _quantize(checkpoint, parts, shape, device_of(name), model.dtype)
            quantized[name].module.set_nf4(quantized[name].name, weight)
        else:
            old = parameters[name]
            value = dequantize_nf4(stored) if NF4_FACTS in parts else _assemble(checkpoint, parts, shape, old.dtype)
            _set_parameter(model, name, nn.Parameter(value.to(device=device_of(name), dtype=old.dtype), requires_grad=old.requires_grad))


def _read_nf4(checkpoint: Checkpoint, parts: dict[Part, str]) -> NF4Weight:
    state = {key: checkpoint.tensor(key) for key in parts.values()}
    try:
        return NF4Weight.from_state_dict(state, parts[WHOLE])
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from None


def _set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, short = name.rpartition(".")
    setattr(model.get_submodule(owner), short, parameter)


def _find_sources(
    checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]], optional: str | None, ignored: set[str]
) -> dict[str, dict[Part, str]]:
    sources: dict[str, dict[Part, str]] = {name: {} for name in shapes}
    mistakes = _Mistakes()
    for key in checkpoint:
        name, part = own_name(key)
        if name not in sources:
            name = name.removeprefix("model.")  # into a `MoEModel`
        if name in sources and part not in sources[name]:
            sources[name][part] = key
        elif name not in ignored and not key.endswith(_LEFT_OUT):
            mistakes.unexpected.append(key)
    for name, shape in shapes.items():
        parts = sources[name]
        if (NF4_FACTS in parts and WHOLE not in parts) or (not parts and not (optional and name.endswith(optional))):
            mistakes.missing.append(name)
        elif NF4_FACTS in parts:
            mistakes.unexpected += [key for part, key in parts.items() if part != WHOLE and not part.nf4]
        elif parts:
            _check_parts(checkpoint, name, shape, parts, mistakes)
    mistakes.raise_any(checkpoint)
    return sources


def _check_parts(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], parts: dict[Part, str], mistakes: _Mistakes) -> None:
    one = WHOLE in parts or len(shape) < 3  # the layout `lora` has one FFN, of which a checkpoint of dense experts has none
    expected = {WHOLE: shape} if one else _part_shapes(name, shape)
    mistakes.missing += dict.fromkeys(name if one else f"{name} of expert {part.expert}" for part in expected if part not in parts)
    for part, key in parts.items():
        if part not in expected:
            mistakes.unexpected.append(key)
        elif checkpoint.shape(key) != expected[part]:
            mistakes.misshaped.append(f"{key} {list(checkpoint.shape(key))} instead of {list(expected[part])}")
        elif checkpoint.dtype(key) not in _FLOATS:
            mistakes.mistyped.append(f"{key} {checkpoint.dtype(key)} instead of {', '.join(_FLOATS)}")


def _part_shapes(name: str, shape: tuple[int, ...]) -> dict[Part, tuple[int, ...]]:
    """The parts of a fused expert tensor [E, out, in] as separate checkpoints have them."""
    halves = 2 if name.endswith("gate_up_proj") else 1
    return {Part(expert=expert, half=half): (shape[1] // halves, shape[2]) for expert in range(shape[0]) for half in range(halves)}


def _assemble(checkpoint: Checkpoint, parts: dict[Part, str], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if not parts:
        return torch.zeros(shape, dtype=dtype)
    if WHOLE in parts:
        return checkpoint.tensor(parts[WHOLE])
    fused = torch.empty(shape, dtype=dtype)
    for part, key in parts.items():
        rows = checkpoint.tensor(key)
        fused[part.expert, part.half * len(rows) : (part.half + 1) * len(rows)] = rows
    return fused


def _quantize(
    checkpoint: Checkpoint, parts: dict[Part, str], shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> NF4Weight:
    """NF4 of the tensor cast to `dtype`, a piece at a time: never more of it is in memory than one tensor of the checkpoint."""

    def pieces() -> Iterator[Tensor]:
        for _, key in sorted(parts.items()):  # by expert, then gate before up: the order of the fused tensor's values
            for piece in checkpoint.tensor(key).flatten().split(_PIECE):
                yield piece.to(device=device, dtype=dtype)

    return quantize_nf4_parts(pieces(), shape)
