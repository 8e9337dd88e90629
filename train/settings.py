"""The flags that every training command shares, and the `TrainingArguments` they become."""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from model.flags_file import add_config_flags

from .processes import TIMEOUT, processes

EVALUATIONS = 10  # per run, unless --eval-every says otherwise
LOG_ENTRIES = 100  # per run
NOT_FACTS = ("resume", "plan", "gpu", "ignore_plan", "out")  # flags that change nothing in what a run makes


def add_training_flags(parser: argparse.ArgumentParser, *, learning_rate: float, batch_size: int, epochs: float, max_length: int) -> None:
    """Adds steps, batch, schedule, evaluation and resume flags with this command's defaults, and `--config`."""
    add_config_flags(parser)
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=float, default=epochs, help="passes over the data")
    group.add_argument("--max-steps", type=int, default=0, help="optimizer steps; 0: as many as --epochs takes")
    group.add_argument("--batch-size", type=int, default=batch_size, help="rows per forward pass, of each process")
    group.add_argument("--accumulation", type=int, default=1, help="forward passes per optimizer step")
    group.add_argument("--learning-rate", type=float, default=learning_rate, help="peak, of a cosine schedule")
    group.add_argument("--warmup", type=float, default=0.03, help="share of the steps over which the rate rises")
    group.add_argument("--weight-decay", type=float, default=0.0, help="of AdamW")
    group.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    group.add_argument(
        "--max-length", type=int, default=max_length, help="tokens of a row; longer rows are dropped and counted (train.base cuts them)"
    )
    group.add_argument(
        "--limit",
        type=int,
        help="rows of the training data to use at most, before over-long ones are dropped (train.base, train.gate: of each language)",
    )
    group.add_argument(
        "--eval-limit", type=int, default=128, help="rows of the validation data to use at most (train.gate: of each language)"
    )
    group.add_argument("--eval-every", type=int, default=0, help=f"steps between evaluations and checkpoints; 0: {EVALUATIONS} a run")
    group.add_argument("--patience", type=int, default=0, help="stop after so many evaluations without a better loss; 0: never")
    group.add_argument("--checkpointing", choices=("auto", "on", "off"), default="auto", help="gradient checkpointing; auto: on a GPU")
    group.add_argument("--resume", action="store_true", help="go on with the interrupted run of this --out")


def check_flags(args: argparse.Namespace) -> None:
    """`ValueError` naming the first flag whose value makes no sense."""
    for name in ("batch_size", "accumulation", "max_length", "eval_limit"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    for name in ("max_steps", "eval_every", "patience", "weight_decay"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} must not be negative, but is {getattr(args, name)}")
    if not 0 <= args.warmup < 1:
        raise ValueError(f"--warmup is a share of the steps and must lie in [0, 1), not {args.warmup}")
    for name in ("epochs", "learning_rate", "clip"):
        if getattr(args, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1, not {args.limit}")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that change what a run makes, for its facts and its `run.json`."""
    return {name: value for name, value in vars(args).items() if name not in NOT_FACTS}


def total_steps(args: argparse.Namespace, rows: int) -> int:
    """Optimizer steps of the run: `--max-steps`, or what `--epochs` passes over `rows` rows take in all processes."""
    rows_a_step = args.batch_size * args.accumulation * processes().num_processes
    return args.max_steps or math.ceil(args.epochs * math.ceil(rows / rows_a_step))


def has_bf16() -> bool:
    """Whether a CUDA card computes in bf16 itself; a T4 only emulates it."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def use_checkpointing(args: argparse.Namespace, cuda: bool) -> bool:
    """Whether the run of these flags checkpoints its activations, on a CUDA card or not."""
    return args.checkpointing == "on" or (args.checkpointing == "auto" and cuda)


def training_arguments(args: argparse.Namespace, folder: Path, rows: int) -> TrainingArguments:
    """Cosine schedule, clipping, best checkpoint kept; bf16 and a paged optimizer on CUDA, fp32 and AdamW on a CPU."""
    cuda = torch.cuda.is_available()
    steps = total_steps(args, rows)
    if steps == 1 and args.warmup:
        print("nothing is learned: the run has one step, and the first of the warm-up has the rate 0; take --warmup 0 or more steps")
    checkpointing: dict[str, Any] = {}
    if use_checkpointing(args, cuda):
        checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    every = args.eval_every or max(1, math.ceil(steps / EVALUATIONS))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        gradient_accumulation_steps=args.accumulation,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(args.warmup * steps),
        weight_decay=args.weight_decay,
        max_grad_norm=args.clip,
        optim="paged_adamw_32bit" if cuda else "adamw_torch",
        bf16=has_bf16(),
        use_cpu=not cuda,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        restore_callback_states_from_checkpoint=True,  # or early stopping forgets its best loss and its patience
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=max(1, steps // LOG_ENTRIES),
        logging_first_step=True,
        seed=args.seed,
        data_seed=args.seed,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,  # what has a gradient always gets it
        ddp_broadcast_buffers=False,  # they are the frozen weights, and the gate's step, which differs between processes
        ddp_timeout=int(TIMEOUT.total_seconds()),
        report_to="none",
        **checkpointing,
    )
    if arguments.n_gpu > 1:  # Trainer would wrap the model in nn.DataParallel, whose copies keep the router's figures to themselves
        print(f"one of {arguments.n_gpu} cards is used; torchrun --nproc-per-node {arguments.n_gpu} -m train... uses them all")
        arguments._n_gpu = 1
    return arguments
