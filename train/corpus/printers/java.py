"""Java 17: static methods of `class Solution`."""

import ast
import re
from collections.abc import Sequence
from typing import Any

from ..definition import Case
from ..inference import Function
from ..kinds import CHAR, FLOAT, INT, LONG, STR, Type
from .base import ADD, ATOM, EQUALITY, POSTFIX, RELATION, UNARY, Code, constant, is_call
from .clike import CLikePrinter

_PRIMITIVES = {"int": "int", "long": "long", "bool": "boolean", "float": "double", "char": "char", "str": "String", "none": "void"}
_BOXES = {"int": "Integer", "long": "Long", "bool": "Boolean", "float": "Double", "char": "Character"}
_UTIL = re.compile(r"\b(Arrays|Collections|List|ArrayList|Map|HashMap|Set|HashSet)\b")
_DRIVER = """\
class Main {{
    static void check(int number, Object got, Object expected) {{
        if (!java.util.Objects.deepEquals(got, expected)) {{
            String shown = java.util.Arrays.deepToString(new Object[] {{got, expected}});
            throw new AssertionError("case " + number + ": got, expected = " + shown);
        }}
    }}

    public static void main(String[] args) {{
{calls}
    }}
}}
"""
_RESERVED = """
    abstract assert boolean break byte case catch char class const continue default do double else enum extends final finally
    float for goto if implements import instanceof int interface long native new package private protected public return short
    static strictfp super switch synchronized this throw throws transient try void volatile while true false null var
"""


class LanguagePrinter(CLikePrinter):
    accessors = ("vec", "dict", "str")
    reserved = frozenset(_RESERVED.split())

    def frame(self, functions: list[str]) -> str:
        body = "\n\n".join("\n".join(self.indent(text.split("\n"))) for text in functions)
        imports = "import java.util.*;\n\n" if _UTIL.search(body) else ""
        return f"{imports}class Solution {{\n{body}\n}}\n"

    def define(self, function: Function) -> list[str]:
        parameters = ", ".join(f"{self.type_name(kind)} {self.name(name)}" for name, kind in function.parameters.items())
        return self.braced(
            f"public static {self.type_name(function.returns)} {self.name(function.node.name)}({parameters})", function.node.body
        )

    def type_name(self, kind: Type, boxed: bool = False) -> str:
        if kind.kind == "array":
            return f"{self.type_name(kind.item)}[]"
        if kind.args:
            generic = {"vec": "List", "dict": "Map", "set": "Set"}[kind.kind]
            return f"{generic}<{', '.join(self.type_name(arg, boxed=True) for arg in kind.args)}>"
        return _BOXES.get(kind.kind, "String") if boxed else _PRIMITIVES[kind.kind]

    def declaration(self, name: str, kind: Type, value: str | None) -> str:
        text = self.type_name(kind)
        if value is None:
            return f"{text} {name};"
        return f"{text} {name} = {value.removeprefix(f'new {text} ') if kind.kind == 'array' and value.endswith('}') else value};"

    # conversions and literals

    def converted(self, node: ast.expr, want: Type) -> Code:
        have = self.type(node)
        value = constant(node)
        if want == CHAR and value is not None:
            return Code(self.quoted(value, "'"))
        if want == STR and have == CHAR:
            return Code(f"String.valueOf({self.at(node)})", POSTFIX)
        if want == INT and (have == LONG or is_call(node, "ord")) and have != want:
            return Code(f"(int) {self.at(node, UNARY)}", UNARY)
        if want == LONG and value is not None:
            return Code(self.number(value, LONG), UNARY if value < 0 else ATOM)
        return self.code(node)

    def boxed(self, node: ast.expr, want: Type) -> str:
        """An element or key: a collection of Long or Integer takes no other number type."""
        have = self.type(node)
        if (want == LONG and have == INT and not isinstance(node, ast.Constant)) or (want == INT and is_call(node, "ord")):
            return f"({self.type_name(want)}) {self.at(node, UNARY)}"
        return self.at(node, 0, want)

    def number(self, value: float, kind: Type) -> str:
        return f"{value}L" if kind == LONG else repr(float(value) if kind == FLOAT else value)

    def list_text(self, items: list[str], kind: Type) -> str:
        if kind.kind == "array":
            return f"new {self.type_name(kind)} {{{', '.join(items)}}}"
        return f"new ArrayList<>(List.of({', '.join(items)}))" if items else "new ArrayList<>()"

    def dict_text(self, pairs: list[tuple[str, str]], kind: Type) -> Code:
        if kind.kind == "set":
            return Code("new HashSet<>()", POSTFIX)
        return Code(f"new HashMap<>(Map.of({', '.join(f'{k}, {v}' for k, v in pairs)}))" if pairs else "new HashMap<>()", POSTFIX)

    def allocation(self, size: ast.expr, fill: ast.expr, kind: Type) -> Code:
        item, sizes = kind.item, f"[{self.at(size, 0, INT)}]"
        while item.kind == "array" and isinstance(fill, ast.BinOp) and isinstance(fill.left, ast.List):
            sizes += f"[{self.at(fill.right, 0, INT)}]"
            fill, item = fill.left.elts[0], item.item
        return Code(f"new {self.type_name(item)}{sizes}" + "[]" * (item.kind == "array"), POSTFIX)

    # forms that take several statements

    def expansion(self, node: ast.expr) -> str | None:
        if is_call(node, "sorted"):
            return "sorted"
        return "filled" if self.needs_fill(node) else None

    def needs_fill(self, node: ast.expr) -> bool:
        fill: Any = node
        while isinstance(fill, ast.ListComp | ast.BinOp) and (isinstance(fill, ast.ListComp) or isinstance(fill.left, ast.List)):
            fill = fill.elt if isinstance(fill, ast.ListComp) else fill.left.elts[0]  # type: ignore[attr-defined]
        return fill is not node and not (isinstance(fill, ast.Constant) and fill.value in (0, False) and fill.value != "")

    def expand(self, node: ast.expr, name: str, kind: Type, declare: bool) -> list[str]:
        start = f"{self.type_name(kind)} {name}" if declare else name
        if isinstance(node, ast.Call):
            source = self.at(node.args[0], POSTFIX)
            if kind.kind == "array":
                return [f"{start} = {source}.clone();", f"Arrays.sort({name});"]
            return [f"{start} = new ArrayList<>({source});", f"Collections.sort({name});"]
        if isinstance(node, ast.ListComp):
            assert isinstance(node.generators[0].iter, ast.Call)
            size, inner = node.generators[0].iter.args[0], node.elt
        else:
            assert isinstance(node, ast.BinOp) and isinstance(node.left, ast.List)
            size, inner = node.right, node.left.elts[0]
        lines = [f"{start} = {self.allocation(size, inner, kind).text};"]
        if kind.item.kind != "array":
            return [*lines, f"Arrays.fill({name}, {self.at(inner, 0, kind.item)});"]
        assert isinstance(inner, ast.BinOp) and isinstance(inner.left, ast.List)
        fill = f"    Arrays.fill(row, {self.at(inner.left.elts[0], 0, kind.item.item)});"
        return [*lines, f"for ({self.type_name(kind.item)} row : {name}) {{", fill, "}"]

    # containers

    def element(self, container: ast.expr, index: str) -> Code:
        method = "charAt" if self.is_text(container) else "get"
        return Code(f"{self.at(container, POSTFIX)}.{method}({index})", POSTFIX)

    def index(self, node: ast.Subscript) -> str:
        kind = self.type(node.value)
        assert not isinstance(node.slice, ast.Slice)
        return self.boxed(node.slice, kind.args[0]) if kind.kind == "dict" else super().index(node)

    def set_element(self, container: ast.expr, index: str, value: str) -> str:
        return f"{self.at(container, POSTFIX)}.{'put' if self.kind(container) == 'dict' else 'set'}({index}, {value});"

    def length(self, node: ast.expr) -> Code:
        form = "length" if self.kind(node) == "array" else "length()" if self.is_text(node) else "size()"
        return Code(f"{self.at(node, POSTFIX)}.{form}", POSTFIX)

    def empty_test(self, node: ast.expr) -> tuple[Code, Code]:
        text = self.at(node, POSTFIX)
        if self.kind(node) == "array":
            return Code(f"{text}.length > 0", RELATION), Code(f"{text}.length == 0", EQUALITY)
        return Code(f"!{text}.isEmpty()", UNARY), Code(f"{text}.isEmpty()", POSTFIX)

    def walk(self, variable: str, kind: Type, iterable: ast.expr, changed: bool) -> tuple[str, list[str]]:
        suffix = ".toCharArray()" if self.is_text(iterable) else ".keySet()" if self.kind(iterable) == "dict" else ""
        return f"for ({self.type_name(kind)} {variable} : {self.at(iterable, POSTFIX)}{suffix})", []

    def membership(self, container: ast.expr, item: ast.expr) -> tuple[Code, Code]:
        text = self.at(container, POSTFIX)
        if self.is_text(container):
            if self.is_char(item):
                found = f"{text}.indexOf({self.at(item)})"
                return Code(f"{found} >= 0", RELATION), Code(f"{found} < 0", RELATION)
            call = f"{text}.contains({self.at(item, 0, STR)})"
        else:
            method = "containsKey" if self.kind(container) == "dict" else "contains"
            call = f"{text}.{method}({self.boxed(item, self.item_type(container))})"
        return Code(call, POSTFIX), Code(f"!{call}", UNARY)

    def text_equality(self, left: ast.expr, right: ast.expr, symbol: str) -> Code | None:
        kind = self.joined(left, right)
        if kind != STR and not (self.is_boxed(left) and self.is_boxed(right) and symbol in ("==", "!=")):
            return None
        want = kind if kind == STR else None
        first, second = self.at(left, POSTFIX, want), self.at(right, 0, want)
        if symbol in ("==", "!="):
            return Code(f"{'!' * (symbol == '!=')}{first}.equals({second})", UNARY if symbol == "!=" else POSTFIX)
        return Code(f"{first}.compareTo({second}) {symbol} 0", RELATION)

    def is_boxed(self, node: ast.expr) -> bool:
        """The value comes out of a collection as an object."""
        if isinstance(node, ast.Subscript):
            return self.kind(node.value) in ("vec", "dict")
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("pop", "get")

    # expressions

    def concatenation(self, node: ast.BinOp) -> Code:
        if self.is_char(node.left) and self.is_char(node.right):
            return Code(f"{self.at(node.left, ADD, STR)} + {self.at(node.right, ADD + 1)}", ADD)
        return super().concatenation(node)

    def sliced(self, node: ast.Subscript, part: ast.Slice) -> Code:
        text = self.at(node.value, POSTFIX)
        if part.step:
            return Code(f"new StringBuilder({self.at(node.value)}).reverse().toString()", POSTFIX)
        lower = self.position(node.value, part.lower) if part.lower else "0"
        upper = f", {self.position(node.value, part.upper)}" if part.upper else ""
        return Code(f"{text}.substring({lower}{upper})", POSTFIX)

    def call_abs(self, node: ast.Call, value: ast.expr) -> Code:
        return Code(f"Math.abs({self.at(value)})", POSTFIX)

    def call_min(self, node: ast.Call, *values: ast.expr) -> Code:
        assert isinstance(node.func, ast.Name)
        name = node.func.id
        if len(values) > 1:
            first, *rest = values
            inner = self.call_min(node, *rest).text if len(rest) > 1 else self.at(rest[0])
            return Code(f"Math.{name}({self.at(first)}, {inner})", POSTFIX)
        if self.kind(values[0]) == "vec":
            return Code(f"Collections.{name}({self.at(values[0])})", POSTFIX)
        getter = {"int": "getAsInt", "long": "getAsLong", "float": "getAsDouble"}[self.item_type(values[0]).kind]
        return Code(f"Arrays.stream({self.at(values[0])}).{name}().{getter}()", POSTFIX)

    call_max = call_min

    def call_sum(self, node: ast.Call, values: ast.expr) -> Code:
        if self.kind(values) == "array":
            return Code(f"Arrays.stream({self.at(values)}).sum()", POSTFIX)
        mapping = {"int": "mapToInt(Integer::intValue)", "long": "mapToLong(Long::longValue)"}[self.item_type(values).kind]
        return Code(f"{self.at(values, POSTFIX)}.stream().{mapping}.sum()", POSTFIX)

    def call_ord(self, node: ast.Call, letter: ast.expr) -> Code:
        return self.converted(letter, CHAR)  # a char is a number

    def call_chr(self, node: ast.Call, number: ast.expr) -> Code:
        return Code(f"(char) {self.at(number, UNARY)}", UNARY)

    def call_str(self, node: ast.Call, value: ast.expr) -> Code:
        return Code(f"String.valueOf({self.at(value)})", POSTFIX)

    def call_int(self, node: ast.Call, value: ast.expr) -> Code:
        if self.is_char(value):
            return Code(f"{self.at(value, ADD)} - '0'", ADD)
        return (
            Code(f"Integer.parseInt({self.at(value)})", POSTFIX) if self.is_text(value) else Code(f"(int) {self.at(value, UNARY)}", UNARY)
        )

    def call_float(self, node: ast.Call, value: ast.expr) -> Code:
        return Code(f"(double) {self.at(value, UNARY)}", UNARY)

    # methods

    def list_append(self, container: ast.expr, value: ast.expr) -> str:
        return f"{self.at(container, POSTFIX)}.add({self.boxed(value, self.item_type(container))})"

    set_add = list_append

    def list_pop(self, container: ast.expr) -> str:
        text = self.at(container, POSTFIX)
        return f"{text}.remove({text}.size() - 1)"

    def set_remove(self, container: ast.expr, value: ast.expr) -> str:
        return f"{self.at(container, POSTFIX)}.remove({self.boxed(value, self.item_type(container))})"

    def list_sort(self, container: ast.expr) -> str:
        return f"{'Arrays' if self.kind(container) == 'array' else 'Collections'}.sort({self.at(container)})"

    def list_reverse(self, container: ast.expr) -> str:
        if self.kind(container) == "array":
            self.fail(container, "an array has no reverse(): swap its elements, or use Vec")
        return f"Collections.reverse({self.at(container)})"

    def dict_get(self, container: ast.expr, key: ast.expr, default: ast.expr) -> str:
        kinds = self.type(container).args
        return f"{self.at(container, POSTFIX)}.getOrDefault({self.boxed(key, kinds[0])}, {self.boxed(default, kinds[1])})"

    def str_lower(self, text: ast.expr) -> str:
        return f"{self.at(text, POSTFIX)}.toLowerCase()"

    def str_upper(self, text: ast.expr) -> str:
        return f"{self.at(text, POSTFIX)}.toUpperCase()"

    def str_split(self, text: ast.expr, separator: ast.expr) -> str:
        return f"{self.at(text, POSTFIX)}.split({self.at(separator)})"

    def str_join(self, separator: ast.expr, words: ast.expr) -> str:
        return f"String.join({self.at(separator)}, {self.at(words)})"

    def char_lower(self, letter: ast.expr) -> str:
        return f"Character.toLowerCase({self.at(letter)})"

    def char_upper(self, letter: ast.expr) -> str:
        return f"Character.toUpperCase({self.at(letter)})"

    def char_isdigit(self, letter: ast.expr) -> str:
        return f"Character.isDigit({self.at(letter)})"

    def char_isalpha(self, letter: ast.expr) -> str:
        return f"Character.isLetter({self.at(letter)})"

    def char_isalnum(self, letter: ast.expr) -> str:
        return f"Character.isLetterOrDigit({self.at(letter)})"

    def char_isupper(self, letter: ast.expr) -> str:
        return f"Character.isUpperCase({self.at(letter)})"

    def char_islower(self, letter: ast.expr) -> str:
        return f"Character.isLowerCase({self.at(letter)})"

    # the driver

    def driver(self, function: Function, cases: Sequence[Case]) -> str:
        calls = []
        for number, (arguments, expected) in enumerate(cases, 1):
            call = f"Solution.{self.name(function.node.name)}({', '.join(self.arguments(arguments, function))})"
            wanted = self.literal(expected, function.returns)
            if function.returns.kind == "float":
                call, wanted = f"Math.abs({call} - {wanted}) < 1e-9", "true"
            calls.append(f"        check({number}, {call}, {wanted});")
        text = "\n".join(calls)
        return _DRIVER.format(calls=re.sub(r"\b(ArrayList|List)\b", r"java.util.\1", text))
