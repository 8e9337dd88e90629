"""Pairs into token ids: the prompt without loss, the completion and its EOS with loss."""

from collections.abc import Iterable, Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from model.generation import encode_prompts
from model.infill import encode_infill, encode_piece
from model.prompt import format_prompt

from .pairs import Pair

IGNORED = -100  # torch's cross entropy leaves these labels out
LONG_PROMPT = "prompt fills the length"
LONG_COMPLETION = "completion over the length"

Example = dict[str, list[int]]


def encode_text(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase, whole: bool = True) -> Example:
    """The example of a prompt, as the model is asked it, and its completion: a text of its own (`whole`), or the rest of the prompt's.

    The two parts are tokenised apart, as they are when the model generates: no token spans the boundary, and the mask
    needs no search for it.
    """
    ids = tokenizer(completion, add_special_tokens=False)["input_ids"] if whole else encode_piece(tokenizer, completion)
    return _example(encode_prompts(tokenizer, [prompt])[0], ids, tokenizer)


def encode_pair(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> Example:
    """The example of a pair, with the project's prompt; of a pair with a gap the completion is the middle, and all around it the prompt."""
    prompt = format_prompt(pair.text, pair.lang, tokenizer)
    if gap := pair.gap:
        ids = encode_infill(tokenizer, prompt, gap.prefix, gap.suffix, spm=gap.spm)
        return _example(ids, encode_piece(tokenizer, gap.middle), tokenizer)
    return encode_text(prompt, pair.code, tokenizer)


def _example(prompt: list[int], completion: list[int], tokenizer: PreTrainedTokenizerBase) -> Example:
    """`input_ids` = prompt + completion + EOS, and `labels`, which are -100 on the prompt; `ValueError` if there is no EOS to learn."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token, so an expert could not learn where a program ends")
    completion = [*completion, tokenizer.eos_token_id]
    return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


def encode_pairs(pairs: Iterable[Pair], tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[list[Example], dict[str, int]]:
    """The examples of at most `max_length` tokens, and how many pairs were dropped because of which part.

    A cut completion would teach the model to stop in mid-program or never to stop, so none is cut.
    """
    examples = []
    dropped = {LONG_PROMPT: 0, LONG_COMPLETION: 0}
    for pair in tqdm(pairs, desc="tokenise", unit="pair"):
        example = encode_pair(pair, tokenizer)
        if len(example["input_ids"]) <= max_length:
            examples.append(example)
        elif example["labels"].count(IGNORED) >= max_length:
            dropped[LONG_PROMPT] += 1
        else:
            dropped[LONG_COMPLETION] += 1
    return examples, dropped


def collate(examples: Sequence[Example], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A batch [B, S], padded on the right. The mask goes by length: the padding may be the EOS that has to be learned."""
    longest = max(len(example["input_ids"]) for example in examples)

    def pad(rows: Iterable[Sequence[int]], value: int) -> torch.Tensor:
        return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])

    return {
        "input_ids": pad((example["input_ids"] for example in examples), pad_token_id),
        "attention_mask": pad(([1] * len(example["input_ids"]) for example in examples), 0),
        "labels": pad((example["labels"] for example in examples), IGNORED),
    }


def collate_packed(examples: Sequence[Example], pad_token_id: int, max_length: int) -> dict[str, torch.Tensor]:
    """The rows of a batch in as few sequences of at most `max_length` tokens as first fit by falling length takes; no `attention_mask`.

    `position_ids` begin again with each row, and once more with the padding: by that transformers keeps attention within a row, as long
    as there is neither a mask nor a cache. A row's first label goes, which would be predicted from the row before it.
    """
    packs = [[examples[row] for row in pack] for pack in _first_fit([len(example["input_ids"]) for example in examples], max_length)]
    lengths = [sum(len(example["input_ids"]) for example in pack) for pack in packs]
    for pack, length in zip(packs, lengths, strict=True):
        if missing := max(lengths) - length:
            pack.append({"input_ids": [pad_token_id] * missing, "labels": [IGNORED] * missing})
    return {
        "input_ids": torch.tensor([[token for row in pack for token in row["input_ids"]] for pack in packs]),
        "labels": torch.tensor([[label for row in pack for label in (IGNORED, *row["labels"][1:])] for pack in packs]),
        "position_ids": torch.tensor([[place for row in pack for place in range(len(row["input_ids"]))] for pack in packs]),
    }


def packed_shape(lengths: Sequence[int], max_length: int) -> tuple[int, int]:
    """The shape [sequences, tokens of each] of `collate_packed`'s batch of rows of these lengths."""
    packs = _first_fit(lengths, max_length)
    return len(packs), max(sum(lengths[row] for row in pack) for pack in packs)


def _first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """The rows of each sequence: by falling length, each into the first sequence with as much room left."""
    packs: list[list[int]] = []
    taken: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = next((place for place, sum_of in enumerate(taken) if sum_of + lengths[row] <= room), None)
        if place is None:
            packs.append([row])
            taken.append(lengths[row])
        else:
            packs[place].append(row)
            taken[place] += lengths[row]
    return packs
