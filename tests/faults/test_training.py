"""Rows 41-46 of the faults: what training must not do in silence."""

import argparse
import gzip
import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from eval.answers import reference_losses
from model import MoEForCausalLM, generate
from model.adapters import Adapter
from model.checkpoint import Checkpoint
from model.load import load_model
from tests.faults.commands import COMMANDS, make_inputs
from train import expert, trainer
from train.data.prompts import IGNORED
from train.lora import add_lora, factor_config
from train.routing import measure_routing

# 12 rows: an epoch has 3 steps.
FLAGS = [
    "--dropout",
    "0.1",
    "--accumulation",
    "2",
    "--batch-size",
    "2",
    "--max-steps",
    "6",
    "--eval-every",
    "2",
]  # 12 rows: 3 steps an epoch


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


@pytest.fixture
def train(inputs, tmp_path) -> Callable[..., int]:
    """train.expert's exit status; its output is `out`."""
    return lambda *flags, out="out", at=inputs: COMMANDS["train.expert"].run(at, tmp_path / out, *FLAGS, *flags)


def break_at(monkeypatch, step: int, batch: int, how: Callable[..., torch.Tensor]) -> list[list[list[int]]]:
    """Changes what the `batch`th backward pass of a step leaves; returns the list that will hold the rows of each batch so far."""
    real, fed = trainer.Trainer.training_step, []

    def training_step(self, model, inputs, *args, **kwargs):
        fed.append(sorted(unpadded(row) for row in inputs["input_ids"].tolist()))
        loss = real(self, model, inputs, *args, **kwargs)
        return how(self, loss) if len(fed) == step * self.args.gradient_accumulation_steps + batch + 1 else loss

    monkeypatch.setattr(trainer.Trainer, "training_step", training_step)
    return fed


def spoil_a_gradient(self, loss):
    next(parameter for parameter in self.model.parameters() if parameter.grad is not None).grad[0, 0] = math.inf
    return loss


@pytest.mark.parametrize(
    ("how", "said"), [(lambda self, loss: loss * math.nan, "the loss is nan"), (spoil_a_gradient, "a gradient is not finite")]
)
def test_41_nan_or_inf_loss_or_gradient(train, monkeypatch, capsys, how, said):
    """Of step 5, the second of the second epoch: the optimizer has stepped four times, and the rows that are named are those it was fed."""
    steps, given = [], []
    step, train_pairs = torch.optim.AdamW.step, trainer.train_pairs
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args, **kwargs: (steps.append(1), step(*args, **kwargs))[1])
    monkeypatch.setattr(expert, "train_pairs", lambda *args: (given.extend(args[2]), train_pairs(*args))[1])
    fed = break_at(monkeypatch, 4, 1, how)
    assert train() == 2 and len(steps) == 4
    error = capsys.readouterr().err
    assert f"python -m train.expert: {said} at step 5; the step was not applied; it is of the training rows " in error
    named = [int(number) for number in re.search(r"training rows ([\d, ]+) \(", error)[1].split(", ")]
    batches = [named[:2], named[2:]] if "gradient" in said else [[], named]  # a gradient is of both batches
    assert [sorted(unpadded(given[number]["input_ids"]) for number in batch) for batch in batches if batch] == fed[-len(named) // 2 :]


@pytest.mark.parametrize(("command", "flags"), [("train.expert", ["--alpha", "1000000000"]), ("train.align", [])])
def test_41_weights_that_diverged_in_the_last_step(inputs, tmp_path, capsys, command, flags):
    """The loss and the gradient are those before the step: only the evaluation behind it sees that the weights are lost."""
    assert COMMANDS[command].run(inputs, tmp_path / "out", "--learning-rate", "1e9", "--max-steps", "2", "--eval-every", "2", *flags) == 2
    assert re.search(rf"{command}: eval_loss is (nan|inf).* after step 2: the model has diverged", capsys.readouterr().err)
    assert not (tmp_path / "out").exists() and not list((tmp_path / ".out.unfinished").glob("checkpoint-*"))


def test_41_a_diverged_model_is_not_evaluated(inputs, tmp_path, capsys):
    """Its weights are numbers, so it loads; what it computes is not: no completion, no score, no reference for an alignment."""
    diverged = Path(shutil.copytree(inputs, tmp_path / "diverged"))
    for name, lost in (("base", ("model.norm", "lm_head")), ("cpp", ("lora_",))):
        path = next((diverged / name).glob("*.safetensors"))
        scaled = {key: tensor * (1e38 if any(part in key for part in lost) else 1) for key, tensor in load_file(path).items()}
        save_file(scaled, path, metadata={"format": "pt"})
    run = json.loads((diverged / "cpp" / "run.json").read_text())
    (diverged / "cpp" / "run.json").write_text(json.dumps({"lang": "cpp", "base": run["base"]}))
    said = "computes scores that are no numbers"
    for flags in ([], ["--temperature", "0.8"]):
        for command, more in (("eval.codebleu", []), ("eval.pass_at_k", flags)):
            assert COMMANDS[command].run(diverged, tmp_path / "out", *more) == 2
            assert f"{command}: {diverged / 'base'} {said}" in capsys.readouterr().err
        sys.argv = ["model.generate", "--model", str(diverged / "cpp"), "--lang", "cpp", "add", *flags]
        assert generate.main() == 2
        assert f"model.generate: {diverged / 'cpp'} {said}" in capsys.readouterr().err
    model, _ = load_model(diverged / "base")
    with pytest.raises(ValueError, match=said):
        reference_losses(model, [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}], 1)
    assert COMMANDS["train.align"].run(diverged, tmp_path / "out", "--ignore-plan") == 2
    assert "a log-probability is not finite (reference, train)" in capsys.readouterr().err


def unpadded(ids: list[int]) -> list[int]:
    """Up to the EOS, which is 2."""
    return ids[: ids.index(2) + 1]


class Stopped(BaseException):
    """As a signal: nothing catches it."""


def stop_after(monkeypatch, step: int) -> None:
    def stop(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Stopped

    monkeypatch.setattr(trainer.ProgressBar, "on_step_end", stop)


def stopped(train, monkeypatch, step: int) -> None:
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, step)
        train()


def test_42_stop_and_resume_is_bit_equal(train, tmp_path, monkeypatch):
    """Dropout, the order of rows, the schedule and accumulated batches, within an epoch, at its end and in the next one."""
    assert train(out="whole") == 0
    for step in (3, 5):
        stopped(train, monkeypatch, step)
        assert train("--resume") == 0
        weights, expected = (load_file(tmp_path / out / "adapter_model.safetensors") for out in ("out", "whole"))
        assert all(torch.equal(tensor, weights[name]) for name, tensor in expected.items())
        assert losses(tmp_path / "out") == losses(tmp_path / "whole")
        shutil.rmtree(tmp_path / "out")


def losses(out: Path) -> list[tuple]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(entry["step"], entry.get("loss"), entry.get("eval_loss"), entry.get("grad_norm")) for entry in entries[:-1]]


@pytest.mark.parametrize("name", ["rng_state.pth", "optimizer.pt", "scheduler.pt", "since_log_0.pt"])
def test_43_state_missing_on_resume(train, tmp_path, monkeypatch, capsys, name):
    """transformers goes on without any of them, on another path, and says nothing."""
    stopped(train, monkeypatch, 3)
    (tmp_path / ".out.unfinished" / "checkpoint-2" / name).unlink()
    assert train("--resume") == 2
    assert f"checkpoint-2: it has no {name.partition('.')[0]}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.unfinished" / "checkpoint-2").exists()


def test_44_router_collapse(inputs):
    """All tokens to one pair of experts: the loads say so, and every loss of the router is finite and pulls away from it."""
    model = MoEForCausalLM.from_pretrained(inputs / "mixture", router_z_loss_coef=0.001).train()
    ids = torch.randint(3, model.config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    even = model(ids, labels=ids, output_router_logits=True).aux_loss
    collapsed = torch.zeros(4, 1)
    collapsed[:2] = 1e4  # of a logit
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_pre_hook(lambda _, args: (torch.ones_like(args[0]) / 32, *args[1:]))
        layer.mlp.gate.weight.data = collapsed.expand_as(layer.mlp.gate.weight).clone().requires_grad_()
    output = model(ids, labels=ids, output_router_logits=True)
    assert output.aux_loss.isfinite() and output.loss.isfinite() and output.aux_loss > 10 * even
    output.loss.backward()
    gradient = model.model.layers[0].mlp.gate.weight.grad
    assert gradient is not None and gradient.isfinite().all() and gradient[:2].abs().sum() > 0
    routing = measure_routing(model, [{"input_ids": row, "labels": row} for row in ids.tolist()], 3, 2, progress=False)
    assert routing["load"] == [[0.5, 0.5, 0, 0]] and routing["own_topk"] == [0] and routing["dropped"] == 0


def write_split(folder: Path, rows: bytes, split: str = "train") -> Path:
    """A copy of the inputs whose C++ split holds these bytes."""
    (folder / "data" / f"cpp.{split}.jsonl").write_bytes(rows)
    return folder


@pytest.fixture
def other(inputs, tmp_path) -> Path:
    return Path(shutil.copytree(inputs, tmp_path / "other"))


def row(**columns) -> bytes:
    return (
        json.dumps({"text": "add 99 to a", "code": "int f99(int a) {\n    return a + 99;\n}\n", "family": "x"} | columns).encode() + b"\n"
    )


def test_45_an_empty_data_set(train, other, capsys):
    assert train(at=write_split(other, b"")) == 2
    assert "cpp.train.jsonl is empty" in capsys.readouterr().err
    assert train(at=write_split(other, row(code=" "))) == 2
    assert "1 malformed rows out of 1" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [[], [[5]], [[5, 6], [5]]])
def test_45_one_token_and_all_masked(inputs, rows):
    """Also a row of several tokens whose labels are all masked: nothing is divided by the number of labels that there are not."""
    tokenizer = AutoTokenizer.from_pretrained(inputs / "base")
    one = [{"input_ids": ids, "labels": ids} for ids in rows]
    masked = [{"input_ids": [5, 6, 7], "labels": [5, IGNORED, IGNORED]}]
    good = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}]
    for train_rows, eval_rows in ((one, good), (good, one), (good + masked, good), (good, masked)):
        with pytest.raises(ValueError, match=r"there are no (train|valid) rows|1 of the \d (train|valid) rows have no token to learn"):
            trainer.train_pairs(torch.nn.Linear(1, 1), tokenizer, train_rows, eval_rows, argparse.Namespace(), inputs)


def test_45_longer_than_the_maximum(train, other, tmp_path, capsys):
    path = other / "data" / "cpp.train.jsonl"
    lines = path.read_bytes() + row(code="int f99(int a) {\n" + "    number += another;\n" * 60 + "    return a;\n}\n")
    assert train("--max-steps", "1", at=write_split(other, lines)) == 0
    assert re.search(r"completion over the length +1\n", capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["rows"]["train"] == {"program": {"whole": 12}}


def test_45_bad_utf8(train, other, capsys):
    """One bad row is left out and counted; a file of them is refused, with the first named."""
    path = other / "data" / "cpp.train.jsonl"
    good, bad = path.read_bytes(), row(text="add \xff").replace(b"\\u00ff", b"\xff")
    with pytest.warns(UserWarning, match=r"cpp\.train\.jsonl:13: .*utf-8.*; row dropped"):
        assert train("--max-steps", "1", at=write_split(other, good + bad)) == 0
    assert "malformed row                             1" in capsys.readouterr().out
    assert train(at=write_split(other, bad * 3), out="another") == 2
    assert "3 malformed rows out of 3" in capsys.readouterr().err
    compressed = other / "data" / "cpp.train.jsonl.gz"
    compressed.write_bytes(gzip.compress(good)[:-9])
    path.unlink()
    assert train(at=other, out="another") == 2
    assert "cpp.train.jsonl.gz is damaged" in capsys.readouterr().err


def test_45_duplicate_ids(train, other, tmp_path, capsys):
    """Training has no use for ids. An evaluation tells its points apart by them."""
    lines = (other / "data" / "cpp.train.jsonl").read_bytes()
    named = b"".join(json.dumps(json.loads(line) | {"id": "same"}).encode() + b"\n" for line in lines.splitlines())
    assert train("--max-steps", "1", at=write_split(other, named)) == 0
    capsys.readouterr()
    assert COMMANDS["eval.codebleu"].run(write_split(other, named.replace(b"to a", b"to b"), "test"), tmp_path / "scores") == 2
    assert "has several cpp points with the id 'same'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rank", "0"], "--rank must be at least 1"),
        (["--rank", "-4"], "--rank must be at least 1"),
        (["--alpha", "-1"], "--alpha not negative"),
        (["--learning-rate", "nan"], "--learning-rate is nan; it must be a finite number"),
    ],
)
def test_46_lora_flags(train, tmp_path, capsys, flags, said):
    assert train(*flags) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_46_alpha_that_is_no_number(train, inputs, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        train("--alpha", "nan")
    assert "--alpha: invalid int value: 'nan'" in capsys.readouterr().err
    adapter = Path(shutil.copytree(inputs / "cpp", tmp_path / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": math.nan}))
    with pytest.raises(ValueError, match=r"lora_alpha.* = nan"):
        Adapter(adapter)


def test_46_targets_that_the_base_does_not_have(other):
    """Of a base of another shape; and an adapter of no module, of a module that its base lacks, and of rank 0."""
    with pytest.raises(ValueError, match="has no linear modules named down_proj, gate_proj, up_proj, which --target trains"):
        model = LlamaForCausalLM(LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8))
        model.model.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
        add_lora(model, factor_config(argparse.Namespace(rank=2, alpha=0, target="ffn")))
    adapter, base = other / "cpp", other / "base"
    weights = load_file(adapter / "adapter_model.safetensors")
    for changed, said in (
        ({}, "has no LoRA factors"),
        ({name.replace("layers.0", "layers.7"): tensor for name, tensor in weights.items()}, "which .* does not have"),
        ({name: tensor[:0] if "lora_A" in name else tensor[:, :0] for name, tensor in weights.items()}, "rank 0"),
    ):
        save_file({name: tensor.contiguous() for name, tensor in changed.items()}, adapter / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=said):
            Adapter(adapter).check_base(base, Checkpoint(base))
