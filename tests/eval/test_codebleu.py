"""The command: same points and prompts for every model, figures that follow from the samples, and whole outputs or none."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import eval.codebleu as command
from eval.runs import read_run, read_runs
from model import MoEForCausalLM
from model.cli import run_command
from model.output import check_manifest
from model.prompt import format_prompt, set_format
from train.base import train_tokenizer


def run(*arguments: str) -> int:
    return run_command(command.main, command.parse(), arguments)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """{prompt: completion} of a model that is not there; a prompt it lacks is completed with nothing."""
    answers: dict[str, str] = {}
    model = SimpleNamespace(config=SimpleNamespace(), dtype=torch.bfloat16)
    monkeypatch.setattr(command, "load_model", lambda *_, **__: (model, None))
    monkeypatch.setattr(command, "model_folder", Path)

    def complete(model: Any, tokenizer: Any, prompts: list[str], **options: Any) -> list[str]:
        assert options == {"max_new_tokens": 7, "batch_size": 3}
        return [answers.get(prompt, "") for prompt in prompts]

    monkeypatch.setattr(command, "complete", complete)
    return answers


def flags(data: Path, out: Path) -> list[str]:
    return ["--model", "m", "--data", str(data), "--max-new-tokens", "7", "--batch-size", "3", "--limit", "5", "--out", str(out)]


def test_figures_follow_from_the_samples(
    answer: dict[str, str], data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (data_folder / "cpp.test.jsonl").read_text().splitlines()]
    answer.update({format_prompt(row["text"], "cpp"): row["code"] for row in rows if row["kind"] == "family"})
    assert run(*flags(data_folder, tmp_path / "run"), "--lang", "cpp", "--name", "base") == 0
    check_manifest(tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    figures = facts["figures"]["cpp"]
    summary = {kind: (row["n"], row["empty"], row["codebleu"]) for kind, row in figures.items()}
    assert summary == {"wording": (5, 5, 0.0), "family": (4, 0, 1.0)}
    assert figures["wording"]["codebleu_library"] == pytest.approx(0.25)
    assert (facts["name"], facts["role"], facts["max_new_tokens"]) == ("base", "base", 7)
    assert (facts["dtype"], facts["quantization"]) == ("bfloat16", None)
    assert facts["data"]["cpp"]["rows"] == 10
    samples = read_run(tmp_path / "run").samples["cpp"]
    assert {row["id"] for row in samples["family"]} == {row["id"] for row in rows if row["kind"] == "family"}
    assert all(row["prediction"] == row["reference"] and row["codebleu"] == 1.0 and row["group"] for row in samples["family"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"data: {data_folder}\n")
    assert "C++, family" in printed


def test_a_base_is_asked_in_the_prompt_of_an_expert(answer: dict[str, str], data_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """`--prompt-of`: what its run.json says it was asked is what an expert of that chat template is asked."""
    tokenizer = train_tokenizer(["int a;"])
    set_format(tokenizer, "instruct")
    tokenizer.save_pretrained(tmp_path / "expert")
    rows = [json.loads(line) for line in (data_folder / "cpp.test.jsonl").read_text().splitlines()]
    answer.update({format_prompt(row["text"], "cpp", tokenizer): row["code"] for row in rows})
    model = SimpleNamespace(config=SimpleNamespace(), dtype=torch.bfloat16)
    monkeypatch.setattr(command, "load_model", lambda *_, **__: (model, train_tokenizer(["int a;"])))
    for name, more, score in (("plain", [], 0.0), ("asked", ["--prompt-of", str(tmp_path / "expert")], 1.0)):
        assert run(*flags(data_folder, tmp_path / name), "--lang", "cpp", *more) == 0
        facts = json.loads((tmp_path / name / "run.json").read_text())
        assert facts["figures"]["cpp"]["family"]["codebleu"] == score
        assert (facts["prompt_template"] == tokenizer.chat_template) == bool(more)


def test_two_models_get_the_same_points(answer: dict[str, str], data_folder: Path, tmp_path: Path) -> None:
    for name in ("base", "mixture"):
        assert run(*flags(data_folder, tmp_path / name), "--name", name) == 0
    systems, _ = read_runs([tmp_path / "base", tmp_path / "mixture"])
    assert systems.base is not None
    assert systems.mixture is not None
    assert systems.base.samples == systems.mixture.samples
    assert list(systems.base.samples) == ["python", "java", "javascript", "cpp"]
    assert run(*flags(data_folder, tmp_path / "cpp"), "--lang", "cpp", "--name", "expert-cpp") == 0
    read_runs([tmp_path / "base", tmp_path / "cpp"])  # a single language draws the same points


def test_a_failure_leaves_nothing(answer: dict[str, str], data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> list[str]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(command, "complete", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(*flags(data_folder, tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (["--limit", "0"], "--limit must be at least 1, not 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1, not 0"),
        (["--data", "absent"], "absent"),
        (["--split", "valid"], "valid"),
    ],
)
def test_mistakes(changed: list[str], sentence: str, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*flags(data_folder, tmp_path / "run"), *changed) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_output_that_exists_is_kept(data_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    assert run(*flags(data_folder, tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(("role", "quantization"), [("base", None), ("mixture", None), ("mixture", "nf4")])
def test_a_real_model(
    role: str, quantization: str | None, base_folder: Path, mixture_folder: Path, tokenizer: Any, data_folder: Path, tmp_path: Path
) -> None:
    model = str(base_folder if role == "base" else mixture_folder)
    if quantization:
        model = str(tmp_path / "quantized")
        MoEForCausalLM.from_pretrained(mixture_folder, quantization=quantization).save_pretrained(model)
        tokenizer.save_pretrained(model)
    assert run(*flags(data_folder, tmp_path / "run"), "--model", model, "--lang", "java", "--limit", "2") == 0
    result = read_run(tmp_path / "run")
    assert result.role == role
    assert (result.facts["dtype"], result.facts["quantization"]) == ("float32", quantization)
    assert all(0 <= row["codebleu"] < 0.5 for rows in result.samples["java"].values() for row in rows)
