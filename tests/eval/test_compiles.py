"""Programs are given to real compilers in the sandbox: right ones, wrong ones, fragments; what is not installed says nothing."""

import os
from pathlib import Path

import pytest

import eval.compiles as module
from eval.compiles import compile_all
from eval.sandbox import Sandbox, SandboxError

CASES = {
    "python": (["def f(x):\n    return x\n"], ["def f(x):\nreturn x\n", "if"]),
    "javascript": (["const f = (x) => x;", "export const f = (x) => x;", "import a from 'a';"], ["const f = (x => x;", "a b"]),
    "java": (
        [
            "static List<Integer> f(int n) { return new ArrayList<>(); }",
            "public class Tree { Map<String, Integer> all; }",
            "import java.math.BigInteger;\nclass A { BigInteger a; }",
            "import java.math.BigInteger;\nimport static java.lang.Math.*;\nstatic BigInteger f() { return BigInteger.valueOf(abs(1)); }",
        ],
        ['class A { int f() { return ""; } }', "static int f( { }", "class A { Absent a; }"],
    ),
    "cpp": (
        ["vector<int> f() { return {1}; }", "#include <vector>\nstd::vector<int> f() { return {1}; }"],
        ["int f() { return absent; }", '#include "/etc/passwd"\nint a;'],
    ),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("lang", CASES)
def test_right_programs_compile_and_wrong_ones_do_not(lang: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = CASES[lang]
    verdicts = compile_all([*right, *wrong, "", right[0]], lang, sandbox, jobs=2)
    if None in verdicts:
        pytest.skip(f"no compiler of {lang}")
    expected = [True] * len(right) + [False] * len(wrong) + [False, True]
    assert verdicts == expected
    monkeypatch.setattr(module, "_compiles", None)  # all of it is in the cache
    assert compile_all([*right, *wrong, "", right[0]], lang, sandbox, jobs=2) == expected


@pytest.mark.parametrize("damaged", [b"", b"tru", b"1", b"\xff"])
def test_a_damaged_verdict_is_made_again(damaged: bytes, sandbox: Sandbox, tmp_path: Path) -> None:
    assert compile_all(["a = 1", "a b"], "python", sandbox, jobs=1) == [True, False]
    kept = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    whole = [path.read_bytes() for path in kept]
    for path in kept:
        path.write_bytes(damaged)
    assert compile_all(["a = 1", "a b"], "python", sandbox, jobs=1) == [True, False]
    assert [path.read_bytes() for path in kept] == whole


def test_nothing_is_run(sandbox: Sandbox, tmp_path: Path) -> None:
    endless = "while True:\n    pass\n"
    assert compile_all([endless, "raise SystemExit(1)"], "python", sandbox, jobs=1) == [True, True]


def test_nothing_is_written_beside_the_job() -> None:
    """Without a sandbox /tmp is the host's."""
    unsafe = Sandbox.open(unsafe=True)
    if not unsafe.has("javac"):
        pytest.skip("no compiler of java")
    name = f"Left{os.getpid()}"
    assert compile_all([f"class {name} {{}}"], "java", unsafe, jobs=1) == [True]
    assert not (Path("/tmp") / f"{name}.class").exists()


def test_a_compiler_that_is_absent_says_nothing(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "has", lambda tool: False)
    assert compile_all(["int a;", ""], "cpp", sandbox, jobs=1) == [None, False]


def test_a_sandbox_that_fails_says_nothing_and_is_asked_again(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SandboxError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "run", fail)
        assert compile_all(["a = 1"], "python", sandbox, jobs=1) == [None]
    assert compile_all(["a = 1"], "python", sandbox, jobs=1) == [True]
