"""Shares of tokens by expert against a count made token by token, one program at a time, from the router's logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.routing import main, parse
from eval.routing_page import mean_weights
from eval.routing_view import pieces
from eval.runs import ARRAYS, read_run
from eval.specialisation import normalised_mutual_information
from eval.token_classes import CLASSES
from model.cli import run_command
from model.generation import complete, complete_ids, encode_prompts
from model.languages import LANGUAGES
from model.load import load_model
from model.prompt import PROMPT_TEMPLATE, format_prompt
from train.data import load_pairs
from train.data.prompts import IGNORED, encode_pair
from train.routing import measure_routing, own_expert


def test_measure_counts_what_a_loop_counts(mixture_folder: Path, data_folder: Path) -> None:
    model, tokenizer = load_model(mixture_folder)
    points = load_pairs(str(data_folder), "cpp", "test").rows[:5]
    points[0] = type(points[0])(**{**vars(points[0]), "text": "add up values " * 9})  # so that a batch has padding
    own = 3
    first, weight, by_class = torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 3, 4)
    among, entropy = torch.zeros(3), torch.zeros(3)
    tokens = 0
    for point in points:
        start = len(encode_prompts(tokenizer, [format_prompt(point.text, "cpp")])[0])
        ids = encode_pair(point, tokenizer)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), output_router_logits=True).router_logits
        tokens += len(ids) - start
        for layer in range(3):
            for place, row in enumerate(logits[layer][start:]):
                values, experts = row.topk(2)
                gates = values.softmax(0)
                first[layer, experts[0]] += 1
                by_class[layer, place % 3, experts[0]] += 1
                weight[layer, experts] += gates
                among[layer] += own in experts
                entropy[layer] -= (gates * gates.log2()).sum()

    examples = [encode_pair(point, tokenizer) for point in points]
    classes = [[index % 3 for index in range(len(row["labels"]) - row["labels"].count(IGNORED))] for row in examples]
    result = measure_routing(model, examples, own, batch_size=3, classes=classes, num_classes=3)
    assert result["tokens"] == tokens
    assert torch.tensor(result["top1"]) == pytest.approx(first / tokens)
    assert torch.tensor(result["by_class"]) == pytest.approx(by_class / tokens)
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
    facts = read_run(tmp_path / "run").facts
    figures = facts["figures"]
    assert facts["precision"] == "exact" and facts["prompt_template"] == PROMPT_TEMPLATE
    assert arrays["experts"] == ["python", "java", "javascript", "cpp"]
    assert figures["java"]["own_top1"] == pytest.approx(sum(layer[1] for layer in arrays["languages"]["java"]["top1"]) / 3)
    assert figures["java"]["n"] == 4
    printed = capsys.readouterr().out
    assert printed.startswith(f"data: {data_folder}\n")
    assert "own top-1" in printed


def test_the_prompt_that_was_fed_is_recorded(chat_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(chat_folder), "--data", str(data_folder), "--limit", "1", "--view", "0", "--out", str(tmp_path / "run")]
    assert run_command(main, parse(), arguments) == 0
    assert read_run(tmp_path / "run").facts["prompt_template"] == load_model(chat_folder)[1].chat_template


def test_classes_and_information_agree_with_the_shares(mixture_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(mixture_folder), "--data", str(data_folder), "--limit", "2", "--view", "0", "--out", str(tmp_path / "run")]
    assert run_command(main, parse(), arguments) == 0
    arrays = json.loads((tmp_path / "run" / ARRAYS).read_text())
    assert arrays["classes"] == list(CLASSES)
    for row in arrays["languages"].values():
        assert torch.tensor(row["by_class"]).sum(1) == pytest.approx(torch.tensor(row["top1"]), abs=1e-6)
        assert sum(row["by_class"][0][CLASSES.index("end")]) == pytest.approx(row["n"] / row["tokens"])
        assert sum(row["by_class"][0][CLASSES.index("keyword")]) > 0
    joint = [[row["tokens"] * share for share in row["top1"][1]] for row in arrays["languages"].values()]
    assert arrays["nmi_language"][1] == pytest.approx(normalised_mutual_information(joint))
    assert not (tmp_path / "run" / "programs.html").exists()


def test_programs_show_what_their_tokens_chose(mixture_folder: Path, data_folder: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(mixture_folder), "--data", str(data_folder), "--limit", "2", "--view", "1", "--max-new-tokens", "7"]
    assert run_command(main, parse(), [*arguments, "--lang", "java", "--out", str(tmp_path / "run")]) == 0
    shown = json.loads((tmp_path / "run" / "programs.json").read_text())
    (program,) = shown["programs"]
    model, tokenizer = load_model(mixture_folder)
    prompt = format_prompt(program["text"], "java")
    assert "".join(program["pieces"]) == complete(model, tokenizer, [prompt], max_new_tokens=7, batch_size=1)[0]
    assert len(program["pieces"]) == len(program["choices"]) == 7
    rows = encode_prompts(tokenizer, [prompt])
    ids = rows[0] + complete_ids(model, tokenizer, rows, max_new_tokens=7, batch_size=1)[0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), output_router_logits=True).router_logits
    for place, layers in enumerate(program["choices"]):
        for layer, (first, share, second, rest) in enumerate(layers):
            values, experts = logits[layer][len(rows[0]) + place].topk(2)
            assert [first, second] == experts.tolist()
            assert [share, rest] == pytest.approx((100 * values.softmax(0)).tolist(), abs=0.51)
    page = (tmp_path / "run" / "programs.html").read_text()
    assert page.count(" title='") == 7
    weights = mean_weights(program["choices"][0])
    assert sum(weight for _, weight in weights) == pytest.approx(100, abs=1)
    assert f"{LANGUAGES[shown['experts'][weights[0][0]]].title} {weights[0][1]:.0f} %" in page


def test_pieces_of_characters_that_take_several_tokens(tokenizer: Any) -> None:
    ids = tokenizer("int größe = “x”;", add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == "int größe = “x”;"
    assert "\ufffd" not in "".join(found)
    assert pieces(tokenizer, []) == []


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
