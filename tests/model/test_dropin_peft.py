"""PEFT's adapters of Mixtral on `MoEForCausalLM`: none is left off in silence."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from model import MoEForCausalLM

RANK, ALPHA = 4, 8
SHAPES = {"w1": (128, 64), "w3": (128, 64), "w2": (64, 128)}


@pytest.fixture(scope="module")
def old_style(mixtral, tmp_path_factory):
    """An adapter as transformers 4 made it, with factors for each expert's w1, w2, w3, and these factors' products by layer and expert."""
    folder = tmp_path_factory.mktemp("adapter")
    LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["w1", "w2", "w3"], task_type="CAUSAL_LM").save_pretrained(str(folder))
    torch.manual_seed(0)
    factors, deltas = {}, {}
    for layer, expert, (name, (rows, columns)) in ((layer, e, item) for layer in range(2) for e in range(4) for item in SHAPES.items()):
        a, b = torch.randn(RANK, columns) * 0.1, torch.randn(rows, RANK) * 0.1
        module = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
        factors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        deltas[layer, expert, name] = ALPHA / RANK * b @ a
    save_file(factors, folder / "adapter_model.safetensors")
    return folder, deltas


@torch.no_grad()
def merged_by_hand(model, deltas):
    for layer in range(2):
        experts = model.model.layers[layer].mlp.experts
        for expert in range(4):
            experts.gate_up_proj[expert] += torch.cat([deltas[layer, expert, "w1"], deltas[layer, expert, "w3"]])
            experts.down_proj[expert] += deltas[layer, expert, "w2"]
    return model


@torch.no_grad()
def test_an_adapter_of_separate_experts_adapts_ours(mixtral, ours, theirs, old_style, ids):
    folder, deltas = old_style
    expected = merged_by_hand(theirs, deltas)(ids).logits
    assert (expected - ours(ids).logits).abs().max() > 1
    torch.testing.assert_close(PeftModel.from_pretrained(ours, str(folder)).eval()(input_ids=ids).logits, expected, atol=2e-5, rtol=0)
    loaded = MoEForCausalLM.from_pretrained(mixtral)
    loaded.load_adapter(str(folder))
    torch.testing.assert_close(loaded(ids).logits, expected, atol=2e-5, rtol=0)


def adapted(model, targets):
    model = get_peft_model(model, LoraConfig(r=RANK, target_modules=targets, task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "w1", "w2", "w3"]], ids=["all-linear", "names"])
def test_what_peft_adapts_is_what_it_adapts_of_mixtral(mixtral, ours, theirs, ids, tmp_path, targets):
    models = [adapted(model, targets) for model in (theirs, ours)]
    trainable = [{name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad} for model in models]
    assert trainable[0] == trainable[1] and any("experts" in name for name in trainable[0])
    models[0].save_pretrained(str(tmp_path))
    expected = models[0](input_ids=ids).logits
    again = PeftModel.from_pretrained(MoEForCausalLM.from_pretrained(mixtral), str(tmp_path)).eval()
    torch.testing.assert_close(again(input_ids=ids).logits, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "w1", "w2", "w3"]], ids=["all-linear", "names"])
def test_factors_of_experts_that_nf4_has_no_place_for_are_named(mixtral, theirs, tmp_path, targets):
    adapted(theirs, targets).save_pretrained(str(tmp_path))
    message = r"the adapter has tensors that this model has no place for: \S*layers\.0\.mlp\.experts\S*\.lora_A"
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(MoEForCausalLM.from_pretrained(mixtral, quantize="nf4"), str(tmp_path))
    with pytest.raises(ValueError, match=message):
        MoEForCausalLM.from_pretrained(mixtral, quantize="nf4").load_adapter(str(tmp_path))


def test_a_model_is_saved_under_its_own_names(ours, tmp_path):
    """And not under Mixtral's, by which its adapters are found."""
    ours.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == ours.state_dict().keys()
