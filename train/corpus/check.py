"""Runs the corpus's programs against their cases in every language: `python -m train.corpus.check`.

Programs are batched, because starting compilers costs more than the programs: one python, one node, one javac and one
JVM (a package a program), one C++ file a hundred programs (a namespace a program).
"""

import argparse
import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from model.cli import make_parser, run_command
from model.languages import LANGUAGES, get_language

from .definition import Family, SubsetError, load_families
from .variants import Programs, Variant, variants

TOOLS = {"python": (sys.executable,), "java": ("javac", "java"), "javascript": ("node",), "cpp": ("g++",)}
CHUNK = {"cpp": 100}  # programs a batch; all in one where nothing stands
SECONDS = 300  # a batch may take; a program that never ends is named by the last line that was printed


@dataclass
class Outcome:
    """What happened in one language; `missing` names a tool without which nothing was checked."""

    lang: str
    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    missing: str = ""

    def __str__(self) -> str:
        if self.missing:
            return f"{self.lang}: not checked: no {self.missing}"
        lines = [f"{self.lang}: {len(self.passed)} passed, {len(self.failed)} failed"]
        return "\n".join([*lines, *(f"  {name}: {why}" for name, why in self.failed.items())])


def broken_rules(family: Family) -> list[str]:
    """What `family` lacks of the definition language's rules, beyond what the printers find."""
    main = family.functions[-1]
    texts = [*family.titles, *(wording for wordings in family.comments for wording in wordings)]
    names = {getattr(node, "id", getattr(node, "arg", "")) for node in ast.walk(main)}
    marks = {mark for text in texts for mark in re.findall(r"{(\w*)}", text)}
    count = sum(isinstance(node, ast.stmt) for node in ast.walk(main)) - 1
    rules = {
        f"{len(set(family.titles))} distinct titles, at least 7 are wanted": len(set(family.titles)) >= 7,
        f"{len(family.cases)} cases, at least 4 are wanted": len(family.cases) >= 4,
        f"{len(family.comments)} comments, 2 to 5 are wanted": 2 <= len(family.comments) <= 5,
        "a comment has at least 3 distinct wordings": all(len(set(wordings)) == len(wordings) >= 3 for wordings in family.comments),
        "a text is empty or holds |": not any(not text or "|" in text for text in texts),
        f"the texts mention {sorted(marks - names)}, which the program lacks": marks <= names,
        f"the holes {sorted(set(family.holes) - names)} do not occur in the program": set(family.holes) <= names,
        f"{count} statements, 3 to 24 are wanted": 3 <= count <= 24,
    }
    return [rule for rule, holds in rules.items() if not holds]


def missing_tool(lang: str) -> str:
    """The first tool of `lang` that is not installed, "" if all are."""
    return next((tool for tool in TOOLS[lang] if shutil.which(tool) is None), "")


def check_programs(programs: Programs, chosen: Sequence[Variant], lang: str) -> Outcome:
    """Prints, compiles and runs `chosen` in `lang`; what cannot be printed counts as failed."""
    outcome = Outcome(lang, missing=missing_tool(lang))
    if outcome.missing:
        return outcome
    sources: dict[str, tuple[str, str]] = {}
    for variant in chosen:
        try:
            sources[variant.key] = programs.printed(variant, lang).code, programs.driver(variant, lang)
        except Exception as error:  # a definition can be wrong in any way: name it and go on
            outcome.failed[variant.key] = f"{type(error).__name__}: {error}" if not isinstance(error, SubsetError) else str(error)
    keys = list(sources)
    size = CHUNK.get(lang, len(keys)) or 1
    for start in tqdm(range(0, len(keys), size), desc=lang, leave=False, disable=None):
        run_batch(lang, {key: sources[key] for key in keys[start : start + size]}, outcome)
    return outcome


def run_batch(lang: str, sources: dict[str, tuple[str, str]], outcome: Outcome) -> None:
    """Judges `sources`, (program, driver) by name; one that breaks its batch is found by halving what is left."""
    with tempfile.TemporaryDirectory() as folder:
        ok, output = _RUNNERS[lang](Path(folder), list(sources.values()))
    keys = list(sources)
    done = set()
    for line in output.splitlines():
        if match := re.fullmatch(r"(pass|fail) (\d+) ?(.*)", line):
            key = keys[int(match[2])]
            done.add(key)
            if match[1] == "pass":
                outcome.passed.append(key)
            else:
                outcome.failed[key] = match[3]
    left = [key for key in keys if key not in done]
    if left and len(keys) > 1:
        for half in (left[: (len(left) + 1) // 2], left[(len(left) + 1) // 2 :]):
            if half:
                run_batch(lang, {key: sources[key] for key in half}, outcome)
    elif left:
        outcome.failed[left[0]] = "\n    ".join(output.strip().splitlines()[:8]) or ("no result" if ok else "it was stopped")


def _run(command: Sequence[str | Path], folder: Path) -> tuple[bool, str]:
    try:
        done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        return False, (error.stdout or b"").decode() + f"\nstopped after {SECONDS} s"
    return done.returncode == 0, done.stdout + done.stderr


_PYTHON = """\
import json, sys
for number, source in enumerate(json.load(open("programs.json"))):
    try:
        exec(compile(source, "program", "exec"), {"__name__": "__main__"})
        print("pass", number, flush=True)
    except Exception as error:
        print("fail", number, type(error).__name__, str(error).replace("\\n", " "), flush=True)
"""
_JAVASCRIPT = """\
const programs = JSON.parse(require("fs").readFileSync("programs.json", "utf8"));
programs.forEach((source, number) => {
    try {
        new Function(source)();
        console.log(`pass ${number}`);
    } catch (error) {
        console.log(`fail ${number} ${String(error).replace(/\\n/g, " ")}`);
    }
});
"""
_JAVA = """\
public class Runner {
    public static void main(String[] args) {
        for (int i = 0; i < Integer.parseInt(args[0]); i++) {
            try {
                var main = Class.forName("p" + i + ".Main").getDeclaredMethod("main", String[].class);
                main.setAccessible(true);
                main.invoke(null, (Object) new String[0]);
                System.out.println("pass " + i);
            } catch (java.lang.reflect.InvocationTargetException error) {
                System.out.println("fail " + i + " " + String.valueOf(error.getCause()).replace('\\n', ' '));
            } catch (ReflectiveOperationException error) {
                System.out.println("fail " + i + " " + error);
            }
        }
    }
}
"""
_CPP = """\
void judge(int number, int (*run)()) {
    std::ostringstream why;
    auto screen = std::cerr.rdbuf(why.rdbuf());
    int status = 1;
    try {
        status = run();
    } catch (const std::exception& error) {
        why << error.what();
    }
    std::cerr.rdbuf(screen);
    std::string text = why.str();
    for (char& c : text) c = c == '\\n' ? ' ' : c;
    std::cout << (status == 0 ? "pass " : "fail ") << number << " " << text << std::endl;
}
"""


def _run_python(folder: Path, sources: list[tuple[str, str]]) -> tuple[bool, str]:
    return _run_script(folder, sources, "run.py", _PYTHON, [sys.executable, "run.py"])


def _run_javascript(folder: Path, sources: list[tuple[str, str]]) -> tuple[bool, str]:
    return _run_script(folder, sources, "run.js", _JAVASCRIPT, ["node", "run.js"])


def _run_script(folder: Path, sources: list[tuple[str, str]], name: str, script: str, command: list[str]) -> tuple[bool, str]:
    (folder / "programs.json").write_text(json.dumps([f"{code}\n{driver}" for code, driver in sources]))
    (folder / name).write_text(script)
    return _run(command, folder)


def _run_java(folder: Path, sources: list[tuple[str, str]]) -> tuple[bool, str]:
    files = ["Runner.java"]
    (folder / files[0]).write_text(_JAVA)
    for number, (code, driver) in enumerate(sources):
        files.append(f"p{number}/Main.java")
        (folder / f"p{number}").mkdir()
        (folder / files[-1]).write_text(f"package p{number};\n{code}\n{driver}")
    ok, output = _run(["javac", "-d", ".", *files], folder)
    return _run(["java", "-Xmx512m", "Runner", str(len(sources))], folder) if ok else (ok, output)


def _run_cpp(folder: Path, sources: list[tuple[str, str]]) -> tuple[bool, str]:
    """A namespace a program; preprocessor lines go to the head of the file."""
    headers: set[str] = set()
    bodies, calls = [], []
    for number, parts in enumerate(sources):
        lines = "\n".join(parts).splitlines()
        headers.update(line for line in lines if line.startswith("#include"))
        body = "\n".join(line for line in lines if not line.startswith("#include"))
        bodies.append(f"namespace p{number} {{\n{body.replace('int main()', 'int run()')}\n}}")
        calls.append(f"    judge({number}, p{number}::run);")
    program = [*sorted({*headers, "#include <iostream>", "#include <sstream>"}), *bodies, _CPP, "int main() {", *calls, "}"]
    (folder / "all.cpp").write_text("\n".join(program) + "\n")
    ok, output = _run(["g++", "-std=c++17", "-O0", "-w", "-o", "all", "all.cpp"], folder)
    return _run(["./all"], folder) if ok else (ok, output)


_RUNNERS: dict[str, Callable[[Path, list[tuple[str, str]]], tuple[bool, str]]] = {
    "python": _run_python,
    "java": _run_java,
    "javascript": _run_javascript,
    "cpp": _run_cpp,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("train.corpus.check", __doc__ or "")
    parser.add_argument("--lang", choices=LANGUAGES, help="only this language")
    parser.add_argument("--all", action="store_true", help="every program of the corpus, not one of each family")
    parser.add_argument("--family", nargs="+", metavar="NAME", help="only these families, or files of families")
    parser.add_argument("--list", action="store_true", help="list the families and stop")
    parser.add_argument("--show", action="store_true", help="print the programs")
    failures: list[bool] = []

    def command(args: argparse.Namespace) -> None:
        failures.append(_command(args))

    return run_command(command, parser, argv) or int(any(failures))


def _command(args: argparse.Namespace) -> bool:
    """Whether anything failed."""
    families = load_families()
    chosen = [row for row in families.values() if not args.family or {row.name, row.topic} & set(args.family)]
    if not chosen:
        raise ValueError(f"no family is called {', '.join(args.family)}; --list shows the names")
    if args.list:
        print("\n".join(f"{row.topic:24} {row.name:40} {len(variants(row))} programs" for row in chosen))
        return False
    failed = False
    for row in chosen:
        for rule in broken_rules(row):
            failed = True
            print(f"{row.topic}.{row.name}: {rule}")
    programs = Programs(families)
    wanted = [variant for row in chosen for variant in variants(row)[: None if args.all else 1]]
    for lang in [args.lang] if args.lang else LANGUAGES:
        if args.show:
            print("\n".join(programs.printed(variant, get_language(lang).name).code for variant in wanted))
        outcome = check_programs(programs, wanted, lang)
        failed |= bool(outcome.failed)
        print(outcome, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
