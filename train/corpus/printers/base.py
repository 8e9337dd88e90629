"""What the printers of all languages share: operators with their precedence, blocks, names, and the test driver's frame.

A program holds imports and functions and no main: its tests bring the driver (`Printer.driver`), so that one program can
be judged by any cases and a model never learns a particular input. Program + blank line + driver is a whole source file
that exits with a status other than zero at the first wrong case.
"""

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from ..definition import COMMENT, Case
from ..inference import Function
from ..kinds import BOOL, INT, LETTER, LISTS, LONG, STR, Type, join
from ..scopes import Scopes

# How tightly an expression binds, in the C-like languages; Python's table differs in its own printer.
TERNARY, OR, AND, BIT_OR, BIT_XOR, BIT_AND, EQUALITY, RELATION, SHIFT, ADD, MULTIPLY, UNARY, POSTFIX, ATOM = range(1, 15)


class Code(NamedTuple):
    text: str
    level: int = ATOM


@dataclass(frozen=True)
class Printed:
    """A program; `snippets` has (index of a comment, the statement below it)."""

    code: str
    entry_point: str
    snippets: tuple[tuple[int, str], ...]


class Printer:
    binary: Mapping[type[ast.operator], tuple[str, int]] = {
        ast.Add: ("+", ADD), ast.Sub: ("-", ADD), ast.Mult: ("*", MULTIPLY), ast.Div: ("/", MULTIPLY), ast.Mod: ("%", MULTIPLY),
        ast.FloorDiv: ("/", MULTIPLY), ast.BitAnd: ("&", BIT_AND), ast.BitOr: ("|", BIT_OR), ast.BitXor: ("^", BIT_XOR),
        ast.LShift: ("<<", SHIFT), ast.RShift: (">>", SHIFT),
    }  # fmt: skip
    relation: Mapping[type[ast.cmpop], tuple[str, int]] = {
        ast.Eq: ("==", EQUALITY), ast.NotEq: ("!=", EQUALITY),
        ast.Lt: ("<", RELATION), ast.LtE: ("<=", RELATION), ast.Gt: (">", RELATION), ast.GtE: (">=", RELATION),
    }  # fmt: skip
    conjunction: tuple[str, int] = ("&&", AND)
    disjunction: tuple[str, int] = ("||", OR)
    unary: Mapping[type[ast.unaryop], str] = {ast.USub: "-", ast.UAdd: "+", ast.Invert: "~"}
    reserved: frozenset[str] = frozenset()

    def __init__(self, functions: Sequence[Function], scopes: Mapping[str, Scopes]) -> None:
        self.functions = {function.node.name: function for function in functions}
        self.all_scopes = scopes
        self.snippets: list[tuple[int, str]] = []

    # the frame

    def program(self) -> Printed:
        entry = list(self.functions)[-1]
        texts = []
        for function in self.functions.values():
            self.function, self.scopes = function, self.all_scopes[function.node.name]
            self.taken = {self.name(name) for name in function.variables} | {self.name(name) for name in self.functions}
            for name in self.taken & self.reserved:
                function.fail(function.node, f"{name} is a reserved word of {type(self).__module__.rpartition('.')[2]}: rename it")
            texts.append("\n".join(self.define(function)))
        return Printed(self.frame(texts), self.name(entry), tuple(self.snippets))

    def define(self, function: Function) -> list[str]:
        """The lines of a function."""
        raise NotImplementedError

    def frame(self, functions: list[str]) -> str:
        """The program around the texts of its functions."""
        raise NotImplementedError

    def driver(self, function: Function, cases: Sequence[Case]) -> str:
        """The source that calls `function` with every case; goes below the program."""
        raise NotImplementedError

    # helpers

    def fail(self, node: ast.AST, rule: str) -> NoReturn:
        self.function.fail(node, rule)

    def type(self, node: ast.expr) -> Type:
        return self.function.types[node]

    def kind(self, node: ast.expr) -> str:
        return self.type(node).kind

    def is_text(self, node: ast.expr) -> bool:
        return self.type(node) in (STR, LETTER)

    @staticmethod
    def name(name: str) -> str:
        """A Python name in the style of this language."""
        return name

    def fresh(self, base: str) -> str:
        """A name that the function does not use yet."""
        name, number = base, 2
        while name in self.taken:
            name, number = f"{base}{number}", number + 1
        self.taken.add(name)
        return name

    @staticmethod
    def indent(lines: Iterable[str]) -> list[str]:
        return [f"    {line}" if line else line for line in lines]

    # statements

    def block(self, statements: Sequence[ast.stmt]) -> list[str]:
        lines = []
        for statement in statements:
            printed = self.statement(statement)
            if (comment := getattr(statement, COMMENT, None)) is not None:
                self.snippets.append((comment, "\n".join(printed)))
            lines += printed
        return lines

    def statement(self, node: ast.stmt) -> list[str]:
        lines: list[str] = getattr(self, f"on_{type(node).__name__}")(node)
        return lines

    # expressions

    def at(self, node: ast.expr, level: int = 0, want: Type | None = None) -> str:
        """The text of `node` as a value of type `want`, in parentheses if it binds less tightly than `level`."""
        code = self.code(node) if want is None else self.value(node, want)
        return f"({code.text})" if code.level < level else code.text

    def value(self, node: ast.expr, want: Type) -> Code:
        """`node` where a value of type `want` is wanted: literals take its form, narrower values are converted."""
        return self.code(node)

    def code(self, node: ast.expr) -> Code:
        code: Code = getattr(self, f"on_{type(node).__name__}")(node)
        return code

    def on_Name(self, node: ast.Name) -> Code:
        return Code(self.name(node.id))

    def on_BinOp(self, node: ast.BinOp) -> Code:
        symbol, level = self.binary[type(node.op)]
        return Code(f"{self.at(node.left, level)} {symbol} {self.at(node.right, level + 1)}", level)

    def on_UnaryOp(self, node: ast.UnaryOp) -> Code:
        if isinstance(node.op, ast.Not):
            return self.negation(node.operand)
        operand = self.at(node.operand, UNARY)
        return Code(self.unary[type(node.op)] + (f"({operand})" if operand[0] in "+-" else operand), UNARY)

    def negation(self, node: ast.expr) -> Code:
        raise NotImplementedError

    def connective(self, node: ast.BoolOp) -> tuple[str, int]:
        return self.conjunction if isinstance(node.op, ast.And) else self.disjunction

    def on_BoolOp(self, node: ast.BoolOp) -> Code:
        symbol, level = self.connective(node)
        return Code(f" {symbol} ".join(self.condition(value, level + 1) for value in node.values), level)

    def condition(self, node: ast.expr, level: int = 0) -> str:
        """`node` as a condition."""
        return self.at(node, level)

    def call_user(self, node: ast.Call, name: str) -> str:
        """The call of a function of the program, arguments converted to its parameters' types."""
        wanted = self.functions[name].parameters.values()
        arguments = ", ".join(self.at(arg, 0, want) for arg, want in zip(node.args, wanted, strict=True))
        return f"{self.name(name)}({arguments})"

    def joined(self, a: ast.expr, b: ast.expr) -> Type:
        kind = join(self.type(a), self.type(b)) or STR
        return STR if kind == LETTER else kind

    # values of test cases

    def literal(self, value: Any, kind: Type) -> str:
        """A Python value of type `kind` as source text."""
        if kind == BOOL:
            return "true" if value else "false"
        if kind == STR:
            return self.quoted(value)
        if kind.kind in LISTS:
            return self.list_text([self.literal(item, kind.item) for item in value], kind)
        if kind in (INT, LONG) or kind.kind == "float":
            return self.number(value, kind)
        raise ValueError(f"a test case cannot hold a value of type {kind.kind}")

    def number(self, value: float, kind: Type) -> str:
        return repr(value)

    @staticmethod
    def quoted(value: str, quote: str = '"') -> str:
        escapes = {"\\": "\\\\", quote: f"\\{quote}", "\n": "\\n", "\t": "\\t"}
        return quote + "".join(escapes.get(letter, letter) for letter in value) + quote

    def list_text(self, items: list[str], kind: Type) -> str:
        return f"[{', '.join(items)}]"

    def arguments(self, values: Sequence[Any], function: Function) -> list[str]:
        return [self.literal(value, kind) for value, kind in zip(values, function.parameters.values(), strict=True)]


def is_call(node: ast.expr, name: str) -> bool:
    """A call of the builtin `name`."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def constant(node: ast.expr) -> Any:
    """The value of a literal (a negative number included), None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        value: Any = node.operand.value
        return -value
    return node.value if isinstance(node, ast.Constant) else None


def is_elif(node: ast.If) -> bool:
    """The else branch of `node` is one `elif` (an `else:` with an `if` inside stands further right)."""
    return len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If) and node.orelse[0].col_offset == node.col_offset
