import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MistralConfig, MistralForCausalLM

from model.gates import Prompts, condition_numbers, embedding_gates, hidden_gates, random_gates

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "dtype": "bfloat16",
}
EXPERTS = [Prompts(("abc", "de"), ("xyz",)), Prompts(("hello world",), ())]


@pytest.fixture
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


def unit(vector):
    return vector / vector.norm()


def test_hidden_is_the_mean_input_of_each_layer_at_the_last_token(base, tokenizer):
    """Recomputed prompt by prompt without padding, from hooks on the layers, in fp32."""
    model = MistralForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    seen = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1]))

    @torch.no_grad()
    def states(prompts):
        result = []
        for prompt in prompts:
            seen.clear()
            model(torch.tensor([[1, *tokenizer.encode(prompt, add_special_tokens=False)]]))
            result.append(torch.stack(seen))
        return torch.stack(result).mean(dim=0)

    gates = hidden_gates(base, tokenizer, EXPERTS)
    assert gates.shape == (2, 2, 64) and gates.dtype == torch.bfloat16
    for layer in (0, 1):
        expected = [unit((states(EXPERTS[0].positive) - states(EXPERTS[0].negative))[layer]), unit(states(EXPERTS[1].positive)[layer])]
        torch.testing.assert_close(gates[layer].float(), torch.stack(expected), atol=0.02, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SHAPE, sliding_window=4),  # shorter than the prompts
        MistralConfig(**{**SHAPE, "dtype": "float32"}, sliding_window=None),
        LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
    ],
)
def test_hidden_has_the_bits_of_the_whole_model(tokenizer, tmp_path, config):
    """One layer at a time from several shards, against the whole model at once; the last expert has one prompt, so no padding."""
    torch.manual_seed(4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)

    def mean_state(prompts):
        texts = ["<s>" + prompt for prompt in prompts]
        tokens = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)
        last_LBD = torch.stack(whole(**tokens, output_hidden_states=True).hidden_states[:-1])[:, :, -1, :]
        return last_LBD.sum(dim=1) / last_LBD.shape[1]

    gates = hidden_gates(tmp_path, tokenizer, EXPERTS)  # which sets the tokenizer's padding
    for index, expert in enumerate(EXPERTS):
        state_LD = mean_state(expert.positive)
        state_LD = state_LD - mean_state(expert.negative) if expert.negative else state_LD
        assert torch.equal(gates[:, index], state_LD / state_LD.norm(dim=-1, keepdim=True))


def test_a_base_without_a_tensor_or_with_another_shape_is_refused(base, tokenizer, tmp_path):
    shutil.copy(base / "config.json", tmp_path)
    state = load_file(base / "model.safetensors")
    norm = state.pop("model.layers.0.input_layernorm.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has no model.layers.0.input_layernorm.weight, which"):
        hidden_gates(tmp_path, tokenizer, EXPERTS)
    save_file({**state, "model.layers.0.input_layernorm.weight": norm[1:].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"input_layernorm.weight of shape \[63\] instead of \[64\]"):
        hidden_gates(tmp_path, tokenizer, EXPERTS)


def test_cheap_embed_sums_the_prompts_embeddings(base, tokenizer):
    embed = MistralForCausalLM.from_pretrained(base).model.embed_tokens.weight.detach()

    def direction(prompts):
        return unit(sum(embed[[1, *tokenizer.encode(prompt, add_special_tokens=False)]].sum(0) for prompt in prompts))

    gates = embedding_gates(embed, 2, tokenizer, EXPERTS)
    expected = torch.stack([unit(direction(EXPERTS[0].positive) - direction(EXPERTS[0].negative)), direction(EXPERTS[1].positive)])
    torch.testing.assert_close(gates, expected.expand(2, -1, -1))


def test_random_gates_have_mergekits_distributions():
    normal, uniform = (random_gates(mode, 4, 8, 1024, seed=1) for mode in ("random", "uniform_random"))
    assert abs(normal.std() - 1) < 0.01 and abs(normal.mean()) < 0.02
    bound = 1 / math.sqrt(1024)
    assert uniform.abs().max() <= bound and abs(uniform.std() - bound / math.sqrt(3)) < 1e-3 * bound * 10
    assert torch.equal(normal, random_gates("random", 4, 8, 1024, seed=1))
    assert not torch.equal(normal, random_gates("random", 4, 8, 1024, seed=2))


def test_experts_that_are_hard_to_tell_apart_have_a_large_condition_number():
    close = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0]])
    apart = torch.eye(3)[:2]
    numbers = condition_numbers(torch.stack([close, apart]))
    assert numbers[0] > 5 and abs(numbers[1] - 1) < 1e-5
