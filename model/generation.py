"""Completions of prompts, many at a time."""

import sys
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

# B batch, S sequence


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[list[int]]:
    """Token ids as in training: BOS, if the tokenizer has one, and the prompt without other special tokens."""
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [bos + ids for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]


def pad_left(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` [B, S] of rows of different lengths."""
    longest = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = [[pad] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def context_of(model: Any) -> int:
    """How many positions the model has; those of ALiBi or a state have no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", sys.maxsize)


@torch.inference_mode()
def complete(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[str], *, max_new_tokens: int, batch_size: int, progress: bool = True
) -> list[str]:
    """The greedy completion of each prompt, without the prompt, up to EOS or `max_new_tokens` tokens (fewer where the context ends).

    Prompts of similar length share a batch, so that little of it is padding. ValueError for a prompt that fills the context.
    """
    rows = encode_prompts(tokenizer, prompts)
    context = context_of(model)
    for row, prompt in zip(rows, prompts, strict=True):
        if len(row) >= context:
            raise ValueError(f"a prompt of {len(row)} tokens leaves no room in a context of {context}: {prompt[:60]!r}...")
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    completions = [""] * len(rows)
    with tqdm(total=len(rows), desc="Generating", unit="prompt", disable=not progress) as bar:
        for start in range(0, len(rows), batch_size):
            batch = by_length[start : start + batch_size]
            inputs = pad_left(tokenizer, [rows[index] for index in batch], model.device)
            width = inputs["input_ids"].shape[1]
            output = model.generate(
                **inputs,
                max_new_tokens=min(max_new_tokens, context - width),
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
            texts = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
            for index, text in zip(batch, texts, strict=True):
                completions[index] = text
            bar.update(len(batch))
    return completions
