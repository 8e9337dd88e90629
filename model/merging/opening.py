"""A merge that is ready to be made: its configuration read, its models open, its tensors planned."""

from dataclasses import dataclass
from pathlib import Path

import torch

from .config import MergeConfig, read_merge_config
from .plan import Step, make_plan
from .sources import SourceModel, open_sources
from .tensors import Merger
from .vocabulary import Alignment, align


@dataclass(frozen=True)
class Merge:
    """A configuration whose models are open. `reference` gives the output's configuration and, if nothing else is said, its tokenizer."""

    config: MergeConfig
    sources: dict[str, SourceModel]
    reference: SourceModel
    alignment: Alignment | None
    steps: list[Step]


def open_merge(path: Path) -> Merge:
    """Reads a configuration, opens its models and plans the merge; FileNotFoundError or ValueError if that cannot be done."""
    config = read_merge_config(path)
    sources = open_sources(config.models, config.base_model, path.parent)
    reference = next(iter(sources.values()))
    alignment = align(config.tokenizer, sources, config.base_model, path.parent) if config.tokenizer else None
    return Merge(config, sources, reference, alignment, make_plan(config, sources, reference, alignment is not None))


def make_merger(merge: Merge, seed: int, fast_ties: bool) -> Merger:
    """How tensors are merged: with mergekit's bits, except that adapters which stand alone, which it cannot read, need not follow it.

    With them the arithmetic is in fp32 and each tensor in the base's dtype, unless the file says otherwise, and `fast_ties` holds.
    """
    config = merge.config
    has_adapters = any(not source.in_file_dtype for source in merge.sources.values())
    in_base_dtype = has_adapters and config.dtype is None
    dtype = torch.float32 if in_base_dtype else config.dtype
    return Merger(config.method, dtype, config.out_dtype, in_base_dtype, merge.alignment, seed, fast_ties or has_adapters)
