"""Variants of a family: the values of its holes and the name of one of its variables."""

import ast
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from .definition import Case, Family
from .inference import Function, infer
from .printers import Printed, printer_class
from .scopes import Scopes, find_scopes

SYNONYMS: dict[str, tuple[str, ...]] = {
    "arr": ("nums", "values"),
    "n": ("num", "number"),
    "s": ("text", "word"),
    "text": ("s", "sentence"),
    "grid": ("matrix", "table"),
    "matrix": ("mat", "grid"),
    "mat": ("matrix", "grid"),
    "nums": ("arr", "numbers"),
    "a": ("x", "first"),
    "x": ("value", "item"),
    "k": ("m", "amount"),
    "target": ("wanted", "goal"),
    "words": ("tokens", "parts"),
}


@dataclass(frozen=True)
class Variant:
    """One program of a family: (hole, value) pairs, and at most one (old name, new name)."""

    family: str
    holes: tuple[tuple[str, int | str], ...] = ()
    rename: tuple[str, str] | None = None

    @property
    def names(self) -> dict[str, str]:
        return dict([self.rename] if self.rename else [])

    @property
    def key(self) -> str:
        """A name for files and messages, e.g. `power_of_k.K=3.n-limit`."""
        parts = [self.family, *(f"{hole}={value}" for hole, value in self.holes), *(["-".join(self.rename)] if self.rename else [])]
        return ".".join(parts)


@cache
def variants(family: Family) -> list[Variant]:
    """All programs of `family`, the default one first."""
    choices = [[(name, value) for value in values] for name, values in family.holes.items()]
    return [Variant(family.name, holes, rename) for rename in (None, *_renames(family)) for holes in product(*choices)]


def _renames(family: Family) -> list[tuple[str, str]]:
    """New names for the first parameter that the texts mention and that has synonyms not used in the program."""
    texts = " ".join([*family.titles, *(wording for wordings in family.comments for wording in wordings)])
    used = {getattr(node, "id", getattr(node, "arg", "")) for function in family.functions for node in ast.walk(function)}
    for name in family.parameters:
        if f"{{{name}}}" in texts and name in SYNONYMS:
            return [(name, new) for new in SYNONYMS[name] if new not in used]
    return []


class _Rewrite(ast.NodeTransformer):
    def __init__(self, holes: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self.holes, self.names = holes, names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self.holes:
            return ast.copy_location(ast.Constant(self.holes[node.id]), node)
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.arg = self.names.get(node.arg, node.arg)
        return node


def specialise(family: Family, variant: Variant) -> list[ast.FunctionDef]:
    """The family's functions with the variant's constants, and the family's own function with its names."""
    *helpers, main = (copy.deepcopy(function) for function in family.functions)
    holes = dict(variant.holes)
    return [*(_Rewrite(holes, {}).visit(helper) for helper in helpers), _Rewrite(holes, variant.names).visit(main)]


class Programs:
    """Types each program of `families` once, and prints it once in each language."""

    def __init__(self, families: Mapping[str, Family]) -> None:
        self.families = families
        self.printed = cache(self._printed)
        self.cases = cache(self._cases)
        self._typed = cache(self._infer)

    def _infer(self, variant: Variant) -> tuple[list[Function], dict[str, Scopes]]:
        family = self.families[variant.family]
        functions = infer(specialise(family, variant), family.path)
        return functions, find_scopes(functions)

    def _printed(self, variant: Variant, lang: str) -> Printed:
        return printer_class(lang)(*self._typed(variant)).program()

    def _cases(self, variant: Variant) -> tuple[Case, ...]:
        """The family's cases; for holes other than the default the results are those of the Python program."""
        family = self.families[variant.family]
        if dict(variant.holes) == family.default_holes:
            return family.cases
        printed = self.printed(variant, "python")
        scope: dict[str, Any] = {}
        exec(compile(printed.code, variant.key, "exec"), scope)
        return tuple((arguments, scope[printed.entry_point](*copy.deepcopy(arguments))) for arguments, _ in family.cases)

    def driver(self, variant: Variant, lang: str) -> str:
        """The source that runs the variant's cases, to go below its program."""
        typed = self._typed(variant)
        return printer_class(lang)(*typed).driver(typed[0][-1], self.cases(variant))
