"""Exercism's tracks: instructions, a stub and tests; a program is asked for in words and by the stub.

Traps: learners find all tests but the first switched off (`xtest`, `@Disabled`, EXERCISM_RUN_ALL_TESTS): all are run. C++ stubs are mostly
empty. Tests share objects with the program: these stay in its process, and the tests' process has stand-ins for them (`Task.classes`). What
cannot be shared so is left out; docs/evaluation.md says how much that is.
"""

import re
from typing import Any

from . import cpp_stand_ins
from .java_stand_ins import CannotStandIn, stand_ins
from .task import NEXT_PROMPT, Task

KEYS = {"id", "text", "stub", "solution", "tests"}


def read(row: dict[str, Any], lang: str) -> Task | None:
    """The task; None if its tests cannot be run apart from the program."""
    return {"python": _python, "javascript": _javascript, "java": _java, "cpp": _cpp}[lang](row)


_PYTHON_RUN = """
import io as _io

_cases = [case for case in list(globals().values()) if isinstance(case, type) and issubclass(case, unittest.TestCase)]
_suite = unittest.TestSuite(unittest.defaultTestLoader.loadTestsFromTestCase(case) for case in _cases)
_result = unittest.TextTestRunner(_io.StringIO()).run(_suite)
assert _result.testsRun and _result.wasSuccessful(), (_result.errors + _result.failures)[0][1]
"""


def _python(row: dict[str, Any]) -> Task | None:
    """unittest's files, which import a module. Left out are classes that define equality: only the program could say what is equal."""
    (tests,), solution, stub = row["tests"].values(), *("\n".join(row[part].values()) for part in ("solution", "stub"))
    if re.search(r"\b(mock|test_utils)\b", tests) or re.search(r"__eq__|\bdataclass\b", solution + stub):
        return None
    module = re.escape(next(iter(row["stub"])).removesuffix(".py"))
    tests = re.sub(rf"\bfrom {module} import (?:\(([^)]*)\)|(.*))", _names_of_program, tests)
    tests = re.sub(rf"^import {module}(?: as (\w+))?$", lambda found: f"{found[1] or module} = imported_program", tests, flags=re.MULTILINE)
    return _task(row, "python", stub, solution, tests=tests.partition("\nif __name__")[0] + _PYTHON_RUN)


def _names_of_program(found: re.Match[str]) -> str:
    names = [name.strip().partition(" as ") for name in (found[1] or found[2]).split(",") if name.strip()]
    return "; ".join(f"{other or name} = imported_program.{name}" for name, _, other in names)


_JAVASCRIPT_DOES_NOT_CROSS = r"\basync\b|\bPromise\b|\bprocess\.|\.prototype\b"


def _javascript(row: dict[str, Any]) -> Task | None:
    """Jest's files, which import a module; promises do not cross, nor does a program of several files.

    Left out are tests that compare with an object of the program's: only the program could say what is equal.
    """
    (tests,), (solution,) = row["tests"].values(), row["solution"].values()
    if re.search(_JAVASCRIPT_DOES_NOT_CROSS, tests) or re.search(r"^import .* from '\.", solution, re.MULTILINE):
        return None
    if _equals_an_object(tests):
        return None
    tests = re.sub(r"^import [^;]* from '@jest/globals';", "", tests, flags=re.MULTILINE)
    tests = re.sub(r"^import (?:(\w+)(?:, )?)?(?:(\{[^}]*\}))? from '\./[^']*';", _from_module, tests, flags=re.MULTILINE)
    return _task(row, "javascript", row["stub"][next(iter(row["stub"]))], solution, tests=tests + "\nrunTests();\n")


def _equals_an_object(tests: str) -> bool:
    """Whether `toEqual` gets an object of an imported class, or what a method of one returned."""
    imported = re.findall(r"^import ([^;]*) from '\./", tests, re.MULTILINE)
    if not (classes := re.findall(r"\b[A-Z]\w*", " ".join(imported))):
        return False
    one_of = "|".join(classes)
    objects = re.findall(rf"(\w+) = (?:new (?:{one_of})\([^;]*\);|(?:{one_of})\.\w+\()", tests)
    objects += re.findall(rf"(\w+) = (?:{'|'.join([*objects, one_of])})\.\w+\(", tests)
    return bool(re.search(rf"\.to\w*Equal\((?:new (?:{one_of})\([^()]*\)|{'|'.join([*objects, one_of])})\)", tests))


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
        stop=NEXT_PROMPT,
        whole=True,
        classes=not entry,
    )
