"""How the vectors of a gate are made: mergekit-moe's `hidden`, `cheap_embed`, `random`, `uniform_random`, and `router_input` and `data`.

Shapes: L layers, E experts, D model width, V vocabulary, T tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

GATE_MODES = ("hidden", "cheap_embed", "random", "uniform_random", "router_input", "data")
PROMPT_MODES = ("hidden", "cheap_embed", "router_input")
GATE_ROWS = 32  # of each expert, where the recipe does not say
DEGENERATE = 5.0  # mergekit's limit on the condition number of a layer's gate
RIDGE = 0.01  # of the inputs' mean square
_EPSILON = 1e-8
_CHUNK_T = 4096  # tokens that are in fp64 at a time


@dataclass(frozen=True)
class Prompts:
    """What should and what should not lead to an expert."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


def prompt_gate(experts: list[Prompts], direction: Callable[[tuple[str, ...]], Tensor]) -> Tensor:
    """A gate [E, D]: each expert's direction [D] of its positive prompts, minus that of its negative ones, scaled to length 1."""
    rows = []
    for prompts in experts:
        row_D = direction(prompts.positive)
        if prompts.negative:
            row_D = row_D - direction(prompts.negative)
        rows.append(_unit(row_D))
    return torch.stack(rows)


def embedding_gate(embed_VD: Tensor, tokenizer: PreTrainedTokenizerBase, experts: list[Prompts]) -> Tensor:
    """A gate [E, D] from the sum of the prompts' token embeddings (fp32), for every layer."""

    def direction(prompts: tuple[str, ...]) -> Tensor:
        tokens = tokenize(tokenizer, prompts)
        return _unit((embed_VD[tokens["input_ids"]].float() * tokens["attention_mask"][..., None]).sum(dim=(0, 1)))

    return prompt_gate(experts, direction)


def random_gates(mode: str, num_layers: int, num_experts: int, width: int, seed: int) -> Tensor:
    """Gates [L, E, D]: `random` from N(0, 1), `uniform_random` from U(-1/sqrt(D), 1/sqrt(D))."""
    generator = torch.Generator().manual_seed(seed)
    if mode == "random":
        return torch.randn(num_layers, num_experts, width, generator=generator)
    bound = math.sqrt(1 / width)
    return torch.rand(num_layers, num_experts, width, generator=generator) * 2 * bound - bound


def discriminant_gate(fitted: list[Tensor], held: list[Tensor]) -> Tensor:
    """A gate [E, D] that tells the experts' tokens apart: the ridge regression of `fitted` [T, D] of each expert on whose they are.

    All experts weigh the same. The regression has no intercept, as the gate has none. Its outputs are near 1/E and 1; they are scaled so
    that the softmax over them has the least cross entropy on `held` [T, D] of each expert, which keeps the mixture's weights honest.
    """
    means_ED = torch.stack([inputs_TD.double().mean(dim=0) for inputs_TD in fitted])
    moment_DD = sum(_moment(inputs_TD) / len(fitted) for inputs_TD in fitted)
    assert isinstance(moment_DD, Tensor)
    moment_DD.diagonal().add_(RIDGE * moment_DD.diagonal().mean())
    gate_ED = torch.cholesky_solve(means_ED.T, torch.linalg.cholesky(moment_DD)).T
    return (gate_ED * _best_scale([inputs_TD.double() @ gate_ED.T for inputs_TD in held])).float()


def _moment(inputs_TD: Tensor) -> Tensor:
    """The mean over tokens of x xᵀ [D, D] in fp64."""
    total = torch.zeros(inputs_TD.shape[1], inputs_TD.shape[1], dtype=torch.float64)
    for chunk in inputs_TD.split(_CHUNK_T):
        total.addmm_(chunk.double().T, chunk.double())
    return total / len(inputs_TD)


def _best_scale(logits_TE: list[Tensor]) -> float:
    """The factor of logits, to an eighth of an octave, at which expert e's own tokens `logits_TE[e]` have the least cross entropy."""

    def loss(scale: float) -> float:
        losses = [cross_entropy(scale * own_TE, torch.full((len(own_TE),), e)) for e, own_TE in enumerate(logits_TE)]
        return float(torch.stack(losses).mean())

    return min((2 ** (step / 8) for step in range(-64, 97)), key=loss)  # 1/256 to 4096


def first_choices(gate_ED: Tensor, inputs_TD: list[Tensor]) -> Tensor:
    """For each list of tokens, the shares [E] of those for which each expert comes first; stacked."""
    experts = len(gate_ED)
    firsts = [(own_TD.float() @ gate_ED.float().T).argmax(dim=1) for own_TD in inputs_TD]
    return torch.stack([torch.bincount(first_T, minlength=experts) / len(first_T) for first_T in firsts])


def cosines(gates_LED: Tensor) -> Tensor:
    """The cosine [L, E, E] between each two experts' rows of each layer."""
    rows = _unit(gates_LED.float())
    return rows @ rows.mT


def condition_numbers(gates_LED: Tensor) -> list[float]:
    """The ratio of the largest to the smallest singular value of each layer's gate: large where experts are hard to tell apart."""
    return torch.linalg.cond(gates_LED.float()).tolist()


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...], max_length: int | None = None) -> Any:
    """BOS and text, cut at `max_length` tokens, padded on the left with BOS (EOS if there is none)."""
    tokenizer.padding_side, tokenizer.truncation_side = "left", "right"
    tokenizer.pad_token = tokenizer.bos_token or tokenizer.eos_token
    texts = tuple((tokenizer.bos_token or "") + text for text in texts)
    options: dict[str, Any] = {"truncation": True, "max_length": max_length} if max_length else {}
    return tokenizer(list(texts), return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False, **options)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(p=2, dim=-1, keepdim=True).clamp(min=_EPSILON)
