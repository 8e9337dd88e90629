"""From a recipe to its gates, a layer at a time: the texts that a gate mode needs, what the layers see of them, and the rows made of it.

Whose hidden states? Prompts pass through the base, as in mergekit: a negative prompt belongs to no expert. The rows of `data` each pass
through their own expert, for that is where a gate that routes them well will have sent them in the layers before.

Shapes: L layers, E experts, D model width, N texts.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .gate_data import find_gate_data, read_gate_data
from .gates import PROMPT_MODES, Prompts, discriminant_gate, embedding_gate, first_choices, prompt_gate, random_gates, tokenize
from .ingredients import Ingredients
from .layerwise import Seen, Texts, walk_layers
from .tokenizer import read_tokenizer

ROW_TOKENS = 256  # of a row that are read: a gate needs no whole programs, and their states are kept from layer to layer
_BATCH = 8
_LayerGate = Callable[[int, str, Mapping[Any, Seen]], Tensor]  # layer, block and what the layer sees, to a gate [E, D]


class OwnTexts(NamedTuple):
    """Texts that should (or, if negative, should not) go to an expert; `key`: of what the layers see of them."""

    key: Hashable
    expert: int
    kind: Literal["positive", "negative", "row"]
    texts: Sequence[str]


class SentText(NamedTuple):
    """A text and, in each layer, the share of its tokens that goes to each expert first."""

    text: str
    expert: int
    kind: str
    first_choices_LE: Tensor


class Gates(NamedTuple):
    """The gates [L, E, D] of each block that has one (`mlp`; `self_attn` where experts have attention), and what that of the FFN does.

    `first_choices_LEE[l, e, f]`: of the tokens of expert e's texts, but for the negative, the share that goes to expert f first; None
    where it has no texts.
    """

    blocks: dict[str, Tensor]
    first_choices_LEE: Tensor | None
    texts: list[SentText]


def make_gates(given: Ingredients, seed: int) -> Gates:
    """The gates of the recipe's mode."""
    mode = given.recipe.gate_mode
    tokenizer = read_tokenizer(given.base)  # its own, as gates change how it pads
    if mode == "data":
        return _data_gates(given, tokenizer)
    prompts = [expert.prompts for expert in given.recipe.experts]
    if mode in PROMPT_MODES:
        return _prompt_gates(given, tokenizer, prompts)
    gates_LED = random_gates(mode, given.config.num_hidden_layers, len(prompts), given.config.hidden_size, seed)
    if not all(own.positive for own in prompts):
        return Gates({block: gates_LED.clone() for block in _blocks(given)}, None, [])  # safetensors refuses one tensor by two names
    return _walk(given, _prompt_texts(given, tokenizer, prompts), _own_prompts(prompts), lambda layer, block, seen: gates_LED[layer])


def _prompt_gates(given: Ingredients, tokenizer: Any, experts: list[Prompts]) -> Gates:
    mode = given.recipe.gate_mode
    if mode == "cheap_embed":
        embedded_ED = embedding_gate(given.base_weights.tensor("model.embed_tokens.weight"), tokenizer, experts)

    def make(layer: int, block: str, seen: Mapping[Any, Seen]) -> Tensor:
        if mode == "cheap_embed":
            return embedded_ED
        if mode == "hidden":
            return prompt_gate(experts, lambda prompts: seen[prompts].last_BD.sum(dim=0) / len(prompts))
        return prompt_gate(experts, lambda prompts: seen[prompts].inputs_TD[block].float().mean(dim=0))

    return _walk(given, _prompt_texts(given, tokenizer, experts), _own_prompts(experts), make)


def _data_gates(given: Ingredients, tokenizer: Any) -> Gates:
    recipe = given.recipe
    file = find_gate_data(str(recipe.gate_data), given.folder)
    texts, held_back, experts = {}, [], range(len(recipe.experts))
    for expert, rows in enumerate(read_gate_data(file, [str(expert.lang) for expert in recipe.experts], recipe.gate_rows)):
        for part, own in rows._asdict().items():
            batches = [tokenize(tokenizer, tuple(own[i : i + _BATCH]), ROW_TOKENS) for i in range(0, len(own), _BATCH)]
            texts[part, expert] = Texts(batches, given.sources[expert])
        held_back.append(OwnTexts(("held", expert), expert, "row", rows.held))

    def make(layer: int, block: str, seen: Mapping[Any, Seen]) -> Tensor:
        fitted, held = ([seen[part, expert].inputs_TD[block] for expert in experts] for part in ("fitted", "held"))
        return discriminant_gate(fitted, held)

    return _walk(given, texts, held_back, make)


def _prompt_texts(given: Ingredients, tokenizer: Any, experts: list[Prompts]) -> dict[tuple[str, ...], Texts]:
    """Each set of prompts as one batch, for mergekit's bits. ValueError for one that the context does not hold."""
    sets = dict.fromkeys(prompts for expert in experts for prompts in (expert.positive, expert.negative) if prompts)
    texts, context = {prompts: tokenize(tokenizer, prompts) for prompts in sets}, given.config.max_position_embeddings
    if (longest := max((tokens["input_ids"].shape[1] for tokens in texts.values()), default=0)) > context:
        raise ValueError(f"a prompt of an expert has {longest} tokens; the base has a context of {context}")
    return {prompts: Texts([tokens]) for prompts, tokens in texts.items()}


def _own_prompts(experts: list[Prompts]) -> list[OwnTexts]:
    positive = [OwnTexts(own.positive, expert, "positive", own.positive) for expert, own in enumerate(experts)]
    negative = [OwnTexts(own.negative, expert, "negative", own.negative) for expert, own in enumerate(experts) if own.negative]
    return positive + negative


def _blocks(given: Ingredients) -> tuple[str, ...]:
    return ("mlp", "self_attn") if given.config.attention_experts else ("mlp",)


def _walk(given: Ingredients, texts: Mapping[Any, Texts], judged: list[OwnTexts], make: _LayerGate) -> Gates:
    """Makes each layer's gates of what it sees of `texts`, and asks them where those of `judged` would go."""
    gates: dict[str, list[Tensor]] = {block: [] for block in _blocks(given)}
    lengths = {own.key: _lengths(texts[own.key]) for own in judged}
    choices = []
    for layer, seen in enumerate(walk_layers(given.base, texts, tuple(gates))):
        for block, rows in gates.items():
            rows.append(make(layer, block, seen))
        singles = [single_TD for own in judged for single_TD in seen[own.key].inputs_TD["mlp"].split(lengths[own.key])]
        choices.append(first_choices(gates["mlp"][-1], singles))
    choices_LNE = torch.stack(choices)
    sent: list[SentText] = []
    tokens_EN = torch.zeros(choices_LNE.shape[2], choices_LNE.shape[1])
    for own in judged:
        for text, length in zip(own.texts, lengths[own.key], strict=True):
            if own.kind != "negative":
                tokens_EN[own.expert, len(sent)] = length
            sent.append(SentText(text, own.expert, own.kind, choices_LNE[:, len(sent)]))
    weights_EN = tokens_EN / tokens_EN.sum(dim=1, keepdim=True)
    return Gates({block: torch.stack(rows) for block, rows in gates.items()}, weights_EN @ choices_LNE, sent)


def _lengths(texts: Texts) -> list[int]:
    """The number of tokens of each text."""
    return [length for batch in texts.batches for length in batch["attention_mask"].sum(dim=1).tolist()]
