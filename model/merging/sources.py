"""Models that go into a merge: checkpoints, adapters, or adapters on checkpoints, read one tensor at a time."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter, is_adapter
from ..checkpoint import Checkpoint, model_folder
from ..config_file import model_config, read_config
from ..sources import UNSEEN, Source, split_source
from .parallel import Rows, at_least_fp32

_FAMILIES = ("mistral", "llama", "qwen2")
_SHARED = ("model_type", *UNSEEN)
_BUFFER = "rotary_emb.inv_freq"  # which old checkpoints hold, and nobody reads
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_WEIGHT = ".weight"


@dataclass(frozen=True)
class SourceModel(Source):
    """One model."""

    is_tied: bool  # where its file has no head, the head is the embeddings
    in_file_dtype: bool = True  # its adapter is merged in the weights' own dtype, as mergekit does, and not in the merge's

    def __contains__(self, name: str) -> bool:
        return self._stored(name) in self.weights

    def names(self) -> set[str]:
        """Of its tensors, tied ones among them."""
        return {name for name in self.weights if not name.endswith(_BUFFER)} | ({HEAD} if self.is_tied else set())

    def shape(self, name: str) -> torch.Size:
        return torch.Size(self.weights.shape(self._stored(name)))

    def dtype(self, name: str) -> torch.dtype:
        """Of the tensor in its file, which is not read for it."""
        return self.weights.head(self._stored(name), 1).dtype

    def _stored(self, name: str) -> str:
        """The name in the file."""
        return EMBEDDINGS if name == HEAD and self.is_tied and HEAD not in self.weights else name

    def rows(self, name: str, dtype: torch.dtype) -> Rows:
        """The tensor in `dtype`, any rows of it at a time; its file is mapped as long as the result is there."""
        weight, module = self.weights.tensor(self._stored(name)), name.removesuffix(_WEIGHT)
        if self.adapter is not None and (self.in_file_dtype or self.adapter.is_dora):
            weight = self.adapter.apply(module, weight if self.in_file_dtype else weight.to(dtype))
        elif product := self._product(module, dtype):
            return lambda rows: product(rows).add_(weight[rows].to(dtype)).to(dtype)
        return lambda rows: weight[rows].to(dtype)

    def some_rows(self, name: str, rows_N: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows of the tensor in `dtype`, by their numbers; no others are read, unless the adapter changes them."""
        if self.adapter is not None and name.removesuffix(_WEIGHT) in self.adapter.modules:
            return self.rows(name, dtype)(rows_N)
        return self.weights.rows(self._stored(name), rows_N).to(dtype)

    def task_vector(self, name: str, base: "SourceModel", base_name: str, base_rows: Rows, dtype: torch.dtype) -> Rows | None:
        """What the model's tensor `name` adds to the base's `base_name`, which is `base_rows`, in `dtype`; None if that is nothing.

        Of a LoRA adapter of the base it is B A · scaling itself.
        """
        module = name.removesuffix(_WEIGHT)
        if self.folder == base.folder and base.adapter is None and name == base_name:
            if self.adapter is None or module not in self.adapter.modules:
                return None
            product = self._product(module, dtype)
            if product and not self.in_file_dtype:
                return lambda rows: product(rows).to(dtype)
        return difference(self.rows(name, dtype), base_rows)

    def _product(self, module: str, dtype: torch.dtype) -> Rows | None:
        """B A · scaling of its LoRA adapter, computed in fp32 (fp64) for a merge in `dtype`; None if none changes the module."""
        factors = None if self.adapter is None or self.adapter.is_dora else self.adapter.factors(module)
        if self.adapter is None or factors is None:
            return None
        a, b = (factor.to(at_least_fp32(dtype)) for factor in factors)
        scaling = self.adapter.scaling(module)
        return lambda rows: (b[rows] @ a).mul_(scaling)


def difference(rows: Rows, base: Rows) -> Rows:
    """A task vector: what a tensor has beyond the base's, any rows of it at a time."""
    return lambda part: rows(part) - base(part)


def tensor_names(reference: SourceModel, sources: Iterable[SourceModel]) -> list[str]:
    """The tensors of a model made of `sources`, named as in `reference`: with a head if one of them has it, as in mergekit."""
    has_head = any(HEAD in source.weights for source in sources)
    return sorted(reference.names() - (set() if has_head else {HEAD}))


def open_sources(models: list[str], base: str | None, beside: Path) -> dict[str, SourceModel]:
    """Every model that a merge names, by that name; `base` is the base of adapters that stand alone (None: the one each was trained on).

    FileNotFoundError if one is not there; ValueError if it cannot be read or is of another architecture than the first.
    """
    sources: dict[str, SourceModel] = {}
    for text in models:
        sources[text] = _open(text, sources.get(base) if base else None, beside)
    first, *others = sources.values()
    expected = _architecture(first.folder)
    for source in others:
        for field, value in _architecture(source.folder).items():
            if value != expected[field]:
                raise ValueError(f"{source.folder} has {field} = {value!r}, but {first.folder} has {expected[field]!r}")
    return sources


def _open(text: str, base: SourceModel | None, beside: Path) -> SourceModel:
    folder, adapter_folder = split_source(text, beside)
    stands_alone = adapter_folder is None and is_adapter(folder)
    if stands_alone:
        folder, adapter_folder = _base_folder(folder, base, beside), folder
    weights = base.weights if base is not None and base.folder == folder else Checkpoint(folder)
    is_tied = bool(_configuration(folder).tie_word_embeddings)
    adapter = Adapter(adapter_folder) if adapter_folder else None
    if adapter is not None:
        adapter.check_base(folder, weights)
    return SourceModel(weights, adapter, is_tied, in_file_dtype=not stands_alone)


def _base_folder(adapter: Path, base: SourceModel | None, beside: Path) -> Path:
    if base is not None:
        return base.folder
    named = Adapter(adapter).config.get("base_model_name_or_path")
    if not named:
        raise ValueError(f"{adapter} does not name its base; give base_model, or write it as BASE+{adapter.name}")
    return model_folder(named, beside)


def _configuration(folder: Path) -> Any:
    """ValueError if such models cannot be merged, or are quantised."""
    raw = read_config(folder)
    if raw.get("model_type") not in _FAMILIES:
        raise ValueError(f"{folder} is a {raw.get('model_type')!r} model; models to be merged must be one of {', '.join(_FAMILIES)}")
    if raw.get("quantization_config"):
        raise ValueError(f"{folder} is quantised; only full-precision models can be merged")
    return model_config(folder)


def _architecture(folder: Path) -> dict[str, Any]:
    """What models must share to be merged, their shapes apart."""
    config = _configuration(folder)
    return {field: getattr(config, field, None) for field in _SHARED}
