"""Where a block-scoped language declares the variables of a function, and which of them it changes.

Python's variables live in the whole function. A variable is declared by its first assignment if that dominates all its
uses, separately in sibling blocks if no value flows between them, and otherwise without a value before the first
statement that mentions it.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .inference import Function

_IN_PLACE = ("append", "pop", "sort", "reverse", "add", "remove")


@dataclass
class Scopes:
    declares: dict[ast.stmt, set[str]] = field(default_factory=dict)  # targets that this assignment declares
    hoists: dict[ast.stmt, list[str]] = field(default_factory=dict)  # to declare, without a value, before this statement
    mutated: set[str] = field(default_factory=set)  # containers changed in place
    assignments: dict[str, int] = field(default_factory=dict)  # how often a name is bound

    def constant(self, name: str) -> bool:
        """Every binding of `name` is a declaration of its own."""
        return self.assignments[name] == sum(name in names for names in self.declares.values())


def find_scopes(functions: Sequence[Function]) -> dict[str, Scopes]:
    """Scopes by function name; a container passed to a function that changes its parameter counts as changed."""
    found = {function.node.name: _Finder(function).run() for function in functions}
    parameters = {function.node.name: list(function.parameters) for function in functions}
    calls = [
        (found[function.node.name].mutated, node.func.id, node.args)
        for function in functions
        for node in ast.walk(function.node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in parameters
    ]
    for _ in functions:  # one round for each level of calls
        for mutated, name, args in calls:
            changed = [arg for arg, parameter in zip(args, parameters[name], strict=True) if parameter in found[name].mutated]
            mutated.update(arg.id for arg in map(_base, changed) if isinstance(arg, ast.Name))
    return found


def targets(statement: ast.stmt) -> list[ast.expr]:
    """What an assignment or a loop assigns to, tuples taken apart."""
    if isinstance(statement, ast.Assign):
        target = statement.targets[0]
        return target.elts if isinstance(target, ast.Tuple) else [target]
    return [statement.target] if isinstance(statement, ast.AnnAssign | ast.AugAssign | ast.For) else []


def mentions(node: ast.AST | None, name: str) -> bool:
    return node is not None and any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))


def _base(node: ast.expr) -> ast.expr:
    while isinstance(node, ast.Subscript):
        node = node.value
    return node


def _blocks(statement: ast.stmt) -> list[list[ast.stmt]]:
    return [block for block in (getattr(statement, "body", []), getattr(statement, "orelse", [])) if block]


class _Finder:
    def __init__(self, function: Function) -> None:
        self.function = function
        self.scopes = Scopes()

    def run(self) -> Scopes:
        for name in self.function.variables:
            self.scopes.assignments[name] = int(name in self.function.parameters)
        for node in ast.walk(self.function.node):
            if isinstance(node, ast.stmt):
                self.note_changes(node)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _IN_PLACE:
                base = _base(node.func.value)
                self.scopes.mutated.update([base.id] if isinstance(base, ast.Name) else [])
        for loop in ast.walk(self.function.node):
            if isinstance(loop, ast.For):
                self.check_loop(loop)
        for name in self.function.variables:
            if name not in self.function.parameters:
                self.place(self.function.node.body, name)
            elif any(isinstance(node, ast.For) and mentions(node.target, name) for node in ast.walk(self.function.node)):
                self.function.fail(self.function.node, f"the loop variable {name} is also a parameter")
        return self.scopes

    def note_changes(self, statement: ast.stmt) -> None:
        for target in targets(statement):
            if isinstance(target, ast.Name):
                self.scopes.assignments[target.id] += not isinstance(statement, ast.For)
            elif isinstance(base := _base(target), ast.Name):
                self.scopes.mutated.add(base.id)

    def check_loop(self, loop: ast.For) -> None:
        """Python evaluates a range once, and binds its variable anew each time round; a C-like loop does not."""
        if not (isinstance(loop.iter, ast.Call) and isinstance(loop.iter.func, ast.Name) and loop.iter.func.id == "range"):
            return
        variable = loop.target.id if isinstance(loop.target, ast.Name) else ""
        bounds = loop.iter.args if len(loop.iter.args) == 1 else loop.iter.args[1:]
        resized = {_base(node.value) for node in _walk_all(loop.body) if isinstance(node, ast.Attribute) and node.attr in ("append", "pop")}
        changed = {base.id for base in resized if isinstance(base, ast.Name)}
        for statement in _walk_all(loop.body):
            if isinstance(statement, ast.stmt):
                changed.update(target.id for target in targets(statement) if isinstance(target, ast.Name))
        for name in (variable, *sorted(changed)):
            if (name in changed and name == variable) or (name in changed and any(mentions(bound, name) for bound in bounds)):
                self.function.fail(loop, f"{name} decides the range of this loop, whose body changes it: use while")

    def place(self, block: Sequence[ast.stmt], name: str) -> None:
        """Decides the declarations of `name`, all of whose mentions are in `block`."""
        users = [statement for statement in block if mentions(statement, name)]
        closed = 0
        while closed < len(users) and self.is_closed(users[closed], name):
            closed += 1
        if closed < len(users) and not self.assigns(users[closed], name):
            first, rest = users[0], users
            if not any(name in {getattr(target, "id", "") for target in self.bound(part)} for part in ast.walk(first)):
                self.function.fail(first, f"{name} may be used before it has a value")
            self.scopes.hoists.setdefault(first, []).append(name)
        else:
            for statement in users[:closed]:
                for inner in _blocks(statement):
                    if isinstance(statement, ast.For) and mentions(statement.target, name):
                        continue
                    self.place(inner, name)
            if closed == len(users):
                return
            self.scopes.declares.setdefault(users[closed], set()).add(name)
            rest = users[closed:]
        if any(isinstance(node, ast.For) and mentions(node.target, name) for node in _walk_all(rest)):
            self.function.fail(rest[0], f"the loop variable {name} is also used outside its loop")

    @staticmethod
    def bound(node: ast.AST) -> list[ast.expr]:
        return targets(node) if isinstance(node, ast.stmt) else []

    def assigns(self, statement: ast.stmt, name: str) -> bool:
        """`name = value`, the value not mentioning `name`."""
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or mentions(statement.value, name):
            return False
        return any(isinstance(target, ast.Name) and target.id == name for target in targets(statement))

    def is_closed(self, statement: ast.stmt, name: str) -> bool:
        """A compound statement into which no value of `name` flows."""
        if isinstance(statement, ast.For):
            if mentions(statement.iter, name):
                return False
            return mentions(statement.target, name) or self.block_is_closed(statement.body, name)
        if isinstance(statement, ast.While | ast.If):
            return not mentions(statement.test, name) and all(self.block_is_closed(block, name) for block in _blocks(statement))
        return False

    def block_is_closed(self, block: Sequence[ast.stmt], name: str) -> bool:
        users = [statement for statement in block if mentions(statement, name)]
        for place, statement in enumerate(users):
            if self.assigns(statement, name):
                return True
            if not self.is_closed(statement, name):
                return place > 0 and self.always_assigns(users[0], name)
        return True

    def always_assigns(self, statement: ast.stmt, name: str) -> bool:
        if isinstance(statement, ast.If) and statement.orelse:
            return all(any(self.always_assigns(inner, name) for inner in block) for block in (statement.body, statement.orelse))
        return self.assigns(statement, name)


def _walk_all(statements: Sequence[ast.stmt]) -> Iterator[ast.AST]:
    for statement in statements:
        yield from ast.walk(statement)
