"""The log of a run that was cut between two entries, and resumed from a checkpoint between them, is that of one that was not."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from model import MoEConfig, MoEForCausalLM
from model.languages import LANGUAGES
from train import align, expert, gate, settings, trainer

STEPS, ENTRIES, SAVED, CUT = 8, 2, 2, 7  # entries after steps 1, 4 and 8; resumed from 6
SHAPE = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def commands(tiny_base: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, list[object]]]:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    config = MoEConfig(vocab_size=len(tokenizer), num_local_experts=4, expert_names=list(LANGUAGES), **SHAPE)
    MoEForCausalLM(config).save_pretrained(folder / "mixture")
    tokenizer.save_pretrained(folder / "mixture")
    rows = [{"prompt": f"### C++\nadd {i}\n", "chosen": f"return a + {i};", "rejected": f"return {i} - a, a;"} for i in range(20)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "expert": (expert, ["--lang", "cpp", "--base", tiny_base, "--data", tiny_data, "--rank", 4, "--max-length", 128]),
        "gate": (gate, ["--model", folder / "mixture", "--data", tiny_data, "--share", 0.2, "--label-loss", 1.0, "--accumulation", 2]),
        "align": (align, ["--model", tiny_base, "--data", folder / "pairs.jsonl", "--max-length", 64]),
    }


def run(module: Any, flags: list[object], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, flags)])
    return module.main()


def log(out: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if "second" not in name and "runtime" not in name} for entry in entries]


@pytest.mark.parametrize("command", ["expert", "gate", "align"])
def test_the_log_is_that_of_an_unbroken_run(
    command: str, commands: dict[str, tuple[Any, list[object]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == CUT:
            raise Killed

    module, flags = commands[command]
    flags = [*flags, "--max-steps", STEPS, "--eval-every", SAVED, "--batch-size", 2, "--eval-limit", 2, "--learning-rate", 1e-2]
    monkeypatch.setattr(settings, "LOG_ENTRIES", ENTRIES)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.ProgressBar, "on_step_end", kill)
        with pytest.raises(Killed):
            run(module, [*flags, "--out", tmp_path / "cut"], patch)
    assert run(module, [*flags, "--out", tmp_path / "cut", "--resume"], monkeypatch) == 0
    assert run(module, [*flags, "--out", tmp_path / "whole"], monkeypatch) == 0
    whole = log(tmp_path / "whole")
    assert [entry["step"] for entry in whole if "loss" in entry] == [1, 4, 8] and "train_loss" in whole[-1]
    assert log(tmp_path / "cut") == whole
