"""Stand-ins for a Java program's classes: the same constructors and methods, each of which asks the program's process.

Their base is `judge/harness/Remote.java`.
"""

import re
from collections.abc import Iterator

from tree_sitter import Node

from eval.tree import nodes_of, text_of
from train.data.filters import parser

_TYPES = {"class_declaration", "interface_declaration", "enum_declaration", "record_declaration"}
# What crosses between two processes; the rest of a signature must be the program's own types.
_PLAIN = set(
    re.findall(
        r"\w+",
        """
    int long double float boolean char byte short void Integer Long Double Float Boolean Character Byte Short Number BigInteger BigDecimal
    String CharSequence Object Comparable Optional Iterable Collection List ArrayList LinkedList Set HashSet LinkedHashSet
    Map HashMap LinkedHashMap LocalDate LocalDateTime DayOfWeek Month
    """,
    )
)


class CannotStandIn(ValueError):
    """The classes cannot be replaced, and why."""


def stand_ins(source: str, tests: str) -> str:
    """Java source of stand-ins for all classes of `source`; enums, exceptions and interfaces are copied. CannotStandIn if some cannot be.

    `tests` may call constructors and methods, and name constants, but read no fields of objects.
    """
    data = source.encode()
    root = parser("java").parse(data).root_node
    own = {text_of(node.child_by_field_name("name"), data) for node in nodes_of(root) if node.type in _TYPES}
    for name in _open_fields(root, data):
        if re.search(rf"\.{name}\b(?!\()", tests):
            raise CannotStandIn(f"the tests read the field {name}")
    return "\n".join(_StandIn(data, own).of(node) for node in root.children if node.type in _TYPES)


class _StandIn:
    def __init__(self, data: bytes, own: set[str]) -> None:
        self.data, self.own = data, own

    def of(self, node: Node, outer: str = "") -> str:
        name = self.text(node, "name")
        extended = self.text(node, "superclass").removeprefix("extends").strip()
        if node.type in ("enum_declaration", "interface_declaration") or extended.endswith(("Exception", "Throwable", "Error")):
            return re.sub(r"^public ", "", text_of(node, self.data))
        body = node.child_by_field_name("body")
        assert body is not None
        path = f"{outer}${name}" if outer else name
        generic = self.text(node, "type_parameters")
        known = self.own | set(re.findall(r"\w+", generic))
        members = [self.constructor(member, name, path, known) for member in body.children if member.type == "constructor_declaration"]
        if node.type == "record_declaration":
            members += self.record(node, body, name, path, known)
        elif not members:
            members.append(f"{name}() {{ {_made(path, [], [])} }}")
        members += [self.method(member, path, known) for member in body.children if member.type == "method_declaration"]
        members += [self.of(member, path) for member in body.children if member.type in _TYPES and not self.private(member)]
        members += [self.constant(member) for member in body.children if member.type == "field_declaration"]
        base = extended if extended.partition("<")[0] in self.own else "Remote"
        static = "static " if outer else ""
        implemented = self.text(node, "interfaces")
        head = f"{static}class {name}{generic} extends {base} {implemented} {{\n{name}(Remote.Handle handle) {{ super(handle); }}\n"
        return head + "\n".join(filter(None, members)) + "\n}\n"

    def record(self, node: Node, body: Node, name: str, path: str, known: set[str]) -> list[str]:
        """What the compiler would write for a record."""
        types, names, written = self.parameters(node, known)
        return [f"{name}({written}) {{ {_made(path, types, names)} }}"] + [
            f"{kind} {part}() {{ return ({kind}) Remote.invoke(this, {_quoted(path, part, '')}); }}"
            for kind, part in zip(types, names, strict=True)
            if not re.search(rf"\b{part}\(\)\s*{{", text_of(body, self.data))
        ]

    def constructor(self, node: Node, name: str, path: str, known: set[str]) -> str:
        if self.private(node):
            return ""
        types, names, written = self.parameters(node, known)
        return f"{name}({written}) {self.throws(node)} {{ {_made(path, types, names)} }}"

    def method(self, node: Node, path: str, known: set[str]) -> str:
        name, result = self.text(node, "name"), self.text(node, "type")
        if name == "equals":
            raise CannotStandIn("the program would say what is equal")
        if self.private(node) or name in ("hashCode", "toString", "main"):
            return ""
        generic = next((text_of(child, self.data) for child in node.children if child.type == "type_parameters"), "")
        known = known | set(re.findall(r"\w+", generic))
        self.check(result, known)
        types, names, written = self.parameters(node, known)
        static = "static" in self.modifiers(node)
        call = f"Remote.invoke({'null' if static else 'this'}, {_quoted(path, name, ','.join(map(_erased, types)))}{_listed(names)})"
        head = f"public {'static ' if static else ''}{generic} {result} {name}({written}) {self.throws(node)}"
        return f"{head} {{ {call}; }}" if result == "void" else f"{head} {{ return ({result}) {call}; }}"

    def constant(self, node: Node) -> str:
        """A constant that tests may name; other fields stay with the program."""
        modifiers = self.modifiers(node)
        value = text_of(node, self.data)
        return value if {"static", "final"} <= modifiers and "private" not in modifiers and re.search(r'= *[-\w."]+;$', value) else ""

    def parameters(self, node: Node, known: set[str]) -> tuple[list[str], list[str], str]:
        written = node.child_by_field_name("parameters")
        assert written is not None
        if any(row.type == "spread_parameter" for row in written.children):
            raise CannotStandIn("a variable number of arguments")
        rows = [row for row in written.children if row.type == "formal_parameter"]
        types = [self.text(row, "type") for row in rows]
        names = [self.text(row, "name") for row in rows]
        for kind in types:
            self.check(kind, known)
        return types, names, ", ".join(f"{kind} {name}" for kind, name in zip(types, names, strict=True))

    def check(self, kind: str, known: set[str]) -> None:
        if foreign := set(re.findall(r"[A-Za-z_]\w*", kind)) - _PLAIN - known - {"extends", "super"}:
            raise CannotStandIn(f"values of type {min(foreign)}")

    def throws(self, node: Node) -> str:
        return next((text_of(child, self.data) for child in node.children if child.type == "throws"), "")

    def private(self, node: Node) -> bool:
        return "private" in self.modifiers(node)

    def modifiers(self, node: Node) -> set[str]:
        return {word for child in node.children if child.type == "modifiers" for word in text_of(child, self.data).split()}

    def text(self, node: Node, field: str) -> str:
        return text_of(node.child_by_field_name(field), self.data)


def _open_fields(root: Node, data: bytes) -> Iterator[str]:
    """The names of fields that tests could read of an object."""
    for field in (node for node in nodes_of(root) if node.type == "field_declaration"):
        if not re.search(r"\b(private|static)\b", text_of(field, data)):
            for declarator in (child for child in field.children if child.type == "variable_declarator"):
                yield text_of(declarator.child_by_field_name("name"), data)


def _erased(kind: str) -> str:
    """As reflection prints it: without generic arguments."""
    return re.sub(r"<.*>", "", kind).replace(" ", "").rpartition(".")[2]


def _made(path: str, types: list[str], names: list[str]) -> str:
    return f"this(Remote.create({_quoted(path, ','.join(map(_erased, types)))}{_listed(names)}));"


def _quoted(*texts: str) -> str:
    return ", ".join(f'"{text}"' for text in texts)


def _listed(names: list[str]) -> str:
    # a lone array would be taken for all arguments
    return f", new Object[] {{{', '.join(names)}}}"
