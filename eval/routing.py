"""`python -m eval.routing`: which experts a mixture's tokens go to, by layer and language.

The reference programs are fed to the model (teacher forcing, no noise) and the tokens of the program, EOS included, are counted; prompt
tokens are not. RUN holds `routing.json` (arrays by layer) and `run.json` (means over layers). L layers, T tokens, E experts, K = top-k.
"""

import sys
from argparse import ArgumentParser, Namespace
from typing import Any

from model.cli import add_precision, make_parser, run_command
from model.languages import LANGUAGES
from model.load import load_model
from model.output import output_folder, write_json, write_run
from model.routers import MoERouter
from train.data.prompts import encode_pair
from train.routing import means, measure_routing, own_expert

from .codebleu import add_point_flags, check_flags, load_points, run_facts
from .runs import ARRAYS, ROUTING


def main(args: Namespace) -> None:
    check_flags(args, "limit", "batch_size")
    points, sources = load_points(args)
    model, tokenizer = load_model(args.model, device=args.device, precision=args.precision)
    names = expert_names(model, args)
    languages = {}
    for lang, kinds in points.items():
        examples = [encode_pair(point, tokenizer) for group in kinds.values() for point in group]
        languages[lang] = {"n": len(examples), **measure_routing(model, examples, own_expert(names, lang), args.batch_size)}
    figures = {lang: {key: means(value) for key, value in row.items()} for lang, row in languages.items()}
    facts = {"program": ROUTING, "experts": names, "top_k": model.config.num_experts_per_tok, **run_facts(args, model, sources)}
    with output_folder(args.out) as folder:
        write_json(folder / ARRAYS, {"experts": names, "languages": languages})
        write_run(folder, seed=args.seed, figures=figures, **facts)
    print(table(figures, names))
    print(f"written to {args.out}")


def expert_names(model: Any, args: Namespace) -> list[str]:
    """What the experts are called: `--experts`, else what the mixture's configuration says; `ValueError` if `model` is no mixture."""
    if not any(isinstance(module, MoERouter) for module in model.modules()):
        raise ValueError(f"{args.model} is not a mixture: it has no router to look at")
    count = model.config.num_local_experts
    names = args.experts.split(",") if args.experts else _routed_names(model.config)
    if names is None:
        raise ValueError(f"{args.model} does not say what its {count} experts are; name them in order with --experts {','.join(LANGUAGES)}")
    if len(names) != count:
        raise ValueError(f"--experts names {len(names)} experts, but {args.model} has {count}")
    return list(names)


def _routed_names(config: Any) -> list[str] | None:
    """Of our configuration; transformers' Mixtral has no names."""
    return getattr(config, "routed_names", None)


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
    add_precision(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, parse()))
