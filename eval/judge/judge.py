"""Judges programs: the candidate and the tests run in two sandboxes, joined by two pipes that carry arguments and results.

The tests' process holds the expected values and no candidate code; the candidate's holds no test. The verdict is the tests' alone: one
line with a nonce made for this run. Whatever the candidate does to its own process, it can only change its answers.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.compilers import COMPILING
from eval.sandbox import Ended, Job, Limits, Sandbox, SandboxError
from eval.tasks.task import Task
from model.stopping import scratch_folder

from .languages import TOOLCHAINS, Program, Toolchain

PASSED, FAILED, COMPILE_ERROR, TIMEOUT, MEMORY = "passed", "failed", "compile error", "timeout", "memory"
TOOL_MISSING, SANDBOX_ERROR = "tool missing", "sandbox error"
OUTCOMES = (PASSED, FAILED, COMPILE_ERROR, TIMEOUT, MEMORY, TOOL_MISSING, SANDBOX_ERROR)
UNJUDGED = (TOOL_MISSING, SANDBOX_ERROR)  # say nothing about the program
# What the harness says beside these: the program's process ended before it answered; the tests cannot be run, whatever the program.
GONE, BROKEN = "gone", "broken"
HARNESS = Path(__file__).parent / "harness"


@dataclass(frozen=True)
class Verdict:
    outcome: str
    detail: str = ""


class _Unbuilt(Exception):
    """A program that cannot be run; `verdict` says why."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.detail)
        self.verdict = verdict


class Judge:
    """Judges within a `with` block, from several threads at once. Tests are compiled once; all that is built goes when the block ends."""

    def __init__(self, sandbox: Sandbox, limits: Limits | None = None) -> None:
        self._sandbox, self._limits = sandbox, limits or Limits()
        self._scratch = scratch_folder("moe-judge-")
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "Judge":
        self._work = self._scratch.__enter__()
        self._work.chmod(0o711)
        return self

    def __exit__(self, *error: Any) -> None:
        self._scratch.__exit__(*error)

    def judge(self, task: Task, completion: str) -> Verdict:
        """The verdict on `task.prompt` + `completion`. What is the sandbox's fault is tried twice."""
        toolchain = TOOLCHAINS[task.lang]
        if absent := [tool for tool in toolchain.tools if not self._sandbox.has(tool)]:
            return Verdict(TOOL_MISSING, f"{', '.join(absent)} not found in /usr: run scripts/install_eval_tools.sh")
        for _ in range(2):
            try:
                verdict = self._judge(task, completion, toolchain)
            except _Unbuilt as unbuilt:
                verdict = unbuilt.verdict
            except SandboxError as error:
                verdict = Verdict(SANDBOX_ERROR, str(error))
            if verdict.outcome != SANDBOX_ERROR:
                break
        if name := self._missing(task, verdict, toolchain):
            return Verdict(TOOL_MISSING, f"{name} is not installed: {verdict.detail}")
        return verdict

    def _judge(self, task: Task, completion: str, toolchain: Toolchain) -> Verdict:
        work = self._prepare(task.lang, toolchain)
        try:
            tests = toolchain.tests(task)
            tests_folder = self._build_once(work, tests, toolchain)
        except _Unbuilt as unbuilt:
            raise _Unbuilt(Verdict(SANDBOX_ERROR, f"the tests cannot be compiled: {unbuilt.verdict.detail}")) from unbuilt
        except ValueError as error:
            raise _Unbuilt(Verdict(SANDBOX_ERROR, f"the tests cannot be written: {error}")) from error
        program = toolchain.candidate(task, completion)
        folder = Path(tempfile.mkdtemp(dir=work))
        try:
            self._build(folder, program, toolchain)
            return self._run_pair(folder, program, tests_folder, tests, toolchain)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run_pair(self, program_folder: Path, program: Program, tests_folder: Path, tests: Program, toolchain: Toolchain) -> Verdict:
        limits = replace(self._limits, address_space=toolchain.address_space)
        nonce = secrets.token_hex(16)
        calls_out, calls_in = os.pipe()
        answers_out, answers_in = os.pipe()
        candidate: Job | None = None
        try:
            candidate = self._sandbox.start(_joined(program.run, toolchain), program_folder, limits, stdin=calls_out, stdout=answers_in)
            command = _joined(("env", f"NONCE={nonce}", *tests.run), toolchain)
            judge = self._sandbox.start(command, tests_folder, limits, stdin=answers_out, stdout=calls_in)
        except BaseException:
            if candidate is not None:
                candidate.discard()
            raise
        finally:
            for descriptor in (calls_out, calls_in, answers_out, answers_in):
                os.close(descriptor)
        try:
            ended = judge.wait()
            started, verdict = _read(ended, nonce)
        except BaseException:
            judge.discard()
            candidate.discard()
            raise
        if verdict is None or verdict.outcome != GONE:  # else it ends by itself, and how is worth knowing
            candidate.kill()
        theirs = candidate.wait()
        if not started and ended.status != "timeout":  # a program can make the machine slow
            raise SandboxError(f"the tests did not start: {ended.status}: {ended.stderr.decode(errors='replace').strip()[-500:]}")
        return _settle(verdict, ended, theirs)

    def _prepare(self, lang: str, toolchain: Toolchain) -> Path:
        """The language's folder, whose `support` holds the harness, compiled on first use."""
        work = self._work / lang
        with self._lock_of(lang):
            if not work.exists():
                fresh = Path(tempfile.mkdtemp(dir=self._work)) / "support"
                fresh.mkdir()
                fresh.parent.chmod(0o755)
                for name in toolchain.support:
                    shutil.copy(HARNESS / name, fresh / name)
                if toolchain.prepare:
                    self._compile(fresh, toolchain.prepare, SANDBOX_ERROR, toolchain)
                fresh.parent.rename(work)
        return work

    def _build_once(self, work: Path, program: Program, toolchain: Toolchain) -> Path:
        """The folder of a task's compiled tests, which all of its completions share."""
        key = hashlib.sha256(json.dumps(program.files).encode()).hexdigest()[:24]
        folder = work / key
        with self._lock_of(key):
            if not folder.exists():
                fresh = Path(tempfile.mkdtemp(dir=work))
                self._build(fresh, program, toolchain)
                fresh.rename(folder)
        return folder

    def _build(self, folder: Path, program: Program, toolchain: Toolchain) -> None:
        for name, text in program.files.items():
            (folder / name).write_text(text, encoding="utf-8", errors="replace")
        if program.compile:
            self._compile(folder, program.compile, COMPILE_ERROR, toolchain)

    def _compile(self, folder: Path, command: tuple[str, ...], outcome: str, toolchain: Toolchain) -> None:
        limits = replace(COMPILING, address_space=toolchain.address_space)
        ended = self._sandbox.run(list(command), folder, limits, writable=True)
        if ended.status != "exited" or ended.returncode:
            why = "" if ended.status == "exited" else f"{ended.status}: "
            text = (ended.stdout + ended.stderr).decode(errors="replace").strip()
            raise _Unbuilt(Verdict(outcome, why + text[:1000]))

    def _missing(self, task: Task, verdict: Verdict, toolchain: Toolchain) -> str:
        """What the verdict says is not installed, if the task itself asks for it by a statement and it is indeed not there."""
        found = re.search(toolchain.missing, verdict.detail)
        if verdict.outcome == PASSED or not found:
            return ""
        statement = toolchain.uses.format(re.escape(found[1]))
        if not any(re.search(statement, source, re.MULTILINE) for source in (task.prompt, task.trusted, task.tests)):
            return ""
        needs = toolchain.needs(found[1])
        with tempfile.TemporaryDirectory(dir=self._prepare(task.lang, toolchain)) as folder:
            try:
                self._build(Path(folder), needs, toolchain)
            except _Unbuilt:
                return found[1]
            ended = self._sandbox.run(list(needs.run), Path(folder), replace(self._limits, address_space=toolchain.address_space))
        return "" if ended.returncode == 0 else found[1]

    def _lock_of(self, key: str) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(key, threading.Lock())


def _joined(command: tuple[str, ...], toolchain: Toolchain) -> list[str]:
    """The channel on descriptors 3 and 4, so that what a program prints is no part of it."""
    if not toolchain.channel:
        return list(command)
    return ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null', "sh", *command]


def _read(ended: Ended, nonce: str) -> tuple[bool, Verdict | None]:
    """Whether the tests got going, and their own verdict.

    The first line with the nonce, and nothing else, is written before anything of the program is read. The verdict is a second one and a
    normal end; None if there is none.
    """
    lines = [line.removeprefix(nonce.encode()) for line in ended.stderr.split(b"\n") if line.startswith(nonce.encode())]
    started = bool(lines) and not lines[0].strip()
    if not started or len(lines) != 2 or ended.status != "exited" or ended.returncode != 0:
        return started, None
    try:  # the detail is what the program said
        outcome, detail = json.loads(lines[1].decode(errors="replace"))
    except ValueError:
        return started, None
    return started, Verdict(outcome, detail)


def _settle(verdict: Verdict | None, tests: Ended, candidate: Ended) -> Verdict:
    """The outcome, from how both jobs ended. Only the tests' own "passed" passes."""
    if verdict is not None and verdict.outcome in (PASSED, COMPILE_ERROR, MEMORY):
        return verdict
    if candidate.status == "memory":
        return Verdict(MEMORY, "the kernel ended the program at the memory limit")
    if tests.status == "timeout" or candidate.status == "timeout":
        return Verdict(TIMEOUT, f"no verdict after {tests.wall_s:.1f} s")
    said = (candidate.stderr if verdict is not None and verdict.outcome == GONE else tests.stderr).decode(errors="replace").strip()
    if verdict is None:
        return Verdict(FAILED, said[-500:])
    if verdict.outcome == BROKEN:
        return Verdict(SANDBOX_ERROR, f"the tests cannot be run: {verdict.detail}")
    if verdict.outcome == GONE and re.search(r"OutOfMemoryError|heap out of memory|bad_alloc|MemoryError", said):
        return Verdict(MEMORY, said[-500:])
    return Verdict(FAILED, f"{verdict.detail} {said[-500:]}".strip() if verdict.outcome == GONE else verdict.detail)
