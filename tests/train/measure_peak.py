"""Trains each of several models for two steps and prints the most memory that each took as a line of JSON.

The argument is JSON: a list of {"kind", "folder", "warm_up", "flags"}. KIND is expert, gate, align or base; WARM_UP a small model that is
trained first, so that libraries and their buffers are no part of the peak; FLAGS are the training command's.
"""

import contextlib
import gc
import json
import re
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from model.load import load_model
from train import expert, gate, lora
from train.data.prompts import IGNORED, collate_packed
from train.documents import HeaderTrainer, collate_documents
from train.gate_trainer import GateTrainer, collate_labelled
from train.policy import deterministic
from train.preference import PreferenceLoss, PreferenceTrainer, collate_preferences
from train.processes import processes
from train.settings import add_training_flags
from train.trained_parts import TRAINED, freeze_all_but
from train.trainer import PairTrainer, train_pairs


def parse(flags: list[object]) -> Namespace:
    parser = ArgumentParser()
    add_training_flags(parser, learning_rate=1e-4, batch_size=4, epochs=1, max_length=384)
    lora.add_lora_flags(parser)
    gate.add_gate_flags(parser)
    parser.add_argument("--packing", action="store_true")
    args = parser.parse_args(list(map(str, flags)))
    gate.check_gate_flags(args)  # it gives defaults too
    vars(args).update(seed=0, base="base", gpu="cpu" if not torch.cuda.is_available() else "auto")
    return args


def resident(kinds: tuple[str, ...]) -> int:
    sizes = dict(re.findall(r"(Rss\w+):\s+(\d+) kB", Path("/proc/self/status").read_text()))
    return sum(int(sizes[kind]) << 10 for kind in kinds)


def train(kind: str, folder: str, args: Namespace, length: int) -> PairTrainer:
    row = {"input_ids": [5] * length, "labels": [5] * length, "own_expert": [IGNORED], "language": 0}
    rows = [row] * (args.batch_size * processes().num_processes)
    if kind == "gate":
        model, tokenizer = load_model(folder)
        model = freeze_all_but(model, TRAINED[args.train])
        names = [f"expert{index}" for index in range(model.config.num_local_experts)]
        trainer = partial(GateTrainer, flags=args, routing_rows={"cpp": rows[:1]}, names=names)
        collator = partial(collate_labelled, pad_token_id=0)
    elif kind == "base":
        model, tokenizer = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)), AutoTokenizer.from_pretrained(folder)
        trainer, collator = HeaderTrainer, partial(collate_documents, pad_token_id=0)
    else:
        model, tokenizer = expert.load_base(folder, checkpointing=args.checkpointing == "on")
        model = lora.add_lora(model, lora.lora_config(args))
        trainer = partial(lora.ExpertTrainer, neftune_alpha=0, loraplus_ratio=1, packing=args.packing)
        collator = partial(collate_packed, pad_token_id=0, max_length=args.max_length) if args.packing else None
        if kind == "align":
            rows = [{**row, "rejected": row}] * args.batch_size
            trainer = partial(PreferenceTrainer, preference_loss=PreferenceLoss(0.1))
            collator = partial(collate_preferences, pad_token_id=0)
    with tempfile.TemporaryDirectory() as workspace, deterministic(model) if kind == "align" else contextlib.nullcontext():
        return train_pairs(model, tokenizer, rows, rows[:1], args, Path(workspace), trainer, collator)


def measure(kind: str, folder: str, warm_up: str, flags: list[object]) -> dict[str, float]:
    args = parse([*flags, "--max-steps", 2, "--eval-every", 2])
    train(kind, warm_up, args, 8)
    gc.collect()
    # A mixture's weights stay mapped from their file; a base's are copied when they are quantised, or change their dtype.
    kinds = ("RssAnon", "RssFile") if kind == "gate" else ("RssAnon",)
    start, peak, done = resident(kinds), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident(kinds) - start)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        train(kind, folder, args, args.max_length if not args.packing else 3 * args.max_length // 8)
    finally:
        done.set()
        watcher.join()
    gc.collect()
    return {"peak": peak, "allocated": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0}


if __name__ == "__main__":
    processes()
    for job in json.loads(sys.argv[1]):
        print(json.dumps(measure(**job)), flush=True)
