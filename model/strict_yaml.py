"""YAML files read strictly: what is not known is an error that says what is."""

import difflib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Refuses a repeated key, of which SafeLoader keeps the last; before `<<` brings keys of other mappings, which may be repeated."""

    def compose_mapping_node(self, anchor: dict[str, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is repeated", problem_mark=key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node


def read_yaml(path: Path) -> Any:
    """The value in a YAML file; FileNotFoundError, IsADirectoryError or ValueError naming it otherwise."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a YAML file is wanted")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def check_mapping(raw: Any, allowed: Iterable[str], where: str) -> dict[str, Any]:
    """`raw`, if it is a mapping whose keys are all `allowed`; ValueError naming the first that is not."""
    allowed = list(allowed)
    if not isinstance(raw, dict):
        raise ValueError(f"{where} must be a mapping with the keys {', '.join(allowed)}, not {raw!r}")
    for key in raw:
        if key not in allowed:
            raise ValueError(f"{where}: unknown key {key!r}; {hint(key, allowed)}")
    return raw


def text_field(raw: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    """The text that a mapping has under `key`; ValueError if that is something else, or is not there and has no default."""
    value = raw.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} must be a text, not {value!r}")
    return value


def optional_text_field(raw: dict[str, Any], key: str, where: str) -> str | None:
    return None if raw.get(key) is None else text_field(raw, key, where)


def number_field(raw: dict[str, Any], key: str, where: str, default: float) -> float:
    """The finite number under `key`, `default` where there is none or null."""
    value = default if raw.get(key) is None else raw[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{where}: {key} is {value!r}; it must be a number")
    return float(value)


def list_field(raw: dict[str, Any], key: str, where: str) -> list[Any]:
    """The list under `key`, which must have an entry."""
    if not isinstance(raw.get(key), list) or not raw[key]:
        raise ValueError(f"{where}: {key} must be a list with at least one entry, not {raw.get(key)!r}")
    return raw[key]


def hint(value: Any, allowed: Iterable[str]) -> str:
    """What to write instead of `value`: the one that was probably meant, or all that are allowed."""
    allowed = list(allowed)
    close = difflib.get_close_matches(str(value), allowed, n=1)
    return f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(allowed)}"
