"""mergekit-moe's YAML file, read strictly: an unknown key or value is an error that says what is allowed."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import DTYPES
from .gates import GATE_MODES, PROMPT_MODES, Prompts
from .strict_yaml import check_mapping, read_yaml

_KEYS = ("base_model", "gate_mode", "dtype", "experts_per_token", "architecture", "experts", "shared_experts")
_SHARED_KEYS = ("source_model", "residual_scale")
_EXPERT_KEYS = ("source_model", "positive_prompts", "negative_prompts")


@dataclass(frozen=True)
class Expert:
    source_model: str
    prompts: Prompts


@dataclass(frozen=True)
class Recipe:
    """A mixture to be composed; `dtype` None means the base's."""

    base_model: str
    gate_mode: str
    dtype: str | None
    experts_per_token: int
    experts: list[Expert]
    shared_experts: list[str]  # their source_model
    residual_scale: float  # of all shared experts


def read_recipe(path: Path) -> Recipe:
    """Reads a YAML file; FileNotFoundError or ValueError naming the key, what it holds and what it may hold."""
    raw = check_mapping(read_yaml(path), _KEYS, str(path))
    if not isinstance(raw.get("experts"), list) or not raw["experts"]:
        raise ValueError(f"{path}: experts must be a list of at least one expert")
    recipe = Recipe(
        base_model=_text(raw, "base_model", str(path)),
        gate_mode=raw.get("gate_mode", "hidden"),
        dtype=raw.get("dtype"),
        experts_per_token=raw.get("experts_per_token", 2),
        experts=[_read_expert(value, f"{path}: expert {index}") for index, value in enumerate(raw["experts"])],
        **_read_shared(raw.get("shared_experts") or [], str(path)),
    )
    _check(recipe, raw.get("architecture"), path)
    return recipe


def _read_expert(raw: Any, where: str) -> Expert:
    check_mapping(raw, _EXPERT_KEYS, where)
    positive, negative = (_prompts(raw, key, where) for key in ("positive_prompts", "negative_prompts"))
    return Expert(_text(raw, "source_model", where), Prompts(positive, negative))


def _read_shared(raw: Any, path: str) -> dict[str, Any]:
    if not isinstance(raw, list):
        raise ValueError(f"{path}: shared_experts must be a list, not {raw!r}")
    for index, value in enumerate(raw):
        check_mapping(value, _SHARED_KEYS, f"{path}: shared expert {index}")
    scales = [value.get("residual_scale", 1.0) for value in raw] or [1.0]
    for scale in scales:
        if not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale):
            raise ValueError(f"{path}: residual_scale is {scale!r}; it must be a number")
    if len(set(scales)) > 1:
        raise ValueError(f"{path}: shared experts have the residual_scale {', '.join(map(str, scales))}; all must have the same")
    sources = [_text(value, "source_model", f"{path}: shared expert {index}") for index, value in enumerate(raw)]
    return {"shared_experts": sources, "residual_scale": float(scales[0])}


def _check(recipe: Recipe, architecture: Any, path: Path) -> None:
    if recipe.gate_mode not in GATE_MODES:
        raise ValueError(f"{path}: gate_mode is {recipe.gate_mode!r}; allowed: {', '.join(GATE_MODES)}")
    if recipe.dtype not in (None, *DTYPES):
        raise ValueError(f"{path}: dtype is {recipe.dtype!r}; allowed: {', '.join(DTYPES)}")
    if architecture not in (None, "mixtral"):
        raise ValueError(f"{path}: architecture is {architecture!r}; only mixtral is composed")
    count = len(recipe.experts)
    if not isinstance(recipe.experts_per_token, int) or not 1 <= recipe.experts_per_token <= count:
        raise ValueError(f"{path}: experts_per_token is {recipe.experts_per_token!r}; it must be from 1 to the {count} experts")
    if recipe.gate_mode not in PROMPT_MODES:
        return
    for index, expert in enumerate(recipe.experts):
        if not expert.prompts.positive:
            raise ValueError(f"{path}: expert {index} has no positive_prompts, which gate_mode {recipe.gate_mode!r} needs")
    if count > 1 and len({expert.prompts for expert in recipe.experts}) == 1:
        raise ValueError(f"{path}: all experts have the same prompts, so no gate can tell them apart")


def _text(raw: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(raw.get(key), str):
        raise ValueError(f"{where}: {key} must be a text, not {raw.get(key)!r}")
    return raw[key]


def _prompts(raw: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = raw.get(key) or []
    if not isinstance(value, list) or not all(isinstance(prompt, str) for prompt in value):
        raise ValueError(f"{where}: {key} must be a list of texts")
    return tuple(value)
