"""Experts that differ in attention too, and experts that are always on."""

import pytest
import torch
from torch.nn.functional import linear, silu

from model import MoEConfig, MoEForCausalLM

from .conftest import SHAPE

LAYOUTS = {"dense": {}, "lora": {"expert_layout": "lora", "lora_rank": 3}}
ATTENTION = {"attention_experts": ["q_proj", "o_proj"], "attention_lora_rank": 2}


def make_model(layout: str = "lora", **changes) -> MoEForCausalLM:
    """A mixture all of whose parameters are random, in evaluation mode."""
    torch.manual_seed(11)
    model = MoEForCausalLM(MoEConfig(**SHAPE, num_local_experts=3, **LAYOUTS[layout], **changes)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name or "noise" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
@pytest.mark.parametrize("changes", [ATTENTION, {**ATTENTION, "num_shared_experts": 1, "shared_expert_scale": 0.5}])
def test_projections_are_mixed_by_a_gate_of_their_own(changes, ids):
    """Each token's projections against W + Σ g_e B_e A_e written out for that token."""
    model = make_model(**changes)
    attention = model.model.layers[0].self_attn
    seen = []
    attention.q_proj.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    attention.register_forward_hook(lambda _, inputs, output: seen.append(output[0]))
    rotated = []
    attention.o_proj.register_forward_hook(lambda _, inputs, output: rotated.append((inputs[0], output)))
    model(ids)
    (x, _), result = seen
    ((attended, shared_output),) = rotated
    routing = attention.gate.last_routing
    assert not torch.equal(routing.experts_TK, model.model.layers[0].mlp.gate.last_routing.experts_TK)
    torch.testing.assert_close(routing.logits_TE, linear(x.flatten(0, 1), attention.gate.weight), atol=1e-5, rtol=0)
    expected = shared_output.flatten(0, 1).clone()
    for token, row in enumerate(attended.flatten(0, 1)):
        weights = dict(zip(routing.experts_TK[token].tolist(), routing.weights_TK[token].tolist(), strict=True))
        weights |= {3: 0.5} if model.config.num_shared_experts else {}
        for expert, weight in weights.items():
            expected[token] += weight * attention.o_proj_lora_B[expert] @ (attention.o_proj_lora_A[expert] @ row)
    torch.testing.assert_close(result.flatten(0, 1), expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shared_experts_see_every_token(layout, ids):
    model = make_model(layout, num_shared_experts=2, shared_expert_scale=0.25)
    block = model.model.layers[0].mlp
    seen: list[torch.Tensor] = []
    block.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0].flatten(0, 1), output.flatten(0, 1))))
    model(ids)
    (x_TD, y_TD), routing, experts = seen, block.gate.last_routing, block.experts
    assert int(routing.experts_TK.max()) < 3

    def ffn(expert: int) -> torch.Tensor:
        if layout == "dense":
            w1, w3 = experts.gate_up_proj[expert].chunk(2)
            w2 = experts.down_proj[expert]
        else:
            names = ("gate_proj", "up_proj", "down_proj")
            w1, w3, w2 = (
                getattr(experts, n) + getattr(experts, f"{n}_lora_B")[expert] @ getattr(experts, f"{n}_lora_A")[expert] for n in names
            )
        return linear(silu(linear(x_TD, w1)) * linear(x_TD, w3), w2)

    every = torch.stack([ffn(expert) for expert in range(5)], dim=1)
    expected = 0.25 * (every[:, 3] + every[:, 4])
    for k in range(2):
        expected += routing.weights_TK[:, k, None] * every[torch.arange(len(x_TD)), routing.experts_TK[:, k]]
    torch.testing.assert_close(y_TD, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_that_a_mixture_does(layout, ids, tmp_path):
    """Generation with its cache, padding, a checkpointed training step with noise, saving, 4 bits."""
    model = make_model(layout, **{**ATTENTION, "attention_experts": ["q_proj", "k_proj", "v_proj", "o_proj"]}, num_shared_experts=1)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, use_cache=True, **options), model.generate(ids, use_cache=False, **options))
    with torch.no_grad():
        outputs = model(ids, output_router_logits=True)
        assert [tuple(logits.shape) for logits in outputs.router_logits] == [(ids.numel(), 3)] * 2
        padded = torch.cat([torch.zeros(3, 5, dtype=torch.long), ids], dim=1)
        torch.testing.assert_close(model(padded, attention_mask=(padded != 0).long()).logits[:, 5:], outputs.logits, atol=1e-4, rtol=0)

    def step() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.set_router_step(3)
        model(ids, labels=ids).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}

    model.train()
    plain = step()
    model.gradient_checkpointing_enable()
    checkpointed = step()
    assert plain.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)
    assert all(gradient.abs().max() > 0 for gradient in plain.values())

    model.gradient_checkpointing_disable()
    model.eval().save_pretrained(tmp_path / "whole")
    with torch.no_grad():
        assert torch.equal(MoEForCausalLM.from_pretrained(tmp_path / "whole")(ids).logits, outputs.logits)
        quantized = MoEForCausalLM.from_pretrained(tmp_path / "whole", quantization="nf4")
        quantized.save_pretrained(tmp_path / "nf4")
        expanded = MoEForCausalLM.from_pretrained(tmp_path / "nf4", quantization=None)
        assert not torch.allclose(expanded(ids).logits, outputs.logits, atol=0.1)
        torch.testing.assert_close(quantized(ids).logits, expanded(ids).logits, atol=1e-4, rtol=0)


def test_gates_of_attention_and_ffn_draw_different_noise():
    model = make_model(**ATTENTION)
    indices = [(layer.self_attn.gate.layer_idx, layer.mlp.gate.layer_idx) for layer in model.model.layers]
    assert len({index for pair in indices for index in pair}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_experts": ["q"], "attention_lora_rank": 2}, "attention_experts is 'q'; allowed: q_proj, k_proj, v_proj, o_proj"),
        ({"attention_experts": ["q_proj"]}, "attention_lora_rank is 0, but attention_experts is"),
        ({"attention_lora_rank": 2}, "attention_lora_rank is 2, but attention_experts is None"),
        ({"num_shared_experts": -1}, "num_shared_experts is -1; it must be at least 0"),
        ({"num_shared_experts": 1, "expert_names": ["a", "b", "c"]}, "expert_names has 3 names for 4 experts"),
    ],
)
def test_configurations_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MoEConfig(**SHAPE, num_local_experts=3, **changes)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [(ATTENTION, "plain Mixtral has no attention experts"), ({"num_shared_experts": 1}, "num_shared_experts is 1; plain Mixtral")],
)
def test_what_mixtral_lacks_is_not_exported(layout, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_model(layout, **changes).export_mixtral(tmp_path / "out")
    assert not (tmp_path / "out").exists()
