"""The signature of the function that tests call, read from trusted source by tree-sitter."""

import re
from dataclasses import dataclass

from tree_sitter import Node

from eval.tree import nodes_of, text_of
from train.data.filters import parser

_DEFINITION = {"cpp": "function_definition", "java": "method_declaration"}
_NAMED = {"python": "function_definition", "javascript": "function_declaration", **_DEFINITION}


@dataclass(frozen=True)
class Signature:
    """`result`, `types`, `before` (what stands above the function) and `head` (its declaration up to the brace) are source text."""

    name: str
    result: str
    types: tuple[str, ...]
    names: tuple[str, ...]
    before: str
    head: str
    owner: str = ""  # Java: the class

    @property
    def function_type(self) -> str:
        """As C++ writes it: bool(vector<float>, float)."""
        return f"{self.result}({', '.join(self.types)})"

    @property
    def erased(self) -> str:
        """As Java's reflection prints it, without packages and generic arguments: List,double[]."""
        plain = (re.sub(r"<.*>|\s", "", kind, flags=re.DOTALL) for kind in self.types)
        return ",".join(kind.rpartition(".")[2] for kind in plain)


def read_signature(trusted: str, lang: str) -> Signature:
    """Of the last function that `trusted` defines, whose body it leaves open.

    `ValueError` if there is none, or for a parameter without a name, or one that takes a variable number of arguments.
    """
    source = (trusted + "\n}\n}").encode()
    found = [node for node in nodes_of(parser(lang).parse(source).root_node) if node.type == _DEFINITION[lang]]
    if not found:
        raise ValueError(f"no function is defined in {trusted[-200:]!r}")
    last = max(found, key=lambda node: node.start_byte)
    return _java(last, source) if lang == "java" else _cpp(last, source)


def function_names(source: str, lang: str) -> list[str]:
    """The functions that `source` defines, in order; of anything that is not code, []."""
    data = source.encode("utf-8", "replace")
    found = sorted(
        (node for node in nodes_of(parser(lang).parse(data).root_node) if node.type == _NAMED[lang]), key=lambda node: node.start_byte
    )
    if lang == "cpp":
        found = [node for row in found for node in nodes_of(row) if node.type == "function_declarator"]
    names = [text_of(node.child_by_field_name("declarator" if lang == "cpp" else "name"), data) for node in found]
    return [name for name in names if name.isidentifier()]


def _java(method: Node, source: bytes) -> Signature:
    parameters = method.child_by_field_name("parameters")
    assert parameters is not None
    if any(row.type == "spread_parameter" for row in parameters.children):
        raise ValueError(f"a variable number of arguments cannot cross: {text_of(parameters, source)}")
    rows = [row for row in parameters.children if row.type == "formal_parameter"]
    types = tuple(text_of(row.child_by_field_name("type"), source) for row in rows)
    names = tuple(text_of(row.child_by_field_name("name"), source) for row in rows)
    owner: Node | None = method
    while owner and owner.type != "class_declaration":
        owner = owner.parent
    name, result = (text_of(method.child_by_field_name(field), source) for field in ("name", "type"))
    return Signature(
        name, result, types, names, *_parts(method, source), text_of(owner.child_by_field_name("name"), source) if owner else ""
    )


def _cpp(definition: Node, source: bytes) -> Signature:
    function = next(node for node in nodes_of(definition) if node.type == "function_declarator")
    parameters = function.child_by_field_name("parameters")
    assert parameters is not None
    types, names = [], []
    for row in parameters.children:
        if row.type in ("parameter_declaration", "optional_parameter_declaration"):
            declarator = row.child_by_field_name("declarator")
            name = next((node for node in nodes_of(declarator) if node.type == "identifier"), None) if declarator else None
            if declarator is None or name is None:
                raise ValueError(f"a parameter has no name: {text_of(row, source)!r}")
            types.append((source[row.start_byte : name.start_byte] + source[name.end_byte : declarator.end_byte]).decode().strip())
            names.append(text_of(name, source))
    result = source[definition.start_byte : function.start_byte].decode().strip()
    called = text_of(function.child_by_field_name("declarator"), source)
    return Signature(called, result, tuple(types), tuple(names), *_parts(definition, source))


def _parts(definition: Node, source: bytes) -> tuple[str, str]:
    body = definition.child_by_field_name("body")
    assert body is not None
    return source[: definition.start_byte].decode(), source[definition.start_byte : body.start_byte + 1].decode()
