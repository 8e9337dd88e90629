"""Types of the definitions' Python subset, enough to print them in statically typed languages.

Parameters and returns are annotated; a local takes the join of everything assigned to it, found by iterating to a fixed
point. An empty container is annotated. A container of str that only ever holds single characters becomes one of char.
"""

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from .definition import SubsetError
from .kinds import BOOL, CHAR, FLOAT, INT, LETTER, LISTS, LONG, NONE, STR, TEXT, UNKNOWN, Type, annotation_type, join

CHAR_TESTS = ("isdigit", "isalpha", "isalnum", "isupper", "islower")


@dataclass
class Function:
    """A typed function: `types` by expression node, `variables` its parameters and locals."""

    node: ast.FunctionDef
    path: Path
    parameters: dict[str, Type]
    returns: Type
    variables: dict[str, Type] = field(default_factory=dict)
    types: dict[ast.expr, Type] = field(default_factory=dict)

    def fail(self, node: ast.AST, rule: str) -> NoReturn:
        raise SubsetError(self.path, getattr(node, "lineno", self.node.lineno), rule)


def infer(functions: Sequence[ast.FunctionDef], path: Path) -> list[Function]:
    """Types every function; `SubsetError` naming file, line and rule for what is outside the subset."""
    typed = [_signature(node, path) for node in functions]
    returns = {function.node.name: function.returns for function in typed}
    for function in typed:
        _Inference(function, returns).run()
    return typed


def _signature(node: ast.FunctionDef, path: Path) -> Function:
    function = Function(node, path, {}, NONE)
    if node.args.defaults or node.args.vararg or node.args.kwarg or node.args.kwonlyargs:
        function.fail(node, "default, star and keyword arguments are outside the subset")
    for arg in node.args.args:
        kind = annotation_type(arg.annotation)
        function.parameters[arg.arg] = kind or function.fail(arg, f"the parameter {arg.arg} needs a type of the subset")
    returns = annotation_type(node.returns)
    function.returns = returns or function.fail(node, f"{node.name} needs a return type of the subset")
    return function


class _Inference:
    def __init__(self, function: Function, returns: dict[str, Type]) -> None:
        self.function = function
        self.fail = function.fail
        self.returns = returns
        self.annotated: dict[str, Type] = {}
        self.narrowed: set[str] = set()

    def run(self) -> None:
        variables = dict(self.function.parameters)
        while True:
            self.variables = dict(variables)
            self.stored: dict[str, Type] = {}  # what the containers of str hold
            self.escaped: set[str] = set()  # containers that are used whole
            self.function.types.clear()
            self.block(self.function.node.body)
            again = self.variables != variables or self.narrow()
            variables = self.variables
            if not again:
                break
        self.function.variables = {name: STR if kind == LETTER else kind for name, kind in variables.items()}
        for node, kind in self.function.types.items():
            if isinstance(node, ast.Name) and kind == LETTER:
                self.function.types[node] = STR

    def narrow(self) -> bool:
        """Turns local containers of str that hold only characters into containers of char; says whether any changed."""
        names = {
            name
            for name, kind in self.annotated.items()
            if kind.kind in ("vec", "dict", "set") and kind.args[0] == STR and self.stored.get(name) == CHAR and name not in self.escaped
        }
        changed = names - self.narrowed
        for name in changed:
            kind = self.annotated[name]
            self.variables[name] = Type(kind.kind, (CHAR, *kind.args[1:]))
        self.narrowed |= changed
        return bool(changed)

    # statements

    def block(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            visit = getattr(self, f"on_{type(statement).__name__}", None)
            if visit is None:
                self.fail(statement, f"the statement {type(statement).__name__} is outside the subset")
            visit(statement)

    def bind(self, node: ast.expr, kind: Type) -> None:
        """Assigns a value of type `kind` to the target `node`."""
        if not isinstance(node, ast.Name):
            held = self.expr(node)
            if join(held, kind) is None:
                self.fail(node, f"{kind.kind} is stored where {held.kind} is held")
            return
        if kind == NONE or UNKNOWN in kind.args:
            self.fail(node, f"annotate {node.id}: its type does not follow from its first value")
        known = self.variables.get(node.id)
        joined = kind if known is None else join(known, kind)
        if joined is None or (node.id in self.function.parameters and joined != known and known not in (STR, FLOAT)):
            self.fail(node, f"{node.id} is {known.kind if known else ''} and gets a value of type {kind.kind}")
        self.variables[node.id] = self.function.types[node] = joined

    def on_Assign(self, node: ast.Assign) -> None:
        target = node.targets[0]
        if len(node.targets) > 1:
            self.fail(node, "a = b = c is outside the subset")
        if not isinstance(target, ast.Tuple):
            return self.bind(target, self.expr(node.value))
        if not isinstance(node.value, ast.Tuple) or len(node.value.elts) != len(target.elts):
            self.fail(node, "a tuple is assigned from a tuple of the same length")
        for part, kind in zip(target.elts, [self.expr(value) for value in node.value.elts], strict=True):
            self.bind(part, kind)

    def on_AnnAssign(self, node: ast.AnnAssign) -> None:
        kind = annotation_type(node.annotation)
        if kind is None or node.value is None or not isinstance(node.target, ast.Name):
            self.fail(node, "an annotated local has a type of the subset and a value")
        name = node.target.id
        self.annotated[name] = kind
        if join(self.expr(node.value), kind) is None:
            self.fail(node, f"the value of {name} is not {kind.kind}")
        self.bind(node.target, self.variables[name] if name in self.narrowed else kind)

    def on_AugAssign(self, node: ast.AugAssign) -> None:
        value = ast.copy_location(ast.BinOp(node.target, node.op, node.value), node)
        self.bind(node.target, self.expr(value))

    def on_For(self, node: ast.For) -> None:
        if node.orelse:
            self.fail(node, "for ... else is outside the subset")
        if not isinstance(node.target, ast.Name):
            self.fail(node, "a loop has one variable")
        call = node.iter
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range":
            kinds = [self.expr(arg) for arg in call.args]
            self.bind(node.target, LONG if LONG in kinds else INT)
        else:
            kind = self.receiver(node.iter)
            if kind.kind not in (*LISTS, *TEXT, "dict", "set"):
                self.fail(node, f"a value of type {kind.kind} cannot be walked over")
            self.bind(node.target, kind.item)
        self.block(node.body)

    def on_While(self, node: ast.While) -> None:
        if node.orelse:
            self.fail(node, "while ... else is outside the subset")
        self.test(node.test)
        self.block(node.body)

    def on_If(self, node: ast.If) -> None:
        self.test(node.test)
        self.block(node.body)
        self.block(node.orelse)

    def on_Return(self, node: ast.Return) -> None:
        kind = self.expr(node.value) if node.value else NONE
        if join(self.function.returns, kind) is None:
            self.fail(node, f"{kind.kind} is returned where {self.function.returns.kind} is promised")

    def on_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Call):
            self.fail(node, "a statement of its own is a call")
        self.expr(node.value)

    def on_Break(self, node: ast.Break) -> None:
        pass

    on_Continue = on_Break

    # expressions

    def expr(self, node: ast.expr) -> Type:
        """The type of `node`, noted in `Function.types`."""
        visit = getattr(self, f"on_{type(node).__name__}", None)
        if visit is None:
            self.fail(node, f"the expression {type(node).__name__} is outside the subset")
        kind: Type = visit(node)
        self.function.types[node] = kind
        return kind

    def test(self, node: ast.expr) -> None:
        """A condition: bool, or a number, text or container taken as one."""
        if self.receiver(node) in (FLOAT, CHAR, NONE):
            self.fail(node, "a condition is a bool, an int, a str or a container")

    def receiver(self, node: ast.expr) -> Type:
        """Like `expr`, for uses after which a container is still known to hold only what was stored by name."""
        escaped = set(self.escaped)
        kind = self.expr(node)
        if isinstance(node, ast.Name):
            self.escaped = escaped
        return kind

    def store(self, container: ast.expr, kind: Type) -> None:
        """Notes that an element or key of type `kind` goes in, or is looked up."""
        if isinstance(container, ast.Name):
            self.stored[container.id] = join(self.stored.get(container.id, LETTER), kind) or STR

    def on_Name(self, node: ast.Name) -> Type:
        if node.id not in self.variables:
            self.fail(node, f"{node.id} is neither a parameter nor assigned before")
        self.escaped.add(node.id)
        return self.variables[node.id]

    def on_Constant(self, node: ast.Constant) -> Type:
        value = node.value
        if isinstance(value, bool):
            return BOOL
        if isinstance(value, int):
            return INT if -(2**31) <= value < 2**31 else LONG
        if isinstance(value, str):
            return LETTER if len(value) == 1 else STR
        if isinstance(value, float):
            return FLOAT
        self.fail(node, f"the literal {value!r} is outside the subset")

    def on_BinOp(self, node: ast.BinOp) -> Type:
        left, right = self.expr(node.left), self.expr(node.right)
        if isinstance(node.op, ast.Mult) and isinstance(node.left, ast.List):
            return left  # [0] * n
        if isinstance(node.op, ast.Mult) and left.kind in ("char", *TEXT) and right.kind in ("int", "long"):
            return STR
        if isinstance(node.op, ast.Add) and left.kind in ("char", *TEXT) and right.kind in ("char", *TEXT):
            return STR
        if isinstance(node.op, ast.Div):
            return FLOAT
        if isinstance(node.op, ast.Pow):
            self.fail(node, "** is outside the subset: multiply, or shift")
        kind = join(left, right)
        if kind not in (INT, LONG, FLOAT, BOOL):
            self.fail(node, f"{left.kind} and {right.kind} do not take {type(node.op).__name__}")
        if isinstance(node.op, ast.LShift | ast.RShift):
            return left
        return kind

    def on_UnaryOp(self, node: ast.UnaryOp) -> Type:
        if isinstance(node.op, ast.Not):
            self.test(node.operand)
            return BOOL
        return self.expr(node.operand)

    def on_BoolOp(self, node: ast.BoolOp) -> Type:
        for value in node.values:
            self.test(value)
        return BOOL

    def on_Compare(self, node: ast.Compare) -> Type:
        if len(node.ops) == 1 and isinstance(node.ops[0], ast.In | ast.NotIn):
            kind = self.receiver(node.comparators[0])
            if kind.kind not in ("dict", "set", "vec", *TEXT):
                self.fail(node, f"`in` is for set, dict, Vec and str, not {kind.kind}")
            self.store(node.comparators[0], self.expr(node.left))
            return BOOL
        if len(node.ops) > 2:
            self.fail(node, "comparisons chain only as a <= x <= b")
        kinds = [self.expr(part) for part in (node.left, *node.comparators)]
        for a, b in pairwise(kinds):
            joined = join(a, b)
            if joined is None or joined.args:
                self.fail(node, f"{a.kind} and {b.kind} do not compare")
        return BOOL

    def on_IfExp(self, node: ast.IfExp) -> Type:
        self.test(node.test)
        a, b = self.expr(node.body), self.expr(node.orelse)
        return join(a, b) or self.fail(node, f"the two sides are {a.kind} and {b.kind}")

    def on_Subscript(self, node: ast.Subscript) -> Type:
        kind = self.receiver(node.value)
        if isinstance(node.slice, ast.Slice):
            return self.sliced(node, kind, node.slice)
        index = self.expr(node.slice)
        if kind.kind == "dict":
            self.store(node.value, index)
            return kind.args[1]
        if kind.kind not in (*LISTS, *TEXT) or index not in (INT, LONG):
            self.fail(node, f"{kind.kind} is not indexed by {index.kind}")
        return kind.item

    def sliced(self, node: ast.Subscript, kind: Type, part: ast.Slice) -> Type:
        whole = part.lower is None and part.upper is None
        if kind.kind not in TEXT or (part.step is not None and not (whole and ast.unparse(part.step) == "-1")):
            self.fail(node, "only strings are sliced, as s[i:j] or s[::-1]")
        for bound in (part.lower, part.upper):
            if bound is not None:
                self.expr(bound)
        return STR

    def on_List(self, node: ast.List) -> Type:
        kind: Type | None = UNKNOWN
        for element in node.elts:
            kind = join(kind, self.expr(element)) if kind else None
        if kind is None:
            self.fail(node, "the elements of a list have one type")
        return Type("array", (STR if kind == LETTER else kind,))

    def on_ListComp(self, node: ast.ListComp) -> Type:
        loop = node.generators[0]
        allocation = isinstance(loop.iter, ast.Call) and ast.unparse(loop.iter.func) == "range" and len(loop.iter.args) == 1
        if len(node.generators) > 1 or loop.ifs or ast.unparse(loop.target) != "_" or not allocation:
            self.fail(node, "a list comprehension has the form [[0] * m for _ in range(n)]")
        assert isinstance(loop.iter, ast.Call)
        self.expr(loop.iter.args[0])
        return Type("array", (self.expr(node.elt),))

    def on_Dict(self, node: ast.Dict) -> Type:
        kinds = [UNKNOWN, UNKNOWN]
        for key, value in zip(node.keys, node.values, strict=True):
            for place, part in enumerate((key, value)):
                joined = join(kinds[place], self.expr(part)) if part else None
                kinds[place] = joined or self.fail(node, "the keys, and the values, of a dict have one type")
        return Type("dict", tuple(STR if kind == LETTER else kind for kind in kinds))

    def on_Call(self, node: ast.Call) -> Type:
        if node.keywords:
            self.fail(node, "keyword arguments are outside the subset")
        if isinstance(node.func, ast.Attribute):
            return self.method(node, node.func)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name == "len":
            self.receiver(node.args[0])
            return INT
        kinds = [self.expr(arg) for arg in node.args]
        if name in self.returns:
            return self.returns[name]
        results = {"ord": INT, "chr": CHAR, "str": STR, "int": INT, "float": FLOAT}
        if name in results:
            return results[name]
        if name == "set" and not kinds:
            return Type("set", (UNKNOWN,))
        if name in ("abs", "sorted") and len(kinds) == 1:
            return kinds[0]
        if name in ("min", "max", "sum") and len(kinds) == 1 and kinds[0].kind in LISTS:
            return kinds[0].item
        if name in ("min", "max") and len(kinds) in (2, 3):
            joined: Type | None = kinds[0]
            for kind in kinds[1:]:
                joined = join(joined, kind) if joined else None
            return joined or self.fail(node, f"{name} of different types")
        self.fail(node, f"the call {ast.unparse(node)} is outside the subset")

    def method(self, node: ast.Call, func: ast.Attribute) -> Type:
        name, arity = func.attr, len(node.args)
        kind = self.receiver(func.value)
        kinds = [self.expr(arg) if name != "join" else self.receiver(arg) for arg in node.args]
        if name == "join":
            self.expr(node.args[0])
        signature = (kind.kind, name, arity)
        if signature in (("vec", "append", 1), ("set", "add", 1), ("set", "remove", 1), ("dict", "get", 2)):
            self.store(func.value, kinds[0])
            return kind.args[1] if name == "get" else NONE
        if signature == ("vec", "pop", 0):
            return kind.item
        if name in ("sort", "reverse") and kind.kind in LISTS and not arity:
            return NONE
        if kind.kind in ("char", *TEXT) and name in ("lower", "upper") and not arity:
            return kind
        if kind.kind in ("char", "letter") and name in CHAR_TESTS and not arity:
            return BOOL
        if kind.kind in TEXT and name == "split" and arity == 1 and isinstance(node.args[0], ast.Constant):
            return Type("array", (STR,))
        if kind.kind in TEXT and name == "join" and arity == 1 and kinds[0] in (Type("array", (STR,)), Type("vec", (STR,))):
            return STR
        self.fail(node, f"the method {kind.kind}.{name} with {arity} arguments is outside the subset")
