"""`python -m train.gate`: what learns, what does not, and that an interruption changes nothing, noise included."""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from model import MoEConfig, MoEForCausalLM
from model.languages import LANGUAGES
from model.prompt import set_format
from moe_kernels.routing import Routing
from train import gate, gate_rows, routing, trainer

SHAPE = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SHAPE["num_local_experts"] = 4
RATE = 0.05  # of the gate


@pytest.fixture(scope="module")
def mixture(tiny_base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    torch.manual_seed(1)
    MoEForCausalLM(MoEConfig(vocab_size=len(tokenizer), expert_names=list(LANGUAGES), **SHAPE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(monkeypatch, *argv: object) -> int:
    monkeypatch.setattr(sys, "argv", ["train.gate", *map(str, argv)])
    return gate.main()


def arguments(mixture: Path, data: Path, out: Path) -> list[object]:
    flags = ["--model", mixture, "--data", data, "--out", out, "--max-steps", 6, "--eval-every", 2, "--batch-size", 4]
    flags += ["--share", 0.2, "--eval-limit", 4, "--learning-rate", RATE]
    # eight batches an epoch: every third step has two micro-steps, the others three
    return [*flags, "--accumulation", 3, "--noise", "linear", "--label-loss", 1.0, "--z-loss", 1e-3]


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
    assert (record["figures"]["dtype"], record["figures"]["quantization"]) == ("float32", None)


def test_the_prompt_that_it_was_trained_in_is_recorded(mixture, tiny_data, tmp_path, monkeypatch):
    shutil.copytree(mixture, tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(mixture)
    set_format(tokenizer, "instruct")
    tokenizer.save_pretrained(tmp_path / "chat")
    assert run(monkeypatch, *arguments(tmp_path / "chat", tiny_data, tmp_path / "out"), "--max-steps", 1) == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["prompt_template"] == tokenizer.chat_template


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
    assert run(monkeypatch, *flags, "--resume", "--gpu", "cpu") == 0
    resumed = weights(tmp_path / "out")
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, resumed[name]), name
    # the weights are the best evaluation's, which may be an early one
    assert losses(tmp_path / "out") == losses(whole)


def losses(folder: Path) -> list[tuple[int, float, float]]:
    """Step, loss and norm of the gradient of each step."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(entry["step"], entry["loss"], entry["grad_norm"]) for entry in entries if "loss" in entry]


def test_a_base_is_no_mixture(tiny_base, tiny_data, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, *arguments(tiny_base, tiny_data, tmp_path / "out")) == 2
    assert "is no mixture: compose one with python -m model.compose" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_lora_factors_can_only_be_trained_where_there_are_any(mixture, tiny_data, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, *arguments(mixture, tiny_data, tmp_path / "out"), "--train", "gate+lora") == 2
    assert "is it of the lora layout?" in capsys.readouterr().err


def test_each_evaluation_says_what_the_gate_chose(whole):
    entries = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    routing = [entry for entry in entries if "eval_dropped" in entry]
    assert [entry["step"] for entry in routing] == [2, 4, 6]
    for entry in routing:
        assert entry["eval_dropped"] == 0
        for lang in LANGUAGES:
            assert 0 <= entry[f"eval_{lang}_own_top1"] <= entry[f"eval_{lang}_own_topk"] <= 1
            assert 0 <= entry[f"eval_{lang}_entropy_bits"] <= 1
            assert sum(entry[f"eval_{lang}_load_{name}"] for name in LANGUAGES) == pytest.approx(1)


def test_gate_and_lora_move_and_nothing_else_each_at_its_own_rate(tiny_base, tiny_data, tmp_path, monkeypatch):
    """After one step of Adam from rest every weight with a gradient has moved by the learning rate."""
    composed = tmp_path / "composed"
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    model = MoEForCausalLM(MoEConfig(vocab_size=len(tokenizer), expert_names=list(LANGUAGES), expert_layout="lora", lora_rank=4, **SHAPE))
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "plain")
    MoEForCausalLM.from_pretrained(tmp_path / "plain", quantize="nf4").save_pretrained(composed)
    tokenizer.save_pretrained(composed)
    flags = [*arguments(composed, tiny_data, tmp_path / "out"), "--train", "gate+lora", "--lora-learning-rate", 3e-4]
    assert run(monkeypatch, *flags, "--max-steps", 1, "--warmup", 0) == 0
    before, after = weights(composed), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        moved = (after[name].double() - tensor.double()).abs().max().item()
        rate = RATE if ".gate." in name else 3e-4 if "lora_" in name else 0.0
        assert moved == pytest.approx(rate, rel=1e-2), name


@pytest.mark.parametrize("router", ["topk", "softmax", "switch", "sequence"])
def test_every_router_kind_is_trained_and_saved(mixture, tiny_data, tmp_path, monkeypatch, capsys, router):
    flags = [*arguments(mixture, tiny_data, tmp_path / "out"), "--max-steps", 2, "--noise", "constant", "--router", router]
    assert run(monkeypatch, *flags) == 0
    trained = MoEForCausalLM.from_pretrained(tmp_path / "out")
    assert trained.config.router_type == router
    before, after = weights(mixture), weights(tmp_path / "out")
    assert {name for name in after if not torch.equal(before[name], after[name])} == {n for n in after if n.endswith(".gate.weight")}
    said = capsys.readouterr().out
    assert "step 2: own expert first" in said and "dropped 0" in said
    assert re.search(r"tokens of +first choice +in K\n +java +javascript +java +javascript\njava .*%\njavascript .*%", said)


def test_experts_without_names_are_trained_but_have_no_label(mixture, tiny_data, tmp_path, monkeypatch, capsys):
    nameless = MoEForCausalLM.from_pretrained(mixture, expert_names=None)
    nameless.save_pretrained(tmp_path / "nameless")
    AutoTokenizer.from_pretrained(mixture).save_pretrained(tmp_path / "nameless")
    flags = [*arguments(tmp_path / "nameless", tiny_data, tmp_path / "out"), "--max-steps", 2]
    assert run(monkeypatch, *flags) == 2
    assert "--label-loss needs experts that are named after languages" in capsys.readouterr().err
    assert run(monkeypatch, *flags, "--label-loss", 0) == 0
    assert "own expert first -, in K -" in capsys.readouterr().out


def test_a_gate_learns_languages_of_ones_own(mixture, tiny_data, tmp_path, monkeypatch, capsys):
    """Two experts renamed to languages that only the folder of data knows; a third's has no rows, and is named."""
    names = ["rust", "go", "cobol", *MoEForCausalLM.from_pretrained(mixture).config.expert_names[3:]]
    MoEForCausalLM.from_pretrained(mixture, expert_names=names).save_pretrained(tmp_path / "mixture")
    AutoTokenizer.from_pretrained(mixture).save_pretrained(tmp_path / "mixture")
    data = tmp_path / "data"
    data.mkdir()
    for path in tiny_data.glob("cpp.*"):
        for name in {"rust", "go", *names[3:]}:
            text = path.read_text().replace('"cpp"', f'"{name}"')
            (data / path.name.replace("cpp", name)).write_text(text)
    assert run(monkeypatch, *arguments(tmp_path / "mixture", data, tmp_path / "out"), "--max-steps", 2) == 0
    assert "in the language of the experts cobol" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "out" / "run.json").read_text())["rows"]) == {"rust", "go", *names[3:]}


def test_noise_can_be_added_to_a_router_without(mixture, tiny_data, tmp_path, monkeypatch):
    quiet = MoEForCausalLM.from_pretrained(mixture, router_type="topk")
    quiet.save_pretrained(tmp_path / "quiet")
    AutoTokenizer.from_pretrained(mixture).save_pretrained(tmp_path / "quiet")
    flags = [*arguments(tmp_path / "quiet", tiny_data, tmp_path / "out"), "--max-steps", 2, "--router", "noisy_topk"]
    assert run(monkeypatch, *flags) == 0
    assert any(name.endswith("noise_weight") and tensor.abs().max() > 0 for name, tensor in weights(tmp_path / "out").items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--router", "topk", "--load", 0.1], "--load is for the routers noisy_topk; this one is topk"),
        (["--balance", 0.1], "--balance is for the routers topk, switch; this one is noisy_topk"),
        (["--router", "switch"], "--noise linear is for the router noisy_topk; switch has no noise"),
        (["--z-loss", -1], "--z-loss is a weight and must not be negative, but is -1.0"),
        (["--share", 0], "--share must lie in (0, 1], not 0.0"),
        (["--train", "gate+lora", "--lora-learning-rate", 0], "--lora-learning-rate must be above 0, not 0.0"),
        (["--lora-learning-rate", 1e-3], "--lora-learning-rate is that of the LoRA factors, which --train gate leaves as they are"),
    ],
)
def test_flags_that_make_no_sense_are_refused(mixture, tiny_data, tmp_path, monkeypatch, capsys, flags, message):
    assert run(monkeypatch, *arguments(mixture, tiny_data, tmp_path / "out"), *flags) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_default_is_a_small_balanced_share(tiny_base, tiny_data, tmp_path):
    """A share of the smallest language's rows, equally many of all, drawn by the seed; a smaller share's rows begin a larger one's."""
    for file in tiny_data.iterdir():
        rows = file.read_text().splitlines(keepends=True)
        (tmp_path / file.name).write_text("".join(rows[:30] if file.name == "java.train.jsonl" else rows))
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)

    def drawn(share: float, seed: int = 0, limit: int | None = None) -> dict[str, list]:
        args = argparse.Namespace(data=tmp_path, level="program", seed=seed, max_length=512)
        return gate_rows.load_rows(args, tokenizer, list(LANGUAGES), "train", share, limit)[0]

    few, many = drawn(0.1), drawn(0.5)
    assert {lang: len(rows) for lang, rows in few.items()} == dict.fromkeys(LANGUAGES, 3)
    assert {lang: len(rows) for lang, rows in many.items()} == dict.fromkeys(LANGUAGES, 15)
    assert all(many[lang][:3] == few[lang] for lang in LANGUAGES)
    assert drawn(0.5) == many and drawn(0.5, seed=1) != many
    assert len(drawn(1.0, limit=7)["cpp"]) == 7
    assert [rows[0]["own_expert"] for rows in few.values()] == [[0], [1], [2], [3]]


def test_the_seed_is_the_noise_s_too(mixture):
    """The same input through the same weights: equal logits for equal seeds, and those of the configuration's seed 0 for --seed 0."""

    def logits(seed: int | None) -> torch.Tensor:
        given = {"importance": None, "load": None, "balance": None, "z_loss": None, "noise": "constant", "router": None}
        flags = argparse.Namespace(model=mixture, seed=seed, **given)
        model = MoEForCausalLM.from_pretrained(mixture) if seed is None else gate.load_mixture(flags)[0]
        with torch.no_grad():
            return model.train()(torch.arange(32)[None]).logits

    assert torch.equal(logits(0), logits(None)) and torch.equal(logits(1), logits(1))
    assert not torch.allclose(logits(0), logits(1))


@pytest.mark.parametrize(
    ("names", "lang", "own"),
    [
        (["objective_c", "c"], "c", 1),
        (["visual_basic", "basic"], "basic", 1),
        (["expert-objective_c", "expert-c"], "c", 1),
        (["expert_objective_c", "other"], "objective_c", 0),
        (["expert-f90"], "f90", 0),
        (["f90", "expert-f"], "f", 1),
        (["expert_java_17", "expert_javascript"], "javascript", 1),
        (["Expert-Python3", "expert-cpp17"], "cpp", 1),
        (["javascript"], "java", None),
    ],
)
def test_the_own_expert_is_found_by_its_whole_name_before_words_of_it(names, lang, own):
    assert routing.own_expert(names, lang) == own


def test_a_choice_that_no_expert_got_is_counted():
    weights_TK = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.5, 0.5]])
    twice = torch.tensor([[0, 1], [2, 2], [3, 3]])
    chosen = Routing(weights_TK, twice, torch.zeros(3, 4), torch.zeros(4), torch.zeros(4))
    assert routing._sums([chosen], torch.tensor([True, True, False]))["dropped"].tolist() == [1]


@pytest.mark.parametrize("trained", ["gate", "gate+lora"])
def test_a_mixture_in_bf16_learns_in_fp32_and_is_saved_in_bf16(tiny_base, tiny_data, tmp_path, monkeypatch, trained):
    """A step of 1e-3 is less than bf16 can take from a weight of 1: sixteen of them must move it all the same."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    config = MoEConfig(vocab_size=len(tokenizer), expert_names=list(LANGUAGES), expert_layout="lora", lora_rank=4, **SHAPE)
    model = MoEForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "lora_" in name or name.endswith(".gate.weight"):
            torch.nn.init.ones_(parameter)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "composed")
    tokenizer.save_pretrained(tmp_path / "composed")
    flags = [*arguments(tmp_path / "composed", tiny_data, tmp_path / "out"), "--train", trained, "--max-steps", 16, "--accumulation", 1]
    rates = ["--learning-rate", 1e-3, *(["--lora-learning-rate", 1e-3] if trained == "gate+lora" else [])]
    assert run(monkeypatch, *flags, *rates, "--eval-every", 16) == 0
    before, after = weights(tmp_path / "composed"), weights(tmp_path / "out")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert {name for name in after if name.endswith(".gate.weight")} <= changed
    assert any("lora_" in name for name in changed) == (trained == "gate+lora")
