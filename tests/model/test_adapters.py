import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import MistralForCausalLM

from model.adapters import Adapter, base_fingerprint
from model.checkpoint import Checkpoint
from model.peft_model import with_adapter

OPTIONS = [
    {},
    {"use_rslora": True},
    {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 7}},
    {"target_modules": ["down_proj"]},
    {"use_dora": True, "use_rslora": True},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
def test_merging_is_pefts(base, make_adapter, tmp_path, options, dtype):
    folder = make_adapter(tmp_path / "adapter", seed=9, **options)
    adapter, weights = Adapter(folder), Checkpoint(base)
    merged = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base, dtype=dtype), str(folder)).merge_and_unload()
    for module in (f"model.layers.{layer}.mlp.{name}_proj" for layer in (0, 1) for name in ("gate", "up", "down")):
        ours = adapter.apply(module, weights.tensor(f"{module}.weight").to(dtype))
        assert torch.equal(ours, merged.get_submodule(module).weight), module


def test_name_is_the_language_else_the_folder(base, make_adapter, tmp_path):
    folder = make_adapter(tmp_path / "some-expert")
    assert Adapter(folder).name == "some-expert"
    (folder / "run.json").write_text(json.dumps({"lang": "cpp"}))
    assert Adapter(folder).name == "cpp"


def test_ranks_are_of_projections(base, make_adapter, tmp_path):
    options = {"target_modules": ["q_proj", "o_proj", "down_proj"], "rank_pattern": {"o_proj": 7}}
    adapter = Adapter(make_adapter(tmp_path / "all", **options))
    adapter.check_layers_only()
    assert adapter.attention == {"q_proj", "o_proj"}
    assert [adapter.rank(names) for names in (("q_proj", "o_proj"), ("q_proj",), ("down_proj",), ("up_proj",))] == [7, 4, 4, 0]


def test_what_no_expert_can_hold_is_refused_by_name(base, make_adapter, tmp_path):
    folder = make_adapter(tmp_path / "head", target_modules=["down_proj"], layers_to_transform=[0])
    factors = load_file(folder / "adapter_model.safetensors")
    head = {name.replace("model.layers.0.mlp.down_proj", "lm_head"): factor.clone() for name, factor in factors.items()}
    save_file({**factors, **head}, folder / "adapter_model.safetensors")
    adapter = Adapter(folder)
    with pytest.raises(ValueError, match=r"also changes lm_head, but the experts of a mixture differ in"):
        adapter.check_layers_only()


@pytest.mark.parametrize("options", [{"lora_bias": True}, {"modules_to_save": ["lm_head"]}])
def test_only_plain_lora_is_read(base, make_adapter, tmp_path, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} = .* only plain LoRA is read"):
        Adapter(make_adapter(tmp_path / "adapter", **options))


def change_weights(folder, change):
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


MAGNITUDE = "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector"
KEY = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "base_model.model.model.norm.bias": torch.ones(1)}, r"model\.norm\.bias is not a LoRA factor"),
        (lambda state: {key: value for key, value in state.items() if key != KEY}, r"layers\.0\.mlp\.up_proj has only one of its two"),
        (lambda state: {**state, MAGNITUDE: torch.ones(128)}, r"layers\.0\.mlp\.up_proj has a lora_magnitude_vector; DoRA has it"),
    ],
)
def test_odd_weights_are_named(base, make_adapter, tmp_path, change, message):
    folder = make_adapter(tmp_path / "adapter")
    change_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        Adapter(folder)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((), (), r"lora_A\.weight has the shape \[\]; a LoRA factor is a matrix"),
        ((4,), (4,), r"lora_A\.weight has the shape \[4\]"),
        ((4, 64, 1), (128, 4), r"lora_A\.weight has the shape \[4, 64, 1\]"),
        ((4, 64), (128, 4, 1), r"lora_B\.weight has the shape \[128, 4, 1\]"),
        ((4, 64), (128, 5), r"lora_B\.weight \[128, 5\] does not fit .*lora_A\.weight \[4, 64\]"),
        ((0, 64), (128, 0), "rank 0"),
    ],
)
def test_factors_that_make_no_matrix_are_named(base, make_adapter, tmp_path, a, b, message):
    folder = make_adapter(tmp_path / "adapter")
    change_weights(folder, lambda state: {**state, KEY: torch.ones(a), KEY.replace("_A", "_B"): torch.ones(b)})
    with pytest.raises(ValueError, match=rf"adapter_model\.safetensors: .*{message}"):
        Adapter(folder)


def test_a_magnitude_of_another_length_is_named(base, make_adapter, tmp_path):
    folder = make_adapter(tmp_path / "adapter", use_dora=True)
    change_weights(folder, lambda state: {**state, MAGNITUDE: torch.ones(1)})
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: .*lora_magnitude_vector has the shape \[1\]"):
        Adapter(folder)


def test_another_base_is_refused_by_name(adapters, base, tmp_path):
    shutil.copytree(base, tmp_path / "other")
    with pytest.raises(ValueError, match="was trained on the base 'base', not 'other'"):
        Adapter(adapters[0]).check_base(tmp_path / "other", Checkpoint(tmp_path / "other"))


def test_another_base_is_refused_by_shape(base, make_adapter, tmp_path):
    folder = make_adapter(tmp_path / "adapter")
    change_weights(folder, lambda state: {**state, KEY: state[KEY][:, 1:].clone()})
    with pytest.raises(ValueError, match=r"up_proj as a matrix of \[128, 63\], but in .* it is \[128, 64\]"):
        Adapter(folder).check_base(base, Checkpoint(base))


def test_a_fingerprint_decides_whatever_the_name(base, make_adapter, tmp_path):
    folder = make_adapter(tmp_path / "adapter")
    (folder / "run.json").write_text(json.dumps({"base_fingerprint": base_fingerprint(base)}))
    copy = tmp_path / "moved"
    shutil.copytree(base, copy)
    Adapter(folder).check_base(copy, Checkpoint(copy))
    state = load_file(copy / "model.safetensors")
    state["model.layers.1.self_attn.q_proj.weight"][0, 3] += 1
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="the weights' fingerprints differ"):
        Adapter(folder).check_base(copy, Checkpoint(copy))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target_modules": ["o_proj"]}, r"model\.layers\.0\.mlp\.down_proj \(0 and 4\), .* and 3 more$"),
        (
            {"exclude_modules": ["down_proj"]},
            r"model\.layers\.0\.mlp\.down_proj \(0 and 4\), model\.layers\.1\.mlp\.down_proj \(0 and 4\)$",
        ),
        ({"layers_to_transform": [1]}, r"model\.layers\.0\.mlp\.down_proj \(0 and 4\)"),
        ({"target_modules": ["up_proj", "gate_proj", "down_proj", "q_proj"]}, r"model\.layers\.0\.self_attn\.q_proj \(4 and 0\)"),
        ({"r": 8}, "cannot be loaded: RuntimeError: .*size mismatch"),
    ],
    ids=str,
)
def test_factors_that_peft_would_leave_out_are_refused(base, make_adapter, tmp_path, changes, said):
    """A mixture would take them, so that a composition and an evaluation were of different models."""
    folder = make_adapter(tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    Adapter(folder).check_base(base, Checkpoint(base))
    for trainable in (False, True):
        with pytest.raises(ValueError, match=said):
            with_adapter(MistralForCausalLM.from_pretrained(base), base, folder, trainable=trainable)


@torch.no_grad()
@pytest.mark.parametrize("pattern", [r".*\.(gate|up|down)_proj", "(.*)*x"])
def test_a_pattern_of_modules_is_what_has_factors(base, make_adapter, tmp_path, pattern):
    """Of which some never end, when they are matched; others are what PEFT's users write."""
    folder, ids = make_adapter(tmp_path / "adapter"), torch.tensor([[1, 5, 9]])
    logits = [with_adapter(MistralForCausalLM.from_pretrained(base), base, folder)(ids).logits]
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": pattern}))
    logits.append(with_adapter(MistralForCausalLM.from_pretrained(base), base, folder)(ids).logits)
    assert torch.equal(*logits)
