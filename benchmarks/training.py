"""How fast, and in how much memory, an expert is trained beside the plain stack: `python -m benchmarks.training`.

The plain stack is `transformers.Trainer` + PEFT + bitsandbytes. It has the same base, rows, batch size, steps, schedule and factors at the
start (the demo's), pads each batch to its longest row, and is run with Trainer's own two orders of rows, at random and grouped by length.
Every run is a process of its own, and in every round each runs once, in turn, for a shared machine is at times slower than at others.

A step is timed from the start of its first forward pass to the end of the optimizer's; tokens are those of the rows, without padding. CPU
seconds tell more than seconds where other work runs beside it. Medians over rounds are printed, with each run's losses: the mean over each
tenth of the steps, and the evaluation loss at the end.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, prepare_model_for_kbit_training
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from benchmarks.cpu.layer import hardware
from benchmarks.full_scale.watch import run_watched
from model.cli import make_parser, run_command
from train.base import resolve_base
from train.data import load_pairs
from train.data.prompts import Example, collate_packed, encode_pairs
from train.expert import load_base
from train.lora import ExpertTrainer, add_lora, add_lora_flags, lora_config
from train.settings import LOG_ENTRIES, add_training_flags
from train.trainer import train_pairs

OURS, PACKED, PLAIN, GROUPED = "train.expert", "train.expert --packing", "plain", "plain, group_by_length"
CONTENDERS = OURS, PACKED, PLAIN, GROUPED
CURVE = 10  # points of a training curve


class Stopwatch(TrainerCallback):
    """Seconds and CPU seconds within steps, evaluations and checkpoints left out, and the tokens they were for."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self.tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.include_num_input_tokens_seen = "non_padding"

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds -= time.perf_counter()
        self.cpu_seconds -= time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter()
        self.cpu_seconds += time.process_time()
        self.tokens = state.num_input_tokens_seen


class TimedExpertTrainer(ExpertTrainer):
    def __init__(self, *args: Any, stopwatch: Stopwatch, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(stopwatch)


def train_ours(args: argparse.Namespace, rows: dict[str, list[Example]], folder: Path, stopwatch: Stopwatch) -> list[dict[str, Any]]:
    """As the command does it; returns the log."""
    model, tokenizer = load_base(args.base, checkpointing=False)
    set_seed(args.seed)
    expert = add_lora(model, lora_config(args))
    packing = args.contender == PACKED
    trainer_class = partial(TimedExpertTrainer, neftune_alpha=0.0, loraplus_ratio=1.0, packing=packing, stopwatch=stopwatch)
    collator = partial(collate_packed, pad_token_id=tokenizer.pad_token_id, max_length=args.max_length) if packing else None
    return train_pairs(expert, tokenizer, rows["train"], rows["valid"], args, folder, trainer_class, collator).state.log_history


def train_plain(args: argparse.Namespace, rows: dict[str, list[Example]], folder: Path, stopwatch: Stopwatch) -> list[dict[str, Any]]:
    """As the three libraries' documentation does it; returns the log."""
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )
    base = AutoModelForCausalLM.from_pretrained(args.base, quantization_config=nf4, dtype=torch.float32, device_map="cpu")
    prepared = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    set_seed(args.seed)
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(args.warmup * args.max_steps),
        train_sampling_strategy="group_by_length" if args.contender == GROUPED else "random",
        logging_steps=max(1, args.max_steps // LOG_ENTRIES),
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=args.seed,
    )
    trainer = Trainer(
        model=get_peft_model(prepared, lora_config(args)),
        args=settings,
        train_dataset=rows["train"],
        eval_dataset=rows["valid"],
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(args.base)),
        callbacks=[stopwatch],
    )
    trainer.train()
    trainer.evaluate()
    return trainer.state.log_history


def contend(args: argparse.Namespace) -> None:
    """One run in this process; prints its figures as JSON."""
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    rows = {}
    for split, limit in (("train", args.limit), ("valid", args.eval_limit)):
        pairs = load_pairs(args.data, args.lang, split, limit=limit, seed=args.seed).rows
        rows[split], _ = encode_pairs(pairs, tokenizer, args.max_length)
    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        log = (train_ours if args.contender in (OURS, PACKED) else train_plain)(args, rows, Path(folder), stopwatch)
    tenths = [
        [entry["loss"] for entry in log if "loss" in entry and -(-entry["step"] * CURVE // args.max_steps) == tenth]
        for tenth in range(1, CURVE + 1)
    ]
    losses = [round(statistics.mean(tenth), 3) for tenth in tenths if tenth]
    evaluated = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    print(json.dumps({**vars(stopwatch), "losses": losses, "eval_loss": evaluated[-1]}))


def run_child(contender: str) -> dict[str, Any]:
    """The figures of this command line's run by `contender`, and its peak of anonymous memory."""
    watched = run_watched([sys.executable, "-m", "benchmarks.training", *sys.argv[1:], "--contender", contender])
    return {**json.loads(watched.output.splitlines()[-1]), "anonymous_bytes": watched.anonymous}


def benchmark(args: argparse.Namespace) -> None:
    """The command: prints a table, and writes it to `args.json`."""
    args.eval_every = args.max_steps
    if args.max_steps < CURVE or args.rounds < 1 or args.threads < 1:
        raise ValueError(f"--max-steps must be at least {CURVE}, --rounds and --threads at least 1")
    args.base, _ = resolve_base(args.base)  # trained now if it is not there, not within a run
    if args.contender:
        contend(args)
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for _ in tqdm(range(args.rounds), desc="rounds"):
        for contender, found in runs.items():
            found.append(run_child(contender))
    rows = []
    print(f"{'':24} {'tokens/s':>9} {'tokens/CPU s':>13} {'peak MiB':>9} {'eval loss':>10}")
    for contender, found in runs.items():
        row = {
            "name": contender,
            "tokens_per_second": statistics.median(run["tokens"] / run["seconds"] for run in found),
            "tokens_per_cpu_second": statistics.median(run["tokens"] / run["cpu_seconds"] for run in found),
            "anonymous_bytes": max(run["anonymous_bytes"] for run in found),
            "eval_loss": found[0]["eval_loss"],
            "losses": found[0]["losses"],
        }
        rows.append(row)
        speeds = f"{row['tokens_per_second']:9,.0f} {row['tokens_per_cpu_second']:13,.0f}"
        print(f"{contender:24} {speeds} {row['anonymous_bytes'] / 2**20:9,.0f} {row['eval_loss']:10.4f}  {row['losses']}")
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key not in ("json", "contender")}
        report = {"kind": "measured", "hardware": hardware(), "settings": settings, "rows": rows}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def main() -> int:
    parser = make_parser("benchmarks.training", __doc__ or "")
    parser.add_argument("--base", default="auto", help="folder; auto: the embedded base")
    parser.add_argument("--data", default="corpus", help="as of train.expert")
    parser.add_argument("--lang", default="cpp", help="as of train.expert")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken")
    parser.add_argument("--threads", type=int, default=1, help="of a run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    add_lora_flags(parser)
    add_training_flags(parser, learning_rate=8e-3, batch_size=16, epochs=1, max_length=384)
    parser.set_defaults(rank=64, dropout=0.0, max_steps=100, eval_limit=64)
    return run_command(benchmark, parser)


if __name__ == "__main__":
    raise SystemExit(main())
