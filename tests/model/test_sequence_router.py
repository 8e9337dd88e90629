"""`router_type="sequence"`: the prompt chooses one expert in each layer, and the choice outlives the prompt."""

import copy

import pytest
import torch
from transformers import DynamicCache, MixtralForCausalLM

from model import MoEForCausalLM
from model.routers import expert_choices

PROMPT = 9  # tokens of `ids` that are the prompt


@pytest.fixture
def model(mixtral) -> MoEForCausalLM:
    return MoEForCausalLM.from_pretrained(mixtral, router_type="sequence")


def chosen(model) -> list[list[int]]:
    """Of each layer, the expert of every token of the last forward."""
    return [layer.mlp.gate.last_routing.experts_TK[:, 0].tolist() for layer in model.model.layers]


def labels_of(ids):
    return torch.cat([torch.full_like(ids[:, :PROMPT], -100), ids[:, PROMPT:]], dim=1)


def with_experts(mixtral, choice):
    """transformers' Mixtral in which every token of layer l goes to the expert choice[l] with weight 1."""
    theirs = MixtralForCausalLM.from_pretrained(mixtral)
    for layer, expert in zip(theirs.model.layers, choice, strict=True):

        def rigged(_, args, output, expert=expert):
            tokens = args[0].reshape(-1, args[0].shape[-1])[:, :1]
            return output[0], torch.ones_like(tokens), torch.full_like(tokens, expert, dtype=torch.int64)

        layer.mlp.gate.register_forward_hook(rigged)
    return theirs


@torch.no_grad()
def test_the_largest_mean_logit_of_the_prompt_decides_for_the_whole_row(mixtral, model, ids):
    inputs = []
    hooks = [layer.mlp.gate.register_forward_pre_hook(lambda _, args: inputs.append(args[0].double())) for layer in model.model.layers]
    logits = model(ids, labels=labels_of(ids)).logits
    for hook in hooks:
        hook.remove()
    rows = torch.tensor(chosen(model)).view(2, *ids.shape)
    for layer, x, experts in zip(model.model.layers, inputs, rows, strict=True):
        mean = (x.view(*ids.shape, -1)[:, :PROMPT] @ layer.mlp.gate.weight.double().T).mean(dim=1)
        assert torch.equal(experts, mean.argmax(dim=1, keepdim=True).expand_as(experts))
    assert len(set(rows.flatten().tolist())) > 1
    for row, experts in enumerate(rows[:, :, 0].T.tolist()):
        expected = with_experts(mixtral, experts)(ids[row : row + 1]).logits[0]
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_decoding_keeps_the_choice_of_the_prompt(model, ids):
    """Token by token over the cache: the logits of one forward that knows where the prompt ends."""
    whole = model(ids, labels=labels_of(ids)).logits
    cache = DynamicCache(config=model.config)
    step = model(ids[:, :PROMPT], past_key_values=cache, use_cache=True)
    parts = [step.logits]
    for at in range(PROMPT, ids.shape[1]):
        parts.append(model(ids[:, at : at + 1], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_left_padding_does_not_vote(model, ids):
    padded = torch.cat([torch.zeros(3, 5, dtype=torch.long), ids], dim=1)
    mask = (padded != 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(padded, attention_mask=mask, position_ids=positions).logits[:, 5:]
    torch.testing.assert_close(logits, model(ids).logits, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"num_return_sequences": 2, "do_sample": True}]
)
def test_generation_keeps_the_choice(model, ids, options):
    """Two prompts at once; each keeps the experts that its own prompt chose, at every step."""
    ids = ids[:2, :PROMPT]
    model(ids)
    expected = [set(layer) for layer in chosen(model)]
    alone = [[experts[row * PROMPT] for experts in chosen(model)] for row in range(2)]
    seen = []
    hook = model.model.layers[1].mlp.register_forward_hook(lambda *_: seen.append(chosen_in(model, 1)))
    model.generate(
        ids, max_new_tokens=6, pad_token_id=0, eos_token_id=None, attention_mask=torch.ones_like(ids), **{"do_sample": False} | options
    )
    hook.remove()
    copies = options.get("num_beams", options.get("num_return_sequences", 1))
    assert len(seen) == 6
    for experts in seen[1:]:
        assert experts == [row[1] for row in alone for _ in range(copies)]
    assert set(seen[0]) == expected[1]


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_padding_has_no_vote_in_generation(model, ids, cache):
    """Padding with a token that has an embedding, as EOS does where a tokenizer has no padding (Mistral's)."""
    prompt = ids[:1, :5]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 2, "eos_token_id": None, "cache_implementation": cache}
    for seed in range(8):
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.5)
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        choice = [layer[-1] for layer in chosen(model)]
        padded = torch.cat([torch.full((1, 12), 2), prompt], dim=1)
        together = model.generate(padded, attention_mask=(torch.arange(17) >= 12).long()[None], **options)
        assert [layer[-1] for layer in chosen(model)] == choice
        assert torch.equal(together[:, 17:], alone[:, 5:])


def chosen_in(model, layer: int) -> list[int]:
    return model.model.layers[layer].mlp.gate.last_routing.experts_TK[:, 0].tolist()


@torch.no_grad()
def test_a_copied_cache_keeps_the_choice_and_an_emptied_one_chooses_anew(model, ids):
    cache = DynamicCache(config=model.config)
    model(ids[:1, :PROMPT], past_key_values=cache, use_cache=True)
    choice = {gate: experts.tolist() for gate, experts in expert_choices(cache).items()}
    assert choice.keys() == {0, 1}
    fork = copy.deepcopy(cache)
    model(ids[1:2, :4], past_key_values=fork, use_cache=True)
    assert {gate: experts.tolist() for gate, experts in expert_choices(fork).items()} == choice
    with pytest.raises(ValueError, match="holds the expert choices of 1 sequences, not of 2"):
        model.model.layers[0].mlp.gate(torch.zeros(2, 64), None, None, 2, cache)
    for row in range(3):
        expert_choices(cache)[0] = torch.full((1, 1), 3 - expert_choices(cache)[0].item())
        cache.reset()
        if cache.get_seq_length():
            pytest.skip("this version of transformers keeps the length of a DynamicCache that is reset")
        alone = DynamicCache(config=model.config)
        for emptied in (cache, alone):
            model(ids[row : row + 1, :PROMPT], past_key_values=emptied, use_cache=True)
        assert all(torch.equal(experts, expert_choices(alone)[gate]) for gate, experts in expert_choices(cache).items())


def test_a_row_without_a_prompt_still_trains_its_gate(model, ids):
    model.train()
    model(ids, labels=ids).loss.backward()
    assert all(layer.mlp.gate.weight.grad.abs().max() > 0 for layer in model.model.layers)


def test_it_is_not_exported_to_plain_mixtral(model, tmp_path):
    with pytest.raises(ValueError, match="router_type is 'sequence'"):
        model.export_mixtral(tmp_path / "out")
