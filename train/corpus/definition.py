"""How a problem family is defined, and how all of them are found.

A family is one function of `families/<topic>.py` under the `family` decorator, in a small typed subset of Python
(`inference` has the rules). Comment lines stand above the statement they describe and hold wordings separated by `|`.
"""

import ast
import importlib
import io
import pkgutil
import tokenize
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Long = int  # a 64-bit integer where a language tells the two apart
Vec = list  # a growable list where a language tells it apart from an array

Case = tuple[tuple[Any, ...], Any]  # arguments, expected result
COMMENT = "comment"  # the attribute of a statement that holds its index into Family.comments


class SubsetError(ValueError):
    """A definition breaks a rule of the subset."""

    def __init__(self, path: Path, line: int, rule: str) -> None:
        super().__init__(f"{path.parent.name}/{path.name}:{line}: {rule}")


@dataclass(frozen=True, eq=False)
class Family:
    """One problem: `functions` are its helpers, then the function itself; `holes` name the constants that vary."""

    name: str
    topic: str
    titles: tuple[str, ...]
    cases: tuple[Case, ...]
    holes: dict[str, tuple[int | str, ...]]
    functions: tuple[ast.FunctionDef, ...]
    comments: tuple[tuple[str, ...], ...]  # in program order, each its wordings
    path: Path

    @property
    def parameters(self) -> list[str]:
        return [arg.arg for arg in self.functions[-1].args.args]

    @property
    def default_holes(self) -> dict[str, int | str]:
        return {name: values[0] for name, values in self.holes.items()}


@dataclass(frozen=True)
class _Declared:
    name: str
    titles: tuple[str, ...]
    cases: tuple[Case, ...]
    holes: dict[str, tuple[int | str, ...]]


_DECLARED: dict[str, dict[str, _Declared]] = {}  # by module, then by function


def family(
    *, titles: Sequence[str], cases: Sequence[Case], holes: Mapping[str, Sequence[int | str]] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declares the function below as a problem family; `cases` hold for the first value of every hole."""

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        values = {name: tuple(choices) for name, choices in (holes or {}).items()}
        row = _Declared(function.__name__, tuple(titles), tuple(cases), values)
        _DECLARED.setdefault(function.__module__, {})[row.name] = row
        return function

    return declare


@cache
def load_families() -> dict[str, Family]:
    """All families by name, in the order of their files' names and of their place in the file."""
    package = importlib.import_module(".families", __package__)
    found: dict[str, Family] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
        module = importlib.import_module(f"{package.__name__}.{name}")
        for row in read_families(Path(str(module.__file__)), _DECLARED.get(module.__name__, {})):
            if row.name in found:
                raise SubsetError(row.path, row.functions[-1].lineno, f"the name {row.name} is taken by {found[row.name].path.name}")
            found[row.name] = row
    return found


def read_families(path: Path, declared: Mapping[str, _Declared]) -> list[Family]:
    """The families of one file, from its source and what its decorators declared."""
    source = path.read_text()
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    remarks = _remarks(source)
    rows = []
    for name, node in functions.items():
        if name not in declared:
            continue
        used = _with_helpers(node, functions)
        row = declared[name]
        rows.append(Family(name, path.stem, row.titles, row.cases, row.holes, tuple(used), _attach(used, remarks, path), path))
    return rows


def _remarks(source: str) -> dict[int, str]:
    """Comment text by line number."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT}


def _with_helpers(node: ast.FunctionDef, functions: Mapping[str, ast.FunctionDef]) -> list[ast.FunctionDef]:
    """The functions that `node` calls, directly or not, in the order of the file, then `node`."""
    needed, queue = {node.name}, [node]
    while queue:
        for part in ast.walk(queue.pop()):
            if isinstance(part, ast.Name) and part.id in functions and part.id not in needed:
                needed.add(part.id)
                queue.append(functions[part.id])
    return [helper for name, helper in functions.items() if name in needed and name != node.name] + [node]


def _attach(functions: list[ast.FunctionDef], remarks: Mapping[int, str], path: Path) -> tuple[tuple[str, ...], ...]:
    """Sets `COMMENT` on every statement under a comment; several lines in a row are one comment. Returns the wordings."""
    comments: list[tuple[str, ...]] = []
    seen: set[int] = set()
    for function in functions:
        statements = [node for node in ast.walk(function) if isinstance(node, ast.stmt) and node is not function]
        for statement in sorted(statements, key=lambda node: node.lineno):
            lines: list[int] = []
            while (line := statement.lineno - 1 - len(lines)) in remarks:
                lines.append(line)
            if lines:
                wordings = " ".join(remarks[line] for line in reversed(lines)).split("|")
                setattr(statement, COMMENT, len(comments))
                comments.append(tuple(wording.strip() for wording in wordings))
                seen.update(lines)
        for line in range(function.lineno, (function.end_lineno or 0) + 1):
            if line in remarks and line not in seen:
                raise SubsetError(path, line, "a comment stands alone on the line above a statement (not above else, not beside code)")
    return tuple(comments)
