"""How each language's programs are written to files, compiled and run: the candidate on one side, the tests on the other."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from eval.compilers import GCC, JAVAC, JVM
from eval.tasks.task import Task

from .signature import Function, functions, read_signature

_NODE = ("--max-old-space-size=512",)  # MiB
_JARS = ":".join(
    f"/usr/share/java/{name}.jar" for name in ("javatuples", "junit-jupiter-api", "apiguardian-api", "opentest4j", "junit4", "assertj-core")
)
_JAVAC = (*JAVAC, "-cp", f"../support:{_JARS}", "-d", ".")
_JAVA_HARNESS = ("Wire.java", "AnswerLoop.java", "Candidate.java", "Server.java", "Tests.java", "Remote.java", "JUnit.java")
_GCC = (*GCC, "-O0", "-pipe")


@dataclass(frozen=True)
class Program:
    """Files by name, the command that compiles them (none: nothing to compile) and the one that runs them, both in their folder."""

    files: dict[str, str]
    run: tuple[str, ...]
    compile: tuple[str, ...] = ()


@dataclass(frozen=True)
class Toolchain:
    tools: tuple[str, ...]
    support: tuple[str, ...]  # files of harness/
    candidate: Callable[[Task, str], Program]
    tests: Callable[[Task], Program]
    prepare: tuple[str, ...] = ()  # compiles the support files
    address_space: bool = True  # whether RLIMIT_AS can be set
    channel: bool = True  # messages go over descriptors 3 and 4; else over standard input and output
    missing: str = ""  # what a compiler or runtime says of something that is not installed; group 1 names it
    uses: str = ""  # a statement of a source that asks for {}, which stands for that name
    needs: Callable[[str], Program] = field(default=lambda name: Program({}, ("true",)))  # a program that works if `name` is installed


def _python(task: Task, completion: str) -> Program:
    if task.classes:
        return Program({"program.py": task.program(completion)}, ("python3", "-I", "../support/module.py"))
    name = _answering(task, completion).name
    return Program({"program.py": task.program(completion)}, ("python3", "-I", "../support/candidate.py", name))


def _answering(task: Task, completion: str) -> Function:
    """The function of the program that answers for the task's: where it may have any name, the last that is no `main`."""
    if not task.whole:
        return Function(task.entry)
    found = [function for function in functions(completion, task.lang) if function.name != "main"]
    return next((function for function in reversed(found) if function.name == task.entry), found[-1] if found else Function(task.entry))


def _plan(task: Task) -> dict[str, str]:
    return {"tests.json": json.dumps({"trusted": task.trusted, "entry": task.entry, "tests": task.tests})}


def _javascript(task: Task, completion: str) -> Program:
    if task.classes:
        return Program({"program.mjs": task.program(completion)}, ("node", *_NODE, "../support/module.js"))
    name = _answering(task, completion).name
    return Program({"program.js": task.program(completion)}, ("node", *_NODE, "../support/candidate.js", name))


def _cpp(name: str, source: str, needs: str) -> Program:
    flags = (*_GCC, *(("-DMOE_BOOST",) if "boost/" in needs else ()), "-include", "../support/wire.h")
    links = ("-lssl", "-lcrypto") if "openssl/" in needs else ()
    return Program({f"{name}.cpp": source}, (f"./{name}",), (*flags, "-o", name, f"{name}.cpp", *links))


def _cpp_candidate(task: Task, completion: str) -> Program:
    if task.classes:  # header and source are one file
        return _cpp("program", re.sub(r'^#include ".*', "", task.program(completion), flags=re.MULTILINE), task.prompt)
    signature = read_signature(task.trusted, "cpp")
    name = _answering(task, completion).name or signature.name
    program = "#define main moe_main\n" + task.program(completion) + "\n#undef main\n"  # the program may have its own
    # "signed": programs that define int as something else are common
    main = f"signed main() {{ return moe_wire::Function<{signature.function_type}>::serve({name}); }}\n"
    return _cpp("program", program + main, task.prompt)


def _cpp_tests(task: Task) -> Program:
    if task.classes:
        return _cpp("tests", task.trusted + task.tests, task.prompt)
    signature = read_signature(task.trusted, "cpp")
    head = signature.head
    if any("*" in kind or "[" in kind for kind in signature.types):  # an array that crosses is a vector on the tests' side
        pairs = zip(signature.types, signature.names, strict=True)
        head = f"{signature.result} {signature.name}({', '.join(f'moe_wire::Stored<{kind}>& {name}' for kind, name in pairs)}) {{"
    call = f"    return moe_wire::Function<{signature.function_type}>::call({', '.join(signature.names)});\n"
    source = "static moe_wire::Verdict moe_verdict;\n" + signature.before + head + "\n" + call + task.closing + task.tests
    return _cpp("tests", source, task.prompt)


def _java(files: dict[str, str], *arguments: str) -> Program:
    run = ("java", *JVM, "-Xss8m", "-ea", "-cp", f".:../support:{_JARS}", *arguments)
    return Program(files, run, (*_JAVAC, *files))


def _java_candidate(task: Task, completion: str) -> Program:
    source = task.program(completion)
    if task.whole:  # one file, whatever its public classes are called
        source = re.sub(r"^public (?=(?:\w+ )*(?:class|interface|enum|record) )", "", source, flags=re.MULTILINE)
    if task.classes:
        return _java({"Main.java": source}, "Server")
    signature, function = read_signature(task.trusted, "java"), _answering(task, completion)
    return _java({"Main.java": source}, "Candidate", function.owner or signature.owner, function.name or signature.name, signature.erased)


def _java_tests(task: Task) -> Program:
    if task.classes:
        return _java({"Main.java": task.trusted + task.tests}, "Tests", "Main")
    signature = read_signature(task.trusted, "java")
    call = f"Tests.call(new Object[] {{{', '.join(signature.names)}}});\n"  # a lone array would be taken for all arguments
    if signature.result != "void":
        call = f"return ({signature.result}) " + call
    source = signature.before + signature.head + "\n" + call + task.closing + task.tests
    return _java({"Main.java": source}, "Tests", "Main" if "class Main" in task.tests else signature.owner)


TOOLCHAINS = {
    "python": Toolchain(
        tools=("python3",),
        support=("wire.py", "candidate.py", "module.py", "tests.py", "objects.py"),
        candidate=_python,
        tests=lambda task: Program(_plan(task), ("python3", "-I", "../support/tests.py")),
        missing=r"No module named '([\w.]+)'",
        uses=r"^\s*(?:from\s+{0}(?!\w)[\w.]*\s+import\b|import\s+(?:[\w.]+(?:\s+as\s+\w+)?\s*,\s*)*{0}(?!\w))",
        needs=lambda name: Program({}, ("python3", "-I", "-c", f"import {name}")),
    ),
    "javascript": Toolchain(
        tools=("node",),
        support=("wire.js", "values.js", "candidate.js", "module.js", "tests.js", "objects.js", "jest.js"),
        candidate=_javascript,
        tests=lambda task: Program(_plan(task), ("node", *_NODE, "../support/tests.js")),
        address_space=False,
        missing=r"Cannot find module '([\w./@-]+)'",
        uses=r"(?:\brequire\s*\(\s*|\bfrom\s*|\bimport\s*\(?\s*)(['\"`]){0}\1",
        needs=lambda name: Program({}, ("node", "-e", f"require({json.dumps(name)})")),
    ),
    "java": Toolchain(
        tools=("javac", "java"),
        support=_JAVA_HARNESS,
        candidate=_java_candidate,
        tests=_java_tests,
        prepare=("javac", "-proc:none", "-nowarn", "-d", ".", *_JAVA_HARNESS),
        address_space=False,
        channel=False,
        missing=r"package ([\w.]+) does not exist",
        uses=r"^\s*import\s+(?:static\s+)?{0}\.",
        needs=lambda name: _java({"Main.java": f"import {name}.*; class Main {{}}"}, "-version"),
    ),
    "cpp": Toolchain(
        tools=("g++",),
        support=("values.h", "wire.h", "catch.h"),
        candidate=_cpp_candidate,
        tests=_cpp_tests,
        prepare=(*_GCC, "-x", "c++-header", "wire.h"),
        missing=r"fatal error: ([\w./]+): No such file",
        uses=r"^\s*#\s*include\s*[<\"]{0}[>\"]",
        needs=lambda name: _cpp("needs", f"#include <{name}>\nint main() {{}}\n", name),
    ),
}
