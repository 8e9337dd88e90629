"""What watches a training run: a stop before a step that is not finite is applied, the time of the steps, and one progress bar."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback


class NotFinite(ValueError):
    """The loss or a gradient is NaN or infinite, and the weights are those before this step; or what was measured of the weights is."""


def not_applied(rows: list[int]) -> str:
    """The end of a `NotFinite`, with the numbers of the rows that it is of."""
    return f"the step was not applied; it is of the training rows {', '.join(map(str, rows))} (from 0, as they are after the filters)"


def check_figures(figures: dict[str, Any], when: str) -> None:
    """`NotFinite` if one of the figures that a run logs is NaN, below which nothing compares, or infinite; JSON has neither."""
    if bad := {name: value for name, value in figures.items() if isinstance(value, float) and not math.isfinite(value)}:
        said = ", ".join(f"{name} is {value}" for name, value in bad.items())
        raise NotFinite(f"{said} {when}: the model has diverged and is not kept; lower --learning-rate")


class StopOnBadGradient(TrainerCallback):
    """Raises `NotFinite` between the backward pass and the optimizer's step; `batches` are the rows of the step that is being taken."""

    def __init__(self, batches: Callable[[], list[list[int]]]) -> None:
        self.batches = batches

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Of no parameter in particular: clipping has spread it to all.
        if not all(torch.isfinite(parameter.grad).all() for parameter in kwargs["model"].parameters() if parameter.grad is not None):
            rows = [row for batch in self.batches() for row in batch]
            raise NotFinite(f"a gradient is not finite at step {state.global_step + 1}; {not_applied(rows)}")


class StepClock(TrainerCallback):
    """`seconds` of all steps of this process: forward, backward, optimizer; no evaluation, no checkpoint, no collating of rows."""

    seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.monotonic() - self.begun


class ProgressBar(TrainerCallback):
    """One bar: steps, time left, the last loss and evaluation loss."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        slow = 0.2 if sys.stderr.isatty() else 15.0  # seconds between two states of the bar: a log file needs few
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", mininterval=slow, maxinterval=slow)
        self.shown: dict[str, str] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.shown |= {name: f"{logs[name]:.3f}" for name in ("loss", "eval_loss", "eval_rewards/margins") if name in logs}
        self.bar.set_postfix(self.shown, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()
