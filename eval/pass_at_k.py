"""`python -m eval.pass_at_k`: the share of programming tasks that a model solves, by running its programs against the tasks' tests.

pass@k is the chance that at least one of k completions passes (Chen et al. 2021, arXiv:2107.03374): from n completions of which c pass,
1 - C(n-c, k) / C(n, k) without bias. Completions are written by --model, given by --samples, or the tasks' own solutions (--references).
RUN holds `samples.jsonl` (a row a completion: prompt, outcome, detail), `tasks.jsonl` (n and c of each task) and `run.json`. "tool
missing" and "sandbox error" say nothing about a program: such rows leave the figures, the run names them and ends with status 1.

Programs run in a sandbox (docs/evaluation.md); if it does not hold on this machine, nothing is run.
"""

import json
import os
import shutil
import sys
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model.cli import add_precision, check_sampling, make_parser, run_command
from model.languages import LANGUAGES
from model.load import load_tokenizer, model_fingerprint
from model.output import output_folder, sha256_of, write_json, write_run
from model.prompt import prompt_template
from model.unfinished import FACTS, check_same_facts, locked, remove_work, unfinished

from .codebleu import check_flags
from .completions import Sample, generated, given, prompt_of, references, rows_kept, write_rows
from .judge import UNJUDGED, Judge
from .pass_rates import TASKS, format_change, pass_rate_change, pass_rate_table, read_counts, summarise
from .runs import PASS_AT_K, SAMPLES
from .sandbox import Limits, Sandbox, SandboxError
from .tasks import CORPUS, Task, load_tasks
from .tools import tool_versions

VERDICT_SHAPE = {"task_id": str, "completion": str, "outcome": str, "detail": str}
GENERATING = ("adapter", "n", "temperature", "top_p", "max_new_tokens", "stop", "batch_size", "device", "precision")  # flags
# What prlimit and the waiting for a process can be given has an end; these are well before it.
LONGEST_S = 86_400
MOST_MIB = 1 << 24


def main(args: Namespace) -> int:
    """The command; 1 if some programs could not be judged."""
    _check(args)
    ks = sorted({int(k) if k.isdecimal() else 0 for k in args.k.split(",")})
    if ks[0] < 1:
        raise ValueError(f"-k takes numbers from 1 on, joined by commas, not {args.k!r}")
    if args.model:
        args.n = max(args.n, *ks)
        if args.temperature == 0 and args.n > 1:
            raise ValueError("at --temperature 0 all completions of a task are equal; take -n 1, or a temperature such as 0.8")
    tasks = [replace(task, stop=(*task.stop, *args.stop)) for task in load_tasks(args.tasks, args.lang)[: args.limit]]
    facts = {key: getattr(args, key) for key in ("model", "adapter", "tasks", "lang", "limit", "timeout", "memory", "template")}
    facts |= {key: getattr(args, key) if args.model else None for key in ("n", "temperature", "top_p", "max_new_tokens", "precision")}
    facts["stop"] = sorted({mark for task in tasks for mark in task.stop})
    facts["top_k"] = 0 if args.model and args.temperature else None  # none is cut off; runs before this was written had transformers' 50
    facts["fingerprint"] = model_fingerprint(args.model, args.adapter) if args.model else None
    data = {"source": args.tasks, "sha256": None if args.tasks == CORPUS else sha256_of(Path(args.tasks)), "rows": len(tasks)}
    before = read_counts(args.before, tasks, facts) if args.before else None
    cost, samples_from = None, None
    if args.samples:
        samples, samples_from = given(args.samples, tasks), {"path": str(args.samples), "sha256": sha256_of(args.samples)}
    elif args.references:
        samples = references(tasks)
    if not args.model and ks[-1] > (most := max(Counter(row["task_id"] for row in samples).values())):
        raise ValueError(f"pass@{ks[-1]} needs {ks[-1]} completions of a task; no task has more than {most}")
    sandbox = Sandbox.open(unsafe=args.unsafe_no_sandbox)
    conditions = {**facts, "data": data, "sandbox": sandbox.facts, "seed": args.seed}
    if args.model:
        conditions["batch_size"] = args.batch_size
    with _work_folder(args.out, conditions) as work:
        if args.model:
            samples, cost = generated(args, tasks, args.n, work)
        of_task = {task.task_id: {"prompt": prompt_of(task, args.template), "whole": task.whole} for task in tasks}
        samples = [{"lang": args.lang, **of_task[row["task_id"]], **row} for row in samples]
        limits = Limits(wall_s=args.timeout, memory_mib=args.memory)
        rows, judging = judge_samples(tasks, samples, sandbox, limits, work / SAMPLES, args.jobs)
        figures, counts = summarise(tasks, rows, ks, f"{args.seed}")
        if before is not None:
            figures["before"] = pass_rate_change(tasks, before, counts, ks, f"{args.seed}")
        with output_folder(args.out, made_from=work) as folder:
            write_rows(folder / SAMPLES, rows)
            write_rows(folder / TASKS, counts)
            more = {
                "data": data,
                "samples": samples_from,
                "prompt_template": _template(args, tasks),
                "sandbox": sandbox.facts,
                "tools": tool_versions([args.lang]),
                "cost": cost,
                "judging": judging,
                "fenced": sum(row.get("fenced", False) for row in rows),
            }
            write_run(folder, seed=args.seed, figures=figures, program=PASS_AT_K, name=args.name, **facts, **more)
    print(pass_rate_table(figures, args.lang))
    if before is not None:
        print(format_change(figures["before"]))
    print(f"written to {args.out}")
    if unjudged := sum(figures["outcomes"][outcome] for outcome in UNJUDGED):
        print(f"{unjudged} completions could not be judged and count nowhere: see {args.out / SAMPLES}", file=sys.stderr)
    return 1 if unjudged else 0


def _template(args: Namespace, tasks: list[Task]) -> str | None:
    """What the model was asked in; None where it saw the tasks' own prompts, or there was no model."""
    asked = args.model and (args.template or any(task.whole for task in tasks))
    return prompt_template(load_tokenizer(args.model, args.adapter)) if asked else None


def _check(args: Namespace) -> None:
    """ValueError for a flag with which every program would fail, or none be there, or that would do nothing."""
    if args.n < 1:
        raise ValueError(f"-n must be at least 1, not {args.n}")
    counts = ("max_new_tokens", "batch_size", "memory", "jobs", "limit")
    check_flags(args, *(name for name in counts if getattr(args, name) is not None))
    if not 0 < args.timeout <= LONGEST_S:
        raise ValueError(f"--timeout must be a number of seconds above 0, at most {LONGEST_S} (a day), not {args.timeout}")
    if args.memory > MOST_MIB:
        raise ValueError(f"--memory must be at most {MOST_MIB} MiB (16 TiB), not {args.memory}")
    check_sampling(args.temperature, args.top_p)
    parser = parse()
    if not args.model and (idle := [name for name in GENERATING if getattr(args, name) != parser.get_default(name)]):
        flags = ", ".join("-n" if name == "n" else f"--{name.replace('_', '-')}" for name in idle)
        raise ValueError(f"no completion is generated from --samples or --references: {flags} would do nothing")


@contextmanager
def _work_folder(target: Path, conditions: dict[str, Any]) -> Iterator[Path]:
    """Yields the locked folder of completions and verdicts of the run that becomes `target`, and removes it at the end.

    After an error it stays if it holds any. ValueError, naming what differs, if those in it are of other `conditions`, or if another
    process is at it.
    """
    work = unfinished(target)
    with locked(work):
        try:
            if _has_rows(work):
                check_same_facts(work, conditions)
            else:
                write_json(work / FACTS, conditions)
            yield work
        except BaseException:
            if not _has_rows(work):
                shutil.rmtree(work)
            raise
        remove_work(work)


def _has_rows(work: Path) -> bool:
    return any(path.stat().st_size for path in work.glob("*.jsonl"))


def judge_samples(
    tasks: list[Task], samples: list[Sample], sandbox: Sandbox, limits: Limits, log: Path, jobs: int
) -> tuple[list[Sample], dict[str, Any]]:
    """`samples` with their outcomes, and what judging took: programs, wall seconds, jobs.

    Each outcome is written to `log` once known; those in it already are not judged again, nor are equal ones.
    """
    by_id = {task.task_id: task for task in tasks}
    kept = rows_kept(log, VERDICT_SHAPE)
    write_rows(log, kept)
    known = {(row["task_id"], row["completion"]): row for row in kept if row["outcome"] not in UNJUDGED}
    todo = list(dict.fromkeys((row["task_id"], row["completion"]) for row in samples if (row["task_id"], row["completion"]) not in known))
    started = time.monotonic()
    with Judge(sandbox, limits) as judge, ThreadPoolExecutor(jobs) as pool, log.open("a", encoding="utf-8") as file:
        futures = {pool.submit(judge.judge, by_id[task_id], completion): (task_id, completion) for task_id, completion in todo}
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc="Judging", unit="program", disable=None):
                (task_id, completion), verdict = futures[future], future.result()
                row = {"task_id": task_id, "completion": completion, "outcome": verdict.outcome, "detail": verdict.detail}
                known[task_id, completion] = row
                file.write(json.dumps(row) + "\n")
                file.flush()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    took = {"programs": len(todo), "seconds": time.monotonic() - started, "jobs": jobs}
    judged = (known[row["task_id"], row["completion"]] for row in samples)
    return [{**row, "outcome": found["outcome"], "detail": found["detail"]} for row, found in zip(samples, judged, strict=True)], took


def parse() -> ArgumentParser:
    parser = make_parser(PASS_AT_K, __doc__ or "")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a base model (folder or hub name), an adapter's folder, or a mixture's folder")
    source.add_argument("--samples", type=Path, help="JSONL of completions made elsewhere: task_id and completion")
    source.add_argument("--references", action="store_true", help="the tasks' own solutions, where they have one")
    parser.add_argument("--adapter", help="a PEFT adapter's folder to put on --model")
    parser.add_argument("--tasks", required=True, help=f"JSONL of a known task set, gzipped or not, or {CORPUS!r}: see docs/evaluation.md")
    parser.add_argument("--lang", choices=list(LANGUAGES), required=True, help="of the tasks")
    parser.add_argument("-k", default="1", help="of pass@k; several joined by commas")
    parser.add_argument("-n", type=int, default=1, help="completions of each task, at least the largest k")
    parser.add_argument("--temperature", type=float, default=0.0, help="of sampling; 0 takes the likeliest token")
    parser.add_argument("--top-p", type=float, default=0.95, help="sample from the likeliest tokens that have this probability together")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="tokens of a completion")
    parser.add_argument("--stop", nargs="+", default=[], help="a completion ends before the first of these, beside the task set's own")
    parser.add_argument("--batch-size", type=int, default=16, help="completions written together")
    parser.add_argument("--template", action="store_true", help="put the project's prompt (language and description) before the task's own")
    parser.add_argument("--limit", type=int, help="only the first tasks")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds that a program may take for all of its tests")
    parser.add_argument("--memory", type=int, default=1024, help="MiB that a program may take")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="programs judged at once")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--before", type=Path, help="an earlier run on the same tasks: shows the change, with a paired interval")
    parser.add_argument("--name", help="label in reports")
    parser.add_argument(
        "--unsafe-no-sandbox", action="store_true", help="run the programs with this user's rights, unprotected; recorded in run.json"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; a run that was stopped goes on if called again")
    add_precision(parser)
    return parser


def run(argv: list[str] | None = None) -> int:
    """The command's exit status: 0, 1 if some programs could not be judged, 2 for a user's mistake or a sandbox that does not hold."""
    status = [0]

    def command(args: Namespace) -> None:
        try:
            status[0] = main(args)
        except SandboxError as error:
            raise ValueError(f"{error}. --unsafe-no-sandbox runs programs unprotected") from error

    return run_command(command, parse(), argv) or status[0]


if __name__ == "__main__":
    sys.exit(run())
