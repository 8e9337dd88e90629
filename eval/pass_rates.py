"""Pass rates out of counts of judged completions: pass@k with intervals, and the change from an earlier run."""

from collections import Counter, defaultdict
from math import comb
from pathlib import Path
from typing import Any

from model.output import RUN
from model.strict_json import read_json

from . import run_files
from .bootstrap import bootstrap, difference, wilson
from .judge import OUTCOMES, PASSED, UNJUDGED
from .runs import read_rows
from .tables import cell, few_note
from .tasks import Task

TASKS = "tasks.jsonl"
# What two runs that are compared share.
SAME = ("lang", "temperature", "top_p", "top_k", "max_new_tokens", "stop", "template", "timeout", "memory")

Counts = list[dict[str, Any]]  # task_id, n, passed


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate from n completions of which c pass; `ValueError` unless 1 <= k <= n and 0 <= c <= n."""
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= c <= n, not n={n}, c={c}, k={k}")
    return 1 - comb(n - c, k) / comb(n, k)


def summarise(tasks: list[Task], rows: list[dict[str, Any]], ks: list[int], seed: str) -> tuple[dict[str, Any], Counts]:
    """The figures of `run.json`, and n and c of each task. A task enters pass@k if at least k of its completions were judged."""
    judged: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        if row["outcome"] not in UNJUDGED:
            judged[row["task_id"]].append(row["outcome"] == PASSED)
    passes = {task.task_id: judged[task.task_id] for task in tasks}
    counts = [{"task_id": name, "n": len(passed), "passed": sum(passed)} for name, passed in passes.items()]
    outcomes = Counter(row["outcome"] for row in rows)
    figures: dict[str, Any] = {
        "tasks": len(tasks),
        "samples": len(rows),
        "outcomes": {name: outcomes[name] for name in OUTCOMES},
        "pass_at_k": {},
    }
    group_of = {task.task_id: task.group for task in tasks}
    for k in ks:
        scored = {name: pass_at_k(len(passed), sum(passed), k) for name, passed in passes.items() if len(passed) >= k}
        if scored:
            once = all(len(passes[name]) == k for name in scored)
            estimate = _mean_with_interval(list(scored.values()), [group_of[name] for name in scored], once, f"{seed}/{k}")
            figures["pass_at_k"][str(k)] = {**estimate, "tasks": len(scored)}
        else:
            figures["pass_at_k"][str(k)] = {"value": None, "low": None, "high": None, "interval": None, "tasks": 0}
    return figures, counts


def _mean_with_interval(scores: list[float], groups: list[str], once: bool, seed: str) -> dict[str, Any]:
    """The mean of the tasks' estimates with its interval, and that interval's method.

    Wilson's where each task is a problem of its own (`groups`) and says yes or no `once` (as many completions as k), else a bootstrap over
    problems. That has no spread where all estimates agree: Wilson's again, as no scores in [0, 1] vary more than zeros and ones of their
    mean.
    """
    mean, problems = sum(scores) / len(scores), len(set(groups))
    if (once and problems == len(scores)) or (problems > 1 and max(scores) - min(scores) < 1e-9):
        low, high = wilson(sum(scores) * problems / len(scores), problems)
        return {"value": mean, "low": low, "high": high, "interval": "wilson"}
    numbers: dict[str, int] = {}
    names = [str(numbers.setdefault(group, place)) for place, group in enumerate(groups)]
    estimate = bootstrap({"": (names, {"": scores})}, seed)[""][""].as_dict()
    return {**estimate, "interval": None if estimate["low"] is None else "bootstrap"}


def pass_rate_table(figures: dict[str, Any], lang: str) -> str:
    """The figures as text."""
    lines, intervals = [f"{lang}: {figures['tasks']} tasks, {figures['samples']} completions"], []
    for k, row in figures["pass_at_k"].items():
        value, interval = cell("pass", row)
        intervals.append(interval)
        lines.append(f"  pass@{k:<4}{value:>6}{interval and '  '}{interval}  {row['tasks']} tasks")
    lines.append("  " + ", ".join(f"{count} {name}" for name, count in figures["outcomes"].items() if count))
    return "\n".join(line for line in (*lines, few_note(intervals)) if line)


def read_counts(folder: Path, tasks: list[Task], facts: dict[str, Any]) -> Counts:
    """The counts in an earlier run's `tasks.jsonl`; `ValueError` if it is of other tasks or settings than this one with `facts`."""
    if not (folder / RUN).is_file() or not (folder / TASKS).is_file():
        raise FileNotFoundError(f"--before {folder} is no finished run of eval.pass_at_k: it lacks {RUN} or {TASKS}")
    earlier, refusal = read_json(folder / RUN), f"--before {folder} cannot be compared with this run"
    for key in SAME:
        if earlier.get(key) != facts[key]:
            raise ValueError(f"{refusal}: {key} is {earlier.get(key)!r} there and {facts[key]!r} here")
    counts = read_rows(folder / TASKS, tuple(run_files.COUNT_SHAPE), run_files.COUNT_SHAPE)
    if wrong := next((row for row in counts if not 0 <= row["passed"] <= row["n"]), None):
        raise ValueError(f"{folder / TASKS} says that of {wrong['n']} completions of {wrong['task_id']} {wrong['passed']} passed")
    if left := {row["task_id"] for row in counts} ^ {task.task_id for task in tasks}:
        raise ValueError(f"{refusal}: its tasks are others ({len(left)} differ, such as {min(left)!r})")
    return counts


def pass_rate_change(tasks: list[Task], before: Counts, after: Counts, ks: list[int], seed: str) -> dict[str, Any]:
    """{k: {"before", "after", "difference", "tasks"}} over the tasks that have k judged completions in both; the difference is paired.

    Resampled are the problems of `tasks`.
    """
    group_of = {task.task_id: task.group for task in tasks}
    counts = {row["task_id"]: row for row in before}
    figures = {}
    for k in ks:
        both = [(counts[row["task_id"]], row) for row in after if min(row["n"], counts[row["task_id"]]["n"]) >= k]
        if not both:
            continue
        names = [group_of[row["task_id"]] for _, row in both]
        scores = {
            "before": [pass_at_k(old["n"], old["passed"], k) for old, _ in both],
            "after": [pass_at_k(new["n"], new["passed"], k) for _, new in both],
        }
        drawn = bootstrap({"": (names, scores)}, f"{seed}/{k}")[""]
        drawn["difference"] = difference(drawn["after"], drawn["before"])
        change = {name: estimate.as_dict() for name, estimate in drawn.items()}
        if scores["before"] == scores["after"]:  # as many problems might differ as where none of so many did
            width = wilson(0, len(set(names)))[1]
            change["difference"] = {"value": 0.0, "low": -width, "high": width}
        figures[str(k)] = {"tasks": len(both), **change}
    return figures


def format_change(figures: dict[str, Any]) -> str:
    """A line for each k, in per cent, with the interval of the difference."""
    lines, intervals = [], []
    for k, row in figures.items():
        values = ", ".join(f"{name} {cell(name, row[name])[0]}" for name in ("before", "after", "difference"))
        intervals.append(cell("difference", row["difference"])[1])
        lines.append(f"  pass@{k:<4} {values} {intervals[-1]}".rstrip() + f"  {row['tasks']} tasks")
    return "\n".join(line for line in (*lines, few_note(intervals)) if line)
