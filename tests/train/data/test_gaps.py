"""Fill-in-the-middle: rows against the strings of SantaCoder's two orders, and what the draws depend on."""

import random

import pytest
from transformers import PreTrainedTokenizerFast

from model.infill import encode_infill, find_sentinels
from model.prompt import format_prompt
from train.data import Pair
from train.data.gaps import Gap, draw_gaps
from train.data.prompts import IGNORED, encode_pair
from train.documents import train_tokenizer

CODES = [f"int f{number}(int a) {{\n    return a + {number};\n}}\n" for number in range(400)]
PRE, SUF, MID = "<fim_prefix>", "<fim_suffix>", "<fim_middle>"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(CODES)


def with_sentinels(tokenizer: PreTrainedTokenizerFast, *marks: str) -> PreTrainedTokenizerFast:
    other = train_tokenizer(CODES)
    other.add_tokens(list(marks), special_tokens=True)
    return other


@pytest.mark.parametrize("spm", [False, True])
@pytest.mark.parametrize("marks", [(PRE, SUF, MID), ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), ()], ids=str)
def test_a_row_is_santacoders_string_and_its_loss_is_the_middles(tokenizer, marks, spm) -> None:
    """The strings are those of bigcode's `permute`: PSM is PRE p SUF s MID m, SPM is PRE SUF s MID p m."""
    tokens = with_sentinels(tokenizer, *marks) if marks else tokenizer
    pre, suf, mid = marks or (PRE, SUF, MID)
    gap = Gap("int f(in", "t a) {\n  ret", "urn a;\n}\n", spm)
    row = encode_pair(Pair("a task", "", "cpp", "1", "g", "", gap), tokens)
    start = row["labels"].count(IGNORED)
    given = f"{pre}{suf}{gap.suffix}{mid}{gap.prefix}" if spm else f"{pre}{gap.prefix}{suf}{gap.suffix}{mid}"
    assert tokens.decode(row["input_ids"][1:start]) == format_prompt("a task", "cpp") + given
    assert tokens.decode(row["input_ids"][start:-1]) == gap.middle and row["input_ids"][-1] == tokens.eos_token_id
    assert row["labels"] == [IGNORED] * start + row["input_ids"][start:]
    assert row["input_ids"][:start] == encode_infill(tokens, format_prompt("a task", "cpp"), gap.prefix, gap.suffix, spm=spm)
    assert sum(row["input_ids"].count(number) for number in tokens.convert_tokens_to_ids(list(marks))) == len(marks)


def test_without_tokens_of_its_own_a_vocabulary_does_not_grow(tokenizer) -> None:
    size = len(tokenizer)
    assert find_sentinels(tokenizer) == (PRE, SUF, MID) and len(tokenizer) == size
    ids = encode_infill(tokenizer, "", "a", "b")
    assert max(ids) < size and len(ids) > 6


def test_rates_ends_and_orders() -> None:
    gaps = draw_gaps(CODES, 0.4, 0.25, 0, (PRE, SUF, MID))
    cut = [(code, gap) for code, gap in zip(CODES, gaps, strict=True) if gap]
    assert all(gap.prefix + gap.middle + gap.suffix == code for code, gap in cut)
    assert len(cut) / len(CODES) == pytest.approx(0.4, abs=0.06)
    assert sum(gap.spm for _, gap in cut) / len(cut) == pytest.approx(0.25, abs=0.08)
    for part in ("prefix", "middle", "suffix"):  # two even draws cut a third each
        assert sum(len(getattr(gap, part)) / len(code) for code, gap in cut) / len(cut) == pytest.approx(1 / 3, abs=0.05)
    assert draw_gaps(CODES, 0.0, 0.5, 0, ()) == [None] * len(CODES)
    assert all(draw_gaps(CODES, 1.0, 1.0, 0, ())) and all(gap and gap.spm for gap in draw_gaps(CODES, 1.0, 1.0, 0, ()))


def test_a_gap_depends_on_seed_and_number_alone() -> None:
    random.seed(1)
    first = draw_gaps(CODES, 0.5, 0.5, 7, ())
    random.seed(2)
    assert draw_gaps(CODES[:50], 0.5, 0.5, 7, ()) == first[:50]
    assert draw_gaps(CODES, 0.5, 0.5, 8, ()) != first


def test_a_program_that_holds_a_sentinel_stays_whole() -> None:
    gaps = draw_gaps(["int a;", f'string s = "{SUF}";'], 1.0, 0.5, 0, (PRE, SUF, MID))
    assert gaps[0] and gaps[1] is None
