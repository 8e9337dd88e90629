"""Models whose head is their embeddings, merged with one another and with models that have a head."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

from model.checkpoint import Checkpoint
from model.load import load_model

from ..conftest import SHAPE
from .conftest import HALVES, check_equal, entry, make_config, run_mergekit


@pytest.fixture(scope="session")
def tied(base) -> list[Path]:
    """Two models whose head is their embeddings, which alone are in the file, and one with a head of its own."""
    folders = []
    for index, is_tied in enumerate([True, True, False]):
        folders.append(base.parent / f"tied-{index}")
        torch.manual_seed(index)
        model = MistralForCausalLM(MistralConfig(**{**SHAPE, "tie_word_embeddings": is_tied}))
        model.save_pretrained(folders[-1])
        AutoTokenizer.from_pretrained(base).save_pretrained(folders[-1])
        assert ("lm_head.weight" in Checkpoint(folders[-1])) != is_tied
    return folders


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "task_arithmetic"])
@pytest.mark.parametrize("order", [(0, 2), (2, 0), (0, 1)], ids=["tied base", "untied base", "all tied"])
def test_tied_and_untied_heads_are_merged_as_mergekits(tied, merge, tmp_path, method, order):
    """mergekit's tensors; but its configuration may still say that they are tied, which transformers only doubts since version 5."""
    base, other = (tied[index] for index in order)
    config = make_config(method, [base, other, other, other])
    if method != "slerp":
        config["models"] = [entry(other, weight=0.7, density=0.5), *([entry(base, weight=0.4)] if method == "linear" else [])]
    out = merge(config)
    check_equal(out, run_mergekit(config, tmp_path / "theirs"))
    model, weights = load_model(out)[0], Checkpoint(out)
    has_head = 2 in order
    assert ("lm_head.weight" in weights) == has_head == (not model.config.tie_word_embeddings)
    assert torch.equal(model.lm_head.weight, weights.tensor("lm_head.weight" if has_head else "model.embed_tokens.weight"))
    assert torch.equal(model.model.embed_tokens.weight, weights.tensor("model.embed_tokens.weight"))


def test_the_last_slice_gives_the_head_even_if_it_is_tied(tied, merge):
    """mergekit leaves it out there, and the output without a head."""
    slices = [{"sources": [{**entry(folder), **half}]} for folder, half in zip((tied[2], tied[0]), HALVES, strict=True)]
    model = load_model(merge({"merge_method": "passthrough", "slices": slices}))[0]
    for found, folder in ((model.lm_head, tied[0]), (model.model.embed_tokens, tied[2])):
        assert torch.equal(found.weight, Checkpoint(folder).tensor("model.embed_tokens.weight"))


def test_inspect_sees_a_head_that_only_one_has(tied, merge):
    out = merge({"merge_method": "ties", "base_model": str(tied[0]), "models": [entry(tied[2], weight=1)]}, "--inspect")
    row = json.loads((out / "task_vectors.json").read_text())["layers"]["lm_head"]
    head, embeddings = Checkpoint(tied[2]).tensor("lm_head.weight"), Checkpoint(tied[0]).tensor("model.embed_tokens.weight")
    assert row["norms"]["tied-2"] == pytest.approx(float((head - embeddings).norm()), rel=1e-5)
