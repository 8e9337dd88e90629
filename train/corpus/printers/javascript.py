"""JavaScript (ES2020): plain functions. Integers are exact below 2**53; bit operations are on 32-bit integers."""

import ast
from collections.abc import Sequence

from ..definition import Case
from ..inference import Function
from ..kinds import LISTS, STR, Type
from .base import AND, EQUALITY, MULTIPLY, OR, POSTFIX, RELATION, TERNARY, UNARY, Code, constant
from .clike import CLikePrinter

_DRIVER = """\
[{rows}].forEach(([got, expected], place) => {{
    if ({test}) {{
        throw new Error(`case ${{place + 1}}: got ${{JSON.stringify(got)}}, expected ${{JSON.stringify(expected)}}`);
    }}
}});
"""
_RESERVED = """
    arguments await break case catch class const continue debugger default delete do else enum eval export extends false finally
    for function if implements import in instanceof interface let new null package private protected public return static super
    switch this throw true try typeof var void while with yield
"""
_RELATION = {
    ast.Eq: ("===", EQUALITY), ast.NotEq: ("!==", EQUALITY),
    ast.Lt: ("<", RELATION), ast.LtE: ("<=", RELATION), ast.Gt: (">", RELATION), ast.GtE: (">=", RELATION),
}  # fmt: skip


class LanguagePrinter(CLikePrinter):
    accessors = ("dict",)
    relation = _RELATION
    reserved = frozenset(_RESERVED.split())

    def frame(self, functions: list[str]) -> str:
        return "\n\n".join(functions) + "\n"

    def define(self, function: Function) -> list[str]:
        parameters = ", ".join(map(self.name, function.parameters))
        return self.braced(f"function {self.name(function.node.name)}({parameters})", function.node.body)

    def declaration(self, name: str, kind: Type, value: str | None) -> str:
        if value is None:
            return f"let {name};"
        constants = {self.name(variable) for variable in self.function.variables if self.scopes.constant(variable)}
        known = {self.name(variable) for variable in self.function.variables}
        return f"{'const' if name in constants or name not in known else 'let'} {name} = {value};"

    def assign_all(self, parts: list[ast.expr], values: list[ast.expr], declared: set[str]) -> list[str]:
        """By destructuring where a value needs what another target held, one by one otherwise."""
        entangled = any(self.depends(value, target) for place, value in enumerate(values) for target in parts[:place])
        if declared or not entangled:
            return super().assign_all(parts, values, declared)
        return [f"[{', '.join(map(self.at, parts))}] = [{', '.join(map(self.at, values))}];"]

    def on_AugAssign(self, node: ast.AugAssign) -> list[str]:
        if isinstance(node.op, ast.FloorDiv):
            return [self.put(node.target, self.at(self.operation(node)))]
        return super().on_AugAssign(node)

    # containers and texts

    def dict_text(self, pairs: list[tuple[str, str]], kind: Type) -> Code:
        entries = ", ".join(f"[{key}, {value}]" for key, value in pairs)
        return Code(f"new {'Set' if kind.kind == 'set' else 'Map'}({f'[{entries}]' if pairs else ''})", POSTFIX)

    def allocation(self, size: ast.expr, fill: ast.expr, kind: Type) -> Code:
        value = self.at(fill, 0, kind.item)
        if kind.item.kind in LISTS:
            return Code(f"Array.from({{ length: {self.at(size)} }}, () => {value})", POSTFIX)
        return Code(f"new Array({self.at(size)}).fill({value})", POSTFIX)

    def element(self, container: ast.expr, index: str) -> Code:
        return Code(f"{self.at(container, POSTFIX)}.get({index})", POSTFIX)

    def set_element(self, container: ast.expr, index: str, value: str) -> str:
        return f"{self.at(container, POSTFIX)}.set({index}, {value});"

    def length(self, node: ast.expr) -> Code:
        return Code(f"{self.at(node, POSTFIX)}.{'size' if self.kind(node) in ('dict', 'set') else 'length'}", POSTFIX)

    def empty_test(self, node: ast.expr) -> tuple[Code, Code]:
        text = self.length(node).text
        return Code(f"{text} > 0", RELATION), Code(f"{text} === 0", EQUALITY)

    def walk(self, variable: str, kind: Type, iterable: ast.expr, changed: bool) -> tuple[str, list[str]]:
        suffix = ".keys()" if self.kind(iterable) == "dict" else ""
        return f"for ({'let' if changed else 'const'} {variable} of {self.at(iterable, POSTFIX)}{suffix})", []

    def membership(self, container: ast.expr, item: ast.expr) -> tuple[Code, Code]:
        method = "has" if self.kind(container) in ("dict", "set") else "includes"
        call = f"{self.at(container, POSTFIX)}.{method}({self.at(item)})"
        return Code(call, POSTFIX), Code(f"!{call}", UNARY)

    def sliced(self, node: ast.Subscript, part: ast.Slice) -> Code:
        text = self.at(node.value, POSTFIX)
        if part.step:
            return Code(f'{text}.split("").reverse().join("")', POSTFIX)
        lower = self.at(part.lower) if part.lower else "0"
        upper = f", {self.at(part.upper)}" if part.upper else ""
        return Code(f"{text}.slice({lower}{upper})", POSTFIX)  # counts a negative bound from the end, as Python does

    # expressions

    def on_BinOp(self, node: ast.BinOp) -> Code:
        if isinstance(node.op, ast.FloorDiv):
            return Code(f"Math.floor({self.at(node.left, MULTIPLY)} / {self.at(node.right, MULTIPLY + 1)})", POSTFIX)
        return super().on_BinOp(node)

    def quotient(self, left: ast.expr, right: ast.expr, integers: bool) -> Code:
        return super().quotient(left, right, False)

    def call_abs(self, node: ast.Call, value: ast.expr) -> Code:
        return Code(f"Math.abs({self.at(value)})", POSTFIX)

    def call_min(self, node: ast.Call, *values: ast.expr) -> Code:
        assert isinstance(node.func, ast.Name)
        arguments = ", ".join(map(self.at, values)) if len(values) > 1 else f"...{self.at(values[0], TERNARY)}"
        return Code(f"Math.{node.func.id}({arguments})", POSTFIX)

    call_max = call_min

    def call_sum(self, node: ast.Call, values: ast.expr) -> Code:
        return Code(f"{self.at(values, POSTFIX)}.reduce((a, b) => a + b, 0)", POSTFIX)

    def call_sorted(self, node: ast.Call, values: ast.expr) -> Code:
        return Code(f"[...{self.at(values)}].sort({self.comparator(values)})", POSTFIX)

    def comparator(self, values: ast.expr) -> str:
        return "" if self.item_type(values) == STR else "(a, b) => a - b"

    def call_ord(self, node: ast.Call, letter: ast.expr) -> Code:
        if isinstance(letter, ast.Subscript) and constant(letter.slice) not in range(-9, 0):
            return Code(f"{self.at(letter.value, POSTFIX)}.charCodeAt({self.at(letter.slice)})", POSTFIX)
        return Code(f"{self.at(letter, POSTFIX)}.charCodeAt(0)", POSTFIX)

    def call_chr(self, node: ast.Call, number: ast.expr) -> Code:
        return Code(f"String.fromCharCode({self.at(number)})", POSTFIX)

    def call_str(self, node: ast.Call, value: ast.expr) -> Code:
        return Code(f"String({self.at(value)})", POSTFIX)

    def call_int(self, node: ast.Call, value: ast.expr) -> Code:
        if self.is_text(value) or self.is_char(value):
            return Code(f"Number({self.at(value)})", POSTFIX)
        return Code(f"Math.trunc({self.at(value)})", POSTFIX)

    def call_float(self, node: ast.Call, value: ast.expr) -> Code:
        return self.code(value)

    # methods

    def list_append(self, container: ast.expr, value: ast.expr) -> str:
        return f"{self.at(container, POSTFIX)}.push({self.at(value, 0, self.item_type(container))})"

    def list_pop(self, container: ast.expr) -> str:
        return f"{self.at(container, POSTFIX)}.pop()"

    def list_sort(self, container: ast.expr) -> str:
        return f"{self.at(container, POSTFIX)}.sort({self.comparator(container)})"

    def list_reverse(self, container: ast.expr) -> str:
        return f"{self.at(container, POSTFIX)}.reverse()"

    def set_add(self, container: ast.expr, value: ast.expr) -> str:
        return f"{self.at(container, POSTFIX)}.add({self.at(value)})"

    def set_remove(self, container: ast.expr, value: ast.expr) -> str:
        return f"{self.at(container, POSTFIX)}.delete({self.at(value)})"

    def str_lower(self, text: ast.expr) -> str:
        return f"{self.at(text, POSTFIX)}.toLowerCase()"

    def str_upper(self, text: ast.expr) -> str:
        return f"{self.at(text, POSTFIX)}.toUpperCase()"

    char_lower, char_upper = str_lower, str_upper

    def str_split(self, text: ast.expr, separator: ast.expr) -> str:
        return f"{self.at(text, POSTFIX)}.split({self.at(separator)})"

    def str_join(self, separator: ast.expr, words: ast.expr) -> str:
        return f"{self.at(words, POSTFIX)}.join({self.at(separator)})"

    def on_Call(self, node: ast.Call) -> Code:
        """A character test has no function here: a comparison stands for it. So has a look-up with a default."""
        if not isinstance(node.func, ast.Attribute):
            return super().on_Call(node)
        name, text = node.func.attr, self.at(node.func.value, POSTFIX)
        if name == "get":
            return Code(f"{text}.get({self.at(node.args[0])}) ?? {self.at(node.args[1], EQUALITY)}", TERNARY)
        bounds = {"isdigit": "09", "isupper": "AZ", "islower": "az"}.get(name)
        if bounds:
            return Code(f'{text} >= "{bounds[0]}" && {text} <= "{bounds[1]}"', AND)
        letter = f"{text}.toLowerCase() !== {text}.toUpperCase()"
        if name == "isalpha":
            return Code(letter, EQUALITY)
        if name == "isalnum":
            return Code(f'{letter} || ({text} >= "0" && {text} <= "9")', OR)
        return super().on_Call(node)

    # the driver

    def driver(self, function: Function, cases: Sequence[Case]) -> str:
        name = self.name(function.node.name)
        rows = [
            f"[{name}({', '.join(self.arguments(arguments, function))}), {self.literal(expected, function.returns)}]"
            for arguments, expected in cases
        ]
        exact = function.returns.kind != "float"
        test = "JSON.stringify(got) !== JSON.stringify(expected)" if exact else "!(Math.abs(got - expected) <= 1e-9)"
        return _DRIVER.format(rows=", ".join(rows), test=test)
