"""Trains for a few steps and prints the most memory that it took as JSON: KIND FOLDER CHECKPOINTING WARM_UP [PARTS].

KIND is expert or gate; WARM_UP a small model that is trained first, so that libraries and their buffers are no part of the peak.
"""

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

from model.load import load_model
from train import expert, gate, lora
from train.data.prompts import IGNORED
from train.gate_trainer import GateTrainer, collate_labelled
from train.settings import add_training_flags
from train.trained_parts import TRAINED, freeze_all_but
from train.trainer import PairTrainer, train_pairs

BATCH, LENGTH = 4, 384


def resident(kinds: tuple[str, ...]) -> int:
    sizes = dict(re.findall(r"(Rss\w+):\s+(\d+) kB", Path("/proc/self/status").read_text()))
    return sum(int(sizes[kind]) << 10 for kind in kinds)


def train(kind: str, folder: str, args: Namespace, length: int) -> PairTrainer:
    rows = [{"input_ids": [5] * length, "labels": [5] * length, "own_expert": [IGNORED]} for _ in range(BATCH)]
    if kind == "expert":
        model, tokenizer = expert.load_base(folder, checkpointing=args.checkpointing == "on")
        model, trainer, collator = lora.add_lora(model, args), PairTrainer, None
    else:
        model, tokenizer = load_model(folder)
        model = freeze_all_but(model, TRAINED[args.train])
        names = [f"expert{index}" for index in range(model.config.num_local_experts)]
        trainer = partial(GateTrainer, flags=args, routing_rows={"cpp": rows[:1]}, names=names)
        collator = partial(collate_labelled, pad_token_id=0)
    with tempfile.TemporaryDirectory() as workspace:
        return train_pairs(model, tokenizer, rows, rows[:1], args, Path(workspace), trainer, collator)


def main(kind: str, folder: str, checkpointing: str, warm_up: str, parts: str = "gate") -> None:
    parser = ArgumentParser()
    add_training_flags(parser, learning_rate=1e-4, batch_size=BATCH, epochs=1, max_length=LENGTH)
    lora.add_lora_flags(parser)
    gate.add_gate_flags(parser)
    args = parser.parse_args(["--max-steps", "2", "--eval-every", "2", "--checkpointing", checkpointing, "--train", parts])
    vars(args).update(seed=0, base=folder)
    train(kind, warm_up, args, 8)
    gc.collect()
    # A mixture's weights stay mapped from their file; a base's are copied when they are quantised, or change their dtype.
    kinds = ("RssAnon",) if kind == "expert" else ("RssAnon", "RssFile")
    start, peak, done = resident(kinds), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident(kinds) - start)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        trainer = train(kind, folder, args, LENGTH)
    finally:
        done.set()
        watcher.join()
    allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    entries = [entry["seconds"] for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({"peak": peak, "allocated": allocated, "step": entries[-1] - entries[0]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
