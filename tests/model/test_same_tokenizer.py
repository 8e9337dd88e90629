"""Tokenizers with one vocabulary that cut text into different tokens. (Those of composed experts: `test_compose.py`.)"""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from model.same_tokenizer import differences

LETTERS = {letter: index for index, letter in enumerate(["<s>", "a", "b", "c", "ab", "bc", "abc"])}


def wrap(model, **parts) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def pairs(*merges, **parts) -> PreTrainedTokenizerFast:
    return wrap(models.BPE(LETTERS, list(merges)), **parts)


MERGES = ("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")


def test_the_order_of_merges_is_compared():
    base, other = pairs(*MERGES), pairs(MERGES[1], MERGES[0], *MERGES[2:])
    assert base("abca").tokens() != other("abc").tokens()[:-1] and base.get_vocab() == other.get_vocab()
    assert differences(base, other) == ["model.merges.0 ['a', 'b'] -> ['b', 'c'], model.merges.1 ['b', 'c'] -> ['a', 'b']"]
    assert differences(base, pairs(*MERGES[:3])) == ["model.merges.3 ['a', 'bc'] -> absent"]


def test_a_unigrams_scores_are_compared():
    base, other = (wrap(models.Unigram([("<s>", 0.0), ("a", -1.0), ("b", score), ("ab", -3.0)], 0, False)) for score in (-1.0, -4.0))
    assert base("ab").tokens() != other("ab").tokens() and base.get_vocab() == other.get_vocab()
    assert differences(base, other) == ["model.vocab.2 ['b', -1.0] -> ['b', -4.0]"]


@pytest.mark.parametrize(
    ("name", "part", "inside"),
    [
        ("normalizer", normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("a")]), ""),
        ("pre_tokenizer", pre_tokenizers.WhitespaceSplit(), ""),
        ("post_processor", processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 0)]), r".single"),
        ("decoder", decoders.ByteLevel(), ""),
    ],
)
def test_every_rule_is_compared(name, part, inside):
    (found,) = differences(pairs(*MERGES), pairs(*MERGES, **{name: part}))
    assert found.startswith(f"{name}{inside}")


def test_what_lasts_a_call_is_not_compared():
    base, other = pairs(*MERGES), pairs(*MERGES)
    other("abca", truncation=True, max_length=2)
    assert base("abca").tokens() == ["abc", "a"] and differences(base, other) == []
