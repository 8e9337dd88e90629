"""`--plan` of every training command: memory by part, seconds a step and hours for the data, before anything is loaded.

Weights, what is trained, gradients and optimizer states are exact. Activations, logits and workspace are those of the real step on tensors
without memory (`train/trace.py`), for the longest batch. Seconds are a model: each operation takes the longest of its bytes at the speed of
memory and its FLOPs at that of products, and its launch, for a batch of rows of the mean length; the speeds of a card are its data sheet's,
those of a CPU are measured now.

    plan_training(config, args, make)            make: what the command trains, of a configuration (`plan_models.py`)

L layers; deep models are traced at two depths, and the rest follows, since all layers are alike.
"""

import argparse
import copy
import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from model.budget import RUNTIME, Budget, Room, card_of, room_of
from model.configuration_moe import MoEConfig
from model.footprint import dequantised_bytes
from moe_kernels.cards import CARDS, Card
from moe_kernels.cpu_card import measure_cpu

from .loss import losses_for_logits
from .plan_data import Rows, batch_shapes
from .plan_models import Make
from .processes import local_processes, processes
from .settings import EVALUATIONS, has_bf16, total_steps, use_checkpointing
from .trace import ACTIVATIONS, GRADIENTS, LOGITS, WORKSPACE, Operation, Step, fake, trace_step

ADVICE = (
    "try a smaller --batch-size with more --accumulation, a smaller --max-length, or --checkpointing on; --ignore-plan trains all the same"
)
NF4_WEIGHTS, WEIGHTS, TRAINED, OPTIMIZER = "quantised weights", "other weights", "trained parameters", "optimizer"
BUCKETS = "DDP's buckets"  # into which it copies the gradients of several processes
_DEPTHS = (2, 4)  # layers that are traced of a deeper model


@dataclass(frozen=True)
class TrainingPlan:
    budget: Budget
    batch: tuple[int, int]  # rows, and tokens of each, that the memory is for
    checkpointing: bool
    otherwise: float = 0.0  # bytes in all if checkpointing were the other way
    rows: Rows | None = None
    step_seconds: float = 0.0  # of an optimizer step
    run_seconds: float = 0.0
    steps: int = 0
    card: Card | None = None

    def __str__(self) -> str:
        head = f"memory of batches of {self.batch[0]} x {self.batch[1]} tokens, checkpointing {'on' if self.checkpointing else 'off'}"
        lines = [head, str(self.budget)]
        if self.rows is None:
            return "\n".join(lines)
        lines.append(f"{'total otherwise':<18} {self.otherwise / 1e9:8.3f} GB: checkpointing {'off' if self.checkpointing else 'on'}")
        lines.append(
            f"{'data':<18} {self.rows.count:8,} rows of {self.rows.mean:.0f} tokens, at most {self.rows.longest}: {self.rows.note}"
        )
        if self.card is None:
            return "\n".join([*lines, f"{'time':<18} unknown: {self.budget.room.where} is not one of {', '.join(CARDS)}"])
        kind = "data sheet" if self.card.name != "cpu" else "measured now"
        speeds = (
            f"{self.card.dram / 1e9:.0f} GB/s and {self.card.gemm / 1e12:.3g} TFLOP/s in 16 bits, {self.card.gemm_fp32 / 1e12:.2g} in fp32"
        )
        lines.append(f"{'a step (modelled)':<18} {self.step_seconds:8.3f} s: {self.card.name}, {speeds} ({kind})")
        return "\n".join([*lines, f"{'the run':<18} {self.run_seconds / 3600:8.2f} h: {self.steps:,} steps, and evaluations"])

    def check(self) -> None:
        """`ValueError` with advice if it does not fit."""
        self.budget.check(f"this run, with batches of {self.batch[0]} x {self.batch[1]} tokens,", ADVICE)


def show_plan(plan: TrainingPlan) -> None:
    """What `--plan` prints; `ValueError` with advice if it does not fit."""
    print(plan)
    plan.check()


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", action="store_true", help="print memory by part, seconds a step and hours, and train nothing")
    parser.add_argument("--gpu", default="auto", help=f"card to plan for ({', '.join(CARDS)}, cpu); auto: this machine")
    parser.add_argument("--ignore-plan", action="store_true", help="train even if memory does not suffice by the plan")


def language_model_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss of a batch whose tokens all have a label: of rows that are nearly all completion."""
    with losses_for_logits(model, batch["labels"], all_labelled=True):
        return model(**batch).loss


def plan_training(
    config: PreTrainedConfig,
    args: argparse.Namespace,
    make: Make,
    rows: Rows | None = None,
    *,
    step: Step = language_model_loss,
    sequences: int = 1,
    scored: int = 0,
    timed: bool = True,
) -> TrainingPlan:
    """The plan of one process's training of what `make` makes of the configuration.

    `args` has the training flags and `gpu`. `rows` None: memory alone, for rows of --max-length. `step`: the loss of a batch {`input_ids`,
    `labels`, `attention_mask`} [B, S]. A row of the data is so many `sequences` of a batch. `scored`: how many rows pass through the model
    once before the first step. `timed` False: memory alone. `ValueError` for an unknown card.
    """
    room = room_of(args.gpu)
    if not room.is_cuda and (sharing := local_processes()) > 1:
        room = replace(room, bytes=room.bytes / sharing, where=f"this machine / {sharing}")
    checkpointing = use_checkpointing(args, room.is_cuda)
    largest, usual = batch_shapes(args, rows, sequences)
    card = None
    if rows is not None and timed:
        card = card_of(args.gpu) if room.is_cuda else measure_cpu(decoding=False)
    run = _Run(config, args, make, step, room, card)
    budget = _budget(run.traced(largest, checkpointing), room)
    if rows is None or not timed:
        return TrainingPlan(budget, largest, checkpointing)
    otherwise = _budget(run.traced(largest, not checkpointing), room).total
    if card is None:
        return TrainingPlan(budget, largest, checkpointing, otherwise, rows)
    mean = run.traced(usual, checkpointing)
    updates = 7 * (budget.parts[OPTIMIZER] / 2) / (card.dram * card.dram_share)  # AdamW reads four values of a parameter and writes three
    seconds, steps = mean["step"] + updates, total_steps(args, rows.count)
    evaluations = math.ceil(steps / args.eval_every) if args.eval_every else EVALUATIONS
    forwards = math.ceil((evaluations * args.eval_limit + scored) / (args.batch_size * processes().num_processes))
    return TrainingPlan(budget, largest, checkpointing, otherwise, rows, seconds, steps * seconds + forwards * mean["forward"], steps, card)


def _budget(found: dict[str, float], room: Room) -> Budget:
    parts = [NF4_WEIGHTS, WEIGHTS, TRAINED, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, WORKSPACE]
    if processes().num_processes > 1:
        parts.append(BUCKETS)
    return Budget({**{part: found[part] for part in parts}, "runtime": RUNTIME["cuda" if room.is_cuda else "cpu"]}, room)


@dataclass(frozen=True)
class _Run:
    """What every trace of a plan has in common."""

    config: Any
    args: argparse.Namespace
    make: Make
    step: Step
    room: Room
    card: Card | None

    def traced(self, batch: tuple[int, int], checkpointing: bool) -> dict[str, float]:
        """Bytes by part, and seconds of an optimizer step (`step`) and of a forward (`forward`), of all layers."""
        layers = self.config.num_hidden_layers
        if layers <= _DEPTHS[1]:
            return self._trace(layers, batch, checkpointing)
        low, high = (self._trace(depth, batch, checkpointing) for depth in _DEPTHS)
        share = (layers - _DEPTHS[0]) / (_DEPTHS[1] - _DEPTHS[0])
        return {name: low[name] + (high[name] - low[name]) * share for name in low}

    def _trace(self, layers: int, batch: tuple[int, int], checkpointing: bool) -> dict[str, float]:
        cuda, named = self.room.is_cuda, CARDS.get(self.args.gpu)
        bf16 = cuda and (named.has_bf16 if named else has_bf16())
        config = _with_layers(self.config, layers)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)  # PEFT's own call
            model = self.make(config, bf16, checkpointing)
        model.train()
        traced = min(self.args.accumulation, 2)  # the second finds the gradients of the first
        with fake(model), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            trace = trace_step(model, self.step, batch, micro_steps=traced)
        found: dict[str, float] = {**dict.fromkeys((NF4_WEIGHTS, WEIGHTS, TRAINED, OPTIMIZER, "step", "forward"), 0.0), **trace.peak()}
        for tensor in {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}.values():
            is_nf4 = tensor.dtype == torch.uint8
            found[TRAINED if tensor.requires_grad else NF4_WEIGHTS if is_nf4 else WEIGHTS] += tensor.nbytes
            if tensor.requires_grad:  # paged_adamw_32bit keeps fp32, adamw_torch the parameter's dtype
                found[OPTIMIZER] += 2 * tensor.numel() * (4 if cuda else tensor.itemsize)
        found[BUCKETS] = found[TRAINED]
        if cuda and isinstance(config, MoEConfig):  # by kernels, within which the trace does not see
            found[WORKSPACE] += dequantised_bytes(config, batch[0] * batch[1], card_of(self.args.gpu))
        if self.card is not None:
            found["step"] = _seconds(trace.operations, self.card) * self.args.accumulation / traced
            found["forward"] = _seconds(trace.operations[: trace.forward], self.card)
        return found


def _seconds(operations: list[Operation], card: Card) -> float:
    """One after the other on the card, or as fast as the host issues them."""
    return max(sum(operation.seconds(card) for operation in operations), card.host_launch * len(operations))


def _with_layers(config: Any, layers: int) -> Any:
    changed = copy.deepcopy(config)
    changed.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        changed.layer_types = config.layer_types[:layers]
    return changed
