"""The one-way street of the rooms: csrc <- moe_kernels <- model <- train <- eval <- benchmarks."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("moe_kernels", "model", "train", "eval", "benchmarks")
FILES = [(room, path) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere in it, relative imports left out."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize(("room", "path"), FILES, ids=lambda value: str(value.relative_to(ROOT)) if isinstance(value, Path) else value)
def test_imports_go_one_way(room: str, path: Path) -> None:
    later = set(ROOMS[ROOMS.index(room) + 1 :])
    assert not imported(path) & later, f"{room} imports a room above it"
    if room == "moe_kernels":
        assert not imported(path) & {"transformers", "peft", "datasets"}, "moe_kernels stands alone"


def test_every_room_is_looked_at() -> None:
    assert {room for room, _ in FILES} == set(ROOMS)
