"""Intervals of pass rates where a problem is asked for in several wordings, each a task."""

from typing import Any

import pytest

from eval.bootstrap import wilson
from eval.pass_rates import pass_rate_change, summarise
from eval.tasks import CORPUS, Task, load_tasks

PROBLEMS = 30


def tasks_of(wordings: int) -> list[Task]:
    return [
        Task(f"{problem}-{wording}", "python", "", "", "f", "", "", problem=f"p{problem}")
        for wording in range(wordings)
        for problem in range(PROBLEMS)
    ]


def counts_of(tasks: list[Task], passed: Any, n: int = 1) -> list[dict[str, Any]]:
    return [{"task_id": task.task_id, "n": n, "passed": n * passed(int(task.problem[1:]))} for task in tasks]


def interval(tasks: list[Task], passed: Any) -> dict[str, Any]:
    rows = [{"task_id": row["task_id"], "outcome": "passed" if row["passed"] else "failed"} for row in counts_of(tasks, passed)]
    return summarise(tasks, rows, [1], "0")[0]["pass_at_k"]["1"]


def test_wordings_that_pass_or_fail_together_do_not_narrow_the_interval() -> None:
    """Each as one of its own they would: to less than half of the width."""
    once, often = (interval(tasks_of(wordings), lambda problem: problem % 3 == 0) for wordings in (1, 10))
    assert once["interval"] == "wilson" and often["interval"] == "bootstrap"
    assert once["value"] == often["value"] == pytest.approx(1 / 3)
    assert often["high"] - often["low"] > 0.9 * (once["high"] - once["low"])
    alone, together = wilson(300 / 3, 300), often
    assert alone[1] - alone[0] < 0.5 * (together["high"] - together["low"])


@pytest.mark.parametrize("passed", [0, 1])
def test_all_or_none_is_as_certain_as_so_many_problems(passed: int) -> None:
    found = interval(tasks_of(10), lambda _: passed)
    assert (found["low"], found["high"], found["interval"]) == (*wilson(passed * PROBLEMS, PROBLEMS), "wilson")


def test_the_change_is_that_of_problems() -> None:
    widths = []
    for wordings in (1, 10):
        tasks = tasks_of(wordings)
        before, after = counts_of(tasks, lambda problem: problem % 3 == 0), counts_of(tasks, lambda problem: problem % 2 == 0)
        change = pass_rate_change(tasks, before, after, [1], "0")["1"]["difference"]
        widths.append(change["high"] - change["low"])
        none = pass_rate_change(tasks, before, before, [1], "0")["1"]["difference"]
        assert none["high"] == wilson(0, PROBLEMS)[1]
    assert widths[0] == pytest.approx(widths[1], rel=0.05)


def test_the_corpus_says_which_tasks_are_one_problem() -> None:
    tasks = load_tasks(CORPUS, "python")
    assert len(tasks) > 2 * len({task.group for task in tasks})
    assert all(task.task_id.startswith(task.group) for task in tasks)
    assert Task("t", "python", "", "", "f", "", "").group == "t"
