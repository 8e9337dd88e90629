"""The tensors of a mixture, each made when its turn comes to be written.

In memory are one matrix of one expert, one tensor of the mixture, and the tensors that wait for their shard to be full.

Shapes: L layers, E experts, D model width, F expert hidden width, R LoRA rank.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from moe_kernels.nf4_pieces import quantize_nf4_pieces

from .checkpoint import Checkpoint, CheckpointWriter, parse_dtype
from .configuration_moe import MoEConfig
from .experts import PROJECTIONS
from .ingredients import Ingredients
from .sources import Source

SHARD_BYTES = 512 << 20  # so many wait in memory, and at most so many are lost by a kill
_QUANTIZED = re.compile(r"\.self_attn\.[qkvo]_proj\.weight$|\.experts\.(gate|up|gate_up|down)_proj$")


class MixtureTensor(NamedTuple):
    """A tensor of the mixture in full precision, as consecutive pieces that are made when they are asked for."""

    name: str
    shape: tuple[int, ...]
    pieces: Iterator[Tensor]


def mixture_tensors(given: Ingredients, gates_LED: Tensor) -> Iterator[MixtureTensor]:
    """Every tensor of the mixture by its own name."""
    base, sources, config = given.base_weights, given.sources, given.config
    for name in base:
        if ".mlp." not in name and not name.endswith("rotary_emb.inv_freq"):
            yield MixtureTensor(name, base.shape(name), _stored(base, name))
    experts, width, hidden = len(sources), config.hidden_size, config.intermediate_size
    for layer in range(config.num_hidden_layers):
        mlp = f"model.layers.{layer}.mlp"
        yield MixtureTensor(f"{mlp}.gate.weight", (experts, width), iter([gates_LED[layer]]))
        yield MixtureTensor(f"{mlp}.gate.noise_weight", (experts, width), iter([torch.zeros(experts, width)]))
        if config.expert_layout == "lora":
            yield from _lora_tensors(given, mlp)
        else:
            gate_up = _merged(sources, (f"{mlp}.gate_proj", f"{mlp}.up_proj"))
            yield MixtureTensor(f"{mlp}.experts.gate_up_proj", (experts, 2 * hidden, width), gate_up)
            yield MixtureTensor(f"{mlp}.experts.down_proj", (experts, width, hidden), _merged(sources, (f"{mlp}.down_proj",)))


def _lora_tensors(given: Ingredients, mlp: str) -> Iterator[MixtureTensor]:
    experts, rank = len(given.sources), given.config.lora_rank
    for name in PROJECTIONS:
        module, own = f"{mlp}.{name}", f"{mlp}.experts.{name}"
        out, width = given.base_weights.shape(f"{module}.weight")
        yield MixtureTensor(own, (out, width), _stored(given.base_weights, f"{module}.weight"))
        yield MixtureTensor(f"{own}_lora_A", (experts, rank, width), _factors(given.sources, module, 0, (rank, width)))
        yield MixtureTensor(f"{own}_lora_B", (experts, out, rank), _factors(given.sources, module, 1, (out, rank)))


# These are generators, so that nothing is read before it is written.
def _stored(weights: Checkpoint, name: str) -> Iterator[Tensor]:
    yield weights.tensor(name)


def _merged(sources: list[Source], modules: tuple[str, ...]) -> Iterator[Tensor]:
    for source in sources:
        for module in modules:
            yield source.matrix(module)


def _factors(sources: list[Source], module: str, which: int, shape: tuple[int, int]) -> Iterator[Tensor]:
    """Each expert's A (`which` 0) or B (1, times PEFT's scaling), padded with zeros to `shape`."""
    for source in sources:
        assert source.adapter is not None
        padded, factors = torch.zeros(shape), source.adapter.factors(module)
        if factors is not None:
            factor = factors[which] * source.adapter.scaling(module) if which else factors[which]
            padded[: factor.shape[0], : factor.shape[1]] = factor
        yield padded


def is_quantized(name: str) -> bool:
    """Whether NF4 keeps this tensor in 4 bits: expert and attention matrices; never gate, norms, embeddings, head or LoRA factors."""
    return _QUANTIZED.search(name) is not None


def write_mixture(folder: Path, config: MoEConfig, tensors: list[MixtureTensor]) -> None:
    """Writes config and tensors, each cast to the config's dtype and quantised where the config says so; goes on after whole shards."""
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else parse_dtype(str(config.dtype))
    config.save_pretrained(folder)
    with CheckpointWriter(folder, SHARD_BYTES, resume=True) as writer:
        for name, shape, pieces in tqdm(tensors, desc="Composing", unit="tensor"):
            if name in writer.finished:
                continue
            if config.quantization == "nf4" and is_quantized(name):
                weight = quantize_nf4_pieces((piece.to(dtype) for piece in pieces), shape, dtype)
                writer.add_group(weight.state_dict(name))
            else:
                writer.add(name, _join(pieces, shape, dtype))


def _join(pieces: Iterator[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    joined, done = torch.empty(math.prod(shape), dtype=dtype), 0
    for piece in pieces:
        joined[done : done + piece.numel()] = piece.reshape(-1)
        done += piece.numel()
    return joined.view(shape)
