"""Programs that a mixture writes, and which experts each of their tokens went to: what `routing_page` shows.

L layers, T tokens of the program, K experts per token.
"""

from typing import Any

import torch

from model.generation import complete_ids, encode_prompts
from model.prompt import format_prompt
from train.data.pairs import Pair
from train.data.prompts import IGNORED
from train.routing import route_examples


def view(model: Any, tokenizer: Any, points: dict[str, dict[str, list[Pair]]], count: int, max_new_tokens: int) -> list[dict[str, Any]]:
    """Greedy completions of the first `count` points of each language, taken from its kinds in turn, with `choices` as in `trace`."""
    programs = []
    for lang, kinds in points.items():
        ranks = sorted((rank, kind) for kind, group in kinds.items() for rank in range(len(group)))
        chosen = [(kind, kinds[kind][rank]) for rank, kind in ranks[:count]]
        prompts = encode_prompts(tokenizer, [format_prompt(point.text, lang, tokenizer) for _, point in chosen])
        completions = complete_ids(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=count, progress=False)
        for (kind, point), prompt, ids in zip(chosen, prompts, completions, strict=True):
            program = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
            about = {"lang": lang, "id": point.id, "kind": kind, "text": point.text}
            programs.append({**about, "pieces": pieces(tokenizer, program), "choices": trace(model, prompt, program)})
    return programs


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text of each token; together they are the text of all. A character of several tokens stands with the last of them."""
    if not ids:
        return []
    texts = tokenizer.batch_decode([ids[:end] for end in range(1, len(ids) + 1)], skip_special_tokens=True)
    ends: list[int] = []
    for text in texts[:-1]:
        ends.append(max(len(text.rstrip("\ufffd")), ends[-1] if ends else 0))
    ends.append(len(texts[-1]))
    return [texts[-1][start:end] for start, end in zip([0, *ends], ends, strict=False)]


@torch.inference_mode()
def trace(model: Any, prompt: list[int], program: list[int]) -> list[list[list[int]]]:
    """[T][L] of [expert, per cent, expert, per cent, ...]: the K choices of each token of the program, the weightiest first.

    The program is fed to the model behind its prompt; what a token chose is read at its own place, as in `measure_routing`.
    """
    if not program:
        return []
    counted_T, routings = route_examples(model, [{"input_ids": prompt + program, "labels": [IGNORED] * len(prompt) + program}])
    layers = []
    for routing in routings:
        weights_TK, order_TK = routing.weights_TK[counted_T].sort(dim=1, descending=True, stable=True)
        experts_TK = routing.experts_TK[counted_T].gather(1, order_TK)
        layers.append(torch.stack([experts_TK, (100 * weights_TK).round().long()], dim=2).flatten(1))
    return torch.stack(layers, dim=1).tolist()
