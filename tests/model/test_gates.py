import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MistralConfig, MistralForCausalLM

from model.gate_making import make_gates
from model.gates import Prompts, condition_numbers, discriminant_gate, embedding_gate, random_gates
from model.ingredients import open_recipe

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


@pytest.fixture
def gates_of(make_recipe):
    """The FFN's gates [L, E, D] that `EXPERTS` get on a base, of which both experts are copies."""

    def make(base, mode):
        prompts = [{"positive_prompts": list(own.positive), "negative_prompts": list(own.negative)} for own in EXPERTS]
        recipe = make_recipe([], base=base, gate_mode=mode, experts=[{"source_model": str(base), **own} for own in prompts])
        return make_gates(open_recipe(recipe, None, None), seed=0).blocks["mlp"]

    return make


def unit(vector):
    return vector / vector.norm()


def test_hidden_is_the_mean_input_of_each_layer_at_the_last_token(base, tokenizer, gates_of):
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

    gates = gates_of(base, "hidden")
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
def test_hidden_has_the_bits_of_the_whole_model(tokenizer, gates_of, tmp_path_factory, config):
    """One layer at a time from several shards, against the whole model at once; the last expert has one prompt, so no padding."""
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("sharded")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer.save_pretrained(folder)
    tokenizer.padding_side, tokenizer.pad_token = "left", "<s>"

    def mean_state(prompts):
        texts = ["<s>" + prompt for prompt in prompts]
        tokens = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)
        last_LBD = torch.stack(whole(**tokens, output_hidden_states=True).hidden_states[:-1])[:, :, -1, :]
        return last_LBD.sum(dim=1) / last_LBD.shape[1]

    gates = gates_of(folder, "hidden")
    for index, expert in enumerate(EXPERTS):
        state_LD = mean_state(expert.positive)
        state_LD = state_LD - mean_state(expert.negative) if expert.negative else state_LD
        assert torch.equal(gates[:, index], state_LD / state_LD.norm(dim=-1, keepdim=True))


def test_a_base_without_a_tensor_or_with_another_shape_is_refused(base, gates_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(base, folder, dirs_exist_ok=True)
    state = load_file(base / "model.safetensors")
    norm = state.pop("model.layers.0.input_layernorm.weight")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"has no model.layers.0.input_layernorm.weight, which"):
        gates_of(folder, "hidden")
    save_file({**state, "model.layers.0.input_layernorm.weight": norm[1:].clone()}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"input_layernorm.weight of shape \[63\] instead of \[64\]"):
        gates_of(folder, "hidden")


def test_cheap_embed_sums_the_prompts_embeddings(base, tokenizer):
    embed = MistralForCausalLM.from_pretrained(base).model.embed_tokens.weight.detach()

    def direction(prompts):
        return unit(sum(embed[[1, *tokenizer.encode(prompt, add_special_tokens=False)]].sum(0) for prompt in prompts))

    gate = embedding_gate(embed, tokenizer, EXPERTS)
    expected = torch.stack([unit(direction(EXPERTS[0].positive) - direction(EXPERTS[0].negative)), direction(EXPERTS[1].positive)])
    torch.testing.assert_close(gate, expected)


def test_router_input_is_the_mean_of_what_the_gate_sees(base, tokenizer, gates_of):
    """Recomputed prompt by prompt without padding, from hooks on the FFNs of the whole base, in fp32; every token weighs the same."""
    model = MistralForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    seen = [[], []]
    for layer, store in zip(model.model.layers, seen, strict=True):
        layer.mlp.register_forward_pre_hook(lambda _, args, store=store: store.append(args[0][0]))

    @torch.no_grad()
    def means(prompts):
        for store in seen:
            store.clear()
        for prompt in prompts:
            model(torch.tensor([[1, *tokenizer.encode(prompt, add_special_tokens=False)]]))
        return torch.stack([torch.cat(store).mean(dim=0) for store in seen])

    expected = [unit_rows(means(EXPERTS[0].positive) - means(EXPERTS[0].negative)), unit_rows(means(EXPERTS[1].positive))]
    torch.testing.assert_close(gates_of(base, "router_input"), torch.stack(expected, dim=1), atol=0.02, rtol=0)


def unit_rows(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def test_discriminant_is_the_ridge_regression_of_the_experts_labels():
    """Against the normal equations' least-squares form: rows weighted by 1 / T of their expert, and the penalty as rows of their own."""
    torch.manual_seed(0)
    fitted = [torch.randn(tokens, 12) + torch.randn(12) for tokens in (300, 60, 150)]
    gate = discriminant_gate(fitted, [own[:20] for own in fitted]).double()
    weights = torch.cat([torch.full((len(own), 1), (1 / (3 * len(own))) ** 0.5) for own in fitted]).double()
    rows, labels = torch.cat(fitted).double() * weights, torch.repeat_interleave(torch.eye(3), torch.tensor([300, 60, 150]), dim=0).double()
    penalty = (0.01 * (rows**2).sum() / 12) ** 0.5 * torch.eye(12).double()
    expected = torch.linalg.lstsq(torch.cat([rows, penalty]), torch.cat([labels * weights, torch.zeros(12, 3)])).solution.T
    torch.testing.assert_close(gate / gate.norm(), expected / expected.norm(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("spread", "low", "high"), [(0.1, 0.99, 1.0), (30.0, 0.49, 0.6)])
def test_discriminant_is_as_sharp_as_the_held_tokens_bear(spread, low, high):
    """Clear tokens get weights near 1, others near 1/E; the cross entropy is at its least, to an eighth of an octave."""
    torch.manual_seed(0)
    tokens = [centre + spread * torch.randn(4000, 8) for centre in torch.randn(2, 8)]
    gate = discriminant_gate([own[:2000] for own in tokens], [own[2000:] for own in tokens])
    held, labels = torch.cat([own[2000:] for own in tokens]) @ gate.T, torch.arange(2).repeat_interleave(2000)
    assert low <= held.softmax(dim=1)[range(4000), labels].mean() <= high
    losses = [cross_entropy(factor * held, labels) for factor in (0.9, 1, 1.1)]
    assert spread == 0.1 or min(losses) == losses[1]


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
