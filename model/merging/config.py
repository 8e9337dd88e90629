"""mergekit's YAML file of a merge, read strictly: an unknown key, method or parameter is an error that says what is allowed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import DENSE_DTYPES
from ..config_file import MOST_LAYERS
from ..model_reference import model_field, optional_model_field
from ..strict_json import shown
from ..strict_yaml import check_mapping, dtype_field, hint, list_field, read_yaml, text_field
from .methods import BOOLEANS, METHODS, PARAMETERS
from .parameters import ANY, Parameters, parse_rules

_KEYS = (
    *("merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer", "chat_template"),
)
_PARTS = ("models", "slices", "modules")
_MODULE = "default"  # mergekit's name for the one module of a language model


@dataclass(frozen=True)
class Input:
    """A model that goes into a slice; `layers` (first, end) None means all."""

    model: str
    layers: tuple[int, int] | None
    parameters: Parameters


@dataclass(frozen=True)
class Slice:
    """Consecutive layers of the output, each merged of one layer of every input; the base of their task vectors is one of these."""

    inputs: tuple[Input, ...]
    parameters: Parameters
    base_model: str | None


@dataclass(frozen=True)
class MergeConfig:
    """A merge; `parameters` are those for all slices, first the ones that take precedence; `dtype` and `out_dtype` None: as the models'."""

    method: str
    base_model: str | None
    slices: tuple[Slice, ...]
    parameters: tuple[Parameters, ...]
    dtype: torch.dtype | None
    out_dtype: torch.dtype | None
    tokenizer: str | None
    chat_template: str | None

    @property
    def models(self) -> list[str]:
        """Every model once, the base first."""
        named = [given.model for part in self.slices for given in part.inputs]
        return list(dict.fromkeys([self.base_model, *named] if self.base_model else named))


def read_merge_config(path: Path) -> MergeConfig:
    """Reads a YAML file; FileNotFoundError or ValueError naming the key, what it holds and what it may hold."""
    where = str(path)
    raw = check_mapping(read_yaml(path), _KEYS, where)
    method = raw.get("merge_method")
    if method not in list(METHODS):
        raise ValueError(f"{where}: merge_method is {method!r}; {hint(method, METHODS)}")
    levels: tuple[Parameters, ...] = (_parameters(raw, where),)
    part, place = raw, where
    if "modules" in raw:
        modules = check_mapping(raw["modules"], [_MODULE], f"{where}: modules")
        place = f"{where}: module {_MODULE}"
        part = check_mapping(modules.get(_MODULE), ("models", "slices", "parameters"), place)
        levels = (_parameters(part, place), *levels)
    if sum(name in raw for name in _PARTS) != 1 or sum(name in part for name in ("models", "slices")) != 1:
        raise ValueError(f"{place} must have exactly one of models and slices")
    base = optional_model_field(raw, "base_model", where)
    config = MergeConfig(
        method=method,
        base_model=base,
        slices=_read_slices(part, base, place) if "slices" in part else (_read_models(part, base, place),),
        parameters=levels,
        dtype=_dtype(raw, "dtype", where),
        out_dtype=_dtype(raw, "out_dtype", where),
        tokenizer=_tokenizer(raw, where),
        chat_template=_chat_template(raw, where),
    )
    _check_inputs(config, where)
    return config


def given_parameters(config: MergeConfig) -> set[str]:
    """The parameters that are given somewhere."""
    return {name for level in _levels(config) for name in level}


def unused_parameters(config: MergeConfig) -> list[str]:
    """The parameters that are given somewhere but belong to other methods."""
    method = METHODS[config.method]
    return sorted(given_parameters(config) - {*method.per_model, *method.shared})


def unmatched_filters(config: MergeConfig, tensors: Sequence[str]) -> list[tuple[str, str]]:
    """Parameters with their filters that occur in the name of none of `tensors`, such as misspelt ones."""
    given = {(name, rule.pattern) for level in _levels(config) for name, rules in level.items() for rule in rules}
    return sorted((name, part) for name, part in given if part != ANY and not any(part in tensor for tensor in tensors))


def _levels(config: MergeConfig) -> list[Parameters]:
    """Every set of parameters in the file."""
    slices = [part.parameters for part in config.slices]
    return [*config.parameters, *slices, *(given.parameters for part in config.slices for given in part.inputs)]


def _read_models(part: dict[str, Any], base: str | None, where: str) -> Slice:
    inputs = []
    for index, raw in enumerate(list_field(part, "models", where)):
        place = f"{where}: model {index}"
        check_mapping(raw, ("model", "parameters"), place)
        inputs.append(Input(model_field(raw, "model", place), None, _parameters(raw, place)))
    if base is not None and base not in [given.model for given in inputs]:
        inputs.append(Input(base, None, {}))  # also for `linear`, as in mergekit: there it needs a weight
    return Slice(tuple(inputs), {}, base)


def _read_slices(part: dict[str, Any], base: str | None, where: str) -> tuple[Slice, ...]:
    slices = []
    for index, raw in enumerate(list_field(part, "slices", where)):
        place = f"{where}: slice {index}"
        check_mapping(raw, ("sources", "base_model", "parameters"), place)
        inputs = tuple(_read_source(source, f"{place}: source {n}") for n, source in enumerate(list_field(raw, "sources", place)))
        if len({end - first for first, end in (given.layers for given in inputs if given.layers)}) > 1:
            raise ValueError(
                f"{place}: its sources have different numbers of layers: {', '.join(str(list(given.layers or ())) for given in inputs)}"
            )
        slices.append(Slice(inputs, _parameters(raw, place), optional_model_field(raw, "base_model", place) or base))
    if (layers := sum(end - first for part in slices for first, end in [part.inputs[0].layers or (0, 0)])) > MOST_LAYERS:
        raise ValueError(f"{where}: its slices make {layers} layers; a model has at most {MOST_LAYERS}")
    return tuple(slices)


def _read_source(raw: Any, where: str) -> Input:
    check_mapping(raw, ("model", "layer_range", "parameters"), where)
    layers = raw.get("layer_range")
    if not isinstance(layers, list) or [type(layer) for layer in layers] != [int, int] or not 0 <= layers[0] < layers[1] <= MOST_LAYERS:
        raise ValueError(f"{where}: layer_range is {shown(layers)}; it must be [first, end] with 0 <= first < end <= {MOST_LAYERS}")
    return Input(model_field(raw, "model", where), (layers[0], layers[1]), _parameters(raw, where))


def _check_inputs(config: MergeConfig, where: str) -> None:
    method = METHODS[config.method]
    for index, part in enumerate(config.slices):
        models = [given.model for given in part.inputs]
        for model in models:
            if models.count(model) > 1:
                raise ValueError(f"{where}: {model!r} is listed {models.count(model)} times in one slice, where each model goes in once")
        if method.needs_base and part.base_model is None:
            raise ValueError(f"{where}: merge_method {config.method!r} needs a base_model")
        if method.needs_base and part.base_model not in models:
            raise ValueError(f"{where}: slice {index} has no source from the base_model {part.base_model!r}, which {config.method} needs")
        if method.inputs is not None and len(models) != method.inputs:
            raise ValueError(
                f"{where}: merge_method {config.method!r} takes {method.inputs} models, the base among them, not {len(models)}"
            )


def _parameters(raw: dict[str, Any], where: str) -> Parameters:
    values = check_mapping(raw.get("parameters") or {}, PARAMETERS, f"{where}: parameters")
    return {name: parse_rules(value, f"{where}: {name}", name in BOOLEANS) for name, value in values.items()}


def _tokenizer(raw: dict[str, Any], where: str) -> str | None:
    """`base`, `union` or a model; None if the models' tokenizers are not to be looked at."""
    if raw.get("tokenizer") is None:
        return optional_model_field(raw, "tokenizer_source", where)
    if raw.get("tokenizer_source") is not None:
        raise ValueError(f"{where} has both tokenizer and tokenizer_source; one is enough")
    value = check_mapping(raw["tokenizer"], ("source", "tokens", "pad_to_multiple_of"), f"{where}: tokenizer")
    for name in ("tokens", "pad_to_multiple_of"):
        if value.get(name):
            raise ValueError(f"{where}: tokenizer.{name} is not supported; only tokenizer.source is")
    return model_field({"source": "union", **value}, "source", f"{where}: tokenizer")


def _chat_template(raw: dict[str, Any], where: str) -> str | None:
    """`auto`, or a template; mergekit's own templates are not here."""
    if raw.get("chat_template") is None:
        return None
    text = text_field(raw, "chat_template", where)
    if text != "auto" and "{" not in text:
        raise ValueError(f"{where}: chat_template is {text!r}; it must be auto, or the text of a Jinja template")
    return text


def _dtype(raw: dict[str, Any], key: str, where: str) -> torch.dtype | None:
    name = dtype_field(raw, key, where, DENSE_DTYPES)
    return None if name is None else DENSE_DTYPES[name]
