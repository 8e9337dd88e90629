"""The plan of a training run against what a run takes: bytes of its tensors, and the peak of a process of its own."""

import json
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, MistralConfig, MistralForCausalLM

from model import MoEConfig, MoEForCausalLM
from model.languages import LANGUAGES
from moe_kernels.cards import CARDS
from moe_kernels.nf4_format import nf4_bytes
from train import gate, lora
from train.plan import plan_training
from train.plan_data import XLCOST_ROWS, Rows, plan_rows
from train.settings import add_training_flags
from train.trained_parts import TRAINED, freeze_all_but

SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8192}
MISTRAL_7B = MistralConfig(num_hidden_layers=32, vocab_size=32000)
MEASURE = Path(__file__).with_name("measure_peak.py")


def flags(*argv: object, gpu: str = "cpu", **others: object) -> Namespace:
    parser = ArgumentParser()
    add_training_flags(parser, learning_rate=1e-4, batch_size=4, epochs=1, max_length=1024)
    lora.add_lora_flags(parser)
    args = parser.parse_args(list(map(str, argv)))
    vars(args).update({"seed": 0, "base": "base", "train": "gate", "gpu": gpu, **others})
    return args


def plan_expert(config, args, rows=None):
    return plan_training(config, args, partial(lora.add_lora, args=args), rows)


def plan_gate(config, args, rows=None):
    return plan_training(config, args, partial(freeze_all_but, parts=TRAINED[args.train]), rows)


def test_weights_trained_parameters_and_optimizer_of_mistral_7b():
    """By hand: 6.98e9 linear weights in NF4, two tables in fp32, 3 R (D + F) factors a layer, two fp32 moments of each."""
    parts = plan_expert(MISTRAL_7B, flags(gpu="a10g")).budget.parts
    assert parts["quantised weights"] == 32 * (2 * nf4_bytes(4096**2) + 2 * nf4_bytes(4096 * 1024) + 3 * nf4_bytes(4096 * 14336))
    assert parts["other weights"] == pytest.approx(4 * (2 * 32000 * 4096 + 65 * 4096), abs=4096)  # and rotary frequencies
    trained = 32 * 3 * 16 * (4096 + 14336)
    assert (parts["trained parameters"], parts["optimizer"]) == (4 * trained, 8 * trained)
    assert plan_expert(MISTRAL_7B, flags(gpu="a10g", target="all")).budget.parts["optimizer"] == 8 * (trained + 32 * 4 * 16 * 4096)


def test_two_traced_depths_say_what_all_layers_take():
    config = MistralConfig(**SHAPE, num_hidden_layers=7)
    deep = plan_expert(config, flags("--batch-size", 2, "--max-length", 64)).budget.parts
    four, three = (plan_expert(MistralConfig(**SHAPE, num_hidden_layers=n), flags("--batch-size", 2, "--max-length", 64)) for n in (4, 3))
    for part in deep:
        step = four.budget.parts[part] - three.budget.parts[part]
        assert deep[part] == pytest.approx(four.budget.parts[part] + 3 * step, abs=1)


def test_checkpointing_accumulation_and_length_change_what_they_should():
    config = MistralConfig(**SHAPE, num_hidden_layers=4)
    off = plan_expert(config, flags("--checkpointing", "off")).budget.parts
    on = plan_expert(config, flags("--checkpointing", "on")).budget.parts
    assert on["activations"] < 0.5 * off["activations"] and on["optimizer"] == off["optimizer"]
    assert plan_expert(config, flags("--accumulation", 4)).budget.parts["gradients"] == off["trained parameters"] > off["gradients"]
    half, eighth = (plan_expert(config, flags("--max-length", length)).budget.parts["logits and loss"] for length in (512, 128))
    assert half == off["logits and loss"] == 4 * eighth  # no more than a chunk at a time


def test_time_grows_with_the_rows_and_falls_with_the_card():
    rows = Rows(1000, 400, 1024, "")
    t4, h100 = (plan_expert(MISTRAL_7B, flags(gpu=gpu), rows).step_seconds for gpu in ("t4", "h100"))
    plan = plan_expert(MISTRAL_7B, flags(gpu="a10g"), rows)
    assert t4 > plan.step_seconds > h100
    flops = 3 * 2 * 4 * 400 * 7e9  # forward, recomputed forward and dX; the factors' gradients are small
    assert flops / CARDS["a10g"].gemm < plan.step_seconds < 3 * flops / CARDS["a10g"].gemm
    assert plan.steps == 250 and plan.run_seconds > 250 * plan.step_seconds


def test_rows_are_counted_or_known(tiny_data):
    args = flags(gpu="a10g", data=str(tiny_data), level="program")
    counted = plan_rows(args, LANGUAGES, None)
    assert counted.count == 4 * 40 and counted.mean <= counted.longest < 100
    known = plan_rows(flags(gpu="a10g", data="xlcost", level="program"), ["cpp"], None)
    assert known.count == XLCOST_ROWS["program"]["cpp"] and "download" in known.note
    assert plan_rows(flags("--limit", 7, gpu="a10g", data="auto", level="snippet"), LANGUAGES, None).count == 28


def test_the_command_plans_a_gate(monkeypatch, capsys, tiny_data, tmp_path):
    for card in ("a10g", "cpu"):
        argv = ["--model", "tinyllama-1.1b-x4", "--data", str(tiny_data), "--out", str(tmp_path / "out"), "--plan", "--gpu", card]
        monkeypatch.setattr(sys, "argv", ["train.gate", *argv, "--train", "gate+lora", "--batch-size", "1"])
        assert gate.main() == 0
        printed = capsys.readouterr().out
        assert all(part in printed for part in ("quantised weights", "optimizer", "logits and loss", "a step (modelled)", "the run"))
    assert not (tmp_path / "out").exists()


def measure(kind: str, folder: Path, *argv: object) -> dict[str, float]:
    """Of a process that trains: freed blocks are given back at once, or the heap's holes would be counted as in use."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, str(MEASURE), kind, str(folder), *map(str, argv)]
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's memory from /proc")
@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_the_peak_of_an_expert(tmp_path, tiny_base, checkpointing):
    folder = make_base(tmp_path / "base", tiny_base)
    seen = measure("expert", folder, checkpointing, tiny_base)
    plan = plan_expert(AutoConfig.from_pretrained(folder), flags("--batch-size", 4, "--max-length", 384, "--checkpointing", checkpointing))
    assert planned_bytes(plan) == pytest.approx(seen["peak"], rel=0.1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's memory from /proc")
@pytest.mark.parametrize(("layout", "train"), [("dense", "gate"), ("lora", "gate+lora")])
def test_the_peak_of_a_gate(tmp_path, tiny_base, layout, train):
    folder = make_mixture(tmp_path / "mixture", tiny_base, layout)
    seen = measure("gate", folder, "off", make_mixture(tmp_path / "small", tiny_base, layout, hidden_size=64, vocab_size=512), train)
    config = MoEConfig.from_pretrained(folder)
    plan = plan_gate(config, flags("--batch-size", 4, "--max-length", 384, train=train))
    assert planned_bytes(plan) == pytest.approx(seen["peak"], rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_the_peak_of_an_expert_on_a_card(tmp_path, tiny_base, checkpointing):
    """PyTorch's allocator does not see the paged optimizer, nor the CUDA context."""
    folder = make_base(tmp_path / "base", tiny_base)
    seen = measure("expert", folder, checkpointing, tiny_base)
    args = flags("--batch-size", 4, "--max-length", 384, "--checkpointing", checkpointing, gpu="auto")
    plan = plan_expert(AutoConfig.from_pretrained(folder), args)
    assert planned_bytes(plan) - plan.budget.parts["optimizer"] == pytest.approx(seen["allocated"], rel=0.1)


def planned_bytes(plan) -> float:
    return plan.budget.total - plan.budget.parts["runtime"]


def make_base(folder: Path, tiny_base: Path) -> Path:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SHAPE, num_hidden_layers=4)).to(torch.bfloat16)  # fp32 would stay mapped from the file
    model.save_pretrained(folder)
    return copy_tokenizer(tiny_base, folder)


def make_mixture(folder: Path, tiny_base: Path, layout: str, **changes: int) -> Path:
    torch.manual_seed(0)
    lora = {"expert_layout": layout, "lora_rank": 16 if layout == "lora" else 0}
    config = MoEConfig(**{**SHAPE, **changes}, num_hidden_layers=4, num_local_experts=4, num_experts_per_tok=2, **lora)
    MoEForCausalLM(config).save_pretrained(folder)
    MoEForCausalLM.from_pretrained(folder, quantize="nf4").save_pretrained(folder)
    return copy_tokenizer(tiny_base, folder)


def copy_tokenizer(tiny_base: Path, folder: Path) -> Path:
    for file in tiny_base.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
