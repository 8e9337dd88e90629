"""Completions of tasks: a model's, cut at stop sequences, those of a file, or the tasks' own solutions."""

import json
import time
from argparse import Namespace
from collections import Counter
from itertools import takewhile
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm
from transformers import set_seed

from model.cost import model_cost, precision_facts
from model.generation import complete_ids, decode_behind, encode_prompts
from model.load import load_model
from model.output import write_whole
from model.prompt import format_prompt
from model.strict_json import parse_json

from .cost import speed
from .run_files import NUMBER, check_shape
from .runs import lines_in, read_rows
from .tasks import Task
from .tasks.task import unfenced

BATCH_SHAPE = {
    "samples": [{"task_id": str, "sample": int, "completion": str, "fenced": bool, "prompt": str}],
    "tokens": int,
    "seconds": NUMBER,
    "cost": dict,
}
Sample = dict[str, Any]  # task_id, sample (its number), completion, fenced, lang, prompt; judged: outcome, detail


def prompt_of(task: Task, template: bool, tokenizer: Any = None) -> str:
    """What the model sees: the task's own text, and before it the project's template where asked for or where there is nothing else."""
    return format_prompt(task.text, task.lang, tokenizer) + task.prompt if template or task.whole else task.prompt


def given(path: Path, tasks: list[Task]) -> list[Sample]:
    """The completions of a JSONL file, in order. ValueError for one that is no text, or of no known task."""
    known = {task.task_id: task for task in tasks}
    numbers: Counter[str] = Counter()
    samples = []
    for row in read_rows(path, ("task_id", "completion"), {"task_id": str, "completion": str}):
        if row["task_id"] not in known:
            raise ValueError(f"{path}: {row['task_id']!r} is the task_id of none of the {len(known)} tasks, such as {next(iter(known))!r}")
        samples.append(_sample(known[row["task_id"]], numbers[row["task_id"]], row["completion"]))
        numbers[row["task_id"]] += 1
    if not samples:
        raise ValueError(f"{path} holds no completions")
    return samples


def _sample(task: Task, number: int, answer: str) -> Sample:
    """`fenced`: whether the program is a fenced block of the answer, as chat models write it."""
    program = unfenced(answer, task.lang) if task.whole else answer
    return {"task_id": task.task_id, "sample": number, "completion": program, "fenced": program != answer}


def references(tasks: list[Task]) -> list[Sample]:
    """The tasks' own solutions. ValueError if none has one."""
    samples = [{"task_id": task.task_id, "sample": 0, "completion": task.reference} for task in tasks if task.reference is not None]
    if not samples:
        raise ValueError("no task of this set comes with a reference solution")
    return samples


def generated(args: Namespace, tasks: list[Task], n: int, unfinished: Path) -> tuple[list[Sample], dict[str, Any]]:
    """n completions of each task, cut at stop sequences, and what they cost.

    A line of `completions.jsonl` is a batch. Each is seeded by its number, so that a run that goes on draws what it would have drawn. Kept
    are those up to the first that is not of the batch at its place.
    """
    wanted = [(task, number) for task in tasks for number in range(n)]
    batches = [wanted[start : start + args.batch_size] for start in range(0, len(wanted), args.batch_size)]
    log = unfinished / "completions.jsonl"
    done = [row for row, _ in takewhile(lambda pair: _is_of(*pair), zip(rows_kept(log, BATCH_SHAPE), batches, strict=False))]
    write_rows(log, done)
    if len(done) < len(batches):
        model, tokenizer = load_model(args.model, adapter=args.adapter, device=args.device, precision=args.precision)
        with log.open("a", encoding="utf-8") as file, tqdm(total=len(batches), initial=len(done), unit="batch", disable=None) as bar:
            bar.set_description("Generating")
            for batch in batches[len(done) :]:
                set_seed(Random(f"{args.seed}/{len(done)}").getrandbits(32))
                done.append(_complete_batch(model, tokenizer, batch, args))
                file.write(json.dumps(done[-1]) + "\n")
                file.flush()
                bar.update()
    tokens, seconds = (sum(row[key] for row in done) for key in ("tokens", "seconds"))
    return [sample for row in done for sample in row["samples"]], {**done[-1]["cost"], **speed(tokens, seconds, args.batch_size)}


def _is_of(row: dict[str, Any], batch: list[tuple[Task, int]]) -> bool:
    return [(sample["task_id"], sample["sample"]) for sample in row["samples"]] == [(task.task_id, number) for task, number in batch]


def _complete_batch(model: Any, tokenizer: Any, batch: list[tuple[Task, int]], args: Namespace) -> dict[str, Any]:
    """`samples`, their `tokens` (EOS included), `seconds`, and the model's `cost` so far."""
    prompts = [prompt_of(task, args.template, tokenizer) for task, _ in batch]
    settings = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "top_p": args.top_p}
    stop = sorted({mark for task, _ in batch for mark in task.stop})
    started = time.monotonic()
    rows = encode_prompts(tokenizer, prompts)
    completions = complete_ids(model, tokenizer, rows, batch_size=len(batch), progress=False, stop=stop, **settings)
    seconds = time.monotonic() - started
    samples = []
    for (task, number), prompt, ids in zip(batch, prompts, completions, strict=True):
        text = decode_behind(tokenizer, ids, "" if task.whole else prompt)  # a whole program is a text of its own, as in training
        sample = _sample(task, number, text)
        samples.append({**sample, "prompt": prompt, "completion": task.cut(sample["completion"])})
    cost = {**model_cost(model), **precision_facts(model)}
    return {"samples": samples, "tokens": sum(map(len, completions)), "seconds": seconds, "cost": cost}


def rows_kept(path: Path, shape: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a JSONL file of unfinished work, [] where it is absent; to be written back before more are added.

    They end before the first that cannot be read or has not the `shape`: one that a crash cut off. What would follow is made again.
    """
    rows = []
    for line in lines_in(path) if path.is_file() else ():
        try:
            rows.append(check_shape(parse_json(line), shape, str(path)))
        except ValueError:
            break
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """By rename: a file that is there has all its rows."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows))
