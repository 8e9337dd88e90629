"""`python -m eval.routing`: which experts a mixture's tokens go to, by layer and language.

The reference programs are fed to the model (teacher forcing, no noise) and the tokens of the program, EOS included, are counted; prompt
tokens are not. RUN holds `routing.json` (arrays by layer) and `run.json` (means over layers). L layers, T tokens, E experts, K = top-k.
"""

import re
import sys
from argparse import ArgumentParser, Namespace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from model.cli import make_parser, run_command
from model.languages import LANGUAGES
from model.load import load_model
from model.output import output_folder, write_json, write_run
from model.routers import MoERouter
from train.data.pairs import Pair
from train.data.prompts import IGNORED, collate, encode_pair

from .codebleu import add_point_flags, check_flags, load_points
from .runs import ARRAYS, ROUTING


def main(args: Namespace) -> None:
    check_flags(args, "limit", "batch_size")
    points, sources = load_points(args)
    model, tokenizer = load_model(args.model, device=args.device)
    names = expert_names(model, args)
    languages = {}
    for lang, kinds in points.items():
        rows = [point for group in kinds.values() for point in group]
        languages[lang] = {"n": len(rows), **measure(model, tokenizer, rows, own_expert(names, lang), args.batch_size)}
    figures = {lang: {key: means(value) for key, value in row.items()} for lang, row in languages.items()}
    facts = {
        "model": args.model,
        "split": args.split,
        "limit": args.limit,
        "data": sources,
        "experts": names,
        "top_k": model.config.num_experts_per_tok,
    }
    with output_folder(args.out) as folder:
        write_json(folder / ARRAYS, {"experts": names, "languages": languages})
        write_run(folder, seed=args.seed, figures=figures, program=ROUTING, **facts)
    print(table(figures, names))
    print(f"written to {args.out}")


def expert_names(model: Any, args: Namespace) -> list[str]:
    """What the experts are called: `--experts`, else what the mixture's configuration says; `ValueError` if `model` is no mixture."""
    if not any(isinstance(module, MoERouter) for module in model.modules()):
        raise ValueError(f"{args.model} is not a mixture: it has no router to look at")
    count = model.config.num_local_experts
    names = args.experts.split(",") if args.experts else model.config.expert_names
    if names is None:
        raise ValueError(f"{args.model} does not say what its {count} experts are; name them in order with --experts {','.join(LANGUAGES)}")
    if len(names) != count:
        raise ValueError(f"--experts names {len(names)} experts, but {args.model} has {count}")
    return list(names)


def own_expert(names: list[str], lang: str) -> int | None:
    """The expert that has `lang` as a word of its name ("expert-cpp"); None if there is none."""
    return next((index for index, name in enumerate(names) if lang in re.split(r"[^a-z]+", name.lower())), None)


@torch.inference_mode()
def measure(model: Any, tokenizer: Any, points: list[Pair], own: int | None, batch_size: int) -> dict[str, Any]:
    """Arrays over layers of what the programs' tokens chose; `own` is the index of the language's own expert.

    `top1`, `load` [L][E]: shares of tokens (first choice) and of all K choices; `weight` [L][E]: mean gate weight; `entropy_bits` [L]: of a
    token's gate weights; `own_top1`, `own_topk` [L]: shares of tokens whose first choice, or any of whose K choices, is `own`.
    """
    model.eval()
    routers = [module for module in model.modules() if isinstance(module, MoERouter)]
    totals: dict[str, Any] = {}
    tokens = 0
    examples = [encode_pair(point, tokenizer) for point in points]
    for start in tqdm(range(0, len(examples), batch_size), desc="routing", unit="batch"):
        batch = collate(examples[start : start + batch_size], pad_token_id=0)
        counted = batch.pop("labels").flatten() != IGNORED
        model(**{name: tensor.to(model.device) for name, tensor in batch.items()}, use_cache=False)
        tokens += int(counted.sum())
        for name, value in _sums(routers, counted.to(model.device)).items():
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


def table(figures: dict[str, dict[str, Any]], names: list[str]) -> str:
    """Mean over layers, in per cent: first choices by expert, the own expert's shares, and the entropy in bits."""
    width = max(10, *(len(name) + 2 for name in names))
    lines = [
        f"{'first choice, %':<16}"
        + "".join(f"{name:>{width}}" for name in names)
        + f"{'own top-1':>12}{'own top-k':>12}{'entropy, bit':>14}"
    ]
    for lang, row in figures.items():
        own = ["-" if row[key] is None else f"{100 * row[key]:.1f}" for key in ("own_top1", "own_topk")]
        shares = "".join(f"{100 * share:>{width}.1f}" for share in row["top1"])
        lines.append(f"{LANGUAGES[lang].title:<16}{shares}{own[0]:>12}{own[1]:>12}{row['entropy_bits']:>14.2f}")
    return "\n".join(lines)


def parse() -> ArgumentParser:
    parser = make_parser(ROUTING, __doc__ or "")
    parser.add_argument("--model", required=True, help="a mixture's folder")
    parser.add_argument("--experts", help="what the experts are, in order, comma-separated (default: as the mixture says)")
    add_point_flags(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, parse()))
