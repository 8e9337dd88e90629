"""Before training commands load a model they ask whether their own rows' longest batch fits, and can be told to go on all the same."""

import argparse
import json
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import train.plan
from model import MoEConfig, MoEForCausalLM
from model.budget import Room
from model.languages import LANGUAGES
from train import align, expert, gate, policy

COMMANDS = {"expert": (expert, expert, "load_base"), "gate": (gate, gate, "load_model"), "align": (align, policy, "load_model")}
SHAPE = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture(scope="module")
def mixture(tiny_base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    config = MoEConfig(vocab_size=len(tokenizer), num_local_experts=4, expert_names=list(LANGUAGES), **SHAPE)
    MoEForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def command(mixture, tiny_base, tiny_data, tmp_path, monkeypatch):
    """Runs a command that takes a step of rows far shorter than --max-length; returns its status."""
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"### C++\nadd {i}\n### Code\n", "chosen": f"return a + {i};", "rejected": f"return {i} - a;"} for i in range(20)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "expert": ["--lang", "cpp", "--base", tiny_base, "--data", tiny_data],
        "gate": ["--model", mixture, "--data", tiny_data, "--share", 0.2],
        "align": ["--model", mixture, "--train", "gate", "--data", pairs],
    }
    common = ["--out", tmp_path / "out", "--max-steps", 1, "--batch-size", 4, "--eval-limit", 4, "--max-length", 2048]

    def run(name: str, *more: object) -> int:
        monkeypatch.setattr(sys, "argv", [f"train.{name}", *map(str, [*given[name], *common, *more])])
        return COMMANDS[name][0].main()

    return run


def give_room(monkeypatch, size: float) -> None:
    monkeypatch.setattr(train.plan, "room_of", lambda gpu: Room(size, "this machine", False))


@pytest.mark.parametrize("name", COMMANDS)
def test_what_does_not_fit_is_refused_before_it_is_loaded(command, monkeypatch, capsys, name):
    """On a card the loaded model would count twice: in the plan, and in what is no longer free."""
    _, room, loader = COMMANDS[name]
    give_room(monkeypatch, 1e6)
    monkeypatch.setattr(room, loader, lambda *args, **kwargs: pytest.fail("it was loaded first"))
    assert command(name) == 2
    said = capsys.readouterr().err
    assert "takes 0.9 GB and this machine has 0.0 GB" in said
    assert all(remedy in said for remedy in ("--batch-size", "--checkpointing on", "--ignore-plan"))


@pytest.mark.parametrize("name", COMMANDS)
def test_rows_count_as_long_as_they_are(command, monkeypatch, capsys, name):
    """There is room for the longest batch that the data have, not for one of --max-length."""
    plans = []
    plan_training = train.plan.plan_training

    def plan(config, args, make, rows, **options):
        plans.append(plan_training(config, args, make, rows, **options))
        at_most = plan_training(config, args, make, **{**options, "scored": 0})
        give_room(monkeypatch, (plans[-1].budget.total + at_most.budget.total) / 2)
        return plan_training(config, args, make, rows, **options)

    for module in (expert, gate, policy):
        monkeypatch.setattr(module, "plan_training", plan)
    assert command(name) == 0, capsys.readouterr().err
    sequences = 8 if name == "align" else 4
    assert plans[0].batch[0] == sequences and 10 < plans[0].batch[1] < 100


def test_the_plan_can_be_ignored(command, monkeypatch, tmp_path):
    give_room(monkeypatch, 1e6)
    assert command("gate", "--ignore-plan") == 0
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert "ignore_plan" not in settings, "it changes nothing in what a run makes"


def test_a_gate_s_plan_has_the_router_that_is_asked_for(mixture):
    flags = {"importance": None, "load": None, "balance": None, "z_loss": None, "noise": "constant", "plan": False}
    kinds = {
        given: gate.mixture_config(argparse.Namespace(model=str(mixture), router=given, **flags)).router_type for given in (None, "topk")
    }
    assert kinds == {None: "noisy_topk", "topk": "topk"}
