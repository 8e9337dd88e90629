"""Whether programs compile: each is given to its language's compiler, in the sandbox, and never run.

Many references of code sets are fragments (a method, a class without its imports), so a program gets what such fragments take for
granted: every standard header and `using namespace std` in C++, `java.util` in Java, and a class around bare methods. Compare the figure
with the references' own. A verdict is kept in the user's cache, by compiler, command and program.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from eval.compilers import COMPILING, GCC, JAVAC
from eval.sandbox import Sandbox, SandboxError
from model.languages import get_language
from model.output import write_whole
from model.stopping import scratch_folder
from train.cache import user_cache
from train.data.filters import parser

_PUBLIC = re.compile(
    r"^\s*public\s+(?:(?:abstract|final|sealed|strictfp)\s+)*(?:class|interface|enum|record|@interface)\s+(\w+)", re.MULTILINE
)
_IMPORT = re.compile(r"^\s*import\s[^;]*;", re.MULTILINE)  # of Java, before any class
_MODULE = re.compile(r"^\s*(?:import\s*[\w{*'\"]|export\b)", re.MULTILINE)


@dataclass(frozen=True)
class _Source:
    name: str
    text: str
    command: tuple[str, ...]


def _python(code: str) -> _Source:
    return _Source("program.py", code, ("python3", "-I", "-c", "compile(open('program.py', 'rb').read(), 'program.py', 'exec')"))


def _javascript(code: str) -> _Source:
    name = "program.mjs" if _MODULE.search(code) else "program.js"
    return _Source(name, code, ("node", "--check", name))


def _java(code: str) -> _Source:
    bare = any(node.type == "method_declaration" for node in parser("java").parse(code.encode("utf-8", "replace")).root_node.children)
    text = "\n".join([*_IMPORT.findall(code), "class Main {", _IMPORT.sub("", code), "}\n"]) if bare else code
    public = _PUBLIC.search(text)
    name = f"{public[1] if public else 'Main'}.java"
    if not re.match(r"\s*package\b", text):
        text = "import java.util.*; import java.util.function.*; import java.util.stream.*;\n" + text
    return _Source(name, text, (*JAVAC, "-d", ".", name))


def _cpp(code: str) -> _Source:
    text = code if "std::" in code else f"using namespace std;\n{code}"
    return _Source("program.cpp", text, (*GCC, "-fsyntax-only", "-include", "../support/all.h", "program.cpp"))


_SOURCES = {"python": _python, "javascript": _javascript, "java": _java, "cpp": _cpp}


def compile_all(programs: Sequence[str], lang: str, sandbox: Sandbox, jobs: int) -> list[bool | None]:
    """Whether each of `programs` compiles; None where that could not be found out, as the compiler is not installed or the sandbox failed.

    Equal ones are compiled once. A blank one does not compile, nor does one that takes its compiler a minute of CPU time or five of any.
    """
    get_language(lang)
    sources = {code: _SOURCES[lang](code) for code in dict.fromkeys(programs) if code.strip()}
    verdicts: dict[str, bool | None] = {code: _kept(source) for code, source in sources.items()}
    todo = {code: source for code, source in sources.items() if verdicts[code] is None and sandbox.has(source.command[0])}
    with scratch_folder("moe-compile-") as work, ThreadPoolExecutor(jobs) as pool:
        work.chmod(0o711)
        if lang == "cpp" and todo:
            _precompile(work, sandbox)
        found = pool.map(lambda source: _compiles(source, work, sandbox), todo.values())
        bar = tqdm(found, total=len(todo), desc=f"compile {lang}", unit="program", disable=None)
        verdicts |= dict(zip(todo, bar, strict=True))
    return [verdicts[code] if code.strip() else False for code in programs]


def _precompile(work: Path, sandbox: Sandbox) -> None:
    """The standard headers, which take longer than most programs. Where this fails they are read by every program."""
    support = work / "support"
    support.mkdir(mode=0o755)
    (support / "all.h").write_text("#include <bits/stdc++.h>\n")
    sandbox.run([*GCC, "-x", "c++-header", "all.h"], support, COMPILING, writable=True)


def _compiles(source: _Source, work: Path, sandbox: Sandbox) -> bool | None:
    folder = Path(tempfile.mkdtemp(dir=work))
    (folder / source.name).write_text(source.text, encoding="utf-8", errors="replace")
    try:
        ended = sandbox.run(
            list(source.command), folder, replace(COMPILING, address_space=source.name.endswith((".py", ".cpp"))), writable=True
        )
    except SandboxError:
        return None
    finally:
        shutil.rmtree(folder)
    verdict = ended.status == "exited" and ended.returncode == 0
    if ended.status == "exited":  # a time-out may be this machine's load
        _keep(source, verdict)
    return verdict


def _place(source: _Source) -> Path:
    tool = shutil.which(source.command[0]) or ""
    facts = [source.command, source.name, source.text, tool and Path(tool).resolve().stat().st_mtime_ns]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return user_cache() / "compiles" / key[:2] / key[2:]


def _kept(source: _Source) -> bool | None:
    """The verdict in the cache; None if there is none, or one that a full disk or a crash has damaged: it is made again."""
    try:
        return {b"true": True, b"false": False}.get(_place(source).read_bytes())
    except FileNotFoundError:
        return None


def _keep(source: _Source, verdict: bool) -> None:
    place = _place(source)
    with suppress(OSError):  # a full cache is no reason to end
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, json.dumps(verdict))
