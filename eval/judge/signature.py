"""The signature of the function that tests call, read from trusted source by tree-sitter."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tree_sitter import Node

from eval.tree import nodes_of, text_of
from train.data.filters import parser

_DEFINITION = {"cpp": "function_definition", "java": "method_declaration"}
_NAMED = {
    "python": ("function_definition",),
    "javascript": ("function_declaration", "generator_function_declaration", "variable_declarator"),
    "java": ("method_declaration",),
    "cpp": ("function_definition",),
}
_INNER = {  # what is defined within one of these cannot be called from outside, or not by its name alone
    "python": ("function_definition", "class_definition"),
    "javascript": ("function_declaration", "generator_function_declaration", "function_expression", "arrow_function", "class_declaration"),
    "java": ("method_declaration", "object_creation_expression"),
    "cpp": ("function_definition", "class_specifier", "struct_specifier"),
}
_JAVA_TYPES = ("class_declaration", "interface_declaration", "enum_declaration", "record_declaration")


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


@dataclass(frozen=True)
class Function:
    name: str
    owner: str = ""  # Java: the class, as Class.forName wants it


def functions(source: str, lang: str) -> list[Function]:
    """The functions of `source` that can be called from outside, in order; of anything that is not code, []."""
    data = source.encode("utf-8", "replace")
    found = [node for node in nodes_of(parser(lang).parse(data).root_node) if node.type in _NAMED[lang]]
    outer = [node for node in found if not any(above.type in _INNER[lang] for above in _above(node))]
    named = [Function(_name(node, data, lang), _owner(node, data)) for node in sorted(outer, key=lambda node: node.start_byte)]
    return [function for function in named if function.name.isidentifier()]


def _above(node: Node) -> Iterator[Node]:
    """What `node` stands in, the innermost first."""
    above = node.parent
    while above:
        yield above
        above = above.parent


def _name(node: Node, data: bytes, lang: str) -> str:
    """The function's name; empty where it is none."""
    if lang == "cpp":
        declarator = node.child_by_field_name("declarator")
        function = next((part for part in nodes_of(declarator) if part.type == "function_declarator"), None) if declarator else None
        return text_of(function.child_by_field_name("declarator"), data) if function else ""
    if node.type == "variable_declarator":
        value = node.child_by_field_name("value")
        if value is None or value.type not in ("arrow_function", "function_expression", "generator_function"):
            return ""
    return text_of(node.child_by_field_name("name"), data)


def _owner(node: Node, data: bytes) -> str:
    names = [text_of(above.child_by_field_name("name"), data) for above in _above(node) if above.type in _JAVA_TYPES]
    return "$".join(reversed(names))


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
