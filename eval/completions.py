"""Completions of tasks: a model's, cut at stop sequences, those of a file, or the tasks' own solutions."""

import json
import os
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import set_seed

from model.cost import model_cost
from model.generation import encode_prompts, generation_options, pad_left, room_behind
from model.load import load_model
from model.prompt import format_prompt
from model.strict_json import parse_json

from .cost import count_tokens, precision_facts, speed
from .run_files import check_shape
from .runs import lines_in
from .tasks import Task

Sample = dict[str, Any]  # task_id, sample (its number), completion, lang, prompt; judged: outcome, detail


def prompt_of(task: Task, template: bool, tokenizer: Any = None) -> str:
    """What the model sees: the task's own text, and before it the project's template where asked for or where there is nothing else."""
    return format_prompt(task.text, task.lang, tokenizer) + task.prompt if template or task.whole else task.prompt


@torch.inference_mode()
def generate(model: Any, tokenizer: Any, prompts: list[str], stops: list[tuple[str, ...]], args: Namespace) -> tuple[list[str], int]:
    """A completion of each prompt, in batches of one task set's order, and their tokens, EOS included and padding not.

    A batch ends when all of it has met a stop sequence or EOS.
    """
    rows = encode_prompts(tokenizer, prompts)
    sampling = generation_options(tokenizer, args.temperature, args.top_p)
    texts, tokens = [], 0
    for start in tqdm(range(0, len(rows), args.batch_size), desc="Generating", unit="batch", disable=None):
        batch = rows[start : start + args.batch_size]
        inputs = pad_left(tokenizer, batch, model.device)
        width, room = inputs["input_ids"].shape[1], room_behind(model, tokenizer, max(batch, key=len))
        marks = sorted({mark for stop in stops[start : start + len(batch)] for mark in stop})
        output = model.generate(
            **inputs,
            **sampling,
            **({"stop_strings": marks, "tokenizer": tokenizer} if marks else {}),
            max_new_tokens=min(args.max_new_tokens, room),
        )
        texts += tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        tokens += count_tokens(output[:, width:].tolist(), tokenizer.eos_token_id)
    return texts, tokens


def given(path: Path, tasks: list[Task]) -> list[Sample]:
    """The completions of a JSONL file, in order. ValueError for one of no known task."""
    known = {task.task_id for task in tasks}
    numbers: Counter[str] = Counter()
    samples = []
    for row in rows_kept(path, missing_ok=False):
        if not isinstance(row.get("completion"), str) or row.get("task_id") not in known:
            raise ValueError(f"{path}: a row needs a completion and the task_id of one of the {len(known)} tasks, not {str(row)[:80]}")
        samples.append({"task_id": row["task_id"], "sample": numbers[row["task_id"]], "completion": row["completion"]})
        numbers[row["task_id"]] += 1
    if not samples:
        raise ValueError(f"{path} holds no completions")
    return samples


def references(tasks: list[Task]) -> list[Sample]:
    """The tasks' own solutions. ValueError if none has one."""
    samples = [{"task_id": task.task_id, "sample": 0, "completion": task.reference} for task in tasks if task.reference is not None]
    if not samples:
        raise ValueError("no task of this set comes with a reference solution")
    return samples


def generated(args: Namespace, tasks: list[Task], n: int, unfinished: Path) -> tuple[list[Sample], dict[str, Any]]:
    """n completions of each task, cut at stop sequences, and what they cost. Both are kept, so that a run can go on with judging."""
    log = unfinished / "completions.jsonl"
    if kept := rows_kept(log):
        return kept[1:], kept[0]["cost"]
    if args.temperature == 0 and n > 1:
        raise ValueError("at --temperature 0 all completions of a task are equal; take -n 1, or a temperature such as 0.8")
    model, tokenizer = load_model(args.model, adapter=args.adapter, device=args.device, precision=args.precision)
    set_seed(args.seed)
    prompts = [prompt_of(task, args.template, tokenizer) for task in tasks for _ in range(n)]
    started = time.monotonic()
    texts, tokens = generate(model, tokenizer, prompts, [task.stop for task in tasks for _ in range(n)], args)
    cost = {**model_cost(model), **precision_facts(model), **speed(tokens, time.monotonic() - started, args.batch_size)}
    owners = [(task, number) for task in tasks for number in range(n)]
    samples = [
        {"task_id": task.task_id, "sample": number, "prompt": prompt, "completion": task.cut(text)}
        for (task, number), prompt, text in zip(owners, prompts, texts, strict=True)
    ]
    write_rows(log, [{"cost": cost}, *samples])
    return samples, cost


def rows_kept(path: Path, *, missing_ok: bool = True) -> list[dict[str, Any]]:
    """The rows of a JSONL file; a last line that was cut off by a crash is left out."""
    if not path.is_file():
        if missing_ok:
            return []
        raise FileNotFoundError(f"{path} is missing")
    rows = []
    for line in lines_in(path):
        try:
            rows += [check_shape(parse_json(line), {}, str(path))] if line.strip() else []
        except ValueError:
            if not missing_ok:
                raise ValueError(f"{path} holds a line that is not a JSON object: {line[:80].decode(errors='replace')!r}") from None
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """By rename: a file that is there has all its rows."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows), encoding="utf-8")
    os.replace(temporary, path)
