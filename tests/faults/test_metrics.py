"""Faults and bad input of metrics and benchmarks: rows 62 to 65."""

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cpu import problem as layer_problem
from benchmarks.cpu.contender import EXACT, INT8, Contender
from benchmarks.cpu.layer import Bench, run_point
from benchmarks.cpu.probe import FMA, READ, VNNI
from benchmarks.cpu.problem import Problem, Weights, reference
from benchmarks.cpu.targets import judge
from eval.judge import Judge
from eval.pass_rates import pass_at_k
from eval.sandbox import Limits, Sandbox, SandboxError
from eval.score import score_row
from eval.tasks.task import Task, cut
from eval.text_metrics import text_score

PROGRAMS = {
    "python": "def f(x):\n    y = x + 1\n    return y\n",
    "java": "int f(int x) { int y = x + 1; return y; }\n",
    "javascript": "function f(x) { let y = x + 1; return y; }\n",
    "cpp": "int f(int x) { int y = x + 1; return y; }\n",
}


def test_62_pass_at_k():
    """Refused outside 1 <= k <= n and 0 <= c <= n; the share of subsets of k with a pass, exactly 1 where all have one."""
    for n, c, k in ((3, 1, 4), (3, 4, 1), (0, 0, 1), (3, 1, 0), (3, -1, 1), (3, 1, -1)):
        with pytest.raises(ValueError, match=f"not n={n}, c={c}, k={k}"):
            pass_at_k(n, c, k)
    for n in range(1, 9):
        for c in range(n + 1):
            for k in range(1, n + 1):
                passing = [any(place < c for place in subset) for subset in combinations(range(n), k)]
                assert pass_at_k(n, c, k) == pytest.approx(float(Fraction(sum(passing), len(passing))), abs=1e-15)
                assert (pass_at_k(n, c, k) == 1.0) == (c > n - k)
    assert pass_at_k(100_000, 1, 1000) == pytest.approx(0.01)


@pytest.mark.parametrize("lang", PROGRAMS)
def test_63_codebleu_of_odd_text(lang):
    """Every prediction has a finite score, no code scores 0; a reference without code or an unknown language is refused."""
    good = PROGRAMS[lang]
    nested = "x = " + "(" * 30_000 + "1" + ")" * 30_000 if lang == "python" else "x = " + "!" * 30_000 + "1;"
    for prediction in ("", " \n\t", nested, good * 3000, "x + " * 30_000):
        assert score_row(good, prediction, lang).codebleu == 0 == text_score(good, prediction, lang).edit_similarity
    for prediction in (good[: len(good) // 2], "}}}} ((", good.replace("return", "retrun"), "\ud800\0\x7f", "(" * 200, good * 9):
        score, text = score_row(good, prediction, lang), text_score(good, prediction, lang)
        assert all(math.isfinite(value) and 0 <= value <= 1 for value in (score.codebleu, score.codebleu_library, text.chrf))
    for empty in ("", "  \n"):
        with pytest.raises(ValueError, match=f"this reference holds no {lang} code"):
            score_row(empty, good, lang)
    with pytest.raises(ValueError, match="a reference may have 100000 characters and 500 brackets in each other"):
        score_row(nested, good, lang)
    with pytest.raises(ValueError, match="cobol"):
        score_row(good, good, "cobol")


def test_64_what_is_taken_of_a_completion():
    """All of it up to the first stop sequence: no fence is looked for, so one is code that does not parse. Line ends do not matter."""
    fenced = "```python\n    return x // 2\n```"
    for completion in ("", "a\r\nb", fenced, f"{fenced}\n{fenced}", "```\nunterminated"):
        assert cut(completion, ()) == completion
    assert cut("    return 1\n```\ntext", ("\ndef", "\n```")) == "    return 1"
    assert cut("a STOP b END", ("END", "STOP")) == "a " and cut("STOP", ("STOP",)) == ""
    try:
        sandbox = Sandbox.open()
    except SandboxError as error:
        pytest.skip(str(error))
    task = Task("t", "python", "", "def half(x):\n", "half", "", "assert half(8) == 4\n")
    with Judge(sandbox, Limits(wall_s=5)) as judge:
        outcomes = [judge.judge(task, text).outcome for text in ("    return x // 2", "    y = x\r\n    return y // 2\r\n", fenced)]
    assert outcomes == ["passed", "passed", "compile error"]


def honest(weights: Weights) -> Callable[[Problem], Callable[[], Any]]:
    return lambda problem: lambda: reference(problem, "dense")


def with_cached_output(weights: Weights) -> Callable[[Problem], Callable[[], Any]]:
    kept: list[Tensor] = []

    def run(problem: Problem) -> Tensor:
        kept.append(kept[0] if kept else reference(problem, "dense"))
        return kept[0]

    return lambda problem: lambda: run(problem)


def with_changed_input(weights: Weights) -> Callable[[Problem], Callable[[], Any]]:
    def run(problem: Problem) -> Tensor:
        y = reference(problem, "dense")
        problem.x.mul_(0.5)
        return y

    return lambda problem: lambda: run(problem)


def test_65_benchmarks(monkeypatch):
    """What keeps its output or changes its input leaves the table; more than the machine can do is called an error.

    Streams and the first call's compilation are of a GPU: `benchmarks.gpu_timing` times by events on the current one, after two calls.
    """
    monkeypatch.setattr(layer_problem, "D", 64)
    monkeypatch.setattr(layer_problem, "F", 128)
    threads = torch.get_num_threads()
    made = (honest, with_cached_output, with_changed_input)
    bench = Bench(seconds=0, contenders=[Contender(contender.__name__, contender) for contender in made])
    torch.set_num_threads(threads)
    bench.probe = None  # it is compiled
    point = run_point(bench, 5)
    assert [row["name"] for row in point["rows"]] == ["honest"] and point["rounds"] >= 5
    assert "after it was timed" in bench.wrong["with_changed_input"] and "with_cached_output" in bench.wrong
    peaks, amounts = {READ: 10e9, FMA: None, VNNI: None}, {READ: 1e9, FMA: 1.0, VNNI: 1.0}
    for seconds, possible in ((0.2, True), (0.1, True), (0.08, False)):
        verdict = next(
            found for found in judge(1, {EXACT: seconds, INT8: 1.0}, {}, peaks, amounts) if found.what == f"{EXACT}, share of {READ}"
        )
        assert verdict.possible == possible and ("more than the machine can do" in str(verdict)) != possible
