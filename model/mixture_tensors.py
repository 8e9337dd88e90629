"""The tensors of a mixture, each made when its turn comes to be written.

In memory are one matrix of one expert, one tensor of the mixture, and the tensors that wait for their shard to be full.

Shapes: L layers, E experts, D model width, F expert hidden width, R LoRA rank.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from moe_kernels.nf4 import quantize_nf4_parts
from moe_kernels.nf4_format import dtype_name

from .checkpoint import Checkpoint, check_finite, parse_dtype
from .checkpoint_writer import SHARD_BYTES, CheckpointWriter
from .configuration_moe import MoEConfig
from .experts import PROJECTIONS
from .ingredients import Ingredients
from .resume import Overflow
from .sources import ExpertSource

_QUANTIZED = re.compile(r"\.self_attn\.[qkvo]_proj\.weight$|\.experts\.(gate|up|gate_up|down)_proj$")


class MixtureTensor(NamedTuple):
    """A tensor of the mixture in full precision, as consecutive pieces that are made when they are asked for."""

    name: str
    shape: tuple[int, ...]
    pieces: Iterator[Tensor]


def mixture_tensors(given: Ingredients, gates_LED: Mapping[str, Tensor]) -> Iterator[MixtureTensor]:
    """Every tensor of the mixture by its own name; `gates_LED` of `mlp`, and of `self_attn` where experts have attention."""
    base, sources, config = given.base_weights, given.sources, given.config
    for name in base:
        if ".mlp." not in name and not name.endswith("rotary_emb.inv_freq"):
            yield MixtureTensor(name, base.shape(name), _stored(base, name))
    experts, width, hidden = len(sources), config.hidden_size, config.intermediate_size
    for layer in range(config.num_hidden_layers):
        mlp, attention = f"model.layers.{layer}.mlp", f"model.layers.{layer}.self_attn"
        yield from _gate(mlp, gates_LED["mlp"][layer])
        if config.attention_experts:
            yield from _gate(attention, gates_LED["self_attn"][layer])
            for name in config.attention_experts:
                yield from _lora_tensors(given, f"{attention}.{name}", f"{attention}.{name}", config.attention_lora_rank)
        if config.expert_layout == "lora":
            for name in PROJECTIONS:
                own = f"{mlp}.experts.{name}"
                yield MixtureTensor(own, base.shape(f"{mlp}.{name}.weight"), _stored(base, f"{mlp}.{name}.weight"))
                yield from _lora_tensors(given, f"{mlp}.{name}", own, config.lora_rank)
        else:
            gate_up = _merged(sources, (f"{mlp}.gate_proj", f"{mlp}.up_proj"))
            yield MixtureTensor(f"{mlp}.experts.gate_up_proj", (experts, 2 * hidden, width), gate_up)
            yield MixtureTensor(f"{mlp}.experts.down_proj", (experts, width, hidden), _merged(sources, (f"{mlp}.down_proj",)))


def _gate(owner: str, gate_ED: Tensor) -> Iterator[MixtureTensor]:
    shape = (gate_ED.shape[0], gate_ED.shape[1])
    yield MixtureTensor(f"{owner}.gate.weight", shape, iter([gate_ED]))
    yield MixtureTensor(f"{owner}.gate.noise_weight", shape, iter([torch.zeros(shape)]))


def _lora_tensors(given: Ingredients, module: str, own: str, rank: int) -> Iterator[MixtureTensor]:
    """The experts' factors of the base's matrix `module`, under the mixture's name for it, `own`."""
    out, width = given.base_weights.shape(f"{module}.weight")
    yield MixtureTensor(f"{own}_lora_A", (len(given.sources), rank, width), _factors(given.sources, module, 0, (rank, width)))
    yield MixtureTensor(f"{own}_lora_B", (len(given.sources), out, rank), _factors(given.sources, module, 1, (out, rank)))


# These are generators, so that nothing is read before it is written.
def _stored(weights: Checkpoint, name: str) -> Iterator[Tensor]:
    yield weights.tensor(name)


def _merged(sources: list[ExpertSource], modules: tuple[str, ...]) -> Iterator[Tensor]:
    for source in sources:
        for module in modules:
            yield source.matrix(module)


def _factors(sources: list[ExpertSource], module: str, which: int, shape: tuple[int, int]) -> Iterator[Tensor]:
    """Each expert's A (`which` 0) or B (1, times PEFT's scaling), padded with zeros to `shape`."""
    for source in sources:
        padded, factors = torch.zeros(shape), source.adapter.factors(module) if source.adapter else None
        if factors is not None and source.adapter is not None:
            factor = factors[which] * source.adapter.scaling(module) if which else factors[which]
            padded[: factor.shape[0], : factor.shape[1]] = factor
        yield padded


def is_quantized(name: str) -> bool:
    """Whether NF4 keeps this tensor in 4 bits: expert and attention matrices; never gate, norms, embeddings, head or LoRA factors."""
    return _QUANTIZED.search(name) is not None


def write_mixture(folder: Path, config: MoEConfig, tensors: list[MixtureTensor]) -> None:
    """Writes config and tensors, each cast to the config's dtype and quantised where the config says so; goes on after whole shards.

    Overflow naming the first tensor that has an infinite value.
    """
    dtype = parse_dtype(config.dtype or "float32")
    config.save_pretrained(folder)
    with CheckpointWriter(folder, SHARD_BYTES, resume=True) as writer:
        for name, shape, pieces in tqdm(tensors, desc="Composing", unit="tensor"):
            if name in writer.finished:
                continue
            cast = _cast(pieces, dtype, name)
            if config.quantization == "nf4" and is_quantized(name):
                writer.add_group(quantize_nf4_parts(cast, shape).state_dict(name))
            else:
                writer.add(name, _join(cast, shape, dtype))


def _cast(pieces: Iterator[Tensor], dtype: torch.dtype, name: str) -> Iterator[Tensor]:
    for piece in pieces:
        yield check_finite(piece.to(dtype), f"{name} of the mixture, in {dtype_name(dtype)},", Overflow)


def _join(pieces: Iterator[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    joined, done = torch.empty(math.prod(shape), dtype=dtype), 0
    for piece in pieces:
        joined[done : done + piece.numel()] = piece.reshape(-1)
        done += piece.numel()
    return joined.view(shape)
