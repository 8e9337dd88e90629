"""Adding, replacing and removing an expert of a finished mixture."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import MistralConfig, MistralForCausalLM

from model import MoEForCausalLM
from model.checkpoint import Checkpoint
from model.edit import main
from model.output import check_manifest
from model.routers import MoERouter

from .conftest import SHAPE, make_tokenizer

ALL = ["gate_proj", "up_proj", "down_proj", "q_proj", "o_proj"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A base whose experts are whole nested groups: 256 blocks of 64 values."""
    folder = tmp_path_factory.mktemp("wide") / "base"
    torch.manual_seed(0)
    MistralForCausalLM(MistralConfig(**{**SHAPE, "intermediate_size": 256}, sliding_window=None)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def of_wide(wide) -> list[Path]:
    """Its adapters, of which the last has a greater rank."""
    folders = []
    for index, rank in enumerate((4, 4, 4, 6)):
        torch.manual_seed(index)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=ALL, init_lora_weights=False)
        folders.append(wide.parent / f"expert-{index}")
        get_peft_model(MistralForCausalLM.from_pretrained(wide), config).save_pretrained(str(folders[-1]))
    return folders


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr("sys.argv", ["edit", *map(str, arguments)])
    return main()


def send_to(expert, router, inputs, output):
    logits, routing = output
    return logits, replace(routing, experts_TK=torch.full_like(routing.experts_TK, expert))


@torch.no_grad()
def logits_of_expert(mixture: MoEForCausalLM, expert: int, ids: torch.Tensor) -> torch.Tensor:
    """With every token sent to one expert, whose weights add up to 1."""
    handles = [module.register_forward_hook(partial(send_to, expert)) for module in mixture.modules() if isinstance(module, MoERouter)]
    logits = mixture(ids).logits
    for handle in handles:
        handle.remove()
    return logits


def test_only_files_of_a_model_go_along(adapters, run_compose, tmp_path, monkeypatch):
    """Whoever made the mixture may have put anything beside it, such as a link to a file of the user's."""
    mixture = run_compose(adapters[:3])
    (tmp_path / "private").write_text("secret")
    (mixture / "notes.txt").symlink_to(tmp_path / "private")
    (mixture / "tokenizer.py").write_text("code")
    assert run(monkeypatch, mixture, tmp_path / "out", "--remove", "expert-1") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} < names and not names & {"notes.txt", "tokenizer.py"}


@pytest.mark.parametrize(("layout", "quantize"), [("lora", "none"), ("lora", "nf4"), ("dense", "none"), ("dense", "nf4")])
def test_an_expert_is_replaced_and_the_others_keep_their_bits(layout, quantize, wide, of_wide, run_compose, ids, tmp_path, monkeypatch):
    before = run_compose(of_wide[:3], base=wide, layout=layout, quantize=quantize)
    arguments = [before, tmp_path / "after", "--replace", "expert-1", of_wide[3], "--base", wide]
    assert run(monkeypatch, *arguments) == 0
    check_manifest(tmp_path / "after")
    old, new = MoEForCausalLM.from_pretrained(before), MoEForCausalLM.from_pretrained(tmp_path / "after")
    assert (before / "gate.json").is_file() and not (tmp_path / "after" / "gate.json").exists()  # which no longer describes it
    assert new.config.expert_names == ["expert-0", "expert-3", "expert-2"]
    assert new.config.attention_lora_rank == 6 and new.config.lora_rank == (6 if layout == "lora" else 0)
    for expert in (0, 2):
        assert torch.equal(logits_of_expert(new, expert, ids), logits_of_expert(old, expert, ids)), expert
    fresh = run_compose([of_wide[0], of_wide[3], of_wide[2]], base=wide, layout=layout, quantize=quantize, out="fresh")
    expected = logits_of_expert(MoEForCausalLM.from_pretrained(fresh), 1, ids)
    # In NF4 the new expert has the stack's offset of absmax and not one of its own, so its absmax may be a code further off.
    tolerance = 0.1 if (layout, quantize) == ("dense", "nf4") else 1e-5
    torch.testing.assert_close(logits_of_expert(new, 1, ids), expected, atol=tolerance, rtol=0)
    if quantize == "none":
        peft = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(wide), str(of_wide[3])).eval()
        torch.testing.assert_close(logits_of_expert(new, 1, ids), peft(ids).logits, atol=1e-4, rtol=0)
    a, b = Checkpoint(before), Checkpoint(tmp_path / "after")
    gates = [name for name in a if ".gate." in name]
    assert len(gates) == 2 * 2 * 2
    assert all(torch.equal(a.tensor(name), b.tensor(name)) for name in gates)


@pytest.mark.parametrize("layout", ["lora", "dense"])
def test_adding_and_removing_are_inverse(layout, wide, of_wide, run_compose, tmp_path, monkeypatch):
    before = run_compose(of_wide[:3], base=wide, layout=layout, quantize="nf4")
    added, removed = tmp_path / "added", tmp_path / "removed"
    assert run(monkeypatch, before, added, "--add", of_wide[2], "--name", "new", "--like", "expert-0", "--base", wide) == 0
    assert run(monkeypatch, added, removed, "--remove", "new") == 0
    a, b, c = Checkpoint(before), Checkpoint(added), Checkpoint(removed)
    assert set(a) == set(b) == set(c)
    assert all(torch.equal(a.tensor(name), c.tensor(name)) for name in a)
    gate = "model.layers.1.mlp.gate.weight"
    assert torch.equal(b.tensor(gate)[:3], a.tensor(gate)) and torch.equal(b.tensor(gate)[3], a.tensor(gate)[0])
    assert MoEForCausalLM.from_pretrained(added).config.expert_names == ["expert-0", "expert-1", "expert-2", "new"]
    experts = json.loads((removed / "run.json").read_text())["experts"]
    assert experts == ["expert-0", "expert-1", "expert-2"]


@torch.no_grad()
def test_prompts_lead_to_the_added_expert(adapters, run_compose, tmp_path, monkeypatch):
    before = run_compose(adapters[:2], shared_experts=[{"source_model": str(adapters[2])}])
    assert run(monkeypatch, before, tmp_path / "after", "--add", adapters[2], "--prompts", "sort a list") == 0
    model = MoEForCausalLM.from_pretrained(tmp_path / "after")
    assert model.config.expert_names == ["expert-0", "expert-1", "expert-2-2", "expert-2"] and model.config.num_local_experts == 3
    gate = model.model.layers[0].mlp.gate
    torch.testing.assert_close(gate.weight[2].norm(), gate.weight[:2].norm(dim=1).mean())
    seen = []
    gate.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0][-1]))
    tokenizer = make_tokenizer()
    model(torch.tensor([[tokenizer.bos_token_id, *tokenizer("sort a list").input_ids]]))  # as in training
    torch.testing.assert_close(gate.weight[2] / gate.weight[2].norm(), seen[0] / seen[0].norm())
    assert gate.last_routing.experts_TK[-1, 0] == 2


@pytest.mark.parametrize(
    ("flag", "twice"),
    [
        ("--remove", ["--remove", "expert-0", "--remove", "expert-1"]),
        ("--replace", ["--replace", "expert-0", "a", "--replace", "expert-1", "a"]),
        ("--prompts", ["--add", "a", "--prompts", "sort", "--prompts", "search"]),
    ],
)
def test_a_flag_that_is_given_twice_is_refused(flag, twice, tmp_path, monkeypatch, capsys):
    """argparse takes the last, and an edit would be lost without a word."""
    assert run(monkeypatch, tmp_path / "mixture", tmp_path / "out", *twice) == 2
    assert capsys.readouterr().err == f"python -m model.edit: {flag} was given twice; an edit takes it once\n"


def test_a_shared_expert_is_told_from_those_that_the_gate_chooses(adapters, run_compose, tmp_path, monkeypatch, capsys):
    mixture = run_compose(adapters[:2])
    assert run(monkeypatch, mixture, tmp_path / "out", "--add", adapters[2], "--shared") == 0
    said = capsys.readouterr().out
    assert said.endswith("out: 2 experts (expert-0, expert-1), shared by every token: expert-2\n")


def test_a_prompt_without_tokens_is_refused(adapters, run_compose, tmp_path, monkeypatch, capsys):
    mixture, tokenizer = run_compose(adapters[:2]), make_tokenizer()
    tokenizer.bos_token = None
    tokenizer.save_pretrained(mixture)
    assert run(monkeypatch, mixture, tmp_path / "out", "--add", adapters[2], "--prompts", "sort", "") == 2
    assert "--prompts holds '', which has no tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@torch.no_grad()
@pytest.mark.parametrize("layout", ["lora", "dense"])
def test_shared_experts_are_edited_too(layout, wide, of_wide, run_compose, ids, tmp_path, monkeypatch):
    """Against the mixture that is composed with them; the gates, from the same prompts, are the same."""

    def composed(*shared: int):
        sources = [{"source_model": str(of_wide[index]), "residual_scale": 0.5} for index in shared]
        return run_compose(of_wide[:2], base=wide, layout=layout, shared_experts=sources, out="-".join(["composed", *map(str, shared)]))

    def edited(before, *arguments):
        out = tmp_path / f"after-{arguments[0]}"
        assert run(monkeypatch, before, out, *arguments, *(["--base", wide] if layout == "dense" else [])) == 0
        return out

    two, three, both, none = composed(2), composed(3), composed(2, 3), composed()
    scaled = ["--residual-scale", "0.5"] if layout == "dense" else []  # in `lora` all shared experts have the mixture's
    added = edited(two, "--add", of_wide[3], "--shared", *scaled)
    for found, expected in (
        (added, both),
        (edited(added, "--remove", "expert-2"), three),
        (edited(two, "--replace", "expert-2", of_wide[3], *scaled), three),
        (edited(two, "--remove=expert-2"), none),
    ):
        model, fresh = (MoEForCausalLM.from_pretrained(folder) for folder in (found, expected))
        assert model.config.expert_names == fresh.config.expert_names
        assert model.config.num_shared_experts == fresh.config.num_shared_experts and model.config.num_local_experts == 2
        torch.testing.assert_close(model(ids).logits, fresh(ids).logits, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["lora", "dense"])
def test_attentions_experts_go_with_the_last_of_them(layout, adapters, make_adapter, run_compose, ids, tmp_path, monkeypatch):
    def attending(name, *targets):
        return make_adapter(tmp_path / name, target_modules=["down_proj", *targets], seed=9)

    before = run_compose([*adapters[:2], attending("q", "q_proj"), attending("qo", "q_proj", "o_proj")], layout=layout)
    less, none = tmp_path / "less", tmp_path / "none"
    assert run(monkeypatch, before, less, "--remove", "qo") == 0 and run(monkeypatch, less, none, "--remove", "q") == 0
    assert MoEForCausalLM.from_pretrained(less).config.attention_experts == ["q_proj"]
    assert not [name for name in Checkpoint(less) if "o_proj_lora" in name]
    model, never = (
        MoEForCausalLM.from_pretrained(none),
        MoEForCausalLM.from_pretrained(run_compose(adapters[:2], layout=layout, out="never")),
    )
    assert model.config.attention_experts is None and model.config.attention_lora_rank == 0
    assert set(model.state_dict()) == set(never.state_dict())
    torch.testing.assert_close(model(ids).logits, never(ids).logits, atol=1e-5, rtol=0)
    model.export_mixtral(tmp_path / "plain")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--remove", "java"], "there is no expert 'java'; there are expert-0, expert-1"),
        (["--remove", "expert-0"], "num_experts_per_tok is 2; it must lie in 1..1 (experts)"),
        (["--add", "ADAPTER"], "--add needs one of --prompts"),
        (["--add", "ADAPTER", "--shared", "--like", "expert-0"], "--add needs one of --prompts"),
        (["--remove", "expert-0", "--shared"], "--shared are about an expert that is added"),
        (["--remove", "expert-0", "--name", "x"], "--name is of a new expert: it goes with --add or --replace"),
        (["--replace", "expert-0", "ADAPTER", "--residual-scale", "nan"], "--residual-scale is nan; it must be a finite number"),
        (["--add", "ADAPTER", "--shared", "--name", "expert-1"], "there is an expert 'expert-1' already; --name another"),
        (["--add", "ADAPTER", "--prompts", "a", "\udcff"], "--prompts has the lone surrogate U+DCFF"),
        (["--replace", "expert-0", "BASE"], "is no adapter; the experts of a mixture of the lora layout are adapters of its base"),
        (["--replace", "expert-0", "WITH_Q"], "changes q_proj; of attention the experts of this mixture change none"),
    ],
)
def test_an_edit_that_means_nothing_leaves_nothing(
    arguments, message, base, adapters, make_adapter, run_compose, tmp_path, monkeypatch, capsys
):
    mixture = run_compose(adapters[:2])
    named = {"ADAPTER": adapters[0], "BASE": base, "WITH_Q": make_adapter(tmp_path / "q", target_modules=["q_proj", "down_proj"])}
    assert run(monkeypatch, mixture, tmp_path / "out", *(named.get(argument, argument) for argument in arguments)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bytes_that_experts_share_are_not_torn_apart(base, adapters, run_compose, tmp_path, monkeypatch, capsys):
    mixture = run_compose(adapters[:3], layout="dense", quantize="nf4")
    assert run(monkeypatch, mixture, tmp_path / "out", "--remove", "expert-1") == 2
    assert "an expert of 64x128 values shares a nested absmax with the next one" in capsys.readouterr().err
    assert run(monkeypatch, mixture, tmp_path / "out", "--replace", "expert-1", adapters[0]) == 2
    assert "give it as --base" in capsys.readouterr().err


def test_an_adapter_of_another_shape_is_refused(wide, of_wide, adapters, run_compose, tmp_path, monkeypatch, capsys):
    mixture = run_compose(of_wide[:2], base=wide)
    assert run(monkeypatch, mixture, tmp_path / "out", "--replace", "expert-0", adapters[0]) == 2
    assert ", but in the mixture it is [" in capsys.readouterr().err


@pytest.mark.parametrize(("layout", "name"), [("lora", "up_proj_lora_B"), ("dense", "down_proj")])
def test_an_expert_too_large_for_the_mixtures_dtype_is_refused(
    layout, name, base, adapters, make_adapter, run_compose, tmp_path, monkeypatch, capsys
):
    mixture = run_compose(adapters[:2], layout=layout, dtype="float16")
    large = make_adapter(tmp_path / "large", lora_alpha=1e7, target_modules=[name.partition("_lora")[0]])
    assert run(monkeypatch, mixture, tmp_path / "out", "--replace", "expert-1", large, "--base", base) == 2
    said = capsys.readouterr().err
    assert f"the new expert's part of model.layers.0.mlp.experts.{name}, in float16, has values that are infinite" in said
    assert not (tmp_path / "out").exists()
