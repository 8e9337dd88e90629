"""Gates of composed mixtures: `router_input` and `data`, what is said of every gate, and experts whose matrices a recipe changes."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoTokenizer, MistralForCausalLM

from model import MoEForCausalLM
from model.checkpoint import Checkpoint
from model.gate_data import Rows, read_gate_data
from model.gate_making import make_gates
from model.gates import cosines, first_choices, tokenize
from model.ingredients import open_recipe
from model.languages import LANGUAGES
from model.layerwise import Texts, walk_layers

BLOCKS = ("mlp", "self_attn")
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def full(base, adapters) -> Path:
    """An adapter merged into a full checkpoint."""
    folder = adapters[0].with_name("whole-expert")
    PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base), str(adapters[0])).merge_and_unload().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gate_rows(tmp_path_factory) -> Path:
    """Rows of two kinds, one of numbers and one of letters, and of a third that no expert asks for."""
    kinds = {"digits": "{0} + {1} = 3{0}", "letters": "ab{0} is cd", "other": "{1}"}
    lines = [json.dumps({"lang": lang, "text": text.format(n % 7, n % 5)}) for n in range(12) for lang, text in kinds.items()]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def labelled(*sources) -> list[dict]:
    return [{"source_model": str(source), "lang": lang} for source, lang in zip(sources, ("digits", "letters"), strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["adapter with attention", "checkpoint", "base"])
def test_texts_pass_through_the_matrices_that_the_mixture_takes(base, full, make_adapter, make_recipe, tmp_path, kind):
    """Bits of the whole model in bf16, from hooks: the adapter's attention is the expert's own, a checkpoint's is the base's."""
    adapter = make_adapter(tmp_path / "adapter", target_modules=["gate_proj", "down_proj", "q_proj", "o_proj"])
    source = {"adapter with attention": adapter, "checkpoint": full, "base": base}[kind]
    expert = open_recipe(make_recipe([source] * 2), None, None).sources[0]
    whole = MistralForCausalLM.from_pretrained(base)
    if kind == "adapter with attention":
        whole = PeftModel.from_pretrained(whole, str(adapter)).merge_and_unload()
    elif kind == "checkpoint":
        whole.load_state_dict({name: Checkpoint(full).tensor(name) for name in Checkpoint(full) if ".mlp." in name}, strict=False)
    for parameter in whole.parameters():  # not the rotary frequencies, which stay in fp32
        parameter.data = parameter.data.bfloat16()
    whole.eval()
    batch = tokenize(AutoTokenizer.from_pretrained(base), ("abc", "a longer text"))
    seen: dict[str, list[torch.Tensor]] = {block: [] for block in BLOCKS}
    for layer in whole.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, args: seen["mlp"].append(args[0]))
        layer.self_attn.register_forward_pre_hook(lambda _, args, named: seen["self_attn"].append(named["hidden_states"]), with_kwargs=True)
    whole(**batch)
    texts = {"own": Texts([batch], None if kind == "base" else expert)}
    for index, layer in enumerate(walk_layers(base, texts, BLOCKS)):
        for block in BLOCKS:
            expected = seen[block][index][batch["attention_mask"].bool()]
            assert len(expected) == 4 + 14 and torch.equal(layer["own"].inputs_TD[block], expected)


@torch.no_grad()
def test_data_gates_send_each_kind_of_text_to_its_expert(base, adapters, gate_rows, run_compose):
    """Texts of the same kinds that are not in the file, in the mixture itself; without training."""
    folder = run_compose(adapters[:2], gate_mode="data", gate_data=str(gate_rows), experts=labelled(*adapters[:2]))
    mixture, tokenizer = MoEForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for expert, text in enumerate(("8 + 9 = 17", "xy is zb")):
        mixture(torch.tensor([[1, *tokenizer.encode(text, add_special_tokens=False)]]))
        for layer in mixture.model.layers:
            firsts = layer.mlp.gate.last_routing.experts_TK[:, 0]
            assert (firsts == expert).float().mean() > 0.6
    report = json.loads((folder / "gate.json").read_text())
    assert min(layer[e][e] for layer in report["first_choices"] for e in (0, 1)) > 0.6
    assert "dense" not in (folder / "config.json").read_text()


def test_gate_data_may_lie_beside_the_recipe_and_decides_whether_work_goes_on(adapters, gate_rows, make_recipe, tmp_path):
    (tmp_path / "rows.jsonl").write_text(gate_rows.read_text())
    recipe = make_recipe([], gate_mode="data", gate_data="rows.jsonl", experts=labelled(*adapters[:2]))
    beside, elsewhere = make_gates(open_recipe(recipe, None, None), 0), str(gate_rows)
    recipe = make_recipe([], gate_mode="data", gate_data=elsewhere, experts=labelled(*adapters[:2]))
    assert torch.equal(beside.blocks["mlp"], make_gates(open_recipe(recipe, None, None), 0).blocks["mlp"])


def test_rows_are_the_first_of_their_language_every_fourth_held_back(gate_rows):
    digits, letters = read_gate_data(gate_rows, ["digits", "letters"], 6)
    assert letters == Rows([f"ab{n} is cd" for n in (0, 2, 3, 4)], ["ab1 is cd", "ab5 is cd"])
    assert len(digits.fitted) == 4 and digits.held[0] == "1 + 1 = 31"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "has 0 row(s) of the lang 'letters'; an expert needs at least 2; it also has digits"),
        ('{"lang": "letters"}', "rows.jsonl:3: a row needs the columns lang and text, both texts that are not empty"),
        ('{"lang": "letters", "text": " "}', "rows.jsonl:3: a row needs"),
        ("[1]", "rows.jsonl:3: a row needs"),
        ('{"lang": ', "rows.jsonl:3 is not JSON"),
        ('{"lang": "letters", "text": "a\\ud800"}', "rows.jsonl:3 is not JSON: a text in it has the lone surrogate U+D800"),
    ],
)
def test_a_mistake_in_gate_data_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"lang": "digits", "text": "1"}\n' * 2 + line)
    with pytest.raises(ValueError) as caught:
        read_gate_data(path, ["letters"], 6)
    assert message in str(caught.value)


def test_missing_gate_data_is_named_and_leaves_nothing(adapters, run_compose, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file none\.jsonl \(gate_data\)"):
        run_compose([], gate_mode="data", gate_data="none.jsonl", experts=labelled(*adapters[:2]))
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yml"}


def test_attentions_gate_is_made_of_what_attention_reads(base, make_adapter, make_recipe, tmp_path):
    """In mergekit's modes both gates have the same rows; in `router_input` each has the mean of its own block's inputs."""
    sources = [make_adapter(tmp_path / name, seed=seed, target_modules=["down_proj", "q_proj"]) for seed, name in ((1, "a"), (2, "b"))]
    hidden, own = (
        make_gates(open_recipe(make_recipe(sources, gate_mode=mode), None, None), 0).blocks for mode in ("hidden", "router_input")
    )
    assert set(hidden) == set(own) == set(BLOCKS)
    assert torch.equal(hidden["mlp"], hidden["self_attn"]) and not torch.equal(own["mlp"], own["self_attn"])
    batch = tokenize(AutoTokenizer.from_pretrained(base), ("0 is good", "so is 0+0"))
    minus = tokenize(AutoTokenizer.from_pretrained(base), ("bad 0",))
    layers = list(walk_layers(base, {"plus": Texts([batch]), "minus": Texts([minus])}, BLOCKS))
    for block in BLOCKS:
        difference = layers[1]["plus"].inputs_TD[block].float().mean(0) - layers[1]["minus"].inputs_TD[block].float().mean(0)
        torch.testing.assert_close(own[block][1, 0], difference / difference.norm())


def test_what_a_gate_does_is_printed_and_saved(base, adapters, run_compose, capsys):
    """Against the gate that was written and the base's own router inputs."""
    folder = run_compose(adapters, gate_mode="router_input")
    printed = capsys.readouterr().out
    report, weights = json.loads((folder / "gate.json").read_text()), Checkpoint(folder)
    assert report["gate_mode"] == "router_input" and report["experts"] == ["expert-0", "expert-1", "expert-2"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = {n: Texts([tokenize(tokenizer, (f"{n} is good", f"so is {n}+{n}"))]) for n in range(3)}
    for layer, seen in enumerate(walk_layers(base, texts, ("mlp",))):
        gate = weights.tensor(f"model.layers.{layer}.mlp.gate.weight")
        for n in range(3):
            firsts = (seen[n].inputs_TD["mlp"].float() @ gate.T).argmax(dim=1)
            assert report["first_choices"][layer][n] == pytest.approx([(firsts == e).float().mean().item() for e in range(3)])
        for e in range(3):
            expected = torch.cosine_similarity(gate[e], gate, dim=-1).tolist()
            assert report["blocks"]["mlp"]["cosines"][layer][e] == pytest.approx(expected, abs=1e-5)
    assert "first choice, %" in printed and "gate of mlp: condition number up to" in printed


def test_every_prompt_is_sent_where_its_tokens_go(base, adapters, run_compose, capsys):
    """Each prompt alone, without padding, through the base and the gate that was written; a negative prompt should not go to its expert."""
    said = {"positive": ["0 is good", "so is 0+0"], "negative": ["bad 0", "0 is good"]}
    experts = [
        {"source_model": str(adapters[0]), "positive_prompts": said["positive"], "negative_prompts": said["negative"]},
        {"source_model": str(adapters[1]), "positive_prompts": ["abc def"]},
    ]
    folder = run_compose([], gate_mode="router_input", experts=experts)
    printed, report, weights = capsys.readouterr().out, json.loads((folder / "gate.json").read_text()), Checkpoint(folder)
    order = [*((text, "positive", 0) for text in said["positive"]), ("abc def", "positive", 1)]
    order += [(text, "negative", 0) for text in said["negative"]]
    assert [(sent["text"], sent["kind"], sent["expert"]) for sent in report["texts"]] == [(t, k, f"expert-{e}") for t, k, e in order]
    tokenizer = AutoTokenizer.from_pretrained(base)
    for sent, (text, kind, own) in zip(report["texts"], order, strict=True):
        for layer, seen in enumerate(walk_layers(base, {"": Texts([tokenize(tokenizer, (text,))])}, ("mlp",))):
            gate = weights.tensor(f"model.layers.{layer}.mlp.gate.weight")
            shares = torch.bincount((seen[""].inputs_TD["mlp"].float() @ gate.T).argmax(dim=1), minlength=2) / (1 + len(text))
            found = sent["first_choices"][layer]
            assert [found.get(f"expert-{e}", 0) for e in range(2)] == pytest.approx(shares.tolist(), abs=0.01)
            assert list(found.values()) == sorted(found.values(), reverse=True) and 0 not in found.values()
            to_own = shares[own] == shares.max()
            assert (layer in sent["misrouted_layers"]) == bool(to_own == (kind == "negative"))
    both = [sent for sent in report["texts"] if sent["text"] == "0 is good"]
    assert sorted(both[0]["misrouted_layers"] + both[1]["misrouted_layers"]) == [0, 1]  # it cannot go both ways
    astray = [sent for sent in report["texts"] if sent["misrouted_layers"]]
    assert f"{len(astray)} of 5 texts go where they should not" in printed
    for sent in astray:
        assert f"{sent['expert']}: {sent['kind']} prompt {sent['text']!r} goes to" in printed


def test_held_back_rows_are_judged_one_by_one(adapters, gate_rows, run_compose):
    folder = run_compose([], gate_mode="data", gate_data=str(gate_rows), experts=labelled(*adapters[:2]))
    report = json.loads((folder / "gate.json").read_text())
    held = [rows.held for rows in read_gate_data(gate_rows, ["digits", "letters"], 32)]
    assert [(sent["text"], sent["kind"]) for sent in report["texts"]] == [(text, "row") for own in held for text in own]
    for layer in range(2):
        for expert, own in enumerate(held):
            shares = [sent["first_choices"][layer].get(f"expert-{expert}", 0) for sent in report["texts"] if sent["text"] in own]
            lengths = [len(text) + 1 for text in own]
            mean = sum(share * length for share, length in zip(shares, lengths, strict=True)) / sum(lengths)
            assert mean == pytest.approx(report["first_choices"][layer][expert][expert], abs=1e-5)


def test_random_gates_without_prompts_have_no_first_choices(adapters, run_compose, capsys):
    folder = run_compose([], gate_mode="random", experts=[{"source_model": str(adapter)} for adapter in adapters])
    report = json.loads((folder / "gate.json").read_text())
    assert report["first_choices"] is None and report["texts"] == []
    assert "first choice" not in capsys.readouterr().out


def test_first_choices_are_shares_of_tokens():
    gate, tokens = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [5.0, 1.0]])
    assert first_choices(gate, [tokens, tokens[1:2]]).tolist() == [[0.75, 0.25], [0.0, 1.0]]
    assert cosines(torch.tensor([[[3.0, 0.0], [0.0, 2.0]]])).tolist() == [[[1.0, 0.0], [0.0, 1.0]]]


def changed(source, **changes) -> dict:
    return {"source_model": str(source), "positive_prompts": ["a"], **changes}


def ffn(folder, expert, projection="down_proj"):
    return Checkpoint(folder).tensor(f"model.layers.1.mlp.experts.{projection}")[expert]


def test_scaled_and_noisy_experts_are_mergekits(base, full, run_compose, make_recipe, tmp_path):
    """residual_scale: bits; noise_scale, drawn from another stream: the same distribution, before the scale."""
    pytest.importorskip("mergekit")
    from mergekit.moe.config import MoEMergeConfig
    from mergekit.options import MergeOptions
    from mergekit.scripts.moe import build

    experts = [
        changed(base, residual_scale=0.3),
        changed(full, noise_scale=0.5, residual_scale=0.25, positive_prompts=["b"], negative_prompts=None),
    ]
    options = {"dtype": "bfloat16", "experts": experts, "experts_per_token": 1, "architecture": "mixtral", "gate_mode": "cheap_embed"}
    ours, theirs = run_compose([], base=base, **options), tmp_path / "mergekit"
    torch.manual_seed(0)
    build(MoEMergeConfig.model_validate(yaml.safe_load(make_recipe([], **options).read_text())), str(theirs), MergeOptions())
    found, expected = Checkpoint(ours), Checkpoint(theirs)
    for name in expected:
        ours_EDF, theirs_EDF = found.tensor(name), expected.tensor(name)
        if ".experts." not in name:
            assert torch.equal(ours_EDF, theirs_EDF), name
            continue
        assert torch.equal(ours_EDF[0], theirs_EDF[0]), name
        noises = [(tensor[1].double() - plain).flatten() for tensor, plain in ((ours_EDF, 0), (theirs_EDF, 0))]
        quantiles = torch.linspace(0.05, 0.95, 19).double()
        ours_Q, theirs_Q = (noise.quantile(quantiles) for noise in noises)
        torch.testing.assert_close(ours_Q, theirs_Q, atol=0.1 * float(noises[1].std()), rtol=0)


def test_noise_is_the_seeds_and_each_matrixs_own(base, full, make_recipe):
    plain = open_recipe(make_recipe([full, base]), None, None).sources[0]
    recipe = make_recipe([], experts=[changed(full, noise_scale=0.5), changed(full, noise_scale=0.5, positive_prompts=["b"])])
    (one, other), (again, _) = (open_recipe(recipe, None, None, seed).sources for seed in (0, 0))
    names = [f"model.layers.{layer}.mlp.{name}_proj" for layer in (0, 1) for name in ("gate", "up", "down")]
    noises = [(source.matrix(name) - plain.matrix(name)).flatten() for name in names for source in (one, other)]
    assert abs(torch.cat(noises).std() - 0.5) < 0.01 and abs(torch.corrcoef(torch.stack(noises)).triu(1)).max() < 0.06
    assert all(torch.equal(one.matrix(name), again.matrix(name)) for name in names)
    assert not torch.equal(one.matrix(names[0]), open_recipe(recipe, None, None, seed=1).sources[0].matrix(names[0]))
    assert torch.equal(one.matrix("model.layers.0.self_attn.q_proj"), plain.matrix("model.layers.0.self_attn.q_proj"))


@torch.no_grad()
def test_shared_experts_of_several_scales(base, adapters, run_compose, ids):
    """Where all experts are one, they and the shared ones are its FFN 1 + 0.5 + 0.25 times."""
    shared = [{"source_model": str(adapters[0]), "residual_scale": scale} for scale in (0.5, 0.25)]
    mixture = MoEForCausalLM.from_pretrained(run_compose([adapters[0]] * 2, shared_experts=shared))
    assert (mixture.config.expert_layout, mixture.config.shared_expert_scale) == ("dense", 1.0)
    expected = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base), str(adapters[0])).merge_and_unload().eval()
    for layer in expected.model.layers:
        layer.mlp.down_proj.weight *= 1.75
    torch.testing.assert_close(mixture(ids).logits, expected(ids).logits, atol=1e-5, rtol=0)


def test_experts_with_changed_matrices_share_no_ffn(adapters, run_compose):
    experts = [changed(adapters[0], residual_scale=0.5), changed(adapters[1], positive_prompts=["b"])]
    dense = run_compose([], experts=experts)
    torch.testing.assert_close(ffn(dense, 0) * 2, ffn(run_compose(adapters[:2], layout="dense", out="plain"), 0))
    with pytest.raises(ValueError, match="--layout lora shares one FFN, which no expert's noise_scale or residual_scale can change"):
        run_compose([], experts=experts, layout="lora", out="lora")
    shared = [{"source_model": str(adapters[0]), "residual_scale": scale} for scale in (0.5, 0.25)]
    with pytest.raises(ValueError, match="--layout lora has one residual_scale for all shared experts; this recipe has several"):
        run_compose(adapters[:2], shared_experts=shared, layout="lora", out="lora")


@pytest.mark.parametrize("example", ["four_languages", "mistral_4x7b", "gate_router_input", "gate_data"])
def test_examples_run(base, make_adapter, tmp_path, example):
    """Each makes a mixture of the layout `lora` whose experts are in the file's order."""
    for seed, lang in enumerate(LANGUAGES):
        make_adapter(tmp_path / "runs" / f"expert-{lang}", seed=seed)
    rows = [{"lang": lang, "text": f"{lang} {n}"} for n in range(4) for lang in LANGUAGES]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = (EXAMPLES / f"{example}.yml").read_text().replace("mistralai/Mistral-7B-v0.1", str(base))
    for name, place in (("BASE", base), ("RUNS", tmp_path / "runs"), ("ROWS", tmp_path / "rows.jsonl")):
        text = text.replace(f" {name}", f" {place}").replace(f"+{name}", f"+{place}")
    (tmp_path / "recipe.yml").write_text(text)
    given = open_recipe(tmp_path / "recipe.yml", None, None)
    assert given.config.expert_layout == "lora" and [source.name for source in given.sources] == [f"expert-{lang}" for lang in LANGUAGES]
    assert make_gates(given, 0).blocks["mlp"].shape == (2, 4, 64)


def test_a_prompt_beyond_the_context_is_refused(adapters, run_compose):
    """The attention of 100,000 tokens would be 30 GB."""
    experts = [{"source_model": str(adapter), "positive_prompts": [letter * 300]} for adapter, letter in zip(adapters, "ab", strict=False)]
    with pytest.raises(ValueError, match="a prompt of an expert has 301 tokens; the base has a context of 256"):
        run_compose([], experts=experts)
