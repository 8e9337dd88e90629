"""What a model makes of points: greedy completions of their prompts, and the loss of their references.

The router `oracle` sends every token of a point to the expert of the point's language, as a gate without a mistake would.
Shapes: B batch, S sequence, T tokens, K experts per token, V vocabulary.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from model.configuration_moe import ROUTER_TYPES
from model.generation import complete_ids, context_of, decode_behind, encode_prompts, not_numbers
from model.prompt import format_prompt
from model.routers import MoERouter
from moe_kernels.routing import Routing
from train.data.pairs import Pair
from train.data.prompts import IGNORED, Example, collate, encode_pair
from train.routing import own_expert, take_labels

from .tasks.task import cut

ORACLE = "oracle"
ROUTERS = (*ROUTER_TYPES, ORACLE)


class Loss(NamedTuple):
    """Of one reference and its EOS after the prompt. `nats` is the sum over its `tokens`."""

    nats: float
    tokens: int


@dataclass(frozen=True)
class Answers:
    """In the order of the points: token ids of completions, losses of references. Completing took `seconds` per point at this `length`.

    `tokens` is how many were generated, each completion's EOS included and the padding behind it not.
    """

    ids: list[list[int]]
    losses: list[Loss]
    seconds: float
    length: int  # in tokens, at most
    tokens: int

    def texts(self, tokenizer: Any, length: int, stop: Sequence[str]) -> list[str]:
        """The completions of at most `length` tokens, each cut before its first stop sequence.

        Greedy decoding makes them the same whether they were generated at this length or at a greater one. A program is a text of its own,
        as in training: behind the prompt it would begin with the space that tokenizers such as Mistral's put before a text.
        """
        return [cut(decode_behind(tokenizer, ids[:length], ""), tuple(stop)) for ids in self.ids]


def ask(
    model: Any, tokenizer: Any, lang: str, points: Sequence[Pair], *, max_new_tokens: int, batch_size: int, router: str | None = None
) -> Answers:
    """The model's answers to the points of one language; with the router `oracle` by that language's expert alone."""
    prompts = encode_prompts(tokenizer, [format_prompt(point.text, lang, tokenizer) for point in points])
    with oracle_gate(model, lang) if router == ORACLE else nullcontext():
        started = time.perf_counter()
        ids = complete_ids(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
        seconds = (time.perf_counter() - started) / len(points)
        losses = reference_losses(model, [encode_pair(point, tokenizer) for point in points], batch_size)
    return Answers(ids, losses, seconds, max_new_tokens, sum(map(len, ids)))


@torch.inference_mode()
def reference_losses(model: Any, examples: Sequence[Example], batch_size: int) -> list[Loss]:
    """The loss of each example's labelled tokens, in order, in fp32; of what fits the model's context. ValueError if it is no number."""
    context = context_of(model)
    examples = [{name: ids[:context] for name, ids in example.items()} for example in examples]
    by_length = sorted(range(len(examples)), key=lambda index: len(examples[index]["input_ids"]), reverse=True)
    losses: list[Loss] = [Loss(0.0, 0)] * len(examples)
    for start in tqdm(range(0, len(examples), batch_size), desc="Loss", unit="batch", disable=None):
        chosen = by_length[start : start + batch_size]
        batch = {name: rows.to(model.device) for name, rows in collate([examples[index] for index in chosen], pad_token_id=0).items()}
        labels_BS = take_labels(model, batch)
        logits_BSV = model(**batch, use_cache=False).logits
        for index, logits_SV, labels_S in zip(chosen, logits_BSV, labels_BS, strict=True):
            counted_S = labels_S[1:] != IGNORED  # row by row: in fp32 the logits of a whole batch can be gigabytes
            nats = cross_entropy(logits_SV[:-1][counted_S].float(), labels_S[1:][counted_S], reduction="sum")
            losses[index] = Loss(float(nats), int(counted_S.sum()))
            if not math.isfinite(losses[index].nats):
                raise not_numbers(model)
    return losses


def check_router(name: str, settings: dict[str, Any], router: str, langs: Iterable[str]) -> None:
    """ValueError if the model called `name`, with these `settings` in its config.json, cannot have this router for `langs`."""
    experts = settings.get("num_local_experts", 0)
    if not experts:
        raise ValueError(f"{name} is no mixture: it has no router to be {router}")
    for lang in langs if router == ORACLE else ():
        _expert_of((settings.get("expert_names") or [])[:experts], lang)


def _expert_of(names: list[str], lang: str) -> int:
    expert = own_expert(names, lang)
    if expert is None:
        raise ValueError(f"the router {ORACLE} needs an expert called {lang}; the model's experts: {', '.join(names) or 'without names'}")
    return expert


@contextmanager
def oracle_gate(model: nn.Module, lang: str) -> Iterator[None]:
    """Within it every gate sends every token to the expert of `lang` alone, with weight 1; shared experts stay as they are.

    ValueError if the mixture has no expert of that name.
    """
    expert = _expert_of(getattr(model.config, "routed_names", None) or [], lang)

    def send(router: MoERouter, _: Any, output: tuple[Tensor, Routing]) -> tuple[Tensor, Routing]:
        logits_TE, routing = output
        routed = routing.experts_TK.shape[1] - router.num_shared
        experts_TK = torch.cat([torch.full_like(routing.experts_TK[:, :1], expert), routing.experts_TK[:, routed:]], dim=1)
        weights_TK = torch.cat([torch.ones_like(routing.weights_TK[:, :1]), routing.weights_TK[:, routed:]], dim=1)
        return logits_TE, replace(routing, experts_TK=experts_TK, weights_TK=weights_TK)

    hooks = [module.register_forward_hook(send) for module in model.modules() if isinstance(module, MoERouter)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
