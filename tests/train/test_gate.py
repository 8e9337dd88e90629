"""`python -m train.gate`: what learns, what does not, and that an interruption changes nothing, noise included."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from model import MoEConfig, MoEForCausalLM
from model.languages import LANGUAGES
from train import gate, trainer


@pytest.fixture(scope="module")
def mixture(tiny_base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    torch.manual_seed(1)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MoEConfig(vocab_size=len(tokenizer), num_local_experts=4, expert_names=list(LANGUAGES), **shape)
    MoEForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(monkeypatch, *argv: object) -> int:
    monkeypatch.setattr(sys, "argv", ["train.gate", *map(str, argv)])
    return gate.main()


def arguments(mixture: Path, data: Path, out: Path) -> list[object]:
    flags = ["--model", mixture, "--data", data, "--out", out, "--max-steps", 6, "--eval-every", 2, "--batch-size", 4]
    return [*flags, "--limit", 8, "--eval-limit", 4, "--learning-rate", 1e-2]


@pytest.fixture(scope="module")
def whole(mixture, tiny_data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, *arguments(mixture, tiny_data, out)) == 0
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_wg_and_wnoise_learn_and_nothing_else(mixture, whole):
    before, after = weights(mixture), weights(whole)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".gate." in name}
    assert {name.rpartition(".")[2] for name in changed} == {"weight", "noise_weight"}
    record = json.loads((whole / "run.json").read_text())
    assert set(record["figures"]["routing_after"]) == set(LANGUAGES)


@pytest.mark.parametrize("cut", [3, 5])
def test_an_interrupted_run_ends_bit_equal(mixture, whole, tiny_data, tmp_path, monkeypatch, cut):
    class Killed(Exception):
        pass

    def kill(self, args, state, control, **kwargs):
        if state.global_step == cut:
            raise Killed

    flags = arguments(mixture, tiny_data, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.ProgressBar, "on_step_end", kill)
        with pytest.raises(Killed):
            run(patch, *flags)
    assert run(monkeypatch, *flags, "--resume") == 0
    resumed = weights(tmp_path / "out")
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_base_is_no_mixture(tiny_base, tiny_data, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, *arguments(tiny_base, tiny_data, tmp_path / "out")) == 2
    assert "is no mixture: compose one with python -m model.compose" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_lora_factors_can_only_be_trained_where_there_are_any(mixture, tiny_data, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, *arguments(mixture, tiny_data, tmp_path / "out"), "--train", "gate+lora") == 2
    assert "is it of the lora layout?" in capsys.readouterr().err
