"""`transformers.Trainer` with the few things that a run people rely on needs beside it.

* an order of rows that is a pure function of (seed, epoch), so that a resumed run sees the same batches;
* a stop on a loss or gradient that is not finite, before the optimizer applies it, and on any figure that is not, before a checkpoint;
* no logits of a whole batch (`loss.py`);
* wall-clock seconds in every log entry, those of the steps alone too, and one progress bar instead of a bar per evaluation;
* the choice of the newest *whole* checkpoint after an interruption;
* the same losses from N processes as from one that accumulates N times as often, and one process that writes.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    set_seed,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from .batches import MEGABATCH, LengthGroupedSampler, ProcessBatches, count_tokens, without_labels
from .callbacks import NotFinite, ProgressBar, StepClock, StopOnBadGradient, check_figures, not_applied
from .checkpoints import check_exact, is_over, newest_checkpoint
from .data.prompts import IGNORED, Example, collate
from .loss import losses_for_logits
from .processes import processes
from .settings import training_arguments


class PairTrainer(Trainer):
    """A Trainer over rows {"input_ids", "labels"} that orders, logs and stops as the module's docstring says."""

    megabatch = MEGABATCH
    since_log: tuple[str, ...] = ("_tr_loss", "_globalstep_last_logged", "_total_loss_scalar")  # what the next log entry is made of

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for noisy in (ProgressCallback, PrinterCallback):
            self.remove_callback(noisy)
        self.add_callback(ProgressBar())
        self.add_callback(StopOnBadGradient(self.batches_of_step))
        self.add_callback(clock := StepClock())
        self._started, self._clock = time.monotonic(), clock
        self._before: dict[str, float] = {}  # seconds of the run that this one resumes

    def get_train_dataloader(self) -> DataLoader:
        return self._loader(self.train_dataset, self._order(), self.args.train_batch_size)  # type: ignore[arg-type]  # it is a list

    def _order(self) -> LengthGroupedSampler:
        rows: Any = self.train_dataset
        return LengthGroupedSampler([len(row["input_ids"]) for row in rows], self.step_rows(), self.args.seed, self.megabatch)

    def step_rows(self) -> int:
        """Rows of a step, of all processes."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def batches_of_step(self) -> list[list[int]]:
        """The rows of each batch of the step that is being taken: all processes' first, then all their second ones, and so on."""
        _, order, step = self._place()
        span, size = self.step_rows(), self.args.train_batch_size
        rows = order[step * span : (step + 1) * span]
        return [rows[start : start + size] for start in range(0, span, size)]

    def _place(self) -> tuple[int, list[int], int]:
        """The epoch, its order of rows, and the steps of it that were taken."""
        order = self._order()
        epoch, step = divmod(self.state.global_step, math.ceil(len(order) / self.step_rows()))
        order.set_epoch(epoch)
        return epoch, list(order), step

    def tokens(self) -> int:
        """Of all steps that the run has taken, in all processes: prompts and completions, both sides of a pair, no padding.

        They follow from the order of the rows, so an interruption loses or doubles none.
        """
        rows: Any = self.train_dataset
        epoch, order, step = self._place()
        return epoch * sum(map(count_tokens, rows)) + sum(count_tokens(rows[row]) for row in order[: step * self.step_rows()])

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._loader(rows, SequentialSampler(rows), self.args.eval_batch_size)

    def _loader(self, rows: list[Any], order: Sampler[int], batch_size: int) -> DataLoader:
        """This process's batches of the rows in that order."""
        batches = ProcessBatches(order, batch_size, self.args.process_index, self.args.world_size, blank=len(rows))
        blank = without_labels(min(rows, key=lambda row: len(row["input_ids"])))
        dataset: Any = [*rows, blank]
        loader: DataLoader = DataLoader(dataset, batch_sampler=batches, collate_fn=self.data_collator)
        return prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, put_on_device=True)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, which calls it once a step."""
        self._done_of_step = 0  # batches
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        of_all = self.accelerator.gather(loss.reshape(1))  # so that all processes stop at once, with the same sentence
        if not torch.isfinite(of_all).all():
            process = torch.isfinite(of_all).int().argmin().item()
            rows = self.batches_of_step()[self._done_of_step * self.args.world_size + int(process)]
            raise NotFinite(f"the loss is {of_all.mean().item()} at step {self.state.global_step + 1}; {not_applied(rows)}")
        self._done_of_step += 1
        return loss

    def train(self, *args: Any, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As Trainer's; but of a run whose steps were all taken before it was interrupted, only the best weights are loaded.

        transformers would take one more step: it asks whether to stop after a step alone.
        `ValueError` for a checkpoint that lacks what transformers would do without.
        """
        if resume_from_checkpoint:
            check_exact(Path(resume_from_checkpoint), self.args.process_index, self.args.world_size)
        state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME)) if resume_from_checkpoint else None
        if state is None or not is_over(state):
            return super().train(resume_from_checkpoint, *args, **kwargs)
        self.state = state
        self._load_best_model()
        return None

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """As Trainer's, but its outputs have losses [B, S] for logits. There is no cache: it would copy the keys, and hide packed rows."""
        inputs["use_cache"] = False
        with losses_for_logits(model, inputs["labels"]):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """The loss per item (predicted token, or pair) of all rows, whatever the batches are; Trainer's is a mean of their means."""
        model: Any = self.model
        model.eval()
        total, items = torch.zeros((), dtype=torch.float64), 0
        for batch in dataloader:
            inputs: Any = self._prepare_inputs(batch)
            in_batches: Any = self._get_num_items_in_batch([inputs], self.args.device)  # of all processes
            with torch.no_grad(), self.compute_loss_context_manager():
                loss: Any = self.compute_loss(model, inputs, num_items_in_batch=in_batches)
            total += loss.double().cpu() * int(in_batches)
            items += int(in_batches)
        mean = self.accelerator.reduce(total.to(self.args.device), "mean").item() / items
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": mean}, len(dataloader.dataset) - 1)  # type: ignore[arg-type]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Trainer looks for the best checkpoint's folder before FSDP2's sharded state makes it: one process would find it, another not.
        Path(str(output_dir or self.args.output_dir)).mkdir(parents=True, exist_ok=True)
        super().save_model(output_dir, _internal_call)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        torch.save({name: getattr(self, name) for name in self.since_log}, self._since_log_of(output_dir))
        self.accelerator.wait_for_everyone()  # so that `trainer_state.json` comes last of all that all processes write

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As Trainer's, before a resumed run's first step; and what was summed for the log since its last entry."""
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            for name, value in torch.load(self._since_log_of(checkpoint), map_location="cpu", weights_only=True).items():
                setattr(self, name, value)
            self._tr_loss = self._tr_loss.to(self.args.device)

    def _since_log_of(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"since_log_{self.args.process_index}.pt"

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        check_figures(logs, f"after step {self.state.global_step}")  # an evaluation is logged before its checkpoint is saved
        if "train_loss" in logs:  # Trainer divides the whole run's sum by the steps since the resume
            logs["train_loss"] = self._total_loss_scalar / self.state.global_step
        logs |= {name: round(value, 3) for name, value in self.seconds().items()}
        super().log(logs, *args, **kwargs)

    def seconds(self) -> dict[str, float]:
        """`seconds` since the start of training, `step_seconds` of its steps; a resumed run goes on from its last log entry."""
        now = {"seconds": time.monotonic() - self._started, "step_seconds": self._clock.seconds}
        self._before = self._before or {name: max((entry.get(name, 0.0) for entry in self.state.log_history), default=0.0) for name in now}
        return {name: self._before[name] + value for name, value in now.items()}


def train_pairs(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: list[Example],
    eval_rows: list[Example],
    args: argparse.Namespace,
    folder: Path,
    trainer_class: Callable[..., PairTrainer] = PairTrainer,
    collator: Callable[[Any], dict[str, torch.Tensor]] | None = None,
) -> PairTrainer:
    """Trains `model` by the flags in `args`, from the newest checkpoint in `folder` if there is one; ends on the best weights."""
    for split, rows in {"train": train_rows, "valid": eval_rows}.items():
        _check_learnable(split, rows)
    logging.disable_progress_bar()  # a bar for each file of each checkpoint
    callbacks: list[TrainerCallback] = []
    if processes().is_main_process:
        callbacks.append(TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"))))
    if args.patience:
        callbacks.append(EarlyStoppingCallback(args.patience))
    trainer = trainer_class(
        model=model,
        args=training_arguments(args, folder, len(train_rows)),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        data_collator=collator or partial(collate, pad_token_id=tokenizer.pad_token_id),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    if trainer.args.process_index:
        set_seed(args.seed + trainer.args.process_index)  # each process drops out other values
    checkpoint = newest_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer


def _check_learnable(split: str, rows: list[Any]) -> None:
    """`ValueError` if there are no rows, or some with no label but perhaps the first token's, which nothing predicts."""
    without = [number for number, row in enumerate(rows) if all(label == IGNORED for label in row["labels"][1:])]
    if not rows:
        raise ValueError(f"there are no {split} rows")
    if without:
        raise ValueError(f"{len(without)} of the {len(rows)} {split} rows have no token to learn, the first of them row {without[0]}")
