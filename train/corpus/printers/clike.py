"""What Java, JavaScript and C++ share: braces, declarations, counting loops, and parallel assignment."""

import ast
import re
from collections.abc import Sequence

from ..kinds import BOOL, CHAR, INT, LISTS, LONG, STR, Type, join
from ..scopes import mentions, targets
from .base import (
    ADD,
    AND,
    ATOM,
    EQUALITY,
    MULTIPLY,
    OR,
    POSTFIX,
    RELATION,
    TERNARY,
    UNARY,
    Code,
    Printer,
    constant,
    is_call,
    is_elif,
)


class CLikePrinter(Printer):
    accessors: tuple[str, ...] = ()  # container types whose elements are read and written by methods

    @staticmethod
    def name(name: str) -> str:
        """snake_case to camelCase."""
        return re.sub(r"_(\w)", lambda match: match[1].upper(), name)

    # what each language fills in

    def declaration(self, name: str, kind: Type, value: str | None) -> str:
        """`int x = value;`, or without a value."""
        raise NotImplementedError

    def expansion(self, node: ast.expr) -> str | None:
        """If `node` has no expression in this language, the base of a name for the variable that will hold it."""
        return None

    def expand(self, node: ast.expr, name: str, kind: Type, declare: bool) -> list[str]:
        """The statements that put the value of `node` into the variable `name`."""
        raise NotImplementedError

    def element(self, container: ast.expr, index: str) -> Code:
        """An element that is read by a method (for `accessors`)."""
        raise NotImplementedError

    def set_element(self, container: ast.expr, index: str, value: str) -> str:
        raise NotImplementedError

    def walk(self, variable: str, kind: Type, iterable: ast.expr, changed: bool) -> tuple[str, list[str]]:
        """The header of a loop over the items of `iterable`, without the brace, and the first lines of its body."""
        raise NotImplementedError

    def membership(self, container: ast.expr, item: ast.expr) -> tuple[Code, Code]:
        """`item in container`, and its negation."""
        raise NotImplementedError

    def empty_test(self, node: ast.expr) -> tuple[Code, Code]:
        """Whether a text or container holds something, and its negation."""
        raise NotImplementedError

    def allocation(self, size: ast.expr, fill: ast.expr, kind: Type) -> Code:
        """`[fill] * size` or `[fill for _ in range(size)]` of type `kind`."""
        raise NotImplementedError

    def length(self, node: ast.expr) -> Code:
        raise NotImplementedError

    def text_equality(self, left: ast.expr, right: ast.expr, symbol: str) -> Code | None:
        """A comparison of two texts, or of two boxed values, where the operator itself would not do."""
        return None

    # statements

    def statement(self, node: ast.stmt) -> list[str]:
        """With the statements that its expressions needed before it, and the variables declared ahead of it."""
        outer = getattr(self, "before", [])
        self.before: list[str] = []
        hoisted = [self.declaration(self.name(name), self.function.variables[name], None) for name in self.scopes.hoists.get(node, [])]
        lines = super().statement(node)
        if self.before and isinstance(node, ast.While):
            self.fail(node, "this condition needs a statement of its own in some language: compute it before the loop")
        lines = hoisted + self.before + lines
        self.before = outer
        return lines

    def on_Assign(self, node: ast.Assign | ast.AnnAssign) -> list[str]:
        assert node.value
        declared = self.scopes.declares.get(node, set())
        parts = targets(node)
        if len(parts) == 1:
            return self.assign(parts[0], node.value, declared)
        assert isinstance(node.value, ast.Tuple)
        return self.assign_all(parts, node.value.elts, declared)

    on_AnnAssign = on_Assign

    def assign(self, target: ast.expr, value: ast.expr, declared: set[str]) -> list[str]:
        if not isinstance(target, ast.Name):
            return [self.put(target, self.at(value, 0, self.type(target)))]
        name, kind, new = self.name(target.id), self.function.variables[target.id], target.id in declared
        if self.expansion(value):
            return self.expand(value, name, kind, new)
        text = self.at(value, 0, kind)
        return [self.declaration(name, kind, text) if new else f"{name} = {text};"]

    def assign_all(self, parts: list[ast.expr], values: list[ast.expr], declared: set[str]) -> list[str]:
        """`a, b = x, y` one after the other; a value that mentions an earlier target is computed ahead."""
        lines, texts = [], {}
        for place, (target, value) in enumerate(zip(parts, values, strict=True)):
            if any(self.depends(value, earlier) for earlier in parts[:place]):
                kind = self.target_type(target)
                texts[place] = self.fresh("temp" if isinstance(value, ast.Name | ast.Subscript) else "next")
                lines.append(self.declaration(texts[place], kind, self.at(value, 0, kind)))
        for place, (target, value) in enumerate(zip(parts, values, strict=True)):
            if place in texts:
                name = self.name(target.id) if isinstance(target, ast.Name) else ""
                new = name and isinstance(target, ast.Name) and target.id in declared
                lines.append(self.declaration(name, self.target_type(target), texts[place]) if new else self.put(target, texts[place]))
            else:
                lines += self.assign(target, value, declared)
        return lines

    def target_type(self, target: ast.expr) -> Type:
        return self.function.variables[target.id] if isinstance(target, ast.Name) else self.type(target)

    @staticmethod
    def depends(value: ast.expr, target: ast.expr) -> bool:
        while isinstance(target, ast.Subscript):
            target = target.value
        return isinstance(target, ast.Name) and mentions(value, target.id)

    def put(self, target: ast.expr, text: str) -> str:
        """`target = text;`"""
        if isinstance(target, ast.Subscript) and self.kind(target.value) in self.accessors:
            return self.set_element(target.value, self.index(target), text)
        return f"{self.at(target)} = {text};"

    def on_AugAssign(self, node: ast.AugAssign) -> list[str]:
        target = node.target
        if isinstance(target, ast.Subscript) and self.kind(target.value) in self.accessors:
            return [self.put(target, self.at(self.operation(node), 0, self.type(target)))]
        if constant(node.value) == 1 and isinstance(node.op, ast.Add | ast.Sub) and self.kind(target) in ("int", "long"):
            return [f"{self.at(target)}{'++' if isinstance(node.op, ast.Add) else '--'};"]
        return [f"{self.at(target)} {self.binary[type(node.op)][0]}= {self.at(node.value)};"]

    def operation(self, node: ast.AugAssign) -> ast.BinOp:
        """The binary operation of `x += y`, typed."""
        value = ast.copy_location(ast.BinOp(node.target, node.op, node.value), node)
        self.function.types[value] = join(self.type(node.target), self.type(node.value)) or STR
        return value

    def on_Return(self, node: ast.Return) -> list[str]:
        return [f"return {self.at(node.value, 0, self.function.returns)};" if node.value else "return;"]

    def on_Expr(self, node: ast.Expr) -> list[str]:
        return [f"{self.at(node.value)};"]

    def on_Break(self, node: ast.Break) -> list[str]:
        return ["break;"]

    def on_Continue(self, node: ast.Continue) -> list[str]:
        return ["continue;"]

    def braced(self, header: str, body: Sequence[ast.stmt], first: Sequence[str] = ()) -> list[str]:
        return [f"{header} {{", *self.indent([*first, *self.block(body)]), "}"]

    def on_While(self, node: ast.While) -> list[str]:
        return self.braced(f"while ({self.condition(node.test)})", node.body)

    def on_If(self, node: ast.If) -> list[str]:
        lines = self.braced(f"if ({self.condition(node.test)})", node.body)
        if not node.orelse:
            return lines
        if is_elif(node):
            first, *rest = self.block(node.orelse)
            if not first.startswith("if "):
                self.fail(node.orelse[0], "this elif needs a statement before it in some language: use else and if")
            return [*lines[:-1], f"}} else {first}", *rest]
        return [*lines[:-1], *self.braced("} else", node.orelse)]

    def on_For(self, node: ast.For) -> list[str]:
        assert isinstance(node.target, ast.Name)
        variable, kind = self.name(node.target.id), self.function.variables[node.target.id]
        if is_call(node.iter, "range"):
            assert isinstance(node.iter, ast.Call)
            return self.braced(self.counting(variable, kind, node.iter.args), node.body)
        changed = any(
            isinstance(target, ast.Name) and target.id == node.target.id
            for inner in node.body
            for part in ast.walk(inner)
            if isinstance(part, ast.stmt)
            for target in targets(part)
        )
        header, first = self.walk(variable, kind, node.iter, changed)
        return self.braced(header, node.body, first)

    def counting(self, variable: str, kind: Type, bounds: list[ast.expr]) -> str:
        start = self.at(bounds[0]) if len(bounds) > 1 else "0"
        step = constant(bounds[2]) if len(bounds) > 2 else 1
        down = isinstance(step, int) and step < 0
        relation, bound = self.last(bounds[0] if len(bounds) == 1 else bounds[1], down)
        if step in (1, -1):
            advance = f"{variable}{'--' if down else '++'}"
        else:
            advance = f"{variable} {'-' if down else '+'}= {abs(step) if isinstance(step, int) else self.at(bounds[2])}"
        return f"for ({self.declaration(variable, kind, start)[:-1]}; {variable} {relation} {bound}; {advance})".replace("const ", "let ")

    def last(self, stop: ast.expr, down: bool) -> tuple[str, str]:
        """The loop's condition: `< n`, but `<= n` for a stop of `n + 1`, and `>= 0` for a stop of -1 on the way down."""
        value = constant(stop)
        wanted = ast.Sub if down else ast.Add
        if isinstance(stop, ast.BinOp) and isinstance(stop.op, wanted) and constant(stop.right) == 1:
            return (">=" if down else "<="), self.at(stop.left, RELATION + 1)
        if down and isinstance(value, int) and value < 0:
            return ">=", str(value + 1)
        return (">" if down else "<"), self.at(stop, RELATION + 1)

    # expressions

    def code(self, node: ast.expr) -> Code:
        if base := self.expansion(node):
            name = self.fresh(base)
            kind = self.type(node)
            self.before += self.expand(node, name, STR if kind.kind == "letter" else kind, True)
            return Code(name)
        return super().code(node)

    def value(self, node: ast.expr, want: Type) -> Code:
        if self.expansion(node):
            return self.code(node)
        if isinstance(node, ast.IfExp):
            test, ahead = self.condition(node.test, OR), len(self.before)
            sides = f"{self.at(node.body, OR, want)} : {self.at(node.orelse, TERNARY, want)}"
            self.check_unconditional(node, ahead)
            return Code(f"{test} ? {sides}", TERNARY)
        if isinstance(node, ast.List | ast.Dict) or is_call(node, "set"):
            return self.collection(node, want)
        if isinstance(node, ast.ListComp):
            loop = node.generators[0].iter
            assert isinstance(loop, ast.Call)
            return self.allocation(loop.args[0], node.elt, want)
        if isinstance(node, ast.BinOp) and isinstance(node.left, ast.List):
            return self.allocation(node.right, node.left.elts[0], want)
        return self.converted(node, want)

    def on_BoolOp(self, node: ast.BoolOp) -> Code:
        symbol, level = self.connective(node)
        first, ahead = self.condition(node.values[0], level + 1), len(self.before)
        rest = [self.condition(value, level + 1) for value in node.values[1:]]
        self.check_unconditional(node, ahead)
        return Code(f" {symbol} ".join([first, *rest]), level)

    def check_unconditional(self, node: ast.expr, ahead: int) -> None:
        """A part that is evaluated only at times cannot have needed a statement ahead of the whole."""
        if len(self.before) > ahead:
            self.fail(node, "this part needs a statement of its own in some language: compute it before, or nest two ifs")

    def converted(self, node: ast.expr, want: Type) -> Code:
        """`node`, which is no collection, as a `want`."""
        return self.code(node)

    def collection(self, node: ast.expr, want: Type) -> Code:
        """A list, dict or set literal of type `want`."""
        if isinstance(node, ast.List):
            return Code(self.list_text([self.at(element, 0, want.item) for element in node.elts], want), POSTFIX)
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            return self.dict_text([(self.at(k, 0, want.args[0]), self.at(v, 0, want.args[1])) for k, v in pairs if k], want)
        return self.dict_text([], want)

    def dict_text(self, pairs: list[tuple[str, str]], kind: Type) -> Code:
        """A dict literal, or the empty set."""
        raise NotImplementedError

    def on_List(self, node: ast.expr) -> Code:
        return self.value(node, self.type(node))

    on_ListComp = on_IfExp = on_List

    def on_Constant(self, node: ast.Constant) -> Code:
        negative = isinstance(node.value, int | float) and node.value < 0
        kind = self.type(node)
        return Code(self.literal(node.value, STR if kind.kind == "letter" else kind), UNARY if negative else ATOM)

    def on_BinOp(self, node: ast.BinOp) -> Code:
        left, right = self.type(node.left), self.type(node.right)
        if isinstance(node.op, ast.Mult) and isinstance(node.left, ast.List):
            return self.value(node, self.type(node))
        if isinstance(node.op, ast.Mult) and self.type(node) == STR:
            return self.repeated(node.left, node.right)
        if isinstance(node.op, ast.Add) and self.type(node) == STR:
            return self.concatenation(node)
        if isinstance(node.op, ast.Div):
            return self.quotient(node.left, node.right, left.kind != "float" and right.kind != "float")
        return super().on_BinOp(node)

    def repeated(self, text: ast.expr, times: ast.expr) -> Code:
        return Code(f"{self.at(text, POSTFIX, STR)}.repeat({self.at(times)})", POSTFIX)

    def concatenation(self, node: ast.BinOp) -> Code:
        return Code(f"{self.at(node.left, ADD)} + {self.at(node.right, ADD + 1)}", ADD)

    def quotient(self, left: ast.expr, right: ast.expr, integers: bool) -> Code:
        """Python's `/`: of two integers it is their exact ratio."""
        cast = "(double) " if integers else ""
        return Code(f"{cast}{self.at(left, UNARY if cast else MULTIPLY)} / {self.at(right, MULTIPLY + 1)}", MULTIPLY)

    def on_Compare(self, node: ast.Compare) -> Code:
        if isinstance(node.ops[0], ast.In | ast.NotIn):
            return self.membership(node.comparators[0], node.left)[isinstance(node.ops[0], ast.NotIn)]
        operands = [node.left, *node.comparators]
        parts = [self.comparison(a, op, b) for a, op, b in zip(operands, node.ops, operands[1:], strict=False)]
        return parts[0] if len(parts) == 1 else Code(f" {self.conjunction[0]} ".join(part.text for part in parts), AND)

    def comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Code:
        symbol, level = self.relation[type(op)]
        if special := self.text_equality(left, right, symbol):
            return special
        want = self.joined(left, right)
        numeric = want in (INT, LONG, BOOL) or want.kind == "float"
        texts = [self.at(side, level + 1, None if numeric else want) for side in (left, right)]
        return Code(f"{texts[0]} {symbol} {texts[1]}", level)

    def condition(self, node: ast.expr, level: int = 0) -> str:
        kind = self.type(node)
        if kind == BOOL:
            return self.at(node, level)
        return self.parenthesised(self.truth(node)[0], level)

    @staticmethod
    def parenthesised(code: Code, level: int) -> str:
        return f"({code.text})" if code.level < level else code.text

    def truth(self, node: ast.expr) -> tuple[Code, Code]:
        """`bool(node)` of a number, text or container, and its negation."""
        if self.kind(node) in ("int", "long"):
            text = self.at(node, EQUALITY + 1)
            return Code(f"{text} {self.relation[ast.NotEq][0]} 0", EQUALITY), Code(f"{text} {self.relation[ast.Eq][0]} 0", EQUALITY)
        return self.empty_test(node)

    def negation(self, node: ast.expr) -> Code:
        if self.type(node) != BOOL:
            return self.truth(node)[1]
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            return self.membership(node.comparators[0], node.left)[isinstance(node.ops[0], ast.In)]
        return Code(f"!{self.at(node, UNARY)}", UNARY)

    def on_Subscript(self, node: ast.Subscript) -> Code:
        if isinstance(node.slice, ast.Slice):
            return self.sliced(node, node.slice)
        if self.kind(node.value) in self.accessors:
            return self.element(node.value, self.index(node))
        return Code(f"{self.at(node.value, POSTFIX)}[{self.index(node)}]", POSTFIX)

    def sliced(self, node: ast.Subscript, part: ast.Slice) -> Code:
        raise NotImplementedError

    def index(self, node: ast.Subscript) -> str:
        """The index or key; a negative constant counts from the end."""
        kind = self.type(node.value)
        assert not isinstance(node.slice, ast.Slice)
        if kind.kind == "dict":
            return self.at(node.slice, 0, kind.args[0])
        return self.position(node.value, node.slice)

    def position(self, container: ast.expr, node: ast.expr) -> str:
        value = constant(node)
        if isinstance(value, int) and value < 0:
            return f"{self.at_length(container)} - {-value}"
        return self.at(node, 0, INT)

    def at_length(self, container: ast.expr) -> str:
        return self.parenthesised(self.length(container), ADD)

    def on_Call(self, node: ast.Call) -> Code:
        if isinstance(node.func, ast.Attribute):
            receiver = node.func.value
            family = "list" if self.kind(receiver) in LISTS else {"letter": "str"}.get(self.kind(receiver), self.kind(receiver))
            method = getattr(self, f"{family}_{node.func.attr}", None)
            if method is None:
                self.fail(node, f"{family}.{node.func.attr} has no form in {type(self).__module__.rpartition('.')[2]}")
            return Code(method(receiver, *node.args), POSTFIX)
        assert isinstance(node.func, ast.Name)
        if node.func.id in self.functions:
            return Code(self.call_user(node, node.func.id), POSTFIX)
        code: Code = getattr(self, f"call_{node.func.id}")(node, *node.args)
        return code

    def call_len(self, node: ast.Call, container: ast.expr) -> Code:
        return self.length(container)

    def item_type(self, container: ast.expr) -> Type:
        return self.type(container).item

    def is_char(self, node: ast.expr) -> bool:
        return self.type(node) == CHAR
