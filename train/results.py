"""What a finished run leaves: its model, its record and its logs, written at once by the first process."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from model.cost import model_cost, precision_facts
from model.output import output_folder, write_run

from .trainer import PairTrainer


def whole_state(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """The state dict on the CPU of a model that FSDP2 has spread over the processes, which must all call this; None for any other."""
    state = model.state_dict()
    if not any(isinstance(tensor, DTensor) for tensor in state.values()):
        return None
    return {name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu() for name, tensor in state.items()}


def figures_of(trainer: PairTrainer) -> dict[str, Any]:
    """What `run.json` says of a finished run.

    `tokens` are those of prompts and completions, without padding, of all processes and of what an interrupted run had done;
    `tokens_per_second` are over the time of the steps, `seconds` of all else too. `batch_size`: rows of a step.
    Memory and device are the first process's. `dtype` is that of the products: bf16 under autocast, whatever the parameters are kept in.
    """
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    model: Any = trainer.model
    took, tokens = trainer.seconds(), trainer.tokens()
    return {
        "steps": trainer.state.global_step,
        "trainable_parameters": sum(int(parameter.numel()) for parameter in model.parameters() if parameter.requires_grad),
        "best_eval_loss": min(losses, default=None),
        "best_step": trainer.state.best_global_step,
        "seconds": round(took["seconds"], 1),
        "tokens": tokens,
        "tokens_per_second": tokens / took["step_seconds"] if took["step_seconds"] else None,
        "batch_size": trainer.step_rows(),
        "processes": trainer.args.world_size,
        **model_cost(model),
        **precision_facts(model),
        **({"dtype": "bfloat16"} if trainer.args.bf16 else {}),
    }


def write_output(out: Path, trainer: PairTrainer, workspace: Path, *, figures: dict[str, Any], **facts: Any) -> None:
    """The first process writes `out`: model, tokenizer, `run.json`, `log.jsonl` and TensorBoard's files. All processes must call this.

    `log.jsonl` has an object per entry with step, loss or eval_loss, learning_rate, seconds, step_seconds.
    """
    model: Any = trainer.model
    state = whole_state(model)
    if not trainer.is_world_process_zero():
        return
    tokenizer: Any = trainer.processing_class
    with output_folder(out, made_from=workspace) as folder:
        model.save_pretrained(str(folder), state_dict=state)
        tokenizer.save_pretrained(folder)
        (folder / "log.jsonl").write_text("".join(json.dumps(entry, allow_nan=False) + "\n" for entry in trainer.state.log_history))
        shutil.copytree(workspace / "tensorboard", folder / "tensorboard")
        write_run(folder, seed=trainer.args.seed, figures={**figures_of(trainer), **figures}, **facts)
