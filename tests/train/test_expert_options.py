"""The options of `python -m train.expert`: what each changes, and that none of them costs the bit-equal resume."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from model import MoEForCausalLM
from model.compose import main as compose
from model.generate import main as generate
from model.generation import encode_prompts
from model.load import load_model
from model.prompt import INSTRUCTION, format_prompt, prompt_template
from train import expert, trainer
from train.data.prompts import IGNORED

COMPLETE = ["--format", "instruct", "--fim-rate", 0.5, "--level", "program:0.6,snippet:0.4"]


class Killed(Exception):
    """Stands for a signal: nothing in the program catches it."""


class KillAt5(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise Killed


def run(monkeypatch, command, *argv: object) -> int:
    monkeypatch.setattr(sys, "argv", ["command", *map(str, argv)])
    return command()


def arguments(base: Path, data: Path, out: Path) -> list[object]:
    flags = ["--lang", "cpp", "--base", base, "--data", data, "--out", out, "--max-steps", 8, "--eval-every", 4]
    return [*flags, "--batch-size", 3, "--rank", 4, "--max-length", 128, "--learning-rate", 1e-2]


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter_model.safetensors")


def record(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory) -> Path:
    """With snippets beside the programs."""
    folder = tmp_path_factory.mktemp("levels") / "data"
    shutil.copytree(tiny_data, folder)
    for split, numbers in {"train": range(60), "valid": range(60, 72), "test": range(72, 76)}.items():
        rows = [{"text": f"add {number}", "code": f"a += {number};\n", "family": f"s{number}"} for number in numbers]
        (folder / f"cpp.snippet.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def plain(tiny_base, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "out"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, expert.main, *arguments(tiny_base, data, out)) == 0
    return out


@pytest.mark.parametrize(
    "options",
    [
        ["--neftune-alpha", 5, "--loraplus-ratio", 16, "--rslora"],
        ["--dora", *COMPLETE],
        ["--init", "PLAIN", "--fim-rate", 1, "--fim-spm-rate", 1],
        ["--packing"],
    ],
    ids=["steps", "rows", "init", "packing"],
)
def test_an_interrupted_run_ends_bit_equal(plain, tiny_base, data, tmp_path, monkeypatch, options):
    options = [plain if option == "PLAIN" else option for option in options]
    for name in ("whole", "cut"):
        flags = [*arguments(tiny_base, data, tmp_path / name), *options]
        if name == "cut":
            with monkeypatch.context() as patch:
                patch.setattr(trainer.ProgressBar, "on_step_end", KillAt5().on_step_end)
                with pytest.raises(Killed):
                    run(patch, expert.main, *flags)
            flags.append("--resume")
        torch.rand(7)  # nothing may hang on the global generator as it is before the command
        assert run(monkeypatch, expert.main, *flags) == 0
    whole, cut = adapter(tmp_path / "whole"), adapter(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, cut[name]), name
    assert record(tmp_path / "whole")["rows"] == record(tmp_path / "cut")["rows"]


def captured(monkeypatch, *flags: object) -> tuple[list, list]:
    """The rows that a run would train and evaluate on."""
    seen: list = []

    def capture(model, tokenizer, train_rows, eval_rows, *rest):
        seen.extend((train_rows, eval_rows))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(expert, "train_pairs", capture)
        with pytest.raises(Killed):
            run(patch, expert.main, *flags)
    return seen[0], seen[1]


def test_rows_are_mixed_and_cut_as_the_record_says(tiny_base, data, tmp_path, monkeypatch, capsys):
    flags = [*arguments(tiny_base, data, tmp_path / "out"), *COMPLETE]
    train_rows, eval_rows = captured(monkeypatch, *flags)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    given = [tokenizer.decode(row["input_ids"][: row["labels"].count(IGNORED)]) for row in train_rows]
    whole = ["<fim_prefix>" not in text for text in given]
    levels = ["program" if "add the number" in text else "snippet" for text in given]  # by the texts of the fixtures
    assert (levels.count("program"), levels.count("snippet")) == (40, 26)  # 40 programs are 0.6 of 66.7 rows
    found = re.search(r"^train: 40 program \((.*)\), 26 snippet \((.*)\)$", capsys.readouterr().out, re.MULTILINE)
    for level, kinds in zip(("program", "snippet"), found.groups(), strict=True):
        counts = {kind: int(count) for count, kind in (part.split(" ") for part in kinds.split(", "))}
        assert counts.keys() == {"whole", "PSM", "SPM"} and counts["PSM"] and counts["SPM"]
        assert counts["whole"] == sum(kept for kept, of in zip(whole, levels, strict=True) if of == level)
    assert sum(whole) / len(whole) == pytest.approx(0.5, abs=0.15)
    assert len(eval_rows) == 13  # 8 programs are 0.6 of 13.3
    assert captured(monkeypatch, *flags) == (train_rows, eval_rows) != captured(monkeypatch, *flags, "--seed", 1)


def test_loraplus_steps_b_faster_than_a(tiny_base, data, tmp_path, monkeypatch):
    """Adam's first step is the rate, in the gradient's direction: B goes from 0 to 16 times the rate, A waits for B."""
    start = {}

    def begin(self, args, state, control, **kwargs):
        start.update({name: parameter.detach().clone() for name, parameter in kwargs["model"].named_parameters() if "lora_A" in name})

    monkeypatch.setattr(trainer.StopOnBadGradient, "on_train_begin", begin, raising=False)
    flags = [*arguments(tiny_base, data, tmp_path / "out"), "--max-steps", 1, "--eval-every", 1, "--warmup", 0, "--dropout", 0]
    assert run(monkeypatch, expert.main, *flags, "--learning-rate", 1e-3, "--loraplus-ratio", 16) == 0
    for name, tensor in adapter(tmp_path / "out").items():
        if "lora_B" in name:
            assert tensor.abs().median() == pytest.approx(16e-3, rel=1e-3), name
        else:
            assert torch.equal(tensor, start[name.replace(".weight", ".default.weight")])


def test_neftune_is_in_the_training_loss_alone(tiny_base, data, tmp_path, monkeypatch):
    losses = {}
    for alpha in (0, 50):
        out = tmp_path / str(alpha)
        flags = [*arguments(tiny_base, data, out), "--max-steps", 1, "--eval-every", 1, "--dropout", 0, "--learning-rate", 1e-12]
        assert run(monkeypatch, expert.main, *flags, "--neftune-alpha", alpha) == 0
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        losses[alpha] = [next(entry[key] for entry in log if key in entry) for key in ("loss", "eval_loss")]
    assert losses[0][0] != losses[50][0] and losses[0][1] == losses[50][1]


def test_init_goes_on_from_the_adapter(plain, tiny_base, data, tmp_path, monkeypatch, capsys):
    flags = [*arguments(tiny_base, data, tmp_path / "on"), "--init", plain, "--learning-rate", 1e-12]
    assert run(monkeypatch, expert.main, *flags) == 0
    for name, tensor in adapter(plain).items():
        torch.testing.assert_close(adapter(tmp_path / "on")[name], tensor, atol=1e-9, rtol=0)
    assert len(record(tmp_path / "on")["init_fingerprint"]) == 128
    other = tmp_path / "base"
    shutil.copytree(tiny_base, other)
    weights = load_file(other / "model.safetensors")
    changed = {**weights, "model.norm.weight": weights["model.norm.weight"] + 1}
    save_file(changed, other / "model.safetensors", metadata={"format": "pt"})
    for change, said in [
        (["--rank", 8], "has r = 4, but --rank says 8"),
        (["--alpha", 3], "has lora_alpha = 8, but --alpha says 3"),
        (["--rslora"], "has use_rslora = 0, but --rslora says True"),
        (["--dora"], "has use_dora = 0, but --dora says True"),
        (["--target", "all"], "has factors of down_proj, gate_proj, up_proj, not those of --target all"),
        (["--base", other], "was trained on another base than"),
    ]:
        assert run(monkeypatch, expert.main, *arguments(tiny_base, data, tmp_path / "no"), "--init", plain, *change) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("options", [["--dora"], ["--rslora"], ["--format", "instruct"]], ids=lambda options: options[-1])
def test_a_mixture_of_such_an_expert_is_that_expert(tiny_base, data, tmp_path, monkeypatch, options):
    """PEFT's logits on the base, and by `apply_chat_template` the prompt of the rows."""
    out = tmp_path / "out"
    assert run(monkeypatch, expert.main, *arguments(tiny_base, data, out), *options) == 0
    recipe = {"base_model": str(tiny_base), "gate_mode": "random", "dtype": "float32", "experts": [{"source_model": str(out)}] * 2}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    assert run(monkeypatch, compose, tmp_path / "recipe.yml", tmp_path / "mixture") == 0
    mixture, tokenizer = load_model(tmp_path / "mixture")
    assert isinstance(mixture, MoEForCausalLM) and mixture.config.expert_layout == ("dense" if options == ["--dora"] else "lora")
    rows, _ = captured(monkeypatch, *arguments(tiny_base, data, tmp_path / "again"), *options)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), str(out)).eval()
    ids = torch.tensor([rows[0]["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(mixture(ids).logits, peft(ids).logits, atol=1e-4, rtol=0)
    text = "add the number 7 to a"
    prompts = [row["input_ids"][: row["labels"].count(IGNORED)] for row in rows]
    assert encode_prompts(tokenizer, [format_prompt(text, "cpp", tokenizer)])[0] in prompts
    assert record(out)["prompt_template"] == prompt_template(tokenizer)
    if options[-1] == "instruct":
        asked = [{"role": "user", "content": INSTRUCTION.format(language="C++", text=text)}]
        assert tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"] in prompts


def test_a_new_language_in_one_command_and_into_a_mixture(plain, tiny_base, tmp_path, monkeypatch, capsys):
    file = tmp_path / "mine.jsonl"
    rows = [{"text": f"add {number}", "code": f"fn f{number}(a: i32) -> i32 {{ a + {number} }}\n"} for number in range(40)]
    file.write_text("".join(json.dumps({**row, "family": row["text"]}) + "\n" for row in rows))
    flags = [*arguments(tiny_base, file, tmp_path / "rust"), "--lang", "rust"]
    assert run(monkeypatch, expert.main, *flags) == 0
    assert "language: Rust, by its name alone: its programs are not parsed" in capsys.readouterr().out
    assert record(tmp_path / "rust")["lang"] == "rust" and record(tmp_path / "rust")["rows"]["train"] == {"program": {"whole": 36}}
    row = captured(monkeypatch, *flags, "--out", tmp_path / "again")[0][0]
    assert AutoTokenizer.from_pretrained(tiny_base).decode(row["input_ids"]).startswith("<s>### Rust\nadd ")
    sources = [{"source_model": str(folder)} for folder in (plain, tmp_path / "rust")]
    recipe = {"base_model": str(tiny_base), "gate_mode": "random", "experts": sources}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    assert run(monkeypatch, compose, tmp_path / "recipe.yml", tmp_path / "mixture") == 0
    assert load_model(tmp_path / "mixture")[0].config.expert_names == ["cpp", "rust"]
    assert run(monkeypatch, generate, "add 3", "--model", tmp_path / "mixture", "--lang", "rust", "--max-new-tokens", 2) == 0


def test_a_config_file_gives_the_run_of_the_flags(plain, tiny_base, data, tmp_path, monkeypatch, capsys):
    settings = record(plain)["settings"]
    assert run(monkeypatch, expert.main, "--config", plain / "run.json", "--out", tmp_path / "out") == 0
    assert record(tmp_path / "out")["settings"] == settings
    for name, tensor in adapter(plain).items():
        assert torch.equal(adapter(tmp_path / "out")[name], tensor)
    capsys.readouterr()
    assert run(monkeypatch, expert.main, "--config", plain / "run.json", "--rank", 2, "--print-config") == 0
    (tmp_path / "flags.yml").write_text(capsys.readouterr().out)
    assert run(monkeypatch, expert.main, "--config", tmp_path / "flags.yml", "--out", tmp_path / "two", "--max-steps", 1) == 0
    assert record(tmp_path / "two")["settings"] == {**settings, "rank": 2, "max_steps": 1}
