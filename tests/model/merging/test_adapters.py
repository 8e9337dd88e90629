"""Adapters, alone or on a model, against mergekit and PEFT."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import MistralForCausalLM

from model.checkpoint import Checkpoint
from model.load import load_model

from .conftest import check_equal, entry, run_mergekit


def of_base(base: Path, adapter: Path) -> Path:
    """`adapter`, which now names `base` as its own."""
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(base)}))
    return adapter


@pytest.mark.parametrize(("method", "form"), [("ties", "text"), ("linear", "text"), ("ties", "mapping")])
def test_a_model_and_its_adapter_are_mergekits(models, make_adapter, merge, tmp_path, method, form):
    base, other, *_ = models["bfloat16"]
    adapter = of_base(base, make_adapter(tmp_path / "adapter", target_modules=["q_proj", "down_proj"]))
    config = {"merge_method": method, "models": [entry(f"{base}+{adapter}", weight=0.6), entry(other, weight=0.3)], "dtype": "float32"}
    config |= {"base_model": str(base)} if method == "ties" else {}
    if form == "mapping":
        config["models"][0]["model"] = {"model": {"path": str(base)}, "lora": {"path": str(adapter)}}
        config |= {"base_model": {"model": str(base)}, "tokenizer_source": {"model": {"path": str(base)}}}
    check_equal(merge(config), run_mergekit(config, tmp_path / "theirs"))


@torch.no_grad()
def test_task_vectors_of_adapters_are_their_products(base, adapters, merge, ids):
    """Sums of adapters are PEFT's `cat` combination of them."""
    weights = [0.5, -0.75, 1.25]
    config = {"merge_method": "task_arithmetic", "base_model": str(base)}
    out = merge({**config, "models": [entry(adapter, weight=weight) for adapter, weight in zip(adapters, weights, strict=True)]})
    expected = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base), str(adapters[0]), "0")
    for index in (1, 2):
        expected.load_adapter(str(adapters[index]), str(index))
    positive = [weight if weight > 0 else -weight for weight in weights]  # PEFT takes the root of each weight
    for name, parameter in expected.named_parameters():
        if "lora_B.1" in name:
            parameter.neg_()
    expected.add_weighted_adapter(["0", "1", "2"], positive, "sum", combination_type="cat")
    expected.set_adapter("sum")
    torch.testing.assert_close(load_model(out)[0](ids).logits, expected(ids).logits, atol=1e-4, rtol=0)


def test_dora_alone_is_merged_as_peft_merges_it(base, make_adapter, merge, ids, tmp_path):
    """Its task vector is what it makes of the base's matrices, not B A."""
    dora = make_adapter(tmp_path / "dora", use_dora=True)
    out = merge({"merge_method": "task_arithmetic", "base_model": str(base), "models": [entry(dora, weight=1)]})
    expected = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base), str(dora)).eval()(ids).logits
    torch.testing.assert_close(load_model(out)[0](ids).logits, expected, atol=1e-4, rtol=0)


def test_an_adapter_alone_is_not_rounded_before_it_is_merged(models, make_adapter, merge, tmp_path):
    """On a bf16 base: the task vector is in fp32 and the result rounded once, where `model+lora` rounds the difference too."""
    base = models["bfloat16"][0]
    adapter = of_base(base, make_adapter(tmp_path / "adapter", lora_alpha=0.1))
    name = "model.layers.0.mlp.down_proj"
    a, b = (Checkpoint(adapter / "adapter_model.safetensors").tensor(f"base_model.model.{name}.lora_{factor}.weight") for factor in "AB")
    weight = Checkpoint(base).tensor(f"{name}.weight")
    expected = weight.double() + 30 * (b.double() @ a.double()) * 0.1 / 4
    errors = []
    for index, model in enumerate([adapter, f"{base}+{adapter}"]):
        config = {"merge_method": "task_arithmetic", "base_model": str(base), "models": [entry(model, weight=30)]}
        found = Checkpoint(merge(config, out=str(index))).tensor(f"{name}.weight")
        assert found.dtype == torch.bfloat16
        errors.append(float((found.double() - expected).norm()))
    assert errors[0] == pytest.approx(float((expected.bfloat16().double() - expected).norm()), rel=1e-3) and errors[0] < errors[1] / 5


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "slerp"])
def test_beside_an_adapter_every_tensor_keeps_the_bases_dtype(models, make_adapter, merge, tmp_path, method):
    """A base in bf16 with norms in fp32, as some are stored."""
    base = tmp_path / "base"
    shutil.copytree(models["bfloat16"][0], base)
    tensors = {name: Checkpoint(base).tensor(name) for name in Checkpoint(base)}
    save_file({name: tensor.float() if "norm" in name else tensor for name, tensor in tensors.items()}, base / "model.safetensors")
    adapter = of_base(base, make_adapter(tmp_path / "adapter"))
    config = {"merge_method": method, "models": [entry(adapter)], "base_model": str(base), "parameters": {"weight": 0.5, "t": 0.5}}
    found = Checkpoint(merge(config))
    assert {name: found.tensor(name).dtype for name in found} == {name: Checkpoint(base).tensor(name).dtype for name in tensors}


@torch.no_grad()
def test_float64_is_computed_stored_and_loaded(models, make_adapter, merge, tmp_path, ids):
    """Of checkpoints and of an adapter that stands alone; and such a model can be merged again."""
    base, other, *_ = models["float32"]
    adapter = of_base(base, make_adapter(tmp_path / "adapter"))
    config = {"merge_method": "task_arithmetic", "base_model": str(base), "dtype": "torch.float64"}
    out = merge({**config, "models": [entry(other, weight=0.3), entry(adapter, weight=0.7)]})
    name = "model.layers.0.mlp.down_proj"
    a, b = (Checkpoint(adapter / "adapter_model.safetensors").tensor(f"base_model.model.{name}.lora_{factor}.weight") for factor in "AB")
    start, end = (Checkpoint(folder).tensor(f"{name}.weight").double() for folder in (base, other))
    expected = start + 0.3 * (end - start) + 0.7 * (b.double() @ a.double()) * 12 / 4
    torch.testing.assert_close(Checkpoint(out).tensor(f"{name}.weight"), expected, atol=1e-15, rtol=1e-13)
    model = load_model(out)[0]
    assert model.dtype == torch.float64 and model(ids).logits.isfinite().all()
    again = merge({"merge_method": "linear", "models": [entry(out, weight=1)]}, out="again")
    check_equal(again, Checkpoint(out))
