"""Python: the definition's own functions without annotations and comments."""

import ast
import keyword
from collections.abc import Sequence
from typing import Any

from ..definition import Case
from ..inference import Function
from ..kinds import Type
from .base import ATOM, POSTFIX, TERNARY, UNARY, Code, Printer, is_elif

OR, AND, NOT, COMPARE, BIT_OR, BIT_XOR, BIT_AND, SHIFT, ADD, MULTIPLY = range(TERNARY + 1, UNARY)
_BINARY = {
    ast.Add: ("+", ADD), ast.Sub: ("-", ADD), ast.Mult: ("*", MULTIPLY), ast.Div: ("/", MULTIPLY), ast.Mod: ("%", MULTIPLY),
    ast.FloorDiv: ("//", MULTIPLY), ast.BitAnd: ("&", BIT_AND), ast.BitOr: ("|", BIT_OR), ast.BitXor: ("^", BIT_XOR),
    ast.LShift: ("<<", SHIFT), ast.RShift: (">>", SHIFT),
}  # fmt: skip
_RELATION = {
    ast.Eq: ("==", COMPARE), ast.NotEq: ("!=", COMPARE), ast.Lt: ("<", COMPARE), ast.LtE: ("<=", COMPARE),
    ast.Gt: (">", COMPARE), ast.GtE: (">=", COMPARE), ast.In: ("in", COMPARE), ast.NotIn: ("not in", COMPARE),
}  # fmt: skip


class LanguagePrinter(Printer):
    binary = _BINARY
    relation = _RELATION
    conjunction = ("and", AND)
    disjunction = ("or", OR)
    reserved = frozenset(keyword.kwlist)

    def frame(self, functions: list[str]) -> str:
        return "\n\n\n".join(functions) + "\n"

    def define(self, function: Function) -> list[str]:
        header = f"def {function.node.name}({', '.join(function.parameters)}):"
        return [header, *self.indent(self.block(function.node.body))]

    def on_Assign(self, node: ast.Assign) -> list[str]:
        return [f"{self.bare(node.targets[0])} = {self.bare(node.value)}"]

    def on_AnnAssign(self, node: ast.AnnAssign) -> list[str]:
        assert node.value
        return [f"{self.at(node.target)} = {self.at(node.value)}"]

    def on_AugAssign(self, node: ast.AugAssign) -> list[str]:
        return [f"{self.at(node.target)} {self.binary[type(node.op)][0]}= {self.at(node.value)}"]

    def on_Return(self, node: ast.Return) -> list[str]:
        return [f"return {self.at(node.value)}" if node.value else "return"]

    def on_Expr(self, node: ast.Expr) -> list[str]:
        return [self.at(node.value)]

    def on_Break(self, node: ast.Break) -> list[str]:
        return ["break"]

    def on_Continue(self, node: ast.Continue) -> list[str]:
        return ["continue"]

    def on_While(self, node: ast.While) -> list[str]:
        return [f"while {self.at(node.test)}:", *self.indent(self.block(node.body))]

    def on_For(self, node: ast.For) -> list[str]:
        return [f"for {self.bare(node.target)} in {self.at(node.iter)}:", *self.indent(self.block(node.body))]

    def on_If(self, node: ast.If) -> list[str]:
        lines = [f"if {self.at(node.test)}:", *self.indent(self.block(node.body))]
        if is_elif(node):
            first, *rest = self.block(node.orelse)
            return [*lines, f"el{first}", *rest]
        return lines + (["else:", *self.indent(self.block(node.orelse))] if node.orelse else [])

    def bare(self, node: ast.expr) -> str:
        """A tuple without parentheses, or any other expression."""
        return ", ".join(map(self.at, node.elts)) if isinstance(node, ast.Tuple) else self.at(node)

    def on_Constant(self, node: ast.Constant) -> Code:
        return Code(self.literal(node.value, self.type(node)), ATOM)

    def negation(self, node: ast.expr) -> Code:
        return Code(f"not {self.at(node, NOT)}", NOT)

    def on_Compare(self, node: ast.Compare) -> Code:
        text = self.at(node.left, COMPARE + 1)
        for op, right in zip(node.ops, node.comparators, strict=True):
            text += f" {self.relation[type(op)][0]} {self.at(right, COMPARE + 1)}"
        return Code(text, COMPARE)

    def on_IfExp(self, node: ast.IfExp) -> Code:
        return Code(f"{self.at(node.body, OR)} if {self.at(node.test, OR)} else {self.at(node.orelse, TERNARY)}", TERNARY)

    def on_Call(self, node: ast.Call) -> Code:
        return Code(f"{self.at(node.func, POSTFIX)}({', '.join(map(self.at, node.args))})", POSTFIX)

    def on_Attribute(self, node: ast.Attribute) -> Code:
        return Code(f"{self.at(node.value, POSTFIX)}.{node.attr}", POSTFIX)

    def on_Subscript(self, node: ast.Subscript) -> Code:
        return Code(f"{self.at(node.value, POSTFIX)}[{self.at(node.slice)}]", POSTFIX)

    def on_Slice(self, node: ast.Slice) -> Code:
        lower, upper = (self.at(bound) if bound else "" for bound in (node.lower, node.upper))
        return Code(f"{lower}:{upper}" + (":-1" if node.step else ""))

    def on_List(self, node: ast.List) -> Code:
        return Code(f"[{', '.join(map(self.at, node.elts))}]")

    def on_ListComp(self, node: ast.ListComp) -> Code:
        return Code(f"[{self.at(node.elt)} for _ in {self.at(node.generators[0].iter)}]")

    def on_Dict(self, node: ast.Dict) -> Code:
        pairs = zip(node.keys, node.values, strict=True)
        return Code("{" + ", ".join(f"{self.at(key)}: {self.at(value)}" for key, value in pairs if key) + "}")

    def literal(self, value: Any, kind: Type) -> str:
        return self.quoted(value) if isinstance(value, str) else repr(value)

    def driver(self, function: Function, cases: Sequence[Case]) -> str:
        rows = ", ".join(f"({arguments!r}, {expected!r})" for arguments, expected in cases)
        wrong = "abs(got - expected) > 1e-9" if function.returns.kind == "float" else "got != expected"
        return (
            f"for number, (arguments, expected) in enumerate([{rows}], 1):\n"
            f"    got = {function.node.name}(*arguments)\n"
            f"    if {wrong}:\n"
            f'        raise AssertionError(f"case {{number}}: got {{got!r}}, expected {{expected!r}}")\n'
        )
