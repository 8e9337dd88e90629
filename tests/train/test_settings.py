"""The `TrainingArguments` that flags become."""

import argparse
from pathlib import Path

import pytest
import torch
from transformers import get_scheduler

from train.settings import add_training_flags, training_arguments


@pytest.mark.parametrize("warmup", ["0", "0.03", "0.9"])
@pytest.mark.parametrize("steps", ["1", "2", "5"])
def test_a_run_whose_rate_is_always_0_is_told_so(steps: str, warmup: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_training_flags(parser, learning_rate=1.0, batch_size=1, epochs=1, max_length=8)
    args = parser.parse_args(["--max-steps", steps, "--warmup", warmup])
    args.seed = 0
    arguments = training_arguments(args, tmp_path, 4)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=arguments.learning_rate)
    schedule = get_scheduler(
        arguments.lr_scheduler_type, optimizer, num_warmup_steps=arguments.get_warmup_steps(int(steps)), num_training_steps=int(steps)
    )
    rates = []
    for _ in range(int(steps)):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert ("nothing is learned" in capsys.readouterr().out) == (not any(rates))
