"""YAML files read strictly: what is not known is an error that says what is."""

import difflib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from .strict_json import check_text, is_finite, shown

_BYTES = 1 << 18  # PyYAML reads some 100 KB a second; a recipe of a hundred experts has a tenth
_DEPTH = 50  # of brackets in brackets: the scanner looks at each of them again for every token
_NODES = 100_000  # once every alias stands for what it names: a few lines of aliases of aliases are otherwise a terabyte in an error
# What PyYAML's constructors let through: `!!int ""` is an IndexError, `!!bool x` a KeyError, `!!timestamp x` an AttributeError, ...
_DAMAGE = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class _Loader(yaml.SafeLoader):
    """Refuses a repeated key, of which SafeLoader keeps the last; before `<<` brings keys of other mappings, which may be repeated."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= _DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {_DEPTH} brackets in each other", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(token)

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        check_text(value, "a text in it")
        return value

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
    if path.stat().st_size > _BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a YAML file here has at most {_BYTES}")
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > _NODES:
            raise ValueError(f"its aliases stand for more than {_NODES} values, or for themselves")
        return loader.construct_document(node)
    except _DAMAGE as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node stands for, up to one more than is allowed; infinitely many if it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        known[id(node)] = min(1 + sum(_expanded(part, known) for part in flat), _NODES + 1)
    return known[id(node)]


def check_mapping(raw: Any, allowed: Iterable[str], where: str) -> dict[str, Any]:
    """`raw`, if it is a mapping whose keys are all `allowed`; ValueError naming the first that is not."""
    allowed = list(allowed)
    if raw is None:
        raise ValueError(f"{where} is empty; it must be a mapping with the keys {', '.join(allowed)}")
    if not isinstance(raw, dict):
        raise ValueError(f"{where} must be a mapping with the keys {', '.join(allowed)}, not {shown(raw)}")
    for key in raw:
        if key not in allowed:
            raise ValueError(f"{where}: unknown key {shown(key)}; {hint(key, allowed)}")
    return raw


def text_field(raw: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    """The text that a mapping has under `key`; ValueError if that is something else, or is not there and has no default."""
    value = raw.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} must be a text, not {shown(value)}")
    return value


def optional_text_field(raw: dict[str, Any], key: str, where: str) -> str | None:
    return None if raw.get(key) is None else text_field(raw, key, where)


def dtype_field(raw: dict[str, Any], key: str, where: str, allowed: Iterable[str]) -> str | None:
    """The name of a dtype under `key`, None where there is none; `torch.float32`, as mergekit lets one write, is `float32`."""
    value = raw.get(key)
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    allowed = list(allowed)
    if name not in [None, *allowed]:
        raise ValueError(f"{where}: {key} is {shown(value)}; {hint(name, allowed)}")
    return name


def number_field(raw: dict[str, Any], key: str, where: str, default: float) -> float:
    """The finite number under `key`, `default` where there is none or null."""
    value = default if raw.get(key) is None else raw[key]
    if not is_finite(value):
        raise ValueError(f"{where}: {key} is {shown(value)}; it must be a number")
    return float(value)


def list_field(raw: dict[str, Any], key: str, where: str) -> list[Any]:
    """The list under `key`, which must have an entry."""
    if not isinstance(raw.get(key), list) or not raw[key]:
        raise ValueError(f"{where}: {key} must be a list with at least one entry, not {shown(raw.get(key))}")
    return raw[key]


def hint(value: Any, allowed: Iterable[str]) -> str:
    """What to write instead of `value`: the one that was probably meant, or all that are allowed."""
    allowed = list(allowed)
    close = difflib.get_close_matches(str(value)[:80], allowed, n=1)  # its time grows with the square of the length
    return f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(allowed)}"
