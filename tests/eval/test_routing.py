"""Shares of tokens by expert against a count made token by token, one program at a time, from the router's logits."""

import json
from pathlib import Path

import pytest
import torch

from eval.routing import ARRAYS, main, parse
from eval.runs import read_run
from model.cli import run_command
from model.generation import encode_prompts
from model.load import load_model
from model.prompt import format_prompt
from train.data import load_pairs
from train.data.prompts import encode_pair
from train.routing import measure_routing, own_expert


def test_measure_counts_what_a_loop_counts(mixture_folder: Path, data_folder: Path) -> None:
    model, tokenizer = load_model(mixture_folder)
    points = load_pairs(str(data_folder), "cpp", "test").rows[:5]
    points[0] = type(points[0])(**{**vars(points[0]), "text": "add up values " * 9})  # so that a batch has padding
    own = 3
    first, weight = torch.zeros(3, 4), torch.zeros(3, 4)
    among, entropy = torch.zeros(3), torch.zeros(3)
    tokens = 0
    for point in points:
        start = len(encode_prompts(tokenizer, [format_prompt(point.text, "cpp")])[0])
        ids = encode_pair(point, tokenizer)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), output_router_logits=True).router_logits
        tokens += len(ids) - start
        for layer in range(3):
            for row in logits[layer][start:]:
                values, experts = row.topk(2)
                gates = values.softmax(0)
                first[layer, experts[0]] += 1
                weight[layer, experts] += gates
                among[layer] += own in experts
                entropy[layer] -= (gates * gates.log2()).sum()

    result = measure_routing(model, [encode_pair(point, tokenizer) for point in points], own, batch_size=3)
    assert result["tokens"] == tokens
    assert torch.tensor(result["top1"]) == pytest.approx(first / tokens)
    assert torch.tensor(result["weight"]) == pytest.approx(weight / tokens, abs=1e-5)
    assert result["own_top1"] == pytest.approx((first[:, own] / tokens).tolist())
    assert result["own_topk"] == pytest.approx((among / tokens).tolist())
    assert result["entropy_bits"] == pytest.approx((entropy / tokens).tolist(), abs=1e-5)
    assert torch.tensor(result["load"]).sum(1) == pytest.approx(torch.ones(3))
    assert torch.tensor(result["load"])[:, own] == pytest.approx(among / tokens / 2)


def test_the_command_writes_arrays_and_means(
    mixture_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(mixture_folder), "--data", str(data_folder), "--limit", "2", "--out", str(tmp_path / "run")]
    assert run_command(main, parse(), arguments) == 0
    arrays = json.loads((tmp_path / "run" / ARRAYS).read_text())
    figures = read_run(tmp_path / "run").facts["figures"]
    assert arrays["experts"] == ["python", "java", "javascript", "cpp"]
    assert figures["java"]["own_top1"] == pytest.approx(sum(layer[1] for layer in arrays["languages"]["java"]["top1"]) / 3)
    assert figures["java"]["n"] == 4
    printed = capsys.readouterr().out
    assert printed.startswith(f"data: {data_folder}\n")
    assert "own top-1" in printed


def test_own_expert_is_found_by_word() -> None:
    names = ["javascript", "expert-java", "runs/expert_cpp.v2", "maths"]
    assert [own_expert(names, lang) for lang in ("java", "javascript", "cpp", "python")] == [1, 0, 2, None]


def test_a_model_without_a_router_is_refused(
    base_folder: Path, mixture_folder: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(data_folder), "--limit", "1", "--out", str(tmp_path / "run")]
    assert run_command(main, parse(), ["--model", str(base_folder), *arguments]) == 2
    assert "is not a mixture: it has no router to look at" in capsys.readouterr().err
    assert run_command(main, parse(), ["--model", str(mixture_folder), "--experts", "a,b", *arguments]) == 2
    assert "--experts names 2 experts, but" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
