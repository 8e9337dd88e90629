"""What a mixture's gates choose: shares of experts by layer, teacher-forced.

Shapes: T tokens, K experts per token, E experts, L layers.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.routers import MoERouter

from .data.prompts import IGNORED, Example, collate


def own_expert(names: list[str], lang: str) -> int | None:
    """The expert whose name is `lang`, or has it as a word ("expert-cpp"); None if there is none."""
    return next((index for index, name in enumerate(names) if lang in (name, *re.split(r"[^a-z]+", name.lower()))), None)


@torch.inference_mode()
def measure_routing(model: nn.Module, examples: list[Example], own: int | None, batch_size: int) -> dict[str, Any]:
    """Arrays over layers of what the completions' tokens chose, noise off; `own` is the index of the language's own expert.

    `top1`, `load` [L][E]: shares of tokens (first choice) and of all K choices; `weight` [L][E]: mean gate weight; `entropy_bits` [L]: of a
    token's gate weights; `own_top1`, `own_topk` [L]: shares of tokens whose first choice, or any of whose K choices, is `own`.
    """
    device = next(model.parameters()).device
    model.eval()
    routers = [module for name, module in model.named_modules() if isinstance(module, MoERouter) and name.endswith(".mlp.gate")]
    totals: dict[str, Any] = {}
    tokens = 0
    for start in tqdm(range(0, len(examples), batch_size), desc="routing", unit="batch"):
        batch = collate(examples[start : start + batch_size], pad_token_id=0)
        counted = batch.pop("labels").flatten() != IGNORED
        model(**{name: tensor.to(device) for name, tensor in batch.items()}, use_cache=False)
        tokens += int(counted.sum())
        for name, value in _sums(routers, counted.to(device)).items():
            totals[name] = totals.get(name, 0) + value
    shares = {name: value / tokens for name, value in totals.items()}
    chosen = shares.pop("chosen")
    return {
        "tokens": tokens,
        **{name: value.tolist() for name, value in shares.items()},
        "load": (chosen / chosen.sum(-1, keepdim=True)).tolist(),
        "own_top1": None if own is None else shares["top1"][:, own].tolist(),
        "own_topk": None if own is None else chosen[:, own].tolist(),
    }


def _sums(routers: list[MoERouter], counted_T: Tensor) -> dict[str, Tensor]:
    """Sums over the counted tokens of the last forward: `top1`, `chosen`, `weight` [L, E] and `entropy_bits` [L]; fp64 on the CPU."""
    layers: dict[str, list[Tensor]] = {"top1": [], "chosen": [], "weight": [], "entropy_bits": []}
    for router in routers:
        routing = router.last_routing
        assert routing is not None
        experts_TK, weights_TK = routing.experts_TK[counted_T], routing.weights_TK[counted_T].double()
        zeros_TE = torch.zeros(len(experts_TK), router.weight.shape[0], dtype=torch.float64, device=weights_TK.device)
        first_T1 = experts_TK.gather(1, weights_TK.argmax(1, keepdim=True))
        layers["top1"].append(zeros_TE.scatter(1, first_T1, 1.0).sum(0))
        layers["chosen"].append(zeros_TE.scatter(1, experts_TK, 1.0).sum(0))
        layers["weight"].append(zeros_TE.scatter(1, experts_TK, weights_TK).sum(0))
        layers["entropy_bits"].append(torch.special.entr(weights_TK).sum() / torch.log(torch.tensor(2.0)))
    return {name: torch.stack(values).cpu() for name, values in layers.items()}


def means(value: Any) -> Any:
    """Mean over layers of an array [L] or [L][E]; anything else as it is."""
    if not isinstance(value, list):
        return value
    return torch.tensor(value, dtype=torch.float64).mean(0).tolist()


def format_choices(before: dict[str, Any], after: dict[str, Any]) -> str:
    """A table of means over layers: the share of tokens whose first choice, or any of whose K choices, is the language's own expert."""

    def cells(row: dict[str, Any]) -> str:
        return "".join(f"{'-' if row[key] is None else format(means(row[key]), '.1%'):>9}" for key in ("own_top1", "own_topk"))

    lines = [f"{'own expert':<12}{'before':>18}   {'after':>18}", f"{'':<12}{'first':>9}{'in K':>9}   {'first':>9}{'in K':>9}"]
    return "\n".join([*lines, *(f"{lang:<12}{cells(before[lang])}   {cells(after[lang])}" for lang in after)])
