"""Completions of prompts, many at a time."""

import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

# B batch, S sequence


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[list[int]]:
    """Token ids as in training: BOS, if the tokenizer has one, and the prompt. A chat template has written BOS: it is not doubled."""
    bos = tokenizer.bos_token
    rows = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    return [
        row if bos is None or prompt.startswith(bos) else [tokenizer.bos_token_id, *row] for prompt, row in zip(prompts, rows, strict=True)
    ]


def pad_left(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` [B, S] of rows of different lengths."""
    longest, pad = max(map(len, rows)), _pad_id(tokenizer)
    ids = [[pad] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def not_numbers(model: Any) -> ValueError:
    """The error of a model whose scores are NaN or infinite, as after a training that diverged."""
    return ValueError(f"{model.name_or_path} computes scores that are no numbers, as after a training that diverged")


class LastScores(LogitsProcessor):
    """Keeps the scores [B, V] of the last token, to be looked at once: NaN in a token's keys and values is in all later scores too.

    The first token's are looked at as they come, before anything is drawn from them; a look waits for a GPU, so no other token gets one.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.scores: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        first, self.scores = self.scores is None, scores
        if first:
            self.check()
        return scores

    def check(self) -> None:
        """ValueError if a row's greatest score is not a number; a score of minus infinity is a token that is ruled out."""
        if self.scores is not None and not self.scores.amax(dim=-1).isfinite().all():
            raise not_numbers(self.model)


def generate_as_told(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    inputs: dict[str, torch.Tensor],
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    **options: Any,
) -> torch.Tensor:
    """`model.generate`, sampling from all tokens that top_p leaves; at temperature 0 the likeliest token is taken.

    Nothing of the checkpoint's generation_config counts, so that what a run records says how its texts were made. transformers takes from
    there what a call does not name (beams, banned tokens, penalties, ...), and would sample from the 50 likeliest.
    ValueError for a model whose scores are no numbers, of which the likeliest would be token 0.
    """
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {"do_sample": False}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": _pad_id(tokenizer)}
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of a PEFT model, which hands its settings on
    own, owner.generation_config = owner.generation_config, GenerationConfig()
    last = LastScores(model)
    try:
        output = model.generate(**inputs, tokenizer=tokenizer, logits_processor=LogitsProcessorList([last]), **sampling, **ends, **options)
        last.check()
        return output
    except RuntimeError:  # of torch, which draws from no NaN
        last.check()
        raise
    finally:
        owner.generation_config = own


def _without_padding(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A completion up to its EOS, or up to the padding behind one that a stop text ended."""
    if tokenizer.eos_token_id in ids:
        return ids[: ids.index(tokenizer.eos_token_id) + 1]
    while ids and ids[-1] == _pad_id(tokenizer):
        ids = ids[:-1]
    return ids


def decode_behind(tokenizer: PreTrainedTokenizerBase, ids: list[int], behind: str) -> str:
    """The text of `ids` without special tokens where it stands behind the text `behind`; a text that begins with them may lose a space."""
    start = tokenizer(behind, add_special_tokens=False)["input_ids"]
    before, whole = tokenizer.batch_decode([start, start + ids], skip_special_tokens=True)
    return whole[len(before) :]


class WholeTextStreamer(BaseStreamer):
    """Prints the completion of a prompt of `skip` tokens as it comes.

    transformers' own begins a new text in each line: with tokenizers such as Mistral's every indent is then one space short.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, skip: int, behind: str = "") -> None:
        self.tokenizer, self.skip, self.behind = tokenizer, skip, behind
        self.ids: list[int] = []
        self.printed = 0

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()
        text = decode_behind(self.tokenizer, self.ids[self.skip :], self.behind)
        if not text.endswith("�"):  # the bytes of a character come one by one
            self._print(text)

    def _print(self, text: str) -> None:
        print(text[self.printed :], end="", flush=True)
        self.printed = len(text)

    def end(self) -> None:
        self._print(decode_behind(self.tokenizer, self.ids[self.skip :], self.behind))
        print()


def context_of(model: Any) -> int:
    """How many positions the model has; those of ALiBi or a state have no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", sys.maxsize)


def room_behind(model: Any, tokenizer: PreTrainedTokenizerBase, row: list[int]) -> int:
    """How many tokens the context has left behind the prompt `row`; ValueError if none, or if it has a token that the model has not."""
    context, known = context_of(model), model.get_input_embeddings().num_embeddings
    if (largest := max(row, default=0)) >= known:
        raise ValueError(f"the tokenizer gives a prompt the token {largest}; the model has {known}: they do not belong together")
    if len(row) >= context:
        raise ValueError(f"a prompt of {len(row)} tokens leaves no room in a context of {context}: {tokenizer.decode(row[:20])!r}...")
    return context - len(row)


def complete(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[str], **options: Any) -> list[str]:
    """The completion of each prompt, without the prompt, up to EOS or `max_new_tokens` tokens (fewer where the context ends).

    `options` are those of `complete_ids` (greedy by default). Prompts of similar length share a batch, so that little of it is padding.
    ValueError for a prompt that fills the context.
    """
    return complete_rows(model, tokenizer, encode_prompts(tokenizer, prompts), **options)


def complete_rows(model: Any, tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], *, behind: str = "", **options: Any) -> list[str]:
    """`complete` of prompts that are token ids already; the completions are read as text that stands behind the text `behind`."""
    return [decode_behind(tokenizer, ids, behind) for ids in complete_ids(model, tokenizer, rows, **options)]


@torch.inference_mode()
def complete_ids(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: bool = True,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> list[list[int]]:
    """`complete` from token ids to token ids, up to EOS, which is included, or to the token with which one of the texts `stop` is there.

    Greedy, the first n are those of a completion of n tokens. At a `temperature` above 0 they are drawn, by torch's generator.
    """
    options: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
    options |= {"stop_strings": list(stop)} if stop else {}
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    rooms = [room_behind(model, tokenizer, row) for row in rows]  # of all, before any is completed
    # A batch has one length: where the context ends before `max_new_tokens`, rows of as much room share one, and none is cut at another's.
    alike = [list(group) for _, group in groupby(by_length, key=lambda index: min(max_new_tokens, rooms[index]))]
    batches = [group[start : start + batch_size] for group in alike for start in range(0, len(group), batch_size)]
    completions: list[list[int]] = [[] for _ in rows]
    with tqdm(total=len(rows), desc="Generating", unit="prompt", disable=None if progress else True) as bar:
        for batch in batches:
            inputs = pad_left(tokenizer, [rows[index] for index in batch], model.device)
            width = inputs["input_ids"].shape[1]
            output = generate_as_told(model, tokenizer, inputs, max_new_tokens=min(max_new_tokens, rooms[batch[0]]), **options)
            for index, ids in zip(batch, output[:, width:].tolist(), strict=True):
                completions[index] = _without_padding(ids, tokenizer)
            bar.update(len(batch))
    return completions
