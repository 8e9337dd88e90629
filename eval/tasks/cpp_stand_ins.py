"""Stand-ins for the functions of a C++ header: the tests' side defines each as a call, the program's side serves them by number."""

import re
from dataclasses import dataclass

from tree_sitter import Node

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
    served: list[str] = []
    declarations, definitions, end = b"", b"", 0
    for node, namespace in _functions(parser("cpp").parse(data).root_node, data, ""):
        function = _descendant(node, "function_declarator")
        assert function is not None
        name, rows = function.child_by_field_name("declarator"), function.child_by_field_name("parameters")
        assert name is not None and rows is not None
        result = re.sub(r"\[\[nodiscard\]\]|\binline\b", "", data[node.start_byte : name.start_byte].decode()).strip()
        parameters = [row for row in rows.children if row.type in ("parameter_declaration", "optional_parameter_declaration")]
        types = [_type(row, data) for row in parameters]
        arguments = [f"p{place}" for place in range(len(types))]
        pairs = list(zip(types, arguments, strict=True))
        written = ", ".join(f"{kind} {argument}" for kind, argument in pairs)
        forwarded = ", ".join(f"std::forward<{kind}>({argument})" for kind, argument in pairs)
        defaults = [_text(row.child_by_field_name("default_value"), data) for row in parameters]
        written_here = ", ".join(
            f"{kind} {argument}" + (f" = {value}" if value else "") for (kind, argument), value in zip(pairs, defaults, strict=True)
        )
        text = _text(name, data)
        function_type = f"moe_wire::Function<{result}({', '.join(types)})>"
        call = f"{{ return {function_type}::call_number({', '.join([str(len(served)), *arguments])}); }}"
        served.append(f"{function_type}::server([]({written}) -> {result} {{ return {namespace}{text}({forwarded}); }})")
        declarations += data[end : node.start_byte] + f"{result} {text}{_text(rows, data)};".encode()
        definitions += data[end : node.start_byte] + f"inline {result} {text}({written_here}) {call}".encode()
        end = node.end_byte
    main = f"\nsigned main() {{ return moe_wire::serve_all({{{', '.join(served)}}}); }}\n"
    return StandIns((declarations + data[end:]).decode(), (definitions + data[end:]).decode(), main) if served else None


def _functions(node: Node, data: bytes, namespace: str) -> list[tuple[Node, str]]:
    found = []
    for child in node.children:
        if child.type == "namespace_definition":
            found += _functions(child, data, f"{namespace}{_text(child.child_by_field_name('name'), data)}::")
        elif child.type == "declaration_list":
            found += _functions(child, data, namespace)
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


def _text(node: Node | None, data: bytes) -> str:
    return data[node.start_byte : node.end_byte].decode() if node else ""
