"""`MoEForCausalLM` where users put `MixtralForCausalLM`: generation, caches, attention.

The oracle is transformers' Mixtral on the same checkpoint, or the same model without the feature.
"""

import pytest
import torch
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    TextIteratorStreamer,
)

from model import MoEForCausalLM

from .conftest import GENERATION, SHAPE, make_tokenizer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "top_k": 8, "temperature": 1.5},
        {"num_beams": 3},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=["greedy", "sampling", "beam", "static-cache", "prompt-lookup"],
)
def test_generates_what_mixtral_generates(ours, theirs, padded, options):
    batch = {name: tensor[:1] for name, tensor in padded.items()} if "prompt_lookup_num_tokens" in options else padded
    tokens = []
    for model in (ours, theirs):
        torch.manual_seed(11)
        tokens.append(model.generate(**batch, **GENERATION, **options))
    assert torch.equal(*tokens)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["dynamic-cache", "static-cache"])
def test_generates_from_embeddings_what_mixtral_generates(ours, theirs, ids, padded, options):
    inputs = {"inputs_embeds": ours.get_input_embeddings()(ids).detach(), "attention_mask": padded["attention_mask"]}
    assert torch.equal(*(model.generate(**inputs, **GENERATION, **options) for model in (ours, theirs)))


def test_quantised_cache_generates_what_mixtral_generates(ours, theirs, ids):
    pytest.importorskip("optimum.quanto")
    options = {"cache_implementation": "quantized", "cache_config": {"backend": "quanto", "nbits": 4, "q_group_size": 16}}
    assert torch.equal(*(model.generate(ids, **GENERATION, **options) for model in (ours, theirs)))


def test_left_padded_prompts_generate_what_single_prompts_do(ours, padded):
    together = ours.generate(**padded, **GENERATION)[:, -8:]
    for row, (prompt, mask) in enumerate(zip(padded["input_ids"], padded["attention_mask"], strict=True)):
        assert torch.equal(ours.generate(prompt[None, mask.bool()], **GENERATION)[0, -8:], together[row])


def test_assistant_changes_no_token(ours, theirs, ids):
    plain = ours.generate(ids[:1], **GENERATION)
    assert torch.equal(ours.generate(ids[:1], assistant_model=theirs, **GENERATION), plain)


def test_streams_its_tokens(ours, ids):
    tokenizer = make_tokenizer()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    tokens = ours.generate(ids[:1], streamer=streamer, **GENERATION)
    assert "".join(streamer) == tokenizer.decode(tokens[0, ids.shape[1] :])


@torch.no_grad()
def test_pieces_of_a_prompt_equal_the_whole(ours, ids):
    cache = None
    pieces = []
    for piece in ids.split([7, 1, 9], dim=1):
        output = ours(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), ours(ids).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_batch_equals_single(ours, ids):
    single = torch.cat([ours(row[None]).logits for row in ids])
    torch.testing.assert_close(ours(ids).logits, single, atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits_are_those_asked_for(ours, ids):
    logits = ours(ids).logits
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    positions = torch.tensor([[0, 5], [16, 2], [7, 7]])
    cases = [(0, logits), (3, logits[:, -3:]), (positions[0], logits[:, [0, 5]]), (mask, logits[mask])]
    cases.append((positions, torch.stack([row[chosen] for row, chosen in zip(logits, positions, strict=True)])))
    for wanted, expected in cases:
        torch.testing.assert_close(ours(ids, logits_to_keep=wanted).logits, expected, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
def test_every_attention_is_mixtrals(mixtral, theirs, padded, implementation):
    ours = MoEForCausalLM.from_pretrained(mixtral, attn_implementation=implementation)
    logits = [model(**padded).logits[padded["attention_mask"].bool()] for model in (ours, theirs)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)


def test_flash_attention_is_refused_as_mixtral_refuses_it(mixtral):
    errors = []
    for cls in (MoEForCausalLM, MixtralForCausalLM):
        with pytest.raises((ImportError, ValueError)) as caught:
            cls.from_pretrained(mixtral, attn_implementation="flash_attention_2")
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@torch.no_grad()
def test_long_context_and_its_rope_survive(tmp_path):
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 4096}
    shape = {**SHAPE, "hidden_size": 32, "head_dim": 8, "intermediate_size": 64, "max_position_embeddings": 32768}
    config = MixtralConfig(**shape, num_local_experts=4, rope_parameters=rope)
    torch.manual_seed(0)
    theirs = MixtralForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    MoEForCausalLM.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    ours = MoEForCausalLM.from_pretrained(tmp_path / "ours")
    assert ours.config.rope_parameters == config.rope_parameters and ours.config.max_position_embeddings == 32768
    long = torch.randint(3, 64, (1, 6000), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(long, logits_to_keep=64).logits, theirs(long, logits_to_keep=64).logits, atol=1e-5, rtol=0)
