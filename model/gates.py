"""Gate vectors from prompts, as mergekit-moe makes them (its gate modes `hidden`, `cheap_embed`, `random`, `uniform_random`).

Shapes: L layers, E experts, D model width, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .layerwise import last_token_states

GATE_MODES = ("hidden", "cheap_embed", "random", "uniform_random")
PROMPT_MODES = ("hidden", "cheap_embed")
DEGENERATE = 5.0  # mergekit's limit on the condition number of a layer's gate
_EPSILON = 1e-8


@dataclass(frozen=True)
class Prompts:
    """What should and what should not lead to an expert."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


def hidden_gates(base: Path, tokenizer: PreTrainedTokenizerBase, experts: list[Prompts]) -> Tensor:
    """Gates [L, E, D] from the residual stream at each layer's input, at the last token of each prompt; bf16 as mergekit's.

    Mean over the positive prompts, minus the mean over the negative ones, scaled to length 1.
    """
    sets = list(dict.fromkeys(prompts for expert in experts for prompts in (expert.positive, expert.negative) if prompts))
    states = last_token_states(base, [_tokenize(tokenizer, prompts) for prompts in sets])
    means = {prompts: state_LBD.sum(dim=1) / state_LBD.shape[1] for prompts, state_LBD in zip(sets, states, strict=True)}
    return _stack_experts(experts, means.__getitem__)


def embedding_gates(embed_VD: Tensor, num_layers: int, tokenizer: PreTrainedTokenizerBase, experts: list[Prompts]) -> Tensor:
    """Gates [L, E, D] from the sum of the prompts' token embeddings (fp32), the same in every layer."""

    def direction(prompts: tuple[str, ...]) -> Tensor:
        tokens = _tokenize(tokenizer, prompts)
        summed_D = (embed_VD[tokens["input_ids"]].float() * tokens["attention_mask"][..., None]).sum(dim=(0, 1))
        return _unit(summed_D).expand(num_layers, -1)

    return _stack_experts(experts, direction)


def random_gates(mode: str, num_layers: int, num_experts: int, width: int, seed: int) -> Tensor:
    """Gates [L, E, D]: `random` from N(0, 1), `uniform_random` from U(-1/sqrt(D), 1/sqrt(D))."""
    generator = torch.Generator().manual_seed(seed)
    if mode == "random":
        return torch.randn(num_layers, num_experts, width, generator=generator)
    bound = math.sqrt(1 / width)
    return torch.rand(num_layers, num_experts, width, generator=generator) * 2 * bound - bound


def condition_numbers(gates_LED: Tensor) -> list[float]:
    """The ratio of the largest to the smallest singular value of each layer's gate: large where experts are hard to tell apart."""
    return torch.linalg.cond(gates_LED.float()).tolist()


def _tokenize(tokenizer: PreTrainedTokenizerBase, prompts: tuple[str, ...]) -> Any:
    """BOS and prompt, padded on the left with BOS (EOS if there is none)."""
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.bos_token or tokenizer.eos_token
    texts = [(tokenizer.bos_token or "") + prompt for prompt in prompts]
    return tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False)


def _stack_experts(experts: list[Prompts], direction: Callable[[tuple[str, ...]], Tensor]) -> Tensor:
    rows = []
    for prompts in experts:
        row_LD = direction(prompts.positive)
        if prompts.negative:
            row_LD = row_LD - direction(prompts.negative)
        rows.append(_unit(row_LD))
    return torch.stack(rows, dim=1)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(p=2, dim=-1, keepdim=True).clamp(min=_EPSILON)
