"""A merge's parameters: which value of `weight`, `density`, `t`, ... holds for one tensor of one model.

In mergekit's files a value is a number or a truth value, a list of them (a gradient: interpolated from the first layer of the slice to the
last, truth values in steps; outside the layers the first holds), or a list of `{filter, value}`, of which the first whose filter occurs in
the tensor's name holds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

ANY = "*"


class Rule(NamedTuple):
    """The values, along the layers, of the tensors whose name contains `pattern`."""

    pattern: str
    gradient: tuple[float, ...]

    def at(self, position: float) -> float:
        """The value at `position`, 0 in the first layer and 1 in the last."""
        place = position * (len(self.gradient) - 1)
        lower = int(place)
        if isinstance(self.gradient[lower], bool):
            return self.gradient[lower]  # the last only in the last layer, as in mergekit
        upper = min(lower + 1, len(self.gradient) - 1)
        fraction = place - lower
        return (1 - fraction) * self.gradient[lower] + fraction * self.gradient[upper]


Parameters = Mapping[str, Sequence[Rule]]


def resolve(levels: Sequence[Parameters], name: str, tensor: str, position: float) -> float | None:
    """The value of parameter `name` for a tensor: of the first level that has a rule for it; None if none has."""
    for level in levels:
        for rule in level.get(name, ()):
            if rule.pattern == ANY or rule.pattern in tensor:
                return rule.at(position)
    return None


def parse_rules(raw: Any, where: str, boolean: bool = False) -> tuple[Rule, ...]:
    """A parameter's value in a YAML file, of numbers or, if `boolean`, of truth values; ValueError if it is none of the three forms."""
    parse = _truth if boolean else _number
    values = raw if isinstance(raw, list) else [raw]
    if not values:
        raise ValueError(f"{where} is an empty list")
    if any(isinstance(value, dict) for value in values):
        return tuple(_parse_conditional(value, where, parse) for value in values)
    return (Rule(ANY, tuple(parse(value, where) for value in values)),)


def _parse_conditional(raw: Any, where: str, parse: Callable[[Any, str], float]) -> Rule:
    if not isinstance(raw, dict) or not {"value"} <= raw.keys() <= {"value", "filter"}:
        raise ValueError(
            f"{where} has the entry {raw!r}; each entry of such a list is a mapping with `value` and, but for the last, `filter`"
        )
    pattern = raw.get("filter") or ANY
    if not isinstance(pattern, str):
        raise ValueError(f"{where}: filter is {pattern!r}, not a part of a tensor's name")
    values = raw["value"] if isinstance(raw["value"], list) else [raw["value"]]
    if not values:
        raise ValueError(f"{where} has an empty list for {pattern!r}")
    return Rule(pattern, tuple(parse(value, where) for value in values))


def _truth(raw: Any, where: str) -> bool:
    if raw not in (False, True):  # which 0 and 1 equal
        raise ValueError(f"{where} holds {raw!r}, which is neither true nor false")
    return bool(raw)


def _number(raw: Any, where: str) -> float:
    try:
        value = float(raw)  # also of a text: YAML 1.1 reads 1e-3 as one
    except (OverflowError, TypeError, ValueError):
        raise ValueError(f"{where} holds {raw!r}, which is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{where} holds {raw!r}, which is not a finite number")
    return value
