"""Sampled completions of tasks, ended by stop sequences."""

from argparse import Namespace
from typing import Any

import torch
from tqdm import tqdm

from model.generation import context_of, encode_prompts, pad_left
from model.prompt import format_prompt

from .tasks import Task


def prompt_of(task: Task, template: bool, tokenizer: Any = None) -> str:
    """What the model sees: the task's own text, and before it the project's template where asked for or where there is nothing else."""
    return format_prompt(task.text, task.lang, tokenizer) + task.prompt if template or task.whole else task.prompt


@torch.inference_mode()
def generate(model: Any, tokenizer: Any, prompts: list[str], stops: list[tuple[str, ...]], args: Namespace) -> list[str]:
    """A completion of each prompt, in batches of one task set's order; a batch ends when all of it has met a stop sequence or EOS."""
    rows = encode_prompts(tokenizer, prompts)
    room = context_of(model)
    sampling = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p} if args.temperature else {"do_sample": False}
    texts = []
    for start in tqdm(range(0, len(rows), args.batch_size), desc="Generating", unit="batch", disable=None):
        batch = rows[start : start + args.batch_size]
        inputs = pad_left(tokenizer, batch, model.device)
        width = inputs["input_ids"].shape[1]
        if width >= room:
            raise ValueError(f"a prompt of {width} tokens leaves no room in a context of {room}")
        marks = sorted({mark for stop in stops[start : start + len(batch)] for mark in stop})
        output = model.generate(
            **inputs,
            **sampling,
            **({"stop_strings": marks, "tokenizer": tokenizer} if marks else {}),
            max_new_tokens=min(args.max_new_tokens, room - width),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
        texts += tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
    return texts
