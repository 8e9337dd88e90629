import math

import pytest
import torch
from transformers import AutoTokenizer, MistralForCausalLM

from model.gates import Prompts, condition_numbers, embedding_gates, hidden_gates, random_gates

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
