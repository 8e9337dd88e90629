"""Hidden states of a base that is never in memory as a whole: one decoder layer at a time, filled from the memory-mapped checkpoint.

Embedding, masks, positions and layers are transformers' own, so results are bit-equal to those of the whole model.

Shapes: B texts of a batch, S positions, T tokens without padding, D model width.
"""

from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModel

from .checkpoint import Checkpoint
from .config_file import model_config
from .sources import ExpertSource

_DTYPE = torch.bfloat16  # as mergekit loads the base
Key = TypeVar("Key", bound=Hashable)


class Texts(NamedTuple):
    """Batches of tokenised texts, padded on the left, and the expert whose matrices they pass through (None: the base's)."""

    batches: list[Mapping[str, Tensor]]
    expert: ExpertSource | None = None


class Seen(NamedTuple):
    """What a layer sees of texts, in bf16: its input at their last positions, and what each block reads of every token."""

    last_BD: Tensor
    inputs_TD: dict[str, Tensor]


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
def walk_layers(base: Path, texts: Mapping[Key, Texts], blocks: tuple[str, ...]) -> Iterator[dict[Key, Seen]]:
    """Yields layer after layer what each of `texts` is there; `blocks`: whose inputs are wanted, of `self_attn` and `mlp`.

    The input of `mlp`, after the norm that follows attention, is what a mixture's gate sees. ValueError naming the first tensor that
    `base` lacks or that has another shape than its configuration says.
    """
    config = model_config(base)
    weights = Checkpoint(base)
    with init_empty_weights():  # parameters without memory; the rotary embedding's frequencies are there
        model = AutoModel.from_config(config, dtype=_DTYPE).eval()
    layers = model.layers
    _fill(model.embed_tokens, weights, "model.embed_tokens")
    calls = {key: [_first_call(model, batch) for batch in group.batches] for key, group in texts.items()}
    model.embed_tokens.to("meta")
    for index, layer in enumerate(tqdm(layers, desc="Gates", unit="layer")):
        seen: dict[Key, Seen] = {}
        inside = None
        for key, group in texts.items():
            if not seen or group.expert is not inside:
                _fill(layer, weights, f"model.layers.{index}", group.expert)
                inside = group.expert
            seen[key] = _pass(layer, group, calls[key], blocks)
        yield seen
        layer.to("meta")


def _pass(layer: nn.Module, texts: Texts, calls: list[_Recorder], blocks: tuple[str, ...]) -> Seen:
    """Takes the texts' hidden states through one layer."""
    last = torch.cat([call.hidden_BSD[:, -1, :] for call in calls])
    inputs: dict[str, list[Tensor]] = {block: [] for block in blocks}
    for batch, call in zip(texts.batches, calls, strict=True):
        handles = [layer.get_submodule(block).register_forward_pre_hook(_keep_input(inputs[block]), with_kwargs=True) for block in blocks]
        call.hidden_BSD = layer(call.hidden_BSD, **call.arguments)
        for handle in handles:
            handle.remove()
        for seen in inputs.values():
            seen[-1] = seen[-1][batch["attention_mask"].bool()]
    return Seen(last, {block: torch.cat(seen) for block, seen in inputs.items()})


def _keep_input(seen: list[Tensor]) -> Any:
    def hook(_: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        seen.append(arguments[0] if arguments else named["hidden_states"])

    return hook


def _first_call(model: Any, batch: Mapping[str, Tensor]) -> _Recorder:
    recorder = _Recorder()
    model.layers, model.norm = nn.ModuleList([recorder]), nn.Identity()
    model(**batch, use_cache=False)
    return recorder


def _fill(module: nn.Module, weights: Checkpoint, prefix: str, expert: ExpertSource | None = None) -> None:
    """Gives a module its weights: the base's, or an expert's where a mixture takes the expert's."""
    for name, parameter in list(module.named_parameters()):
        key = f"{prefix}.{name}"
        if key not in weights:
            raise ValueError(f"{weights.path} has no {key}, which its configuration asks for")
        if weights.shape(key) != tuple(parameter.shape):
            raise ValueError(f"{weights.path} has {key} of shape {list(weights.shape(key))} instead of {list(parameter.shape)}")
        is_own = expert is not None and (".mlp." in key or expert.is_base)
        weight = expert.matrix(key.removesuffix(".weight")) if expert is not None and is_own else weights.tensor(key)
        owner, _, short = name.rpartition(".")
        setattr(module.get_submodule(owner), short, nn.Parameter(weight.to(_DTYPE), requires_grad=False))
