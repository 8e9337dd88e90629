"""Checkpoints of a run that is not finished: which is the newest whole one, what it must have, and whether it is the last."""

import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from model.strict_json import read_json


def is_over(state: TrainerState) -> bool:
    """Whether a run has taken its last step, or was stopped early."""
    callbacks: Any = state.stateful_callbacks or {}
    return state.global_step >= state.max_steps or bool(callbacks.get("TrainerControl", {}).get("args", {}).get("should_training_stop"))


def check_exact(checkpoint: Path, process: int, number_of_processes: int) -> None:
    """`ValueError` if the checkpoint lacks something without which a run goes on, but not as the unbroken one would have."""
    rng = f"rng_state_{process}.pth" if number_of_processes > 1 else "rng_state.pth"
    for name in ("optimizer", "scheduler", rng, f"since_log_{process}.pt"):  # FSDP2's optimizer is a folder
        if not any(checkpoint.glob(f"{name}*")):
            raise ValueError(f"cannot resume {checkpoint}: it has no {name}; remove {checkpoint.parent} to begin anew")


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, or None; checkpoints that a kill left half-written are removed.

    Trainer writes `trainer_state.json` last, so a checkpoint in which it parses is whole.
    """
    found = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: -int(path.name.rpartition("-")[2]))
    for path in found:
        try:
            read_json(path / TRAINER_STATE_NAME)
        except (FileNotFoundError, ValueError):  # any other, such as a file that may not be read, says nothing of the checkpoint
            shutil.rmtree(path, ignore_errors=True)  # another process may be at it too
            continue
        return path
    return None
