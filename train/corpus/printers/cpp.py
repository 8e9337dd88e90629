"""C++17: free functions, the standard headers that they use, `using namespace std`."""

import ast
import re
from collections.abc import Sequence

from ..definition import Case
from ..inference import Function
from ..kinds import CHAR, INT, LETTER, LISTS, LONG, STR, Type
from .base import ADD, EQUALITY, POSTFIX, TERNARY, UNARY, Code, constant, is_call
from .clike import CLikePrinter

_PRIMITIVES = {"int": "int", "long": "long long", "bool": "bool", "float": "double", "char": "char", "str": "string", "none": "void"}
_HEADERS = {
    "algorithm": r"\b(sort|reverse|swap|min|max|min_element|max_element|transform|find)\(",
    "cctype": r"\b(isdigit|isalpha|isalnum|isupper|islower|tolower|toupper)\b",
    "cmath": r"\babs\(",
    "numeric": r"\baccumulate\(",
    "sstream": r"\bstringstream\b",
    "string": r"\b(string|to_string|stoi)\b",
    "unordered_map": r"\bunordered_map\b",
    "unordered_set": r"\bunordered_set\b",
    "vector": r"\bvector\b",
}
_DRIVER = """\
#include <cmath>
#include <iostream>
#include <string>
#include <vector>
using namespace std;

template <class T> void show(const T& value) {{ cerr << boolalpha << value; }}
template <class T> void show(const vector<T>& values) {{
    cerr << "[";
    for (const auto& value : values) {{
        show(value);
        cerr << " ";
    }}
    cerr << "]";
}}

int main() {{
{cases}
    return 0;
}}
"""
_CASE = """\
    {{
{arguments}        {kind} got = {call};
        {kind} expected = {expected};
        if ({wrong}) {{
            cerr << "case {number}: got ";
            show(got);
            cerr << ", expected ";
            show(expected);
            cerr << endl;
            return 1;
        }}
    }}"""
_RESERVED = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl const constexpr const_cast continue
    decltype default delete do double dynamic_cast else enum explicit export extern false float for friend goto if inline int long
    mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public register reinterpret_cast return
    short signed sizeof static static_assert static_cast struct switch template this thread_local throw true try typedef typeid
    typename union unsigned using virtual void volatile wchar_t while xor xor_eq string vector
"""


class LanguagePrinter(CLikePrinter):
    reserved = frozenset(_RESERVED.split())

    def frame(self, functions: list[str]) -> str:
        body = "\n\n".join(functions)
        headers = [f"#include <{header}>" for header, use in _HEADERS.items() if re.search(use, body)]
        return "\n".join([*headers, "using namespace std;", "", body] if headers else [body]) + "\n"

    def define(self, function: Function) -> list[str]:
        parameters = ", ".join(self.parameter(name, kind) for name, kind in function.parameters.items())
        return self.braced(f"{self.type_name(function.returns)} {self.name(function.node.name)}({parameters})", function.node.body)

    def parameter(self, name: str, kind: Type) -> str:
        """Containers and strings by reference, constant unless changed in place; by value if the name is assigned to."""
        text = self.type_name(kind)
        if (not kind.args and kind != STR) or self.scopes.assignments[name] > 1:
            return f"{text} {self.name(name)}"
        return f"{text}& {self.name(name)}" if name in self.scopes.mutated else f"const {text}& {self.name(name)}"

    def type_name(self, kind: Type) -> str:
        if kind.args:
            generic = {"array": "vector", "vec": "vector", "dict": "unordered_map", "set": "unordered_set"}[kind.kind]
            return f"{generic}<{', '.join(map(self.type_name, kind.args))}>"
        return _PRIMITIVES[kind.kind]

    def declaration(self, name: str, kind: Type, value: str | None) -> str:
        text = self.type_name(kind)
        if value is None or (kind.args and value == "{}"):
            return f"{text} {name};"
        if kind.args and value.startswith(f"{text}("):
            return f"{text} {name}{value[len(text) :]};"
        return f"{text} {name} = {value};"

    # conversions and literals

    def converted(self, node: ast.expr, want: Type) -> Code:
        have = self.type(node)
        if want == CHAR and isinstance(node, ast.Constant):
            return Code(self.quoted(constant(node), "'"))
        if want == STR and have == CHAR:
            return Code(f"string(1, {self.at(node)})", POSTFIX)
        return self.code(node)

    def number(self, value: float, kind: Type) -> str:
        return f"{value}LL" if kind == LONG and not -(2**31) <= value < 2**31 else repr(value)

    def list_text(self, items: list[str], kind: Type) -> str:
        return f"{{{', '.join(items)}}}"

    def dict_text(self, pairs: list[tuple[str, str]], kind: Type) -> Code:
        return Code("{" + ", ".join(f"{{{key}, {value}}}" for key, value in pairs) + "}")

    def allocation(self, size: ast.expr, fill: ast.expr, kind: Type) -> Code:
        value = self.at(fill, 0, kind.item)
        default = isinstance(fill, ast.Constant) and fill.value in (0, False, "") and kind.item.kind != "float"
        count = self.at(size)
        return Code(f"{self.type_name(kind)}({count if default and kind.item.kind != 'bool' else f'{count}, {value}'})", POSTFIX)

    # forms that take several statements

    def expansion(self, node: ast.expr) -> str | None:
        if is_call(node, "sorted"):
            return "sorted"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            method = node.func.attr
            if method in ("lower", "upper") and self.kind(node.func.value) == "str":
                return method
            return {"split": "words", "join": "joined", "pop": "last"}.get(method)
        return None

    def expand(self, node: ast.expr, name: str, kind: Type, declare: bool) -> list[str]:
        assert isinstance(node, ast.Call)
        start = f"{self.type_name(kind)} {name}" if declare else name
        if isinstance(node.func, ast.Name):
            return [f"{start} = {self.at(node.args[0])};", f"sort({name}.begin(), {name}.end());"]
        assert isinstance(node.func, ast.Attribute)
        receiver, method = node.func.value, node.func.attr
        if method in ("lower", "upper"):
            copy = [] if self.at(receiver) == name else [f"{start} = {self.at(receiver)};"]
            return [*copy, f"transform({name}.begin(), {name}.end(), {name}.begin(), ::to{method});"]
        if method == "pop":
            text = self.at(receiver, POSTFIX)
            return [f"{start} = {text}.back();", f"{text}.pop_back();"]
        first = f"{start};" if declare else f"{name}.clear();"
        if method == "split":
            stream, word = self.fresh("stream"), self.fresh("word")
            loop = f"while (getline({stream}, {word}, {self.at(node.args[0], 0, CHAR)})) {{"
            return [first, f"stringstream {stream}({self.at(receiver)});", f"string {word};", loop, f"    {name}.push_back({word});", "}"]
        words, index = self.at(node.args[0], POSTFIX), self.fresh("k")
        lines = [first, f"for (int {index} = 0; {index} < (int) {words}.size(); {index}++) {{"]
        if constant(receiver) != "":
            lines += [f"    if ({index} > 0) {{", f"        {name} += {self.at(receiver)};", "    }"]
        return [*lines, f"    {name} += {words}[{index}];", "}"]

    # containers

    def assign(self, target: ast.expr, value: ast.expr, declared: set[str]) -> list[str]:
        """A size is converted by the assignment itself; a count by `d[k] = d.get(k, 0) + 1` needs no look-up."""
        if isinstance(target, ast.Name) and is_call(value, "len"):
            name, text = self.name(target.id), self.size(value.args[0])  # type: ignore[attr-defined]
            kind = self.function.variables[target.id]
            return [self.declaration(name, kind, text) if target.id in declared else f"{name} = {text};"]
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add) and self.is_default_get(value.left, target):
            text = self.at(target)
            return [f"{text}++;" if constant(value.right) == 1 else f"{text} += {self.at(value.right)};"]
        return super().assign(target, value, declared)

    def assign_all(self, parts: list[ast.expr], values: list[ast.expr], declared: set[str]) -> list[str]:
        if not declared and [ast.unparse(part) for part in parts] == [ast.unparse(value) for value in reversed(values)]:
            return [f"swap({', '.join(map(self.at, parts))});"]
        return super().assign_all(parts, values, declared)

    @staticmethod
    def is_default_get(node: ast.expr, target: ast.expr) -> bool:
        """`d.get(k, 0)` for a target of `d[k]`."""
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(target, ast.Subscript)):
            return False
        if node.func.attr != "get" or constant(node.args[1]) != 0:
            return False
        return ast.dump(node.func.value) == ast.dump(target.value) and ast.dump(node.args[0]) == ast.dump(target.slice)

    def size(self, node: ast.expr) -> str:
        return f"{self.at(node, POSTFIX)}.size()"

    def length(self, node: ast.expr) -> Code:
        return Code(f"(int) {self.size(node)}", UNARY)  # unsigned otherwise: size() - 1 of an empty container is huge

    def index(self, node: ast.Subscript) -> str:
        assert not isinstance(node.slice, ast.Slice)
        value = constant(node.slice)
        if isinstance(value, int) and value < 0 and self.kind(node.value) != "dict":
            return f"{self.size(node.value)} - {-value}"
        return super().index(node)

    def on_Subscript(self, node: ast.Subscript) -> Code:
        if constant(node.slice) == -1 and self.kind(node.value) != "dict":
            return Code(f"{self.at(node.value, POSTFIX)}.back()", POSTFIX)
        constant_map = isinstance(node.value, ast.Name) and node.value.id in self.function.parameters
        if self.kind(node.value) == "dict" and constant_map and getattr(node.value, "id", "") not in self.scopes.mutated:
            return Code(f"{self.at(node.value)}.at({self.index(node)})", POSTFIX)
        return super().on_Subscript(node)

    def empty_test(self, node: ast.expr) -> tuple[Code, Code]:
        text = f"{self.at(node, POSTFIX)}.empty()"
        return Code(f"!{text}", UNARY), Code(text, POSTFIX)

    def walk(self, variable: str, kind: Type, iterable: ast.expr, changed: bool) -> tuple[str, list[str]]:
        source, text = self.at(iterable), self.type_name(kind)
        if self.kind(iterable) == "dict":
            entry = self.fresh("entry")
            return f"for (const auto& {entry} : {source})", [f"{text} {variable} = {entry}.first;"]
        if kind.args or kind == STR:
            rewritten = isinstance(iterable, ast.Name) and variable in map(self.name, self.scopes.mutated)
            text = f"{text}&" if rewritten else text if changed else f"const {text}&"
        return f"for ({text} {variable} : {source})", []

    def membership(self, container: ast.expr, item: ast.expr) -> tuple[Code, Code]:
        text = self.at(container, POSTFIX)
        if self.is_text(container):
            text = f"string({text})" if isinstance(container, ast.Constant) else text
            found = f"{text}.find({self.at(item)})"
            return Code(f"{found} != string::npos", EQUALITY), Code(f"{found} == string::npos", EQUALITY)
        wanted = self.at(item, 0, self.item_type(container))
        if self.kind(container) in LISTS:
            found = f"find({text}.begin(), {text}.end(), {wanted})"
            return Code(f"{found} != {text}.end()", EQUALITY), Code(f"{found} == {text}.end()", EQUALITY)
        call = f"{text}.count({wanted})"
        return Code(call, POSTFIX), Code(f"!{call}", UNARY)

    def sliced(self, node: ast.Subscript, part: ast.Slice) -> Code:
        text = self.at(node.value, POSTFIX)
        if part.step:
            if not isinstance(node.value, ast.Name):
                self.fail(node, "only a named string is reversed: give it a name first")
            return Code(f"string({text}.rbegin(), {text}.rend())", POSTFIX)
        lower = self.position(node.value, part.lower) if part.lower else "0"
        if part.upper is None:
            return Code(f"{text}.substr({lower})", POSTFIX)
        return Code(f"{text}.substr({lower}, {self.count(node.value, part.lower, part.upper)})", POSTFIX)

    def count(self, text: ast.expr, lower: ast.expr | None, upper: ast.expr) -> str:
        """How many characters `text[lower:upper]` has; `k` for `[i:i + k]`."""
        if lower is None:
            return self.position(text, upper)
        if isinstance(upper, ast.BinOp) and isinstance(upper.op, ast.Add) and ast.dump(upper.left) == ast.dump(lower):
            return self.at(upper.right)
        bounds = constant(lower), constant(upper)
        if all(isinstance(bound, int) and bound >= 0 for bound in bounds):
            return str(bounds[1] - bounds[0])
        return f"{self.position(text, upper)} - {self.at(lower, ADD + 1)}"

    # expressions

    def comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Code:
        """A size compared to a literal needs no conversion."""
        symbol, level = self.relation[type(op)]
        if is_call(left, "len") and isinstance(right, ast.Constant):
            return Code(f"{self.size(left.args[0])} {symbol} {self.at(right)}", level)  # type: ignore[attr-defined]
        return super().comparison(left, op, right)

    def concatenation(self, node: ast.BinOp) -> Code:
        """One side must be a `string`: two literals, or a literal and a char, would add pointers and numbers."""
        if self.is_object(node.left) or self.is_object(node.right):
            return super().concatenation(node)
        left = f"string({self.at(node.left)})" if not self.is_char(node.left) else self.at(node.left, ADD, STR)
        return Code(f"{left} + {self.at(node.right, ADD + 1)}", ADD)

    def is_object(self, node: ast.expr) -> bool:
        if isinstance(node, ast.IfExp):
            return self.is_object(node.body) or self.is_object(node.orelse)
        return self.type(node) in (STR, LETTER) and not isinstance(node, ast.Constant)

    def repeated(self, text: ast.expr, times: ast.expr) -> Code:
        if self.type(text) not in (CHAR, LETTER):
            self.fail(text, "only a single character is repeated: use a loop")
        return Code(f"string({self.at(times)}, {self.at(text, 0, CHAR)})", POSTFIX)

    def call_abs(self, node: ast.Call, value: ast.expr) -> Code:
        return Code(f"abs({self.at(value)})", POSTFIX)

    def call_min(self, node: ast.Call, *values: ast.expr) -> Code:
        assert isinstance(node.func, ast.Name)
        name = node.func.id
        if len(values) == 1:
            text = self.at(values[0], POSTFIX)
            return Code(f"*{name}_element({text}.begin(), {text}.end())", UNARY)
        kinds = {self.type(value) for value in values}
        exact = f"<{self.type_name(self.type(node))}>" if len(kinds) > 1 or any(map(self.unusual, values)) else ""
        arguments = ", ".join(map(self.at, values))
        return Code(f"{name}{exact}({arguments})" if len(values) == 2 else f"{name}{exact}({{{arguments}}})", POSTFIX)

    call_max = call_min

    def unusual(self, value: ast.expr) -> bool:
        """The expression's C++ type is not the one that its Python type says."""
        return self.type(value) == LONG and isinstance(value, ast.Constant)

    def call_sum(self, node: ast.Call, values: ast.expr) -> Code:
        text = self.at(values, POSTFIX)
        zero = {INT: "0", LONG: "0LL"}.get(self.item_type(values), "0.0")
        return Code(f"accumulate({text}.begin(), {text}.end(), {zero})", POSTFIX)

    def call_ord(self, node: ast.Call, letter: ast.expr) -> Code:
        return self.converted(letter, CHAR)  # a char is a number

    def call_chr(self, node: ast.Call, number: ast.expr) -> Code:
        return Code(f"char({self.at(number)})", POSTFIX)

    def call_str(self, node: ast.Call, value: ast.expr) -> Code:
        return self.value(value, STR) if self.is_char(value) else Code(f"to_string({self.at(value)})", POSTFIX)

    def call_int(self, node: ast.Call, value: ast.expr) -> Code:
        if self.is_char(value):
            return Code(f"{self.at(value, ADD)} - '0'", ADD)
        return Code(f"stoi({self.at(value)})", POSTFIX) if self.is_text(value) else Code(f"(int) {self.at(value, UNARY)}", UNARY)

    def call_float(self, node: ast.Call, value: ast.expr) -> Code:
        return Code(f"(double) {self.at(value, UNARY)}", UNARY)

    # methods

    def on_Call(self, node: ast.Call) -> Code:
        if isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            text, key = self.at(node.func.value, POSTFIX), self.at(node.args[0], 0, self.type(node.func.value).args[0])
            return Code(f"{text}.count({key}) ? {text}.at({key}) : {self.at(node.args[1], TERNARY)}", TERNARY)
        return super().on_Call(node)

    def on_Expr(self, node: ast.Expr) -> list[str]:
        if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute) and node.value.func.attr == "pop":
            return [f"{self.at(node.value.func.value, POSTFIX)}.pop_back();"]
        return super().on_Expr(node)

    def list_append(self, container: ast.expr, value: ast.expr) -> str:
        return f"{self.at(container, POSTFIX)}.push_back({self.at(value, 0, self.item_type(container))})"

    def list_sort(self, container: ast.expr) -> str:
        text = self.at(container, POSTFIX)
        return f"sort({text}.begin(), {text}.end())"

    def list_reverse(self, container: ast.expr) -> str:
        text = self.at(container, POSTFIX)
        return f"reverse({text}.begin(), {text}.end())"

    def set_add(self, container: ast.expr, value: ast.expr) -> str:
        return f"{self.at(container, POSTFIX)}.insert({self.at(value, 0, self.item_type(container))})"

    def set_remove(self, container: ast.expr, value: ast.expr) -> str:
        return f"{self.at(container, POSTFIX)}.erase({self.at(value, 0, self.item_type(container))})"

    def char_lower(self, letter: ast.expr) -> str:
        return f"char(tolower({self.at(letter)}))"

    def char_upper(self, letter: ast.expr) -> str:
        return f"char(toupper({self.at(letter)}))"

    def char_isdigit(self, letter: ast.expr) -> str:
        return f"isdigit({self.at(letter)})"

    def char_isalpha(self, letter: ast.expr) -> str:
        return f"isalpha({self.at(letter)})"

    def char_isalnum(self, letter: ast.expr) -> str:
        return f"isalnum({self.at(letter)})"

    def char_isupper(self, letter: ast.expr) -> str:
        return f"isupper({self.at(letter)})"

    def char_islower(self, letter: ast.expr) -> str:
        return f"islower({self.at(letter)})"

    # the driver

    def driver(self, function: Function, cases: Sequence[Case]) -> str:
        """Arguments are variables, because a parameter may be a reference."""
        blocks = []
        wrong = "!(abs(got - expected) <= 1e-9)" if function.returns.kind == "float" else "got != expected"
        for number, (arguments, expected) in enumerate(cases, 1):
            rows = zip(function.parameters.values(), self.arguments(arguments, function), strict=True)
            lines = [f"        {self.type_name(kind)} arg{place} = {text};\n" for place, (kind, text) in enumerate(rows)]
            call = f"{self.name(function.node.name)}({', '.join(f'arg{place}' for place in range(len(arguments)))})"
            blocks.append(
                _CASE.format(
                    arguments="".join(lines), kind=self.type_name(function.returns), call=call, wrong=wrong, number=number,
                    expected=self.literal(expected, function.returns),
                )
            )  # fmt: skip
        return _DRIVER.format(cases="\n".join(blocks))
