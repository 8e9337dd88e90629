"""What the `adapter_config.json` of a plain LoRA adapter may say: of each field that decides what PEFT makes of the factors, its type.

PEFT takes patterns for regular expressions, of which some never end; here they are names, as PEFT writes them. The pattern that
`target_modules` may be is never matched: which modules it meant is seen by their factors.
"""

import re
from collections.abc import Callable
from typing import Any

from .strict_json import shown

_NAME = re.compile(r"[\w.-]{1,1000}")  # of a module, its end, or `all-linear`; as a regular expression it ends at once
_INITIALISATIONS = (None, True, False, "gaussian", "orthogonal", "eva")  # after which the base's own weights are what they were
_RANKS, _LAYERS, _ALPHA = 1 << 14, 1 << 10, 1 << 24  # some ten times what any adapter has, and more


def _is_alpha(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _ALPHA


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _RANKS


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_layer(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LAYERS


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(map(_is_name, value))


def _one_or_more(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value) or (isinstance(value, list) and all(map(fits, value)))


def _for_names(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or (isinstance(value, dict) and all(_is_name(name) and fits(item) for name, item in value.items()))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, f"a whole number in 1..{_RANKS}"),
    "lora_alpha": (_is_alpha, f"a number, at most {_ALPHA}"),
    "lora_dropout": (lambda value: isinstance(value, int | float) and 0 <= value < 1, "a number in [0, 1)"),
    "target_modules": (lambda value: _is_list_of_names(value) or (isinstance(value, str) and value != ""), "a list of names, or a pattern"),
    "exclude_modules": (_one_or_more(_is_name), "the name of a module, or a list of names"),
    "layers_to_transform": (_one_or_more(_is_layer), "the number of a layer, or a list of numbers"),
    "layers_pattern": (_one_or_more(_is_name), "the name of a list of layers"),
    "rank_pattern": (_for_names(_is_rank), f"names of modules with whole numbers in 1..{_RANKS}"),
    "alpha_pattern": (_for_names(_is_alpha), f"names of modules with numbers, at most {_ALPHA}"),
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
    "use_dora": (lambda value: isinstance(value, bool), "true or false"),
    "init_lora_weights": (lambda value: value in _INITIALISATIONS, "one after which the base's own weights are what they were"),
}
_NEEDED = ("r", "lora_alpha", "target_modules")


def lora_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that LoRA is made of, of those that `config` has; ValueError naming the first that is missing or of another kind."""
    for field, (fits, wanted) in _FIELDS.items():
        if (field in config or field in _NEEDED) and not fits(config.get(field)):
            raise ValueError(f"{field} = {shown(config.get(field))}; it must be {wanted}")
    return {field: config[field] for field in _FIELDS if field in config}
