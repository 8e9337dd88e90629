"""Exercism's tracks: instructions, a stub and tests; a program is asked for in words and by the stub.

Traps: learners find all tests but the first switched off (`xtest`, `@Disabled`, EXERCISM_RUN_ALL_TESTS): all are run. C++ stubs are mostly
empty. Tests share objects with the program: these stay in its process, and the tests' process has stand-ins for them (`Task.classes`). What
cannot be shared so is left out; docs/evaluation.md says how much that is.
"""

import re
from typing import Any

from . import cpp_stand_ins
from .java_stand_ins import CannotStandIn, stand_ins
from .task import Task

KEYS = {"id", "text", "stub", "solution", "tests"}


def read(row: dict[str, Any], lang: str) -> Task | None:
    """The task; None if its tests cannot be run apart from the program."""
    return {"python": _python, "javascript": _javascript, "java": _java, "cpp": _cpp}[lang](row)


_PYTHON_DOES_NOT_CROSS = r"\blambda\b|\bdatetime\b|\bmock\b"
_PYTHON_RUN = """
import io as _io

_cases = [case for case in list(globals().values()) if isinstance(case, type) and issubclass(case, unittest.TestCase)]
_suite = unittest.TestSuite(unittest.defaultTestLoader.loadTestsFromTestCase(case) for case in _cases)
_result = unittest.TextTestRunner(_io.StringIO()).run(_suite)
assert _result.testsRun and _result.wasSuccessful(), (_result.errors + _result.failures)[0][1]
"""


def _python(row: dict[str, Any]) -> Task | None:
    """Read are unittest files that import one function and call it with plain values."""
    (tests,) = row["tests"].values()
    module = re.escape(next(iter(row["stub"])).removesuffix(".py"))
    imports = re.findall(rf"^from {module} import (?:\(([^)]*)\)|(.*))$", tests, re.MULTILINE)
    names = [name.strip() for pair in imports for name in "".join(pair).split(",") if name.strip()]
    stub = "\n".join(row["stub"].values())
    head = re.search(rf"^def {re.escape(names[0])}\(.*\):", stub, re.MULTILINE) if len(names) == 1 else None
    if head is None or re.search(
        rf"^import {module}\b|{_PYTHON_DOES_NOT_CROSS}|\b{re.escape(names[0])}\([^()]*\b\w+=", tests, re.MULTILINE
    ):
        return None
    tests = re.sub(rf"^from {module} import (?:\([^)]*\)|.*)$", "", tests, flags=re.MULTILINE)
    return _task(
        row,
        "python",
        head[0].removesuffix(":"),
        "\n".join(row["solution"].values()),
        entry=names[0],
        tests=tests.partition("\nif __name__")[0] + _PYTHON_RUN,
    )


_JAVASCRIPT_DOES_NOT_CROSS = r"\basync\b|\bPromise\b|\bprocess\.|\.prototype\b"


def _javascript(row: dict[str, Any]) -> Task | None:
    """Jest's files, which import a module; promises do not cross, nor does a program of several files."""
    (tests,), (solution,) = row["tests"].values(), row["solution"].values()
    if re.search(_JAVASCRIPT_DOES_NOT_CROSS, tests) or re.search(r"^import .* from '\.", solution, re.MULTILINE):
        return None
    tests = re.sub(r"^import [^;]* from '@jest/globals';", "", tests, flags=re.MULTILINE)
    tests = re.sub(r"^import (?:(\w+)(?:, )?)?(?:(\{[^}]*\}))? from '\./[^']*';", _from_module, tests, flags=re.MULTILINE)
    return _task(row, "javascript", row["stub"][next(iter(row["stub"]))], solution, tests=tests + "\nrunTests();\n")


def _from_module(found: re.Match[str]) -> str:
    names = (f"default: {found[1]}," if found[1] else "") + (found[2] or "{}")[1:-1].replace(" as ", ": ")
    return f"const {{ {names} }} = importedProgram;"


_JAVA_IMPORT = re.compile(r"^import [^;]*;[^\S\n]*\n?", re.MULTILINE)


def _java(row: dict[str, Any]) -> Task | None:
    """JUnit's classes with AssertJ. The program's classes are stand-ins in the tests' process."""
    solution, tests = ("\n".join(row[part].values()) for part in ("solution", "tests"))
    program = "".join(dict.fromkeys(_JAVA_IMPORT.findall(solution))) + _JAVA_IMPORT.sub("", solution)
    try:
        classes = stand_ins(program, tests)
    except CannotStandIn:
        return None
    if re.search(r"^package |\bThread\b|\bjava\.nio\b|^import (?!static |java\.|org\.junit|org\.assertj)", solution + tests, re.MULTILINE):
        return None
    imports = "".join(dict.fromkeys(_JAVA_IMPORT.findall(solution + "\n" + tests)))
    suites = re.findall(r"^(?:public )?class (\w+Test)\b", tests, re.MULTILINE)
    runner = "\nclass Main {{ public static void main(String[] a) throws Throwable {{ JUnit.run({}); }} }}\n"
    tests = re.sub(r"^public (?=class )", "", _JAVA_IMPORT.sub("", tests), flags=re.MULTILINE)
    stub = "\n".join(row["stub"].values())
    return _task(
        row, "java", stub, program, trusted=imports + classes, tests=tests + runner.format(", ".join(f"{suite}.class" for suite in suites))
    )


_CPP_DOES_NOT_CROSS = r"\b(SECTION|REQUIRE_THAT|CHECK_THAT|BENCHMARK|Approx|boost)\b"


def _cpp(row: dict[str, Any]) -> Task | None:
    """Catch2's files for a header of functions in a namespace. Most stubs are empty: the header's declarations are shown instead."""
    (tests,) = row["tests"].values()
    found = cpp_stand_ins.stand_ins(row["solution"]["example.h"])
    if found is None or re.search(_CPP_DOES_NOT_CROSS, tests):
        return None
    program = re.sub(r'^#include "[^"]*"|^#pragma once', "", "\n".join(row["solution"].values()), flags=re.MULTILINE)
    tests = re.sub(r'^#include ("[^"]*"|<catch2.*)', "", tests, flags=re.MULTILINE)
    return _task(
        row,
        "cpp",
        found.declarations,
        program,
        trusted='#define EXERCISM_RUN_ALL_TESTS\n#include "../support/catch.h"\n' + found.definitions,
        tests=tests + "\nint main() { return moe_catch::run(); }\n",
        ending=found.main,
    )


def _task(
    row: dict[str, Any], lang: str, signature: str, reference: str, *, tests: str, entry: str = "", trusted: str = "", ending: str = ""
) -> Task:
    return Task(
        task_id=row["id"],
        lang=lang,
        text=f"{row['text']}\n{signature}",
        prompt="",
        entry=entry,
        trusted=trusted,
        tests=tests,
        ending=ending,
        reference=reference,
        whole=True,
        classes=not entry,
    )
