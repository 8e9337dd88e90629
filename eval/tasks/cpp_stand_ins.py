"""Stand-ins for the functions of a C++ header: the tests' side defines each as a call, the program's side serves them by number."""

import re
from dataclasses import dataclass

from tree_sitter import Node

from eval.tree import text_of
from train.data.filters import parser

_DOES_NOT_CROSS = r"\b(class|struct|enum|template|boost|function|initializer_list)\b|<std::string_view>"


@dataclass(frozen=True)
class StandIns:
    declarations: str  # the header without bodies
    definitions: str  # each function is a call
    main: str  # the program's side


def stand_ins(header: str) -> StandIns | None:
    """For a header of functions of plain values; None for any other."""
    header = re.sub(r'^#pragma once$|^#include "[^"]*"$|^#(?:if|endif|define).*$', "", header.replace("\r", ""), flags=re.MULTILINE)
    if re.search(_DOES_NOT_CROSS, re.sub(r"//.*", "", header)):
        return None
    data = header.encode()
    functions = [_function(node, namespace, data) for node, namespace in _definitions(parser("cpp").parse(data).root_node, data, "")]
    if not functions:
        return None
    served = ", ".join(function.served for function in functions)
    return StandIns(
        declarations=_replaced(data, functions, [function.declaration for function in functions]),
        definitions=_replaced(data, functions, [function.call(number) for number, function in enumerate(functions)]),
        main=f"\nsigned main() {{ return moe_wire::serve_all({{{served}}}); }}\n",
    )


@dataclass(frozen=True)
class _Function:
    """A function of the header, as source text; `start` and `end` are its place there in bytes."""

    start: int
    end: int
    namespace: str  # halves::
    name: str
    result: str
    rows: str  # its parameters as they are written, with the brackets
    types: list[str]
    defaults: list[str]  # "" for none

    @property
    def names(self) -> list[str]:
        return [f"p{place}" for place in range(len(self.types))]

    @property
    def wire(self) -> str:
        return f"moe_wire::Function<{self.result}({', '.join(self.types)})>"

    @property
    def declaration(self) -> str:
        return f"{self.result} {self.name}{self.rows};"

    def call(self, number: int) -> str:
        """The tests' definition: a call of the program's function with this number."""
        parameters = ", ".join(
            f"{kind} {name}" + (f" = {default}" if default else "")
            for kind, name, default in zip(self.types, self.names, self.defaults, strict=True)
        )
        arguments = ", ".join([str(number), *self.names])
        return f"inline {self.result} {self.name}({parameters}) {{ return {self.wire}::call_number({arguments}); }}"

    @property
    def served(self) -> str:
        """What the program's side answers with."""
        pairs = list(zip(self.types, self.names, strict=True))
        parameters = ", ".join(f"{kind} {name}" for kind, name in pairs)
        arguments = ", ".join(f"std::forward<{kind}>({name})" for kind, name in pairs)
        return f"{self.wire}::server([]({parameters}) -> {self.result} {{ return {self.namespace}{self.name}({arguments}); }})"


def _replaced(data: bytes, functions: list[_Function], texts: list[str]) -> str:
    """The header `data` with a text in each function's place."""
    ends = [0, *(function.end for function in functions)]
    starts = [*(function.start for function in functions), len(data)]
    between = [data[end:start].decode() for end, start in zip(ends, starts, strict=True)]
    return "".join(part for pair in zip(between, [*texts, ""], strict=True) for part in pair)


def _function(node: Node, namespace: str, data: bytes) -> _Function:
    declarator = _descendant(node, "function_declarator")
    assert declarator is not None
    name, parameters = declarator.child_by_field_name("declarator"), declarator.child_by_field_name("parameters")
    assert name is not None and parameters is not None
    rows = [row for row in parameters.children if row.type in ("parameter_declaration", "optional_parameter_declaration")]
    return _Function(
        start=node.start_byte,
        end=node.end_byte,
        namespace=namespace,
        name=text_of(name, data),
        result=re.sub(r"\[\[nodiscard\]\]|\binline\b", "", data[node.start_byte : name.start_byte].decode()).strip(),
        rows=text_of(parameters, data),
        types=[_type(row, data) for row in rows],
        defaults=[text_of(row.child_by_field_name("default_value"), data) for row in rows],
    )


def _definitions(node: Node, data: bytes, namespace: str) -> list[tuple[Node, str]]:
    """The functions below `node` in source order, each with its namespace."""
    found = []
    for child in node.children:
        if child.type == "namespace_definition":
            found += _definitions(child, data, f"{namespace}{text_of(child.child_by_field_name('name'), data)}::")
        elif child.type == "declaration_list":
            found += _definitions(child, data, namespace)
        elif child.type in ("declaration", "function_definition") and _descendant(child, "function_declarator"):
            found.append((child, namespace))
    return found


def _descendant(node: Node, kind: str) -> Node | None:
    return next((found for child in node.children if (found := child if child.type == kind else _descendant(child, kind))), None)


def _type(row: Node, data: bytes) -> str:
    name = _descendant(row, "identifier") if row.child_by_field_name("declarator") else None
    end = row.child_by_field_name("default_value")
    stop = data.rindex(b"=", row.start_byte, end.start_byte) if end else row.end_byte
    if name is None or name.start_byte >= stop:
        return data[row.start_byte : stop].decode().strip()
    return (data[row.start_byte : name.start_byte] + data[name.end_byte : stop]).decode().strip()
