"""PEFT LoRA adapters as folders: what they change, by how much, and whether they belong to a base.

Only LoRA on the matrices of FFN and attention can become an expert: plain, rank-stabilised, or, merged into the weights, DoRA.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapter_settings import lora_settings
from .checkpoint import Checkpoint, check_finite
from .configuration_moe import ATTENTION
from .experts import PROJECTIONS
from .output import RUN
from .strict_json import read_json

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_FACT = "base_fingerprint"  # the fact of an adapter's run.json that says which weights it was trained on

_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_(?:([AB])(?:\.default)?\.weight|(magnitude)_vector(?:\.default)?)")
_LAYER = re.compile(rf"model\.layers\.\d+\.(mlp\.({'|'.join(PROJECTIONS)})|self_attn\.({'|'.join(ATTENTION)}))")
_UNSUPPORTED = (
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
)
_SAMPLES = 64  # values of each tensor that a fingerprint reads


class Adapter:
    """A PEFT LoRA adapter in `folder`.

    Raises FileNotFoundError for a missing file, ValueError for an adapter that is not plain LoRA or is incomplete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_json(folder / ADAPTER_CONFIG)
        self._weights = Checkpoint(folder / ADAPTER_WEIGHTS)
        self._check_kind()
        self._keys: dict[str, dict[str, str]] = {}
        for key in self._weights:
            match = _FACTOR.fullmatch(key)
            if not match:
                raise ValueError(f"{folder}: {key} is not a LoRA factor; only plain LoRA adapters are read")
            self._keys.setdefault(match[1], {})[match[2] or match[3]] = key
        if not self._keys:
            raise ValueError(f"{folder} has no LoRA factors, so it changes nothing")
        for module, keys in self._keys.items():
            if not {"A", "B"} <= keys.keys():
                raise ValueError(f"{folder}: {module} has only one of its two LoRA factors")
            if ("magnitude" in keys) != self.is_dora:
                raise ValueError(f"{folder}: {module} has {'no' if self.is_dora else 'a'} lora_magnitude_vector; DoRA has it, LoRA has not")
            self._check_shapes(keys)
        if isinstance(self.settings["target_modules"], str):  # a pattern: what it matched when the factors were made
            self.settings["target_modules"] = self.modules

    def _check_kind(self) -> None:
        if self.config.get("peft_type") != "LORA":
            raise ValueError(f"{self.folder} is a {self.config.get('peft_type')!r} adapter; only LORA is read")
        if not isinstance(self.config.get("base_model_name_or_path") or "", str):
            raise ValueError(f"{self.folder} has base_model_name_or_path = {self.config['base_model_name_or_path']!r}; it must be a text")
        for name in _UNSUPPORTED:
            if self.config.get(name):
                raise ValueError(f"{self.folder} has {name} = {self.config[name]!r} in {ADAPTER_CONFIG}; only plain LoRA is read")
        try:
            self.settings = lora_settings(self.config)
        except ValueError as error:
            raise ValueError(f"{self.folder / ADAPTER_CONFIG} has {error}") from None

    def _check_shapes(self, keys: dict[str, str]) -> None:
        """A [r, in], B [out, r], and DoRA's magnitude [out]."""
        file, shapes = self.folder / ADAPTER_WEIGHTS, {part: self._weights.shape(key) for part, key in keys.items()}
        for part in "AB":
            if len(shapes[part]) != 2:
                raise ValueError(f"{file}: {keys[part]} has the shape {list(shapes[part])}; a LoRA factor is a matrix")
        if not shapes["A"][0]:
            raise ValueError(f"{file}: {keys['A']} is a factor of rank 0")
        if shapes["B"][1] != shapes["A"][0]:
            raise ValueError(f"{file}: {keys['B']} {list(shapes['B'])} does not fit {keys['A']} {list(shapes['A'])}; both have one rank")
        if self.is_dora and shapes["magnitude"] != shapes["B"][:1]:
            found, needed = list(shapes["magnitude"]), list(shapes["B"][:1])
            raise ValueError(f"{file}: {keys['magnitude']} has the shape {found}; one value for each row makes {needed}")

    @property
    def is_dora(self) -> bool:
        """Whether it is weight-decomposed (arXiv:2402.09353), which no pair of factors is: it can only be merged."""
        return bool(self.config.get("use_dora"))

    @property
    def modules(self) -> list[str]:
        """The modules that the adapter changes, e.g. `model.layers.0.mlp.up_proj`."""
        return list(self._keys)

    @cached_property
    def run(self) -> dict[str, Any]:
        """The facts of its `run.json`, empty if it has none."""
        return read_json(self.folder / RUN) if (self.folder / RUN).is_file() else {}

    @property
    def name(self) -> str:
        """The language it was trained on, or the folder's name."""
        return str(self.run.get("lang") or self.folder.name)

    def rank_of(self, module: str) -> int:
        """The rank of a module's factors."""
        return self._weights.shape(self._keys[module]["A"])[0]

    def rank(self, projections: Iterable[str]) -> int:
        """The greatest rank of its factors of these projections, 0 if it has none."""
        keys = [keys["A"] for module, keys in self._keys.items() if module.rpartition(".")[2] in projections]
        return max((self._weights.shape(key)[0] for key in keys), default=0)

    @property
    def attention(self) -> set[str]:
        """The projections of attention that it changes."""
        return {module.rpartition(".")[2] for module in self._keys} & set(ATTENTION)

    @property
    def fingerprint(self) -> str:
        """Of its factors and its configuration, as `base_fingerprint`."""
        return base_fingerprint(self.folder, self._weights) + hashlib.sha256(json.dumps(self.config).encode()).hexdigest()

    def scaling(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (arXiv:2312.03732), with PEFT's patterns for single modules."""
        rank = self.rank_of(module)
        alpha = self.config["lora_alpha"]
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def factors(self, module: str) -> tuple[Tensor, Tensor] | None:
        """A [r, in] and B [out, r] of a module, fp32, the scaling not yet applied; None if the adapter leaves the module alone.

        ValueError for DoRA, whose rows are scaled after the factors were added.
        """
        self.check_factors()
        return (self._read(module, "A"), self._read(module, "B")) if module in self._keys else None

    def check_factors(self) -> None:
        """ValueError if what the adapter adds is not a product of two factors."""
        if self.is_dora:
            raise ValueError(
                f"{self.folder} is DoRA (use_dora), which cannot be kept as LoRA factors: it can only be merged (layout dense)"
            )

    def _read(self, module: str, part: str) -> Tensor:
        return self._weights.tensor(self._keys[module][part]).float()

    def delta(self, module: str) -> Tensor:
        """B A · scaling [out, in] of a module that it changes, fp32; ValueError if that is too large to be a number."""
        product = (self._read(module, "B") @ self._read(module, "A")).mul_(self.scaling(module))
        return check_finite(product, f"the product of the factors of {module} in {self.folder}")

    def apply(self, module: str, weight: Tensor) -> Tensor:
        """`weight` [out, in] with the adapter merged in, rounded once, as PEFT's `merge_and_unload` (and so mergekit) does."""
        if module not in self._keys:
            return weight
        delta = self.delta(module)
        merged = delta.to(torch.promote_types(weight.dtype, delta.dtype)).add_(weight)  # in place: a 7B's matrix is 235 MB in fp32
        if self.is_dora:
            merged.mul_((self._read(module, "magnitude") / torch.linalg.norm(merged, dim=1))[:, None])
        return merged.to(weight.dtype)

    def check_layers_only(self) -> None:
        """ValueError if it changes anything that the experts of a mixture cannot hold."""
        others = sorted({module.removeprefix("model.") for module in self.modules if not _LAYER.fullmatch(module)})
        if others:
            raise ValueError(
                f"{self.folder} also changes {', '.join(others[:5])}, but the experts of a mixture differ in the matrices of their layers "
                f"alone ({', '.join((*PROJECTIONS, *ATTENTION))})"
            )

    def shape(self, module: str) -> tuple[int, int]:
        """[out, in] of a matrix that it changes."""
        keys = self._keys[module]
        return self._weights.shape(keys["B"])[0], self._weights.shape(keys["A"])[1]

    def check_base(self, base: Path, weights: Checkpoint) -> None:
        """ValueError if the adapter was trained on another base: by fingerprint where it has one, else by name; and by shape.

        Also if one of its values is infinite or not a number.
        """
        self._weights.check_values()
        trained_on = self.run.get(BASE_FACT)
        given = _model_name(base)
        named = Path(self.config.get("base_model_name_or_path") or given).name
        if trained_on is not None and trained_on != base_fingerprint(base, weights):
            raise ValueError(f"{self.folder} was trained on another base than {base}: the weights' fingerprints differ")
        if trained_on is None and named != given:
            raise ValueError(f"{self.folder} was trained on the base {named!r}, not {given!r}")
        for module in self._keys:
            if f"{module}.weight" not in weights:
                raise ValueError(f"{self.folder} changes {module}, which {base} does not have")
            expected = weights.shape(f"{module}.weight")
            found = self.shape(module)
            if found != expected:
                raise ValueError(f"{self.folder} changes {module} as a matrix of {list(found)}, but in {base} it is {list(expected)}")


def _model_name(folder: Path) -> str:
    """The last part of a model's name: the folder's, or that of the hub model whose snapshot the folder is."""
    folder = folder.absolute()
    return folder.parent.parent.name.rpartition("--")[2] if folder.parent.name == "snapshots" else folder.name


def base_name(folder: Path) -> str:
    """The folder or the hub's name of the base that an adapter names; ValueError if it names none."""
    if not (named := read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")):
        raise ValueError(f"{folder} does not name its base; give the base as the model and this as its adapter")
    return str(named)


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def base_fact(folder: Path) -> dict[str, Any]:
    """What the `run.json` of a mixture says of its base, to be said of what is made from it; empty if it says nothing."""
    run = read_json(folder / RUN) if (folder / RUN).is_file() else {}
    return {BASE_FACT: run[BASE_FACT]} if BASE_FACT in run else {}


def base_fingerprint(folder: Path, weights: Checkpoint | None = None) -> str:
    """SHA-256 over name, shape and first 64 values of every tensor: cheap at any size, and equal wherever the folder lies."""
    weights = weights or Checkpoint(folder)
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(json.dumps([name, weights.shape(name), weights.head(name, _SAMPLES).tolist()]).encode())
    return digest.hexdigest()
