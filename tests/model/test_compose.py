import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, MistralForCausalLM

from model import MoEForCausalLM
from model.checkpoint import Checkpoint
from model.compose import main
from model.gate_report import some_layers
from model.ingredients import open_recipe
from model.mixture_tensors import is_quantized
from model.output import check_manifest
from model.routers import MoERouter


@pytest.fixture(scope="session")
def full_models(base, adapters):
    """The adapters merged into full checkpoints."""
    folders = []
    for adapter in adapters:
        merged = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base), str(adapter)).merge_and_unload()
        folders.append(adapter.with_name(f"full-{adapter.name}"))
        merged.save_pretrained(folders[-1])
    return folders


def load(folder, **options) -> MoEForCausalLM:
    return MoEForCausalLM.from_pretrained(folder, **options)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["down_proj"]},
        {"target_modules": ["gate_proj", "up_proj", "down_proj", "q_proj", "o_proj"]},
        {"target_modules": ["down_proj", "q_proj", "k_proj", "v_proj", "o_proj"], "rank_pattern": {"k_proj": 2, "o_proj": 9}},
        {"target_modules": ["v_proj"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["lora", "dense"])
def test_mixture_of_one_adapter_is_that_adapter(base, make_adapter, run_compose, ids, layout, options, tmp_path):
    adapter = make_adapter(tmp_path / "expert", **options)
    mixture = load(run_compose([adapter] * 2, layout=layout))
    expected = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base), str(adapter)).eval()(ids).logits
    torch.testing.assert_close(mixture(ids).logits, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_dora_is_merged_and_never_taken_for_factors(base, adapters, make_adapter, run_compose, ids, tmp_path):
    dora = make_adapter(tmp_path / "dora", use_dora=True)
    mixture = load(run_compose([dora] * 2))
    assert mixture.config.expert_layout == "dense"
    expected = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base), str(dora)).eval()(ids).logits
    torch.testing.assert_close(mixture(ids).logits, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"dora is DoRA \(use_dora\), which cannot be kept as LoRA factors"):
        run_compose([dora, adapters[0]], layout="lora", out="lora")
    attention = make_adapter(tmp_path / "dora-q", use_dora=True, target_modules=["q_proj", "down_proj"])
    with pytest.raises(ValueError, match="dora-q is DoRA"):
        run_compose([attention, adapters[0]], layout="dense", out="attention")
    assert not (tmp_path / "lora").exists() and not (tmp_path / "attention").exists()


@torch.no_grad()
@pytest.mark.parametrize("layout", ["lora", "dense"])
def test_experts_with_attention_keep_their_own_share(base, make_adapter, run_compose, ids, layout, tmp_path):
    """One with and one without attention: the mixture is the one or the other wherever the gates send all tokens to one."""
    whole = make_adapter(tmp_path / "whole", target_modules=["gate_proj", "up_proj", "down_proj", "q_proj", "o_proj"], r=3)
    ffn = make_adapter(tmp_path / "ffn", seed=2)
    mixture = load(run_compose([whole, ffn], layout=layout, experts_per_token=1))
    assert (mixture.config.attention_experts, mixture.config.attention_lora_rank) == (["q_proj", "o_proj"], 3)
    for expert, adapter in enumerate((whole, ffn)):
        for module in mixture.modules():
            if isinstance(module, MoERouter):
                module.register_forward_hook(partial(send_to, expert))
        expected = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base), str(adapter)).eval()(ids).logits
        torch.testing.assert_close(mixture(ids).logits, expected, atol=1e-5, rtol=0)


def send_to(expert, router, inputs, output):
    """In place of a router's choice, another; a later hook has the last word."""
    logits, routing = output
    return logits, replace(routing, experts_TK=torch.full_like(routing.experts_TK, expert))


@torch.no_grad()
@pytest.mark.parametrize("layout", ["lora", "dense"])
def test_a_shared_expert_adds_its_ffn(base, adapters, run_compose, ids, layout):
    """Where all experts are one, they and the shared one are that expert's FFN 1 + 0.5 times."""
    shared = [{"source_model": str(adapters[0]), "residual_scale": 0.5}]
    mixture = load(run_compose([adapters[0]] * 2, layout=layout, shared_experts=shared))
    assert mixture.config.expert_names == ["expert-0", "expert-0-2", "expert-0-3"]
    expected = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base), str(adapters[0])).merge_and_unload().eval()
    for layer in expected.model.layers:
        layer.mlp.down_proj.weight *= 1.5
    torch.testing.assert_close(mixture(ids).logits, expected(ids).logits, atol=1e-5, rtol=0)


def test_attention_of_another_checkpoint_is_refused(adapters, full_models, make_adapter, run_compose, tmp_path):
    adapter = make_adapter(tmp_path / "q", target_modules=["q_proj"])
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(full_models[0])}))
    with pytest.raises(ValueError, match=r"changes q_proj of .*full-expert-0, but the mixture has the attention of"):
        run_compose([f"{full_models[0]}+{adapter}", adapters[1]], layout="dense")


@torch.no_grad()
@pytest.mark.parametrize("rope", [{"rope_theta": 500.0}, {}])
def test_a_config_of_transformers_4_keeps_its_rope(base, make_adapter, run_compose, make_recipe, ids, tmp_path, rope):
    """`rope_theta` at the top level, or Mistral's default of 1e4 where Mixtral's is 1e6."""
    old = tmp_path / "base"
    shutil.copytree(base, old)
    config = json.loads((old / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype", "head_dim")}
    (old / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32", **rope}))
    adapter = make_adapter(tmp_path / "expert")
    mixture = load(run_compose([adapter] * 2, base=old))
    expected = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(old), str(adapter)).eval()(ids).logits
    torch.testing.assert_close(mixture(ids).logits, expected, atol=1e-5, rtol=0)
    assert mixture.config.rope_parameters["rope_theta"] == rope.get("rope_theta", 10000.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_base_without_a_dtype_in_its_config_is_of_its_weights(base, adapters, make_recipe, tmp_path, dtype):
    """As `dtype: auto` of transformers has it; a base in fp32 would otherwise be rounded without a word."""
    model = MistralForCausalLM.from_pretrained(base, dtype=dtype)
    shutil.copytree(base, tmp_path / "base")
    model.save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    assert open_recipe(make_recipe([tmp_path / "base"] * 2, base=tmp_path / "base"), None, None).config.dtype == dtype


@torch.no_grad()
def test_layouts_are_one_function(make_adapter, adapters, run_compose, ids, tmp_path):
    sources = [*adapters, make_adapter(tmp_path / "of-another-rank", seed=8, r=6)]
    lora, dense = load(run_compose(sources, out="lora")), load(run_compose(sources, out="dense", layout="dense"))
    assert (lora.config.expert_layout, lora.config.lora_rank, dense.config.expert_layout) == ("lora", 6, "dense")
    torch.testing.assert_close(lora(ids).logits, dense(ids).logits, atol=1e-5, rtol=0)


def test_every_spelling_of_a_source_is_one_expert(base, adapters, full_models, run_compose, ids):
    spellings = [[adapters[0], adapters[1]], [f"{base}+{adapters[0]}", f"{base}+{adapters[1]}"], full_models[:2]]
    states = [load(run_compose(sources, layout="dense", out=str(n))).state_dict() for n, sources in enumerate(spellings)]
    assert all(torch.equal(states[0][name], state[name]) for state in states[1:] for name in states[0])


def test_everything_but_the_ffn_is_the_bases(base, adapters, run_compose):
    composed, weights = Checkpoint(run_compose(adapters, layout="dense", dtype="bfloat16")), Checkpoint(base)
    others = [name for name in weights if ".mlp." not in name]
    assert len(others) == 2 * 6 + 3
    assert all(torch.equal(composed.tensor(name), weights.tensor(name).bfloat16()) for name in others)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["lora", "dense"])
def test_nf4_is_what_loading_quantises(adapters, run_compose, ids, layout):
    whole = run_compose(adapters, layout=layout, out="whole")
    quantized = load(run_compose(adapters, layout=layout, out="nf4", quantize="nf4"))
    assert quantized.config.quantization == "nf4"
    expected = load(whole, quantization="nf4")
    assert expected.state_dict().keys() == quantized.state_dict().keys()
    assert torch.equal(quantized(ids).logits, expected(ids).logits)
    named = {f"{prefix}.{name}" for prefix, module in expected.named_modules() for name in getattr(module, "_formats", ())}
    assert {name for name in load(whole).state_dict() if is_quantized(name)} == named


def test_output_is_whole_and_says_what_it_is(base, adapters, run_compose, capsys):
    (adapters[1] / "run.json").write_text(json.dumps({"lang": "cpp"}))
    folder = run_compose(adapters)
    assert capsys.readouterr().out.endswith("mixture: 3 experts (expert-0, cpp, expert-2), lora layout, float32\n")
    (adapters[1] / "run.json").unlink()
    check_manifest(folder)
    assert load(folder).config.expert_names == ["expert-0", "cpp", "expert-2"]
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    assert yaml.safe_load((folder / "mergekit_moe_config.yml").read_text())["gate_mode"] == "hidden"
    run = json.loads((folder / "run.json").read_text())
    assert len(run["figures"]["gate_condition_numbers"]) == 2 and run["layout"] == "lora"


@pytest.mark.parametrize("mode", ["hidden", "cheap_embed", "random", "uniform_random"])
def test_every_tensor_is_mergekits(adapters, full_models, run_compose, make_recipe, tmp_path, mode):
    """In bf16, from full checkpoints and from an adapter, equal bits in every tensor of mergekit 0.1.5, which takes only checkpoints."""
    pytest.importorskip("mergekit")
    from mergekit.moe.config import MoEMergeConfig
    from mergekit.options import MergeOptions
    from mergekit.scripts.moe import build

    recipe = {"dtype": "bfloat16", "gate_mode": mode}
    ours = run_compose([full_models[0], adapters[1]], **recipe)
    theirs = tmp_path / "mergekit"
    config = MoEMergeConfig.model_validate(yaml.safe_load(make_recipe(full_models[:2], **recipe).read_text()))
    torch.manual_seed(0)
    build(config, str(theirs), MergeOptions())
    found, expected = Checkpoint(ours), Checkpoint(theirs)
    assert {name for name in found if "noise_weight" not in name} == set(expected)
    for name in expected:
        assert torch.equal(found.tensor(name), expected.tensor(name)), name


def run_main(monkeypatch, *arguments) -> int:
    monkeypatch.setattr("sys.argv", ["compose", *map(str, arguments)])
    return main()


def test_command_ends_with_status_2_and_leaves_nothing(base, adapters, make_recipe, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "other" / "broken"
    shutil.copytree(adapters[0], broken)
    (broken / "adapter_model.safetensors").write_bytes(b"no")
    cases = [
        ([adapters[0], tmp_path / "none"], [], "none is neither a folder nor a model in the local hub cache"),
        ([adapters[0], broken], [], "is not a whole safetensors file"),
        ([adapters[0], base], ["--layout", "lora"], "needs every expert to be an adapter of the base"),
    ]
    for sources, flags, message in cases:
        assert run_main(monkeypatch, make_recipe(sources), tmp_path / "out", *flags) == 2
        assert message in capsys.readouterr().err
        assert {path.name for path in tmp_path.iterdir()} == {"other", "recipe.yml"}


@pytest.mark.parametrize(
    ("source", "change", "same"),
    [(0, {}, True), (1, {}, False), (0, {"noise_scale": 0.1}, False), (0, {"residual_scale": 0.5}, False)],
)
def test_experts_that_are_all_the_same_are_reported(adapters, make_recipe, tmp_path, monkeypatch, capsys, source, change, same):
    """mergekit refuses one model listed as every expert; a shared expert, which has no rival, may be the same."""
    sources = [{"source_model": str(adapters[0])}, {"source_model": str(adapters[source]), **change}]
    recipe = make_recipe([], gate_mode="random", experts=sources, shared_experts=[{"source_model": str(adapters[2])}])
    assert run_main(monkeypatch, recipe, tmp_path / "out") == 0
    said = "all experts are expert-0: until they are trained the mixture gives what one of them gives"
    assert (said in capsys.readouterr().err) == same


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_mixture_that_overflows_is_refused_and_keeps_nothing(adapters, make_recipe, tmp_path, monkeypatch, capsys, quantize):
    monkeypatch.setattr("model.mixture_tensors.SHARD_BYTES", 1 << 14)
    experts = [{"source_model": str(adapter), "positive_prompts": [adapter.name], "residual_scale": 1e7} for adapter in adapters[:2]]
    recipe = make_recipe([], dtype="float16", experts=experts)
    assert run_main(monkeypatch, recipe, tmp_path / "out", "--quantize", quantize) == 2
    said = capsys.readouterr().err
    assert "model.layers.0.mlp.experts.down_proj of the mixture, in float16, has values that are infinite" in said
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yml"}


@pytest.mark.parametrize("change", [{"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"hidden_act": "gelu"}])
def test_an_expert_of_another_kind_is_refused(full_models, run_compose, tmp_path, change):
    odd = tmp_path / "odd"
    shutil.copytree(full_models[0], odd)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=f"odd has {next(iter(change))} = .*but the base"):
        run_compose([full_models[0], odd])


def test_a_base_of_another_family_is_refused(mixtral, run_compose):
    with pytest.raises(ValueError, match="is a 'mixtral' model; base and experts must be one of mistral, llama"):
        run_compose([mixtral, mixtral], base=mixtral)


def test_prompts_that_say_the_same_are_reported(adapters, run_compose, capsys):
    experts = [{"source_model": str(adapter), "positive_prompts": [f"{n} ends with x"]} for n, adapter in enumerate(adapters[:2])]
    run_compose(adapters[:2], experts=experts)
    printed = capsys.readouterr().out
    assert (
        "hardly tells the experts apart in all 2 layers" in printed
        and "layer 0: `hidden` has the embedding of each prompt's last" in printed
    )


@pytest.mark.parametrize(
    ("chosen", "text"), [([0, 1, 2, 4, 6, 7], "layers 0-2, 4, 6-7"), ([3], "layer 3"), (list(range(8)), "all 8 layers")]
)
def test_layers_are_named_in_runs(chosen, text):
    assert some_layers(chosen, 8) == text


@pytest.fixture
def with_tokenizer(base, full_models, tmp_path):
    """Copies the first full model with the base's tokenizer after `change` has been made to its tokenizer.json."""

    def make(change) -> Path:
        folder = tmp_path / "expert-with-tokenizer"
        shutil.copytree(full_models[0], folder)
        for file in base.glob("tokenizer*"):
            shutil.copy(file, folder)
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        change(tokenizer)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        return folder

    return make


def swap_a_and_b(tokenizer):
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def add_a_token(tokenizer):
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 64, "content": "<|im_end|>"})


def add_an_old_token(tokenizer):
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": tokenizer["model"]["vocab"]["x"], "content": "x"})


SPLIT = {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False}


def put(name, value):
    return lambda tokenizer: tokenizer.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_a_and_b, r"tokens 'a' 5 -> 6, 'b' 6 -> 5$"),
        (lambda tokenizer: tokenizer["model"]["vocab"].pop("q"), r"tokens 'q' 21 -> absent$"),
        (lambda tokenizer: [tokenizer["model"]["vocab"].pop(letter) for letter in "ABCDEF"], r"'E' 45 -> absent and 1 more$"),
        (add_a_token, r"tokens '<\|im_end\|>' absent -> 64; added tokens only in the expert: '<\|im_end\|>'"),
        (add_an_old_token, r"\): added tokens only in the expert: 'x'"),
        (put("normalizer", {"type": "Lowercase"}), r"\): normalizer None -> {'type': 'Lowercase'}$"),
        (put("decoder", {"type": "ByteFallback"}), r"\): decoder\.type 'Fuse' -> 'ByteFallback'$"),
        (put("pre_tokenizer", {**SPLIT, "invert": True}), r"\): pre_tokenizer\.invert False -> True$"),
        (lambda tokenizer: tokenizer["added_tokens"][2].update(lstrip=True), r"\): added token '</s>'\.lstrip False -> True$"),
    ],
)
def test_an_expert_that_reads_text_otherwise_is_refused(adapters, with_tokenizer, run_compose, change, message, tmp_path):
    expert = with_tokenizer(change)
    with pytest.raises(ValueError, match=f"expert-with-tokenizer has another tokenizer than the base .*{message}"):
        run_compose([expert, adapters[1]])
    assert not (tmp_path / "mixture").exists()


@pytest.mark.parametrize("place", ["checkpoint", "adapter"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eos_token": "<unk>"}, r"eos '</s>' \(2\) -> '<unk>' \(3\)"),
        ({"pad_token": "</s>"}, r"pad '<pad>' \(0\) -> '</s>' \(2\)"),
        ({"bos_token": None}, r"bos '<s>' \(1\) -> none"),
        ({"pad_token": None}, None),
        ({}, None),
    ],
)
def test_special_tokens_must_be_the_bases(base, adapters, full_models, run_compose, change, message, place, tmp_path):
    expert = tmp_path / "expert"
    shutil.copytree(full_models[0] if place == "checkpoint" else adapters[0], expert)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for name, token in change.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(expert)
    if message is None:
        run_compose([expert, adapters[1]])
    else:
        with pytest.raises(ValueError, match=message):
            run_compose([expert, adapters[1]])


def test_a_tokenizer_that_cannot_be_read_is_named(adapters, with_tokenizer, run_compose):
    with pytest.raises(ValueError, match="expert-with-tokenizer has a tokenizer that cannot be read"):
        run_compose([with_tokenizer(lambda tokenizer: tokenizer.pop("model")), adapters[1]])


@pytest.mark.parametrize("rows", [0, 127])
def test_an_expert_without_a_matrix_is_refused_before_anything_is_written(adapters, full_models, run_compose, tmp_path, rows):
    expert, name = tmp_path / "expert", "model.layers.1.mlp.up_proj.weight"
    shutil.copytree(full_models[0], expert)
    state = load_file(expert / "model.safetensors")
    matrix = state.pop(name)
    save_file({**state, name: matrix[:rows].clone()} if rows else state, expert / "model.safetensors")
    with pytest.raises(ValueError, match=rf"expert has {name} of shape \[127, 64\] instead of" if rows else f"expert has no {name}$"):
        run_compose([expert, adapters[1]])
    assert {path.name for path in tmp_path.iterdir()} == {"expert", "recipe.yml"}
