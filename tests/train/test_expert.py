"""`python -m train.expert`: what it learns from, what it leaves behind, and that an interruption changes nothing."""

import itertools
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, TrainerCallback

from train import base, callbacks, expert, trainer


class Killed(Exception):
    """Stands for a signal: nothing in the program catches it."""


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def run(monkeypatch, *argv: object) -> int:
    monkeypatch.setattr(sys, "argv", ["train.expert", *map(str, argv)])
    return expert.main()


def arguments(base: Path, data: Path, out: Path) -> list[object]:
    flags = ["--lang", "cpp", "--base", base, "--data", data, "--out", out, "--max-steps", 18, "--eval-every", 3]
    return [*flags, "--batch-size", 3, "--rank", 4, "--max-length", 128, "--learning-rate", 1e-2]


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(tiny_base, tiny_data, tmp_path_factory) -> Path:
    """The output of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, *arguments(tiny_base, tiny_data, out)) == 0
    return out


@pytest.mark.parametrize("cut", [2, 4, 11, 17])
def test_an_interrupted_run_ends_bit_equal(whole, tiny_base, tiny_data, tmp_path, monkeypatch, cut):
    """40 rows in batches of 3: checkpoints every 3 steps; an epoch is 14."""
    flags = arguments(tiny_base, tiny_data, tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.ProgressBar, "on_step_end", KillAt(cut).on_step_end)
        with pytest.raises(Killed):
            run(patch, *flags)
    assert not (tmp_path / "cut").exists()
    resume = ["--resume", "--gpu", "cpu"] if cut > 3 else []  # before the first checkpoint nothing is left
    assert run(monkeypatch, *flags, *resume) == 0
    expected, resumed = adapter(whole), adapter(tmp_path / "cut")
    assert expected.keys() == resumed.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name


def test_an_interruption_adds_and_loses_no_tokens_and_no_time(whole, tiny_base, tiny_data, tmp_path, monkeypatch):
    """With a clock on which each step takes a second: the step after the checkpoint, which is taken again, counts once."""
    ticks = itertools.count()
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    flags = arguments(tiny_base, tiny_data, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.ProgressBar, "on_step_end", KillAt(4).on_step_end)
        with pytest.raises(Killed):
            run(patch, *flags)
    assert run(monkeypatch, *flags, "--resume") == 0
    expected, figures = (json.loads((out / "run.json").read_text())["figures"] for out in (whole, tmp_path / "out"))
    assert figures["tokens"] == expected["tokens"] > 0
    assert figures["tokens_per_second"] == figures["tokens"] / 18
    assert figures["parameters"] - figures["trainable_parameters"] == AutoModelForCausalLM.from_pretrained(tiny_base).num_parameters()
    entries = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [entry["step_seconds"] for entry in entries] == [entry["step"] for entry in entries]


@pytest.mark.parametrize("early", [False, True])
def test_a_run_whose_steps_are_done_takes_no_more(tiny_base, tiny_data, tmp_path, monkeypatch, early):
    """Interrupted while it wrote its output, twice: steps and factors are those of a run that was not."""
    stop = ["--patience", 1, "--learning-rate", 1e-12] if early else []
    ends = {}
    for name, times in {"whole": 0, "cut": 2}.items():
        flags = [*arguments(tiny_base, tiny_data, tmp_path / name), *stop]
        for number in range(times):
            with monkeypatch.context() as patch:
                patch.setattr(expert, "write_output", lambda *args, **kwargs: (_ for _ in ()).throw(Killed))
                with pytest.raises(Killed):
                    run(patch, *flags, *(["--resume"] if number else []))
        assert run(monkeypatch, *flags, *(["--resume"] if times else [])) == 0
        figures = json.loads((tmp_path / name / "run.json").read_text())["figures"]
        ends[name] = {key: figures[key] for key in ("steps", "best_step", "best_eval_loss")}
    assert ends["cut"] == ends["whole"]
    expected, resumed = adapter(tmp_path / "whole"), adapter(tmp_path / "cut")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())


def test_early_stopping_survives_an_interruption(tiny_base, tiny_data, tmp_path, monkeypatch):
    """At a rate of nearly 0 nothing improves on the evaluation of step 3: patience 2 must end both runs at step 9."""
    ends = {}
    for name, cut in {"whole": None, "cut": 4}.items():
        flags = [*arguments(tiny_base, tiny_data, tmp_path / name), "--patience", 2, "--learning-rate", 1e-12]
        if cut:
            with monkeypatch.context() as patch:
                patch.setattr(trainer.ProgressBar, "on_step_end", KillAt(cut).on_step_end)
                with pytest.raises(Killed):
                    run(patch, *flags)
            flags.append("--resume")
        assert run(monkeypatch, *flags) == 0
        figures = json.loads((tmp_path / name / "run.json").read_text())["figures"]
        ends[name] = (figures["steps"], figures["best_step"])
    assert ends["whole"] == ends["cut"] == (9, 3)
    for name, tensor in adapter(tmp_path / "whole").items():
        assert torch.equal(tensor, adapter(tmp_path / "cut")[name]), name


def test_the_base_is_nf4_with_nested_absmax(tiny_base):
    model, _ = expert.load_base(str(tiny_base), checkpointing=False)
    state = model.model.layers[0].mlp.up_proj.weight.quant_state
    assert (state.quant_type, state.blocksize, state.nested) == ("nf4", 64, True)


def test_a_base_of_another_kind_or_in_pieces_is_one_sentence(tiny_base, tiny_data, tmp_path, monkeypatch, capsys):
    other = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=16)).save_pretrained(other)
    assert run(monkeypatch, *arguments(other, tiny_data, tmp_path / "out")) == 2
    assert "is not Mistral-shaped: its configuration lacks" in capsys.readouterr().err.splitlines()[-1]
    torn = tmp_path / "torn"
    shutil.copytree(tiny_base, torn)
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert run(monkeypatch, *arguments(torn, tiny_data, tmp_path / "out")) == 2
    assert "model.safetensors" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full to stand for a full disk")
def test_a_full_disk_is_one_sentence(tiny_base, tiny_data, tmp_path, monkeypatch, capsys):
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda value, path, *args, **kwargs: save(value, "/dev/full", *args, **kwargs))
    assert run(monkeypatch, *arguments(tiny_base, tiny_data, tmp_path / "out")) == 2
    assert "python -m train.expert: no space left on the disk" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_output_is_a_peft_adapter_that_changes_the_base(whole, tiny_base):
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    tokenizer = AutoTokenizer.from_pretrained(whole)
    ids = tokenizer("int f7(int a)", return_tensors="pt")["input_ids"]
    before = base(ids).logits
    after = PeftModel.from_pretrained(base, whole)(ids).logits
    assert not torch.allclose(before, after, atol=1e-3)
    record = json.loads((whole / "run.json").read_text())
    assert record["lang"] == "cpp" and record["prompt_template"] and len(record["data_sha256"]["program"]) == 64
    assert (record["figures"]["dtype"], record["figures"]["quantization"]) == ("float32", "nf4")
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [3, 6, 9, 12, 15, 18]
    assert {"loss", "learning_rate", "seconds"} <= log[0].keys()
    assert {name.split(".")[-3] for name in adapter(whole)} == {"gate_proj", "up_proj", "down_proj"}
    assert list((whole / "tensorboard").iterdir())
    assert not list(whole.parent.glob(".*")), "a workspace was left"


def test_a_loss_that_is_not_finite_stops_before_the_step(tiny_base, tiny_data, tmp_path, monkeypatch, capsys):
    real = trainer.Trainer.training_step

    def poisoned(self, *args, **kwargs):
        loss = real(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 1 else loss

    monkeypatch.setattr(trainer.Trainer, "training_step", poisoned)
    assert run(monkeypatch, *arguments(tiny_base, tiny_data, tmp_path / "out")) == 2
    assert "the loss is nan at step 2; the step was not applied" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--lang": "cobol"}, "has no train split of programs in cobol"),
        ({"--lang": "cobol", "--data": "corpus"}, "corpus has no 'cobol', only python, java, javascript, cpp; give --data a file"),
        ({"--lang": "C++"}, "the language 'C++' must be one of python, java, javascript, cpp or a name in lower case"),
        ({"--level": "program:2,snippet:x"}, "'snippet:x' must be one of program, snippet, each once, with a weight above 0"),
        ({"--fim-rate": 1.5}, "--fim-rate is a probability and must lie in [0, 1], not 1.5"),
        ({"--fim-rate": 0.5, "--fim-spm-rate": -1}, "--fim-spm-rate is a probability and must lie in [0, 1], not -1"),
        ({"--fim-spm-rate": 0.5}, "--fim-spm-rate is a share of the rows with a gap, and without --fim-rate there are none"),
        ({"--loraplus-ratio": 0.5}, "--loraplus-ratio must be at least 1, not 0.5"),
        ({"--neftune-alpha": -1}, "--neftune-alpha must not be negative, but is -1.0"),
        ({"--init": "nowhere"}, "adapter_config.json is missing"),
        ({"--data": "nowhere.jsonl"}, "there is no data set 'nowhere.jsonl'"),
        ({"--base": "nowhere"}, "the base 'nowhere' is neither a folder with a config.json nor a model"),
        ({"--batch-size": 0}, "--batch-size must be at least 1, not 0"),
        ({"--rank": 0}, "--rank must be at least 1"),
        ({"--max-length": 5}, "fits --max-length 5"),
        ({"--gpu": "abacus"}, "unknown card 'abacus'"),
        ({"--gpu": "abacus", "--base": "auto", "--plan": None}, "unknown card 'abacus'"),
        ({"--resume": None}, "nothing to resume"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(tiny_base, tiny_data, tmp_path, monkeypatch, capsys, change, said):
    flags = dict(zip(*[iter(arguments(tiny_base, tiny_data, tmp_path / "out"))] * 2, strict=True)) | change
    argv = [part for pair in flags.items() for part in pair if part is not None]
    assert run(monkeypatch, *argv) == 2
    captured = capsys.readouterr()
    error = captured.err.strip().splitlines()[-1]
    assert error.startswith("python -m train.expert: ") and said in error
    assert not list(tmp_path.iterdir())
    assert "the card has no room" not in captured.out


@pytest.mark.parametrize(
    ("lang", "row", "said"),
    [
        ("rust", {"prompt": "add", "code": "a + b"}, "rust.jsonl"),
        ("rust", None, "there is no data set"),
        ("cpp", {"text": "add", "code": "int add(", "split": "train"}, "does not parse 1"),
        ("Rust", {"text": "add", "code": "a + b"}, "language"),
    ],
)
def test_the_data_are_read_before_the_base_is_trained(lang, row, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base, "embedded_base", lambda: pytest.fail("the base is trained before the data are read"))
    data = tmp_path / "rust.jsonl"
    if row:
        data.write_text(json.dumps(row) + "\n")
    assert run(monkeypatch, "--lang", lang, "--data", data, "--base", "auto", "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_an_existing_output_is_left_alone(tiny_base, tiny_data, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("work")
    assert run(monkeypatch, *arguments(tiny_base, tiny_data, tmp_path / "out")) == 2
    assert "exists; name another or remove it first" in capsys.readouterr().err
    assert (tmp_path / "out" / "precious").read_text() == "work"


def test_resume_refuses_other_settings(tiny_base, tiny_data, tmp_path, monkeypatch, capsys):
    flags = arguments(tiny_base, tiny_data, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.ProgressBar, "on_step_end", KillAt(5).on_step_end)
        with pytest.raises(Killed):
            run(patch, *flags)
    assert run(monkeypatch, *flags) == 2
    assert "add --resume to go on" in capsys.readouterr().err
    assert run(monkeypatch, *flags, "--resume", "--weight-decay", 0.5) == 2
    assert "settings" in capsys.readouterr().err


def test_the_plan_of_mistral_7b_on_two_cards(tmp_path, monkeypatch, capsys):
    """NF4 with nested absmax is 4.127 bits a weight: 6.98e9 linear weights are 3.60 GB (data_eval's figure)."""
    config = {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 32000}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = ["--lang", "cpp", "--base", tmp_path, "--plan", "--batch-size", 4, "--max-length", 1024, "--checkpointing", "on"]
    assert run(monkeypatch, *flags, "--gpu", "a10g") == 0
    assert "quantised weights     3.600 GB" in capsys.readouterr().out
    assert run(monkeypatch, *flags, "--gpu", "t4", "--batch-size", 64) == 2
    assert "the largest part is activations" in capsys.readouterr().err


def test_a_plan_trains_no_base(tmp_path, monkeypatch, capsys):
    """Of "auto" it is about what the card would get: Mistral-7B on an A10G, the embedded base on a CPU."""
    monkeypatch.setattr(base, "embedded_base", lambda: pytest.fail("a plan trains nothing"))
    monkeypatch.setattr(base, "user_cache", lambda: tmp_path)
    for gpu, size in (("a10g", "quantised weights     3.600 GB"), ("cpu", "quantised weights     0.001 GB")):
        assert run(monkeypatch, "--lang", "cpp", "--plan", "--gpu", gpu, "--limit", 20, "--max-length", 128, "--batch-size", 1) == 0
        assert size in capsys.readouterr().out
