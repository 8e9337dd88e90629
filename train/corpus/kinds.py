"""The types that the definitions' Python subset knows."""

import ast
from dataclasses import dataclass


@dataclass(frozen=True)
class Type:
    kind: str  # int long bool float char letter str array vec dict set none unknown
    args: tuple["Type", ...] = ()

    @property
    def item(self) -> "Type":
        """What iterating gives: elements, characters, or keys."""
        return CHAR if self.kind in TEXT else self.args[0]


INT, LONG, BOOL, FLOAT, CHAR, STR = (Type(kind) for kind in ("int", "long", "bool", "float", "char", "str"))
LETTER = Type("letter")  # a literal of one character: a char or a str, as its context wants
NONE, UNKNOWN = Type("none"), Type("unknown")
TEXT = ("str", "letter")
LISTS = ("array", "vec")
_NAMES = {"int": INT, "Long": LONG, "bool": BOOL, "float": FLOAT, "str": STR}
_GENERICS = {"list": "array", "Vec": "vec", "dict": "dict", "set": "set"}
_WIDENINGS = [{"int", "long"}, {"int", "float"}, {"long", "float"}, {"letter", "char"}, {"letter", "str"}, {"char", "str"}]
_WIDER = [LONG, FLOAT, FLOAT, CHAR, STR, STR]


def annotation_type(node: ast.expr | None) -> Type | None:
    """The type that an annotation names, None if it is not one of the subset."""
    if isinstance(node, ast.Constant) and node.value is None:
        return NONE
    if isinstance(node, ast.Name):
        return _NAMES.get(node.id)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in _GENERICS:
        args = [annotation_type(part) for part in (node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice])]
        return None if None in args else Type(_GENERICS[node.value.id], tuple(arg for arg in args if arg))
    return None


def join(a: Type, b: Type) -> Type | None:
    """The type that holds both, None if there is none."""
    if a == b or b == UNKNOWN:
        return a
    if a == UNKNOWN:
        return b
    for pair, wider in zip(_WIDENINGS, _WIDER, strict=True):
        if {a.kind, b.kind} == pair:
            return wider
    if a.args and len(a.args) == len(b.args) and (a.kind == b.kind or {a.kind, b.kind} == set(LISTS)):
        args = [join(x, y) for x, y in zip(a.args, b.args, strict=True)]
        return None if None in args else Type(a.kind, tuple(arg for arg in args if arg))
    return None
