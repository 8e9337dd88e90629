"""Where models and experts come from: full checkpoints, or adapters of them; and the sources of a mixture's experts.

Of a full checkpoint a mixture takes the FFNs alone, as mergekit-moe does; of an adapter of the base also its share of attention.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapters import Adapter, base_fingerprint, is_adapter
from .checkpoint import Checkpoint, model_folder
from .config_file import model_config, read_config
from .experts import PROJECTIONS
from .seeds import generator

_FAMILIES = ("mistral", "llama")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
# What decides of a model's function and is not seen in its tensors' shapes.
UNSEEN = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rope_parameters")
_SHARED = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", *UNSEEN)


@dataclass(frozen=True)
class Source:
    """A full checkpoint, with or without an adapter on it."""

    weights: Checkpoint
    adapter: Adapter | None

    @property
    def folder(self) -> Path:
        """The checkpoint's."""
        return self.weights.path

    @property
    def name(self) -> str:
        """The adapter's, or that of the checkpoint's folder."""
        return self.adapter.name if self.adapter else self.folder.name

    @cached_property
    def fingerprint(self) -> str:
        """Of what it is made of: the checkpoint and the adapter."""
        return base_fingerprint(self.folder, self.weights) + (self.adapter.fingerprint if self.adapter else "")


@dataclass(frozen=True)
class ExpertSource(Source):
    """Where an expert's FFN comes from."""

    is_base: bool  # `weights` are the base's: with an adapter, this expert can be kept as its factors
    noise_scale: float = 0.0
    residual_scale: float = 1.0
    noise_seed: str = ""

    @property
    def folders(self) -> list[Path]:
        """The folders of its checkpoint and its adapter."""
        return [self.folder, *([self.adapter.folder] if self.adapter else [])]

    def matrix(self, module: str) -> Tensor:
        """The weight [out, in] of a module, the adapter merged in; of the FFN, with the recipe's noise and scale, as in mergekit-moe.

        The noise depends on `noise_seed` and the module alone, so that it is the same whenever it is drawn.
        """
        weight = self.weights.tensor(f"{module}.weight")
        weight = weight if self.adapter is None else self.adapter.apply(module, weight)
        if self.noise_scale and ".mlp." in module:
            noise = torch.randn(weight.shape, dtype=weight.dtype, generator=generator(f"{self.noise_seed} {module}"))
            weight = weight + noise * self.noise_scale
        return weight * self.residual_scale if self.residual_scale != 1 and module.endswith(".mlp.down_proj") else weight


def open_source(text: str, base: Path, base_weights: Checkpoint, beside: Path) -> ExpertSource:
    """The expert that a recipe's `source_model` names: a checkpoint, an adapter of the base, or `checkpoint+adapter`.

    FileNotFoundError if nothing is there; ValueError if it does not fit the base.
    """
    folder, adapter_folder = split_source(text, beside)
    if adapter_folder is None and is_adapter(folder):
        folder, adapter_folder = base, folder
    is_base = folder.resolve() == base.resolve()
    weights = base_weights if is_base else Checkpoint(folder)
    if not is_base:
        _check_same_shape(folder, base)
        check_matrices(weights, read_base_config(folder))
    adapter = None
    if adapter_folder is not None:
        adapter = Adapter(adapter_folder)
        adapter.check_layers_only()
        adapter.check_base(folder, weights)
        if adapter.attention:  # experts of attention are factors in either layout
            adapter.check_factors()
        if adapter.attention and not is_base:
            raise ValueError(
                f"{adapter_folder} changes {', '.join(sorted(adapter.attention))} of {folder}, but the mixture has the attention of {base}"
            )
    return ExpertSource(weights, adapter, is_base)


def all_the_same(experts: list[ExpertSource]) -> bool:
    """Whether several experts have the same matrices."""
    made_of = {(source.fingerprint, source.noise_scale and source.noise_seed, source.residual_scale) for source in experts}
    return len(experts) > 1 and len(made_of) == 1


def unique_names(names: list[str]) -> list[str]:
    """The names with -2, -3, ... behind those that have come before: two experts may have one source."""
    unique: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in count(2))
        unique.append(next(candidate for candidate in chain([name], numbered) if candidate not in unique))
    return unique


def split_source(text: str, beside: Path) -> tuple[Path, Path | None]:
    """The folders on both sides of mergekit's `model+lora`; a folder may itself have a plus sign in its name."""
    for place in [index for index, letter in enumerate(text) if letter == "+"]:
        try:
            return model_folder(text[:place], beside), model_folder(text[place + 1 :], beside)
        except FileNotFoundError:
            continue
    try:
        return model_folder(text, beside), None
    except FileNotFoundError:
        if "@" in text:
            raise ValueError(
                f"{text} is no folder, and names a revision; give the folder of that revision, as models are read from the disk alone"
            ) from None
        raise


def _check_same_shape(folder: Path, base: Path) -> None:
    ours, theirs = read_base_config(base), read_base_config(folder)
    for field in _SHARED:
        if ours.get(field) != theirs.get(field):
            raise ValueError(f"{folder} has {field} = {theirs.get(field)!r}, but the base {base} has {ours.get(field)!r}")


def read_base_config(folder: Path) -> dict[str, Any]:
    """The configuration with its family's defaults filled in; ValueError if it is not of the Mistral family."""
    kind = read_config(folder).get("model_type")
    if kind not in _FAMILIES:
        raise ValueError(f"{folder} is a {kind!r} model; base and experts must be one of {', '.join(_FAMILIES)}")
    return model_config(folder).to_dict()


def check_matrices(weights: Checkpoint, config: dict[str, Any]) -> None:
    """ValueError naming the first FFN matrix that a checkpoint lacks or that has another shape than its configuration says, or the first
    tensor that such a model does not have.
    """
    width, hidden = config["hidden_size"], config["intermediate_size"]
    for name in weights:
        match = _LAYER.match(name)
        if not (int(match[1]) < config["num_hidden_layers"] if match else name in _OUTSIDE):
            raise ValueError(f"{weights.path} has {name}, but by its configuration it is a model of {config['num_hidden_layers']} layers")
    for layer in range(config["num_hidden_layers"]):
        for projection in PROJECTIONS:
            name = f"model.layers.{layer}.mlp.{projection}.weight"
            expected = (width, hidden) if projection == "down_proj" else (hidden, width)
            if name not in weights:
                raise ValueError(f"{weights.path} has no {name}")
            if weights.shape(name) != expected:
                raise ValueError(f"{weights.path} has {name} of shape {list(weights.shape(name))} instead of {list(expected)}")
