"""`config.json` as input that nobody vouches for: what it may say is checked before anything is built, allocated or imported.

transformers takes more than data from a config: code (`auto_map`), and attention kernels by their name on the hub
(`_attn_implementation`, CVE-2026-4372). No model of this package needs either.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .checkpoint import CONFIG, DENSE_DTYPES, DTYPES, GENERATION
from .configuration_moe import MoEConfig
from .strict_json import fits_int64, read_json, shown

_CODE = ("auto_map", "custom_pipelines", "trust_remote_code")
_MISFITS = (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError)  # of a field of another type or value
_LABELS = ("_name_or_path", "expert_names")  # may hold a slash: nothing is ever looked up by them
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# field: its least and greatest value. The greatest are some ten times what any model has, and keep the cost of a refusal small.
_SIZES = {
    "num_hidden_layers": (1, 1 << 10),
    "num_local_experts": (1, 1 << 10),
    "num_attention_heads": (1, 1 << 10),
    "num_key_value_heads": (1, 1 << 10),
    "head_dim": (2, 1 << 12),
    "hidden_size": (1, 1 << 18),
    "intermediate_size": (1, 1 << 20),
    "vocab_size": (1, 1 << 24),
    "max_position_embeddings": (1, 1 << 30),
    "sliding_window": (1, 1 << 30),
    "lora_rank": (0, 1 << 14),
    "attention_lora_rank": (0, 1 << 14),
    "num_shared_experts": (0, 1 << 10),
    "num_labels": (0, 1 << 16),  # transformers makes a table of as many, for any model
}
MOST_EXPERTS, MOST_LAYERS = _SIZES["num_local_experts"][1], _SIZES["num_hidden_layers"][1]
_PARTS = ("text_config", "decoder", "generator", "text_encoder")  # transformers would take its text model from there
_FLAGS = {
    **dict.fromkeys(("output_hidden_states", "output_attentions", "output_router_logits", "use_cache"), (True, False)),
    "return_dict": (True,),  # no causal language model here works otherwise
    "is_encoder_decoder": (False,),
}


def read_config(folder: Path) -> dict[str, Any]:
    """The settings in the `config.json` of `folder`; ValueError naming the first that is not data, or of an impossible size.

    FileNotFoundError if it is missing.
    """
    path = folder / CONFIG
    settings = read_json(path)
    for field in _CODE:
        if settings.get(field):
            raise ValueError(f"{path} names code ({field}); code of a checkpoint is never run")
    _check_numbers(path, settings)
    for field, value in _leaves(settings):
        if isinstance(value, str) and ("://" in value or (field not in _LABELS and ("/" in value or "\\" in value))):
            raise ValueError(f"{path} names a path or an address ({field} = {shown(value)}); nothing is fetched for a checkpoint")
    for field, (least, greatest) in _SIZES.items():
        value = settings.get(field)
        if value is not None and (type(value) is not int or not least <= value <= greatest):
            raise ValueError(f"{path} has {field} = {shown(value)}; it must be a whole number in {least}..{greatest}")
    for field, allowed in _FLAGS.items():
        value = settings.get(field)
        if value is not None and value not in allowed:
            raise ValueError(f"{path} has {field} = {shown(value)}; it must be {' or '.join(map(str, allowed)).lower()}")
    _check_relations(path, settings)
    return settings


def _check_numbers(path: Path, settings: dict[str, Any]) -> None:
    for field, value in _leaves(settings):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path} has {field} = {value}; numbers must be finite")
        if isinstance(value, int) and not fits_int64(value):
            raise ValueError(f"{path} has {field} = {shown(value)}; a whole number has at most 64 bits")


def _leaves(value: Any, field: str = "") -> Iterator[tuple[str, Any]]:
    """Every text, number, truth value and key in a JSON value, with the top-level field that it lies in."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield field or key, key
            yield from _leaves(item, field or key)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, field)
    else:
        yield field, value


def _check_relations(path: Path, settings: dict[str, Any]) -> None:
    dtypes = DTYPES if settings.get("model_type") in (MoEConfig.model_type, "mixtral") else DENSE_DTYPES
    for field in ("dtype", "torch_dtype"):
        if settings.get(field) not in [None, *dtypes]:  # a list, as the value need not be hashable
            raise ValueError(f"{path} has {field} = {shown(settings[field])}; allowed: {', '.join(dtypes)}")
    heads, groups, width = (settings.get(field) for field in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
    if heads and groups and heads % groups:
        raise ValueError(f"{path} has {heads} attention heads, which is no multiple of its {groups} key-value heads")
    if heads and width and not settings.get("head_dim") and width % heads:
        raise ValueError(f"{path} has hidden_size = {width}, which is no multiple of its {heads} attention heads")
    padding, tokens = settings.get("pad_token_id"), settings.get("vocab_size")
    if isinstance(padding, int) and tokens and not -tokens <= padding < tokens:
        raise ValueError(f"{path} has pad_token_id = {padding}, but vocab_size = {tokens}")
    spread = settings.get("initializer_range")
    if isinstance(spread, int | float) and spread < 0:
        raise ValueError(f"{path} has initializer_range = {spread}; a standard deviation is not negative")
    rope = settings.get("rope_parameters")
    if isinstance(rope, dict):
        kind, theta = rope.get("rope_type", "default"), rope.get("rope_theta", 1.0)
        if kind not in ["default", *ROPE_INIT_FUNCTIONS]:
            raise ValueError(f"{path} has rope_type = {shown(kind)}; allowed: default, {', '.join(ROPE_INIT_FUNCTIONS)}")
        if isinstance(theta, bool) or not isinstance(theta, int | float) or not (0 < theta < math.inf):
            raise ValueError(f"{path} has rope_theta = {shown(theta)}; it must be a positive number")


def _check_rope(path: Path, config: PreTrainedConfig) -> None:
    """ValueError if the frequencies of its rotary embedding cannot be made, as where a type's own fields are missing."""
    rope = getattr(config, "rope_parameters", None)
    kind = rope.get("rope_type") if isinstance(rope, dict) else None
    if kind not in ROPE_INIT_FUNCTIONS:  # the default, which needs nothing, or one for each kind of layer
        return
    try:
        frequencies, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    except (*_MISFITS, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} has rope_parameters of rope_type = {kind!r} that cannot be used: {error}") from error
    if not frequencies.isfinite().all():
        raise ValueError(f"{path} has rope_parameters of rope_type = {kind!r} that give infinite frequencies, or none")


def model_config(folder: Path) -> PreTrainedConfig:
    """transformers' configuration of any model, from the folder alone; errors as of `read_config` and `moe_config`."""
    read_config(folder)  # first of all: transformers would follow what it names
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except _MISFITS as error:
        raise ValueError(f"{folder} has a {CONFIG} that cannot be read: {' '.join(str(error).split())}") from error
    _check_relations(folder / CONFIG, config.to_dict())  # again, with the defaults of what it does not say
    _check_rope(folder / CONFIG, config)
    return config


def generation_config(folder: Path) -> GenerationConfig:
    """The settings of generation in `folder`; ValueError naming their file where one has the wrong type or value.

    Where they have no file of their own they are those of `config.json`, as older models have them.
    """
    path = folder / GENERATION
    if not path.is_file():
        return _generation_config(folder / CONFIG, read_json(folder / CONFIG), GenerationConfig.from_model_config)
    settings = read_json(path)
    _check_numbers(path, settings)
    for field in _TOKEN_IDS:
        value = settings.get(field)
        if value is not None and not all(type(token) is int and token >= 0 for token in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{path} has {field} = {shown(value)}; it must be the number of a token, or several")
    return _generation_config(path, settings, GenerationConfig.from_dict)


def _generation_config(path: Path, settings: dict[str, Any], build: Callable[[dict[str, Any]], GenerationConfig]) -> GenerationConfig:
    try:
        config = build(settings)
    except (*_MISFITS, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    # As in `GenerationConfig.from_pretrained`: what was loaded as it is may be saved, even a temperature without sampling.
    config._original_object_hash = hash(config)
    return config


def moe_config(settings: dict[str, Any], source: Path) -> MoEConfig:
    """The configuration that `settings` describe; ValueError naming `source` where a field has the wrong type or value."""
    if parts := [field for field in _PARTS if settings.get(field) is not None]:
        raise ValueError(f"{source / CONFIG} has {parts[0]}: a mixture has no model within it")
    names = settings.get("expert_names")
    for name in names if isinstance(names, list) else ():
        if not isinstance(name, str) or not name.isprintable():
            raise ValueError(f"{source / CONFIG} has {shown(name)} among its expert_names; a name is a text that can be printed")
    try:
        config = MoEConfig.from_dict(settings)
    except (*_MISFITS, ValueError) as error:
        raise ValueError(f"{source} has a {CONFIG} that cannot be read: {' '.join(str(error).split())}") from error
    _check_relations(source / CONFIG, config.to_dict())
    _check_rope(source / CONFIG, config)
    kind = "sliding_attention" if config.sliding_window else "full_attention"  # of all layers
    if others := sorted(set(getattr(config, "layer_types", None) or ()) - {kind}):
        rule = f"with sliding_window = {config.sliding_window} all layers are {kind}"
        raise ValueError(f"{source / CONFIG} has layer_types {', '.join(others)}, but {rule}")
    return config
