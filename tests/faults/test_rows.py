"""Each of the 65 faults that the project must survive has a test that carries its number, in one file."""

import ast
from pathlib import Path


def test_each_row_has_a_test():
    files: dict[int, set[str]] = {}
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and node.name[5:7].isdigit():
                files.setdefault(int(node.name[5:7]), set()).add(path.name)
    assert sorted(files) == list(range(1, 66))
    assert not {number: found for number, found in files.items() if len(found) > 1}
