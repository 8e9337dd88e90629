"""Fill-in-the-middle: a program with a gap becomes a prompt, and what is missing its completion.

    PSM   PRE prefix SUF suffix MID | middle        SPM   PRE SUF suffix MID prefix | middle

as SantaCoder has it (arXiv:2301.03988; SPM in the second variant of arXiv:2207.14255), behind the prompt that names the language. The
pieces are tokenised apart, so a gap may begin and end within a word, and each as if it stood behind other text: alone, tokenizers such as
Mistral's put a space before it, and could not tell "x" from " x".
"""

from typing import Any

from transformers import PreTrainedTokenizerBase

from .generation import complete_rows, encode_prompts
from .prompt import format_prompt

ANCHOR = "\n"  # the text that a piece stands behind
# PRE, SUF and MID of StarCoder, SantaCoder, Qwen2.5-Coder and CodeGemma, Code Llama, DeepSeek-Coder
_KNOWN = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)


def find_sentinels(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """PRE, SUF and MID: tokens of the vocabulary where it has a known set, else StarCoder's as plain text.

    As text they cost some tokens more, but add none: new tokens would need trained rows of the embedding, which no LoRA factor beside a
    layer's matrices is, and a tokenizer unlike the base's, so that the adapter could not stand in a mixture with others.
    """
    vocabulary = tokenizer.get_vocab()
    return next((marks for marks in _KNOWN if all(mark in vocabulary for mark in marks)), _KNOWN[0])


def encode_infill(tokenizer: PreTrainedTokenizerBase, prompt: str, prefix: str, suffix: str, *, spm: bool = False) -> list[int]:
    """The token ids after which the middle starts. `spm`: the suffix first."""
    before, behind, gap = (_sentinel(tokenizer, mark) for mark in find_sentinels(tokenizer))
    start, end = (encode_piece(tokenizer, text) for text in (prefix, suffix))
    given = [*before, *behind, *end, *gap, *start] if spm else [*before, *start, *behind, *end, *gap]
    return encode_prompts(tokenizer, [prompt])[0] + given


def encode_piece(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a piece within a text; those of the piece alone where a token would span its beginning."""
    anchor, whole, alone = tokenizer([ANCHOR, ANCHOR + text, text], add_special_tokens=False)["input_ids"]
    return whole[len(anchor) :] if whole[: len(anchor)] == anchor else alone


def _sentinel(tokenizer: PreTrainedTokenizerBase, mark: str) -> list[int]:
    number = tokenizer.get_vocab().get(mark)
    return encode_piece(tokenizer, mark) if number is None else [number]


def infill(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    lang: str,
    prefix: str,
    suffix: str,
    *,
    max_new_tokens: int,
    spm: bool = False,
) -> str:
    """What a model that learned to fill gaps (`train.expert --fim-rate`) greedily writes between `prefix` and `suffix`.

    `text` describes the whole program. ValueError for a prompt that fills the context.
    """
    row = encode_infill(tokenizer, format_prompt(text, lang, tokenizer), prefix, suffix, spm=spm)
    return complete_rows(model, tokenizer, [row], max_new_tokens=max_new_tokens, batch_size=1, progress=False, behind=ANCHOR)[0]
