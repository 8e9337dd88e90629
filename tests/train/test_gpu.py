"""The training commands from end to end on a CUDA card: steps in bf16, evaluations, and the best checkpoint loaded back at the end."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from model import MoEConfig, MoEForCausalLM
from model.languages import LANGUAGES
from model.load import load_model
from train import align, expert, gate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
TWO_STEPS = ["--max-steps", 2, "--eval-every", 1, "--batch-size", 4, "--eval-limit", 4, "--warmup", 0]


@pytest.fixture(scope="module", params=["dense", "lora"])
def mixture(request, tiny_base, tmp_path_factory) -> Path:
    """Four experts in NF4, stored in bf16."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    torch.manual_seed(1)
    rank = 4 if request.param == "lora" else 0
    config = MoEConfig(
        vocab_size=len(tokenizer),
        num_local_experts=4,
        expert_names=list(LANGUAGES),
        expert_layout=request.param,
        lora_rank=rank,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPE,
    )
    MoEForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "plain")
    MoEForCausalLM.from_pretrained(folder / "plain", quantize="nf4").save_pretrained(folder / "nf4")
    tokenizer.save_pretrained(folder / "nf4")
    return folder / "nf4"


def run(monkeypatch, command, *argv: object) -> int:
    monkeypatch.setattr(sys, "argv", [command.__name__, *map(str, argv)])
    return command.main()


def check_best(out: Path) -> None:
    """Two steps were taken, and what is left is what had the best of two evaluations."""
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    figures = json.loads((out / "run.json").read_text())["figures"]
    assert figures["steps"] == len(losses) == 2 and figures["best_eval_loss"] == min(losses)


def changed(before: Path, after: Path) -> set[str]:
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def check_generates(folder: Path) -> None:
    """What was written is read onto the card, and is a model."""
    model, tokenizer = load_model(folder)
    ids = tokenizer("### C++\n", return_tensors="pt")["input_ids"].to("cuda")
    assert model.device.type == "cuda" and torch.isfinite(model(ids).logits).all()


def test_a_gate_on_a_mixture_in_nf4(mixture, tiny_data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    argv = ["--model", mixture, "--data", tiny_data, "--out", out, "--share", 0.2, "--learning-rate", 0.05, *TWO_STEPS]
    assert run(monkeypatch, gate, *argv) == 0
    check_best(out)
    assert changed(mixture, out) == {name for name in load_file(out / "model.safetensors") if ".gate." in name}
    check_generates(out)


def test_an_expert_on_a_base_in_nf4(tiny_base, tiny_data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    argv = ["--lang", "cpp", "--base", tiny_base, "--data", tiny_data, "--out", out, "--rank", 4, "--learning-rate", 0.01, *TWO_STEPS]
    assert run(monkeypatch, expert, *argv) == 0
    check_best(out)
    learned = [tensor for name, tensor in load_file(out / "adapter_model.safetensors").items() if "lora_B" in name]
    assert learned and all(tensor.abs().max() > 0 for tensor in learned)
    check_generates(out)


def test_an_alignment_of_a_mixture_in_nf4(mixture, tmp_path, monkeypatch):
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    rows = [{"prompt": f"### C++\nadd {i}\n### Code\n", "chosen": f"return a + {i};", "rejected": f"return {i} - a;"} for i in range(20)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--model", mixture, "--train", "gate", "--data", pairs, "--out", out, "--learning-rate", 0.05, *TWO_STEPS]
    assert run(monkeypatch, align, *argv) == 0
    check_best(out)
    assert changed(mixture, out) == {name for name in load_file(out / "model.safetensors") if name.endswith(".gate.weight")}
    check_generates(out)
