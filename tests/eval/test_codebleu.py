"""The command: same points and prompts for every model, figures that follow from the samples, and whole outputs or none."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

import eval.codebleu as command
from eval.answers import Loss
from eval.figures import conditions, precision_of
from eval.runs import read_inputs, read_run
from model import MoEForCausalLM
from model.cli import run_command
from model.output import check_manifest
from model.prompt import format_prompt, set_format
from tests.faults.damage import PLACES
from train.documents import train_tokenizer


def run(*arguments: str) -> int:
    return run_command(command.main, command.parse(), arguments)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """{prompt: completion} of a model that is not there; a prompt it lacks is completed with nothing."""
    answers: dict[str, str] = {}
    model = SimpleNamespace(config=SimpleNamespace(), dtype=torch.bfloat16, device=torch.device("cpu"))
    model.num_parameters, model.modules = lambda: 12, list
    monkeypatch.setattr(command, "load_model", lambda *_, **__: (model, None))
    monkeypatch.setattr(command, "model_folder", Path)

    monkeypatch.setattr(command, "model_fingerprint", lambda *_: "0f")

    def ask(model: Any, tokenizer: Any, lang: str, points: Any, **options: Any) -> Any:
        assert options == {"max_new_tokens": 7, "batch_size": 3, "router": None}
        texts = [answers.get(format_prompt(point.text, lang, tokenizer), "") for point in points]
        return SimpleNamespace(texts=lambda *_: texts, losses=[Loss(6.0, 3)] * len(points), seconds=1.0, length=7, ids=points, tokens=27)

    monkeypatch.setattr(command, "ask", ask)
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
    speed = {"generated_tokens": 27, "generation_seconds": 9.0, "tokens_per_second": 3.0, "batch_size": 3}
    assert {key: facts["cost"][key] for key in speed} == speed
    assert (facts["cost"]["parameters"], facts["cost"]["device"]) == (12, "cpu")
    samples = read_run(tmp_path / "run").samples["cpp"]
    assert {row["id"] for row in samples["family"]} == {row["id"] for row in rows if row["kind"] == "family"}
    assert all(row["prediction"] == row["reference"] and row["codebleu"] == 1.0 and row["group"] for row in samples["family"])
    printed = capsys.readouterr()
    assert printed.out.startswith(f"data: {data_folder}\n")
    assert "C++, family" in printed.out
    assert "score" not in printed.err, "a bar is for a terminal"


def test_a_base_is_asked_in_the_prompt_of_an_expert(answer: dict[str, str], data_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """`--prompt-of`: what its run.json says it was asked is what an expert of that chat template is asked."""
    tokenizer = train_tokenizer(["int a;"])
    set_format(tokenizer, "instruct")
    tokenizer.save_pretrained(tmp_path / "expert")
    rows = [json.loads(line) for line in (data_folder / "cpp.test.jsonl").read_text().splitlines()]
    answer.update({format_prompt(row["text"], "cpp", tokenizer): row["code"] for row in rows})
    model = SimpleNamespace(config=SimpleNamespace(), dtype=torch.bfloat16, device=torch.device("cpu"))
    model.num_parameters, model.modules = lambda: 12, list
    monkeypatch.setattr(command, "load_model", lambda *_, **__: (model, train_tokenizer(["int a;"])))
    for name, more, score in (("plain", [], 0.0), ("asked", ["--prompt-of", str(tmp_path / "expert")], 1.0)):
        assert run(*flags(data_folder, tmp_path / name), "--lang", "cpp", *more) == 0
        facts = json.loads((tmp_path / name / "run.json").read_text())
        assert facts["figures"]["cpp"]["family"]["codebleu"] == score
        assert (facts["prompt_template"] == tokenizer.chat_template) == bool(more)


def test_the_language_of_an_adapter_is_recorded(answer: dict[str, str], data_folder: Path, tmp_path: Path) -> None:
    """For the report: an expert stands for its own language."""
    for name in ("trained", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
        if name == "trained":
            (tmp_path / name / "run.json").write_text('{"lang": "cpp"}')
        arguments = [*flags(data_folder, tmp_path / "run" / name), "--lang", "java", "--adapter", str(tmp_path / name)]
        assert run(*arguments) == 0
    said = [json.loads((tmp_path / "run" / name / "run.json").read_text())["adapter_lang"] for name in ("trained", "elsewhere")]
    assert said == ["cpp", None]


def test_a_program_is_scored_without_the_fence_around_it(answer: dict[str, str], data_folder: Path, tmp_path: Path) -> None:
    """As chat models write it; run.json says how many, in which prompt, at which precision and up to which text."""
    rows = [json.loads(line) for line in (data_folder / "cpp.test.jsonl").read_text().splitlines()]
    fenced = {format_prompt(row["text"], "cpp"): f"Sure:\n```cpp\n{row['code']}```\nDone." for row in rows if row["kind"] == "family"}
    answer.update(fenced)
    assert run(*flags(data_folder, tmp_path / "run"), "--lang", "cpp", "--stop", "END", "--precision", "int8") == 0
    found = read_run(tmp_path / "run")
    assert all(row["codebleu"] == 1 for row in found.samples["cpp"]["family"])
    shown = conditions(found)
    assert [shown[key] for key in ("fenced", "stop", "precision", "prompt_of")] == [4, ["END"], "int8", None]


def test_the_precision_of_activations_is_shown() -> None:
    facts = {"dtype": "float32", "quantization": "nf4"}
    assert precision_of({**facts, "precision": "exact"}) == precision_of(facts) == "float32 with NF4 matrices"
    assert precision_of({**facts, "precision": "int8"}) == "float32 with NF4 matrices and int8 activations"


def test_two_models_get_the_same_points(answer: dict[str, str], data_folder: Path, tmp_path: Path) -> None:
    for name in ("base", "mixture"):
        assert run(*flags(data_folder, tmp_path / name), "--name", name) == 0
    systems = read_inputs([tmp_path / "base", tmp_path / "mixture"]).systems
    assert systems.base is not None
    assert systems.mixture is not None
    assert systems.base.samples == systems.mixture.samples
    assert list(systems.base.samples) == ["python", "java", "javascript", "cpp"]
    assert run(*flags(data_folder, tmp_path / "cpp"), "--lang", "cpp", "--name", "expert-cpp") == 0
    read_inputs([tmp_path / "base", tmp_path / "cpp"])  # a single language draws the same points


def test_a_failure_leaves_nothing(answer: dict[str, str], data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> list[str]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(command, "ask", fail)
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


def samples_of(data: Path, target: Path, **more: Any) -> Path:
    """Completions of all C++ rows: the references."""
    rows = [json.loads(line) for line in (data / "cpp.test.jsonl").read_text().splitlines()]
    target.write_text("".join(json.dumps({"id": row["id"], "completion": row["code"], **more}) + "\n" for row in rows))
    return target


def given(data: Path, samples: Path, out: Path, *more: str) -> list[str]:
    return ["--samples", str(samples), "--data", str(data), "--lang", "cpp", "--limit", "5", "--out", str(out), *more]


def test_given_completions_are_scored(data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = samples_of(data_folder, tmp_path / "given.jsonl")
    assert run(*given(data_folder, samples, tmp_path / "run", "--name", "expert-cpp")) == 0
    result = read_run(tmp_path / "run")
    assert result.role == "expert"
    assert result.facts["samples"]["path"] == str(samples)
    assert result.facts["prompt_template"] is None
    for problems, row in zip((3, 2), result.facts["figures"]["cpp"].values(), strict=True):
        names = ("codebleu", "exact_match", "edit_similarity", "chrf", "parses")
        assert all(row["metrics"][name]["value"] == pytest.approx(1.0) for name in names)
        assert row["metrics"]["codebleu"]["low"] == pytest.approx(problems / (problems + 1.959964**2))  # Wilson's, of all that there are
        assert "compiles" not in row["metrics"]
    assert all(sample["exact_match"] == 1.0 for rows in result.samples["cpp"].values() for sample in rows)
    assert "100.0 [43.9, 100.0]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ('{"id": "cpp-0", "completion": "x"}\n', r"lacks \d of the \d cpp points"),
        (2 * '{"id": "cpp-0", "completion": "x"}\n', "point 'cpp-0' has two completions"),
        ('{"id": "cpp-0", "completion": 3}\n', "line 1: completion must be a text, not 3"),
        ('{"id": ["x"], "completion": "x"}\n', r"line 1: id must be a text, not \['x'\]"),
        ('{"id": "cpp-0", "completion": "x", "lang": {"cpp": 1}}\n', "line 1: lang must be a text, not {'cpp': 1}"),
        ('{"id": "cpp-0"}\n', "line 1, lacks completion"),
        ('{"id": "cpp-0", "completion": "\\ud800"}\n', r"given\.jsonl, line 1, is not JSON: .* the lone surrogate U\+D800"),
    ],
)
def test_mistakes_in_given_completions(
    lines: str, sentence: str, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "given.jsonl").write_text(lines)
    assert run(*given(data_folder, tmp_path / "given.jsonl", tmp_path / "run")) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_an_empty_stop_text_is_refused(data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*flags(data_folder, tmp_path / "run"), "--stop", "END", "") == 2
    assert "a stop text is empty" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [kind for kind in PLACES if kind != "gone"])
def test_what_stands_in_the_place_of_given_completions(kind: str, data_folder: Path, tmp_path: Path, capsys: Any) -> None:
    """Nothing of it is hashed before it was read as rows: that would never end."""
    (tmp_path / "given.jsonl").touch()
    PLACES[kind](tmp_path / "given.jsonl")
    assert run(*given(data_folder, tmp_path / "given.jsonl", tmp_path / "run")) == 2
    assert "given.jsonl" in capsys.readouterr().err


def test_the_compile_rate_leaves_out_what_could_not_be_compiled(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.Sandbox, "open", lambda **_: SimpleNamespace(facts={"isolated": True}))
    monkeypatch.setattr(command, "compile_all", lambda programs, lang, **_: [None, True, False, *[True] * (len(programs) - 3)])
    samples = samples_of(data_folder, tmp_path / "given.jsonl", lang="cpp")
    assert run(*given(data_folder, samples, tmp_path / "run", "--compile")) == 0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert list(facts["tools"]) == ["g++"]
    figures = facts["figures"]["cpp"]["wording"]
    assert figures["uncompiled"] == 1
    assert (figures["metrics"]["compiles"]["n"], figures["metrics"]["compiles"]["value"]) == (4, 0.75)
    assert "2 programs could not be given to a compiler" in capsys.readouterr().err  # one of each kind of point


def test_it_does_not_compile_where_the_sandbox_does_not_hold(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(**_: Any) -> None:
        raise command.SandboxError("it reads files of the host")

    monkeypatch.setattr(command.Sandbox, "open", closed)
    assert run(*given(data_folder, samples_of(data_folder, tmp_path / "given.jsonl"), tmp_path / "run", "--compile")) == 2
    assert "it reads files of the host. --unsafe-no-sandbox" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["gpt2", "bloom"])
def test_a_model_from_outside(kind: str, tokenizer: Any, data_folder: Path, tmp_path: Path) -> None:
    """Of another architecture, with another name for its context or none."""
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    shape = {"vocab_size": len(tokenizer), "n_layer": 2, "n_head": 2, **ids}
    torch.manual_seed(0)
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(n_embd=32, n_positions=96, **shape))
    else:
        model = BloomForCausalLM(BloomConfig(hidden_size=32, **shape))
    model.save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    letter = ["--stop", "e", "a"]
    arguments = ["--model", str(tmp_path / kind), "--data", str(data_folder), "--lang", "cpp", "--limit", "1", "--max-new-tokens", "30"]
    assert run(*arguments, "--out", str(tmp_path / "whole")) == 0
    assert run(*arguments, "--out", str(tmp_path / "cut"), *letter) == 0
    whole, cut = (read_run(tmp_path / name).samples["cpp"]["family"] for name in ("whole", "cut"))
    assert any(row["prediction"] for row in whole)
    assert [row["prediction"] for row in cut] == [re.split("[ea]", row["prediction"])[0] for row in whole]
