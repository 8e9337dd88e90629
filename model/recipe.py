"""mergekit-moe's YAML file, read strictly: an unknown key or value is an error that says what is allowed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import DTYPES
from .gates import GATE_MODES, GATE_ROWS, PROMPT_MODES, Prompts
from .model_reference import model_field
from .strict_yaml import check_mapping, dtype_field, list_field, number_field, optional_text_field, read_yaml

_KEYS = ("base_model", "gate_mode", "gate_data", "gate_rows", "dtype", "experts_per_token", "architecture", "experts", "shared_experts")
_SHARED_KEYS = ("source_model", "noise_scale", "residual_scale")
_EXPERT_KEYS = (*_SHARED_KEYS, "positive_prompts", "negative_prompts", "lang")


@dataclass(frozen=True)
class Expert:
    source_model: str
    prompts: Prompts
    noise_scale: float  # of normal noise on its three matrices
    residual_scale: float  # of its down projection, after the noise
    lang: str | None  # the rows of `gate_data` that are its own

    @property
    def is_changed(self) -> bool:
        """Whether its matrices are not those of its source."""
        return self.noise_scale != 0 or self.residual_scale != 1


@dataclass(frozen=True)
class Recipe:
    """A mixture to be composed; `dtype` None means the base's."""

    base_model: str
    gate_mode: str
    gate_data: str | None  # JSON lines with `lang` and `text`, for the gate mode `data`
    gate_rows: int  # of each expert, at most
    dtype: str | None
    experts_per_token: int
    experts: list[Expert]
    shared_experts: list[Expert]


def read_recipe(path: Path) -> Recipe:
    """Reads a YAML file; FileNotFoundError or ValueError naming the key, what it holds and what it may hold."""
    raw = check_mapping(read_yaml(path), _KEYS, str(path))
    experts = list_field(raw, "experts", str(path))
    shared = raw.get("shared_experts") or []
    if not isinstance(shared, list):
        raise ValueError(f"{path}: shared_experts must be a list, not {shared!r}")
    recipe = Recipe(
        base_model=model_field(raw, "base_model", str(path)),
        gate_mode=raw.get("gate_mode", "hidden"),
        gate_data=optional_text_field(raw, "gate_data", str(path)),
        gate_rows=raw.get("gate_rows", GATE_ROWS),
        dtype=_dtype(raw, str(path)),
        experts_per_token=raw.get("experts_per_token", min(2, len(experts))),
        experts=[_read_expert(value, _EXPERT_KEYS, f"{path}: expert {index}") for index, value in enumerate(experts)],
        shared_experts=[_read_expert(value, _SHARED_KEYS, f"{path}: shared expert {index}") for index, value in enumerate(shared)],
    )
    _check(recipe, raw.get("architecture"), path)
    _check_gate(recipe, raw, path)
    return recipe


def _read_expert(raw: Any, keys: tuple[str, ...], where: str) -> Expert:
    check_mapping(raw, keys, where)
    return Expert(
        source_model=model_field(raw, "source_model", where),
        prompts=Prompts(*(_prompts(raw, key, where) for key in ("positive_prompts", "negative_prompts"))),
        noise_scale=number_field(raw, "noise_scale", where, 0.0),
        residual_scale=number_field(raw, "residual_scale", where, 1.0),
        lang=optional_text_field(raw, "lang", where),
    )


def _dtype(raw: dict[str, Any], where: str) -> str | None:
    if raw.get("dtype") in ("float64", "torch.float64"):
        raise ValueError(f"{where}: dtype is 'float64', in which no mixture is computed: its kernels and NF4 take {', '.join(DTYPES)}")
    return dtype_field(raw, "dtype", where, DTYPES)


def _check(recipe: Recipe, architecture: Any, path: Path) -> None:
    if architecture is not None and str(architecture).lower() != "mixtral":
        raise ValueError(f"{path}: architecture is {architecture!r}; only mixtral is composed")
    count = len(recipe.experts)
    if not _is_count(recipe.experts_per_token) or recipe.experts_per_token > count:
        raise ValueError(f"{path}: experts_per_token is {recipe.experts_per_token!r}; it must be from 1 to the {count} experts")


def _check_gate(recipe: Recipe, raw: dict[str, Any], path: Path) -> None:
    """That the gate's mode has what it is made of."""
    mode, experts = recipe.gate_mode, recipe.experts
    if mode not in GATE_MODES:
        raise ValueError(f"{path}: gate_mode is {mode!r}; allowed: {', '.join(GATE_MODES)}")
    if mode == "data":
        _check_data(recipe, path)
    else:
        _check_no_data(raw, path, mode)
    if mode not in PROMPT_MODES:
        return
    for index, expert in enumerate(experts):
        if not expert.prompts.positive:
            raise ValueError(f"{path}: expert {index} has no positive_prompts, which gate_mode {mode!r} needs")
    if len(experts) > 1 and len({expert.prompts for expert in experts}) == 1:
        raise ValueError(f"{path}: all experts have the same prompts, so no gate can tell them apart")


def _check_no_data(raw: dict[str, Any], path: Path, mode: str) -> None:
    experts = [(f"expert {index}: lang", expert.get("lang")) for index, expert in enumerate(raw["experts"])]
    for what, value in [("gate_data", raw.get("gate_data")), ("gate_rows", raw.get("gate_rows")), *experts]:
        if value is not None:
            raise ValueError(f"{path}: {what} is given, but gate_mode is {mode!r}; only 'data' reads it")


def _check_data(recipe: Recipe, path: Path) -> None:
    if recipe.gate_data is None:
        raise ValueError(f"{path}: gate_mode 'data' needs gate_data, a file of JSON lines with the columns lang and text")
    if not _is_count(recipe.gate_rows) or recipe.gate_rows < 2:
        raise ValueError(f"{path}: gate_rows is {recipe.gate_rows!r}; it must be a number of rows, at least 2")
    langs = [expert.lang for expert in recipe.experts]
    for index, lang in enumerate(langs):
        if lang is None:
            raise ValueError(f"{path}: expert {index} has no lang, which gate_mode 'data' needs: its rows of gate_data have this lang")
        if lang in langs[:index]:
            raise ValueError(f"{path}: experts {langs.index(lang)} and {index} both have the lang {lang!r}, so no gate can tell them apart")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _prompts(raw: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = raw.get(key) or []
    if not isinstance(value, list) or not all(isinstance(prompt, str) for prompt in value):
        raise ValueError(f"{where}: {key} must be a list of texts")
    return tuple(value)
