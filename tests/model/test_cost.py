"""Parameters for one token against a mixture that has no more experts than a token goes to."""

from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

from model import MoEForCausalLM
from model.configuration_moe import MoEConfig
from model.cost import active_parameters, model_cost, precision_facts

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


def ours(experts: int, **settings: Any) -> Any:
    return MoEForCausalLM(MoEConfig(**SHAPE, vocab_size=100, num_local_experts=experts, **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"num_experts_per_tok": 2},
        {"num_experts_per_tok": 2, "quantization": "nf4"},
        {"num_experts_per_tok": 2, "expert_layout": "lora", "lora_rank": 4},
        {"num_experts_per_tok": 2, "num_shared_experts": 1},
        {"num_experts_per_tok": 1, "router_type": "switch"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_active_parameters_are_those_of_a_mixture_without_idle_experts(settings: dict[str, Any]) -> None:
    chosen = settings["num_experts_per_tok"]
    large, small = ours(6, **settings), ours(chosen, **settings)
    gates = sum(module.weight.numel() for name, module in large.named_modules() if name.endswith("mlp.gate"))
    noise = sum(p.numel() for name, p in large.named_parameters() if name.endswith("noise_weight"))
    gates_of_small = (gates + noise) * chosen // 6
    assert active_parameters(large) == small.num_parameters() - gates_of_small + gates + noise


def test_models_of_transformers() -> None:
    dense = MistralForCausalLM(MistralConfig(**SHAPE, vocab_size=100))
    assert active_parameters(dense) == dense.num_parameters()
    large, small = (
        MixtralForCausalLM(MixtralConfig(**SHAPE, vocab_size=100, num_local_experts=experts, num_experts_per_tok=2)) for experts in (5, 2)
    )
    assert active_parameters(large) == small.num_parameters() + 3 * 64 * 2  # the rows of two gates


def test_what_a_run_took() -> None:
    took = model_cost(ours(4))
    assert took["device"] == "cpu"
    assert took["peak_bytes"] > 2**20 * torch.get_default_dtype().itemsize


def test_the_precision_is_that_of_the_products_and_of_the_stored_matrices() -> None:
    assert precision_facts(ours(4)) == {"dtype": "float32", "quantization": None}
    assert precision_facts(ours(4, quantization="nf4").bfloat16()) == {"dtype": "bfloat16", "quantization": "nf4"}
