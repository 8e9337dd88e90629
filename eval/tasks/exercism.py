"""Exercism's Python track: instructions, a stub and a unittest file, asked for in words with the stub's signature.

Read are exercises whose tests import one function and nothing else: only calls of one function cross between program and tests. Those with
classes, own exceptions, keywords or functions as arguments, patched builtins, or tests in another language's framework are not.
"""

import re
from typing import Any

from .task import Task

KEYS = {"id", "text", "stub", "solution", "tests"}
_DO_NOT_CROSS = r"\blambda\b|\bdatetime\b|\bmock\b"
_RUN = """
import io as _io

_cases = [case for case in list(globals().values()) if isinstance(case, type) and issubclass(case, unittest.TestCase)]
_suite = unittest.TestSuite(unittest.defaultTestLoader.loadTestsFromTestCase(case) for case in _cases)
_result = unittest.TextTestRunner(_io.StringIO()).run(_suite)
assert _result.testsRun and _result.wasSuccessful(), (_result.errors + _result.failures)[0][1]
"""


def read(row: dict[str, Any], lang: str) -> Task | None:
    """The task; None if its tests need more than calls of one function with plain values."""
    if lang != "python":
        raise ValueError("Exercism's exercises are read in Python alone: see docs/evaluation.md")
    (tests,) = row["tests"].values()
    module = re.escape(next(iter(row["stub"])).removesuffix(".py"))
    imports = re.findall(rf"^from {module} import (?:\(([^)]*)\)|(.*))$", tests, re.MULTILINE)
    names = [name.strip() for pair in imports for name in "".join(pair).split(",") if name.strip()]
    stub = "\n".join(row["stub"].values())
    head = re.search(rf"^def {re.escape(names[0])}\(.*\):", stub, re.MULTILINE) if len(names) == 1 else None
    if head is None or re.search(rf"^import {module}\b|{_DO_NOT_CROSS}|\b{re.escape(names[0])}\([^()]*\b\w+=", tests, re.MULTILINE):
        return None
    tests = re.sub(rf"^from {module} import (?:\([^)]*\)|.*)$", "", tests, flags=re.MULTILINE)
    return Task(
        task_id=row["id"],
        lang=lang,
        text=f"{row['text']}\n{head[0].removesuffix(':')}",
        prompt="",
        entry=names[0],
        trusted="",
        tests=tests.partition("\nif __name__")[0] + _RUN,
        reference="\n".join(row["solution"].values()),
        whole=True,
    )
