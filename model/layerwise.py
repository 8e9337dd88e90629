"""Hidden states of a base that is never in memory as a whole: one decoder layer at a time, filled from the memory-mapped checkpoint.

Embedding, masks, positions and layers are transformers' own, so results are bit-equal to those of the whole model.

Shapes: L layers, B prompts, S tokens, D model width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModel

from .checkpoint import Checkpoint

_DTYPE = torch.bfloat16  # as mergekit loads the base


class _Recorder(nn.Module):
    """Stands in for the decoder layers: notes what the first of them would be called with."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_BSD = torch.empty(0)
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden_BSD: Tensor, **arguments: Any) -> Tensor:
        self.hidden_BSD, self.arguments = hidden_BSD, arguments
        return hidden_BSD


@torch.no_grad()
def last_token_states(base: Path, batches: list[Mapping[str, Tensor]]) -> list[Tensor]:
    """For each batch of tokenised prompts, the input of every layer at the last position [L, B, D], in bf16.

    ValueError naming the tensors that `base` lacks or that have another shape than its configuration says.
    """
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    weights = Checkpoint(base)
    with init_empty_weights():  # parameters without memory; the rotary embedding's frequencies are there
        model = AutoModel.from_config(config, dtype=_DTYPE).eval()
    layers = model.layers
    _fill(model.embed_tokens, weights, "model.embed_tokens")
    calls = [_first_call(model, batch) for batch in batches]
    model.embed_tokens.to("meta")
    states: list[list[Tensor]] = [[] for _ in batches]
    for index, layer in enumerate(tqdm(layers, desc="Gates", unit="layer")):
        for seen, call in zip(states, calls, strict=True):
            seen.append(call.hidden_BSD[:, -1, :].clone())
        if index + 1 == len(layers):  # nobody asks for the last layer's output
            break
        _fill(layer, weights, f"model.layers.{index}")
        for call in calls:
            call.hidden_BSD = layer(call.hidden_BSD, **call.arguments)
        layer.to("meta")
    return [torch.stack(seen) for seen in states]


def _first_call(model: Any, batch: Mapping[str, Tensor]) -> _Recorder:
    recorder = _Recorder()
    model.layers, model.norm = nn.ModuleList([recorder]), nn.Identity()
    model(**batch, use_cache=False)
    return recorder


def _fill(module: nn.Module, weights: Checkpoint, prefix: str) -> None:
    for name, parameter in list(module.named_parameters()):
        key = f"{prefix}.{name}"
        if key not in weights:
            raise ValueError(f"{weights.path} has no {key}, which its configuration asks for")
        if weights.shape(key) != tuple(parameter.shape):
            raise ValueError(f"{weights.path} has {key} of shape {list(weights.shape(key))} instead of {list(parameter.shape)}")
        owner, _, short = name.rpartition(".")
        setattr(module.get_submodule(owner), short, nn.Parameter(weights.tensor(key).to(_DTYPE), requires_grad=False))
