"""Each of the 65 faults that the project must survive has a test that carries its number."""

import ast
from pathlib import Path


def test_each_row_has_a_test():
    numbers = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and node.name[5:7].isdigit():
                numbers.add(int(node.name[5:7]))
    assert sorted(numbers) == list(range(1, 66))
