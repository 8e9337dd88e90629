"""What a mixture's gates choose: shares of experts by layer, teacher-forced.

Shapes: T tokens, K experts per token, E experts, L layers, C classes of token.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.routers import MoERouter
from moe_kernels.routing import Routing

from .data.prompts import IGNORED, Example, collate

CONFUSED = ("java", "javascript")  # the languages that the study's gate confused


def own_expert(names: list[str], lang: str) -> int | None:
    """The expert whose name is `lang`, or else has it as a word ("expert-cpp", then "expert_cpp", then "cpp17"); None if there is none.

    "c" is not a word of "objective_c" where there is "expert-c": "_" and digits may be part of a language's name.
    """
    if lang in names:
        return names.index(lang)
    for letters in ("a-z0-9_", "a-z0-9", "a-z"):
        word = re.compile(rf"(?<![{letters}]){re.escape(lang)}(?![{letters}])")
        for index, name in enumerate(names):
            if word.search(name.lower()):
                return index
    return None


def take_labels(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The labels [B, S] of a batch, which loses them but for the router `sequence`: it tells the prompt by them."""
    return batch["labels"] if getattr(model.config, "router_type", None) == "sequence" else batch.pop("labels")


@torch.inference_mode()
def route_examples(model: nn.Module, examples: list[Example]) -> tuple[Tensor, list[Routing]]:
    """One forward over a batch, noise off: which tokens are completions' [T], row after row, and each layer's routing of all T tokens."""
    device = next(model.parameters()).device
    model.eval()
    batch = collate(examples, pad_token_id=0)
    labels_BS = take_labels(model, batch)
    model(**{name: tensor.to(device) for name, tensor in batch.items()}, use_cache=False)
    routers = [module for name, module in model.named_modules() if isinstance(module, MoERouter) and name.endswith(".mlp.gate")]
    routings = [router.last_routing for router in routers]
    return (labels_BS.flatten() != IGNORED).to(device), [routing for routing in routings if routing is not None]


def measure_routing(
    model: nn.Module,
    examples: list[Example],
    own: int | None,
    batch_size: int,
    progress: bool = True,
    classes: list[list[int]] | None = None,
    num_classes: int = 0,
) -> dict[str, Any]:
    """Arrays over layers of what the completions' tokens chose, noise off; `own` is the index of the language's own expert.

    `top1`, `load` [L][E]: shares of tokens (first choice) and of all K choices; `weight` [L][E]: mean gate weight; `entropy_bits` [L]: of a
    token's gate weights; `topk` [L][E]: shares of tokens any of whose K choices it is; `own_top1`, `own_topk` [L]: shares of tokens whose
    first choice, or any of whose K choices, is `own`. `dropped`: how many of the T·K·L choices went to no expert. With `classes`, an index
    below `num_classes` (C) for each token of each completion, also `by_class` [L][C][E]: the share of all tokens that are of class c and
    have expert e as first choice.
    """
    totals: dict[str, Any] = {}
    tokens = 0
    for start in tqdm(range(0, len(examples), batch_size), desc="routing", unit="batch", disable=not progress):
        counted_T, routings = route_examples(model, examples[start : start + batch_size])
        tokens += int(counted_T.sum())
        flat = [index for row in (classes or [])[start : start + batch_size] for index in row]
        for name, value in _sums(routings, counted_T, flat, num_classes).items():
            totals[name] = totals.get(name, 0) + value
    dropped = int(totals.pop("dropped").sum())
    shares = {name: value / tokens for name, value in totals.items()}
    chosen = shares.pop("chosen")
    return {
        "tokens": tokens,
        **{name: value.tolist() for name, value in shares.items()},
        "topk": chosen.tolist(),
        "load": (chosen / chosen.sum(-1, keepdim=True)).tolist(),
        "dropped": dropped,
        "own_top1": None if own is None else shares["top1"][:, own].tolist(),
        "own_topk": None if own is None else chosen[:, own].tolist(),
    }


def _sums(routings: list[Routing], counted_T: Tensor, classes: list[int] | None = None, num_classes: int = 0) -> dict[str, Tensor]:
    """Sums over counted tokens, fp64: `top1`, `chosen`, `weight` [L, E], `entropy_bits`, `dropped` [L], `by_class` [L, C, E]."""
    layers: dict[str, list[Tensor]] = {"top1": [], "chosen": [], "weight": [], "entropy_bits": [], "dropped": []}
    if num_classes:
        layers["by_class"] = []
    for routing in routings:
        experts_TK, weights_TK = routing.experts_TK[counted_T], routing.weights_TK[counted_T].double()
        zeros_TE = torch.zeros(len(experts_TK), routing.logits_TE.shape[1], dtype=torch.float64, device=weights_TK.device)
        first_T1 = experts_TK.gather(1, weights_TK.argmax(1, keepdim=True))
        first_TE = zeros_TE.scatter(1, first_T1, 1.0)
        layers["top1"].append(first_TE.sum(0))
        if num_classes:
            classes_T = torch.tensor(classes, device=weights_TK.device)
            layers["by_class"].append(first_TE.new_zeros(num_classes, first_TE.shape[1]).index_add(0, classes_T, first_TE))
        layers["chosen"].append(zeros_TE.scatter(1, experts_TK, 1.0).sum(0))
        layers["dropped"].append(experts_TK.numel() - layers["chosen"][-1].sum())
        layers["weight"].append(zeros_TE.scatter(1, experts_TK, weights_TK).sum(0))
        layers["entropy_bits"].append(torch.special.entr(weights_TK).sum() / torch.log(torch.tensor(2.0)))
    return {name: torch.stack(values).cpu() for name, values in layers.items()}


def means(value: Any) -> Any:
    """Mean over layers of an array [L] or [L][E]; anything else as it is."""
    if not isinstance(value, list):
        return value
    return torch.tensor(value, dtype=torch.float64).mean(0).tolist()


def measure_languages(
    model: nn.Module, rows: dict[str, list[Example]], names: list[str], batch_size: int, progress: bool = True
) -> dict[str, Any]:
    """`measure_routing` of each language's rows; `names` are those of the experts."""
    return {lang: measure_routing(model, of_lang, own_expert(names, lang), batch_size, progress) for lang, of_lang in rows.items()}


def overall(routing: dict[str, Any], key: str) -> Any:
    """The mean over layers and the tokens of all languages that have the figure; None if none has."""
    known = [row for row in routing.values() if row[key] is not None]
    if not known:
        return None
    tokens = torch.tensor([row["tokens"] for row in known], dtype=torch.float64)
    per_language = torch.stack([torch.as_tensor(means(row[key]), dtype=torch.float64) for row in known])
    return (tokens @ per_language / tokens.sum()).tolist()


def scalars(routing: dict[str, Any], names: list[str]) -> dict[str, float]:
    """Means over layers by name, for a log: accuracy, entropy and load of each language, and the choices that were dropped."""
    figures: dict[str, float] = {"dropped": sum(row["dropped"] for row in routing.values())}
    for lang, row in routing.items():
        figures |= {f"{lang}_{key}": means(row[key]) for key in ("own_top1", "own_topk", "entropy_bits") if row[key] is not None}
        figures |= {f"{lang}_load_{name}": share for name, share in zip(names, means(row["load"]), strict=True)}
    return figures


def format_line(routing: dict[str, Any]) -> str:
    """One line: the share of tokens whose own expert is their first choice or among the K, loads, entropy, dropped choices."""
    in_k = ", ".join(f"{lang} {_percent(means(row['own_topk']))}" for lang, row in routing.items())
    load = overall(routing, "load")
    return (
        f"own expert first {_percent(overall(routing, 'own_top1'))}, in K {_percent(overall(routing, 'own_topk'))} ({in_k}); "
        f"load {_percent(min(load))} to {_percent(max(load))}; entropy {overall(routing, 'entropy_bits'):.2f} bit; "
        f"dropped {sum(row['dropped'] for row in routing.values())}"
    )


def format_choices(before: dict[str, Any], after: dict[str, Any]) -> str:
    """A table of means over layers: the share of tokens whose first choice, or any of whose K choices, is the language's own expert."""

    def line(name: str, *shares: float | None) -> str:
        cells = [f"{_percent(share):>9}" for share in shares]
        return f"{name:<12}{''.join(cells[:2])}   {''.join(cells[2:])}"

    keys = ("own_top1", "own_topk")
    lines = [f"{'own expert':<12}{'before':>18}   {'after':>18}", f"{'':<12}{'first':>9}{'in K':>9}   {'first':>9}{'in K':>9}"]
    lines += [line(lang, *(means(routing[lang][key]) for routing in (before, after) for key in keys)) for lang in after]
    return "\n".join([*lines, line("all tokens", *(overall(routing, key) for routing in (before, after) for key in keys))])


def format_confusion(routing: dict[str, Any], names: list[str], pair: tuple[str, str] = CONFUSED) -> str:
    """A table of the tokens of two languages: shares whose first choice, or any of whose K choices, is either's expert; "" without both."""
    experts = [own_expert(names, lang) for lang in pair]
    if None in experts or not set(pair) <= routing.keys():
        return ""
    columns = "".join(f"{lang:>12}" for lang in pair)
    lines = [f"{'tokens of':<12}{'first choice':>24}   {'in K':>24}", f"{'':<12}{columns}   {columns}"]
    for lang in pair:
        shares = [means(routing[lang][key])[expert] for key in ("top1", "topk") for expert in experts]
        cells = [f"{_percent(share):>12}" for share in shares]
        lines.append(f"{lang:<12}{''.join(cells[:2])}   {''.join(cells[2:])}")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
