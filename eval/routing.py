"""`python -m eval.routing`: which experts a mixture's tokens go to, by layer and language.

The reference programs are fed to the model (teacher forcing, no noise) and the tokens of the program, EOS included, are counted; prompt
tokens are not. RUN holds `routing.json` (arrays by layer), `run.json` (means over layers), and of a few programs that the model writes
itself `programs.html` (each token in the colour of its expert) and `programs.json`. docs/report.md says what the figures are.
L layers, T tokens, C classes of token, E experts, K = top-k.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from typing import Any

from model.cli import add_precision, make_parser, run_command
from model.cost import precision_facts
from model.languages import LANGUAGES
from model.load import load_model
from model.output import output_folder, write_json, write_run
from model.prompt import prompt_template
from model.routers import MoERouter
from train.data.pairs import Pair
from train.data.prompts import encode_pair
from train.routing import format_confusion, means, measure_routing, overall, own_expert

from .codebleu import check_flags
from .figures import ALL
from .points import add_point_flags, load_points
from .routing_page import programs_page
from .routing_view import view
from .runs import ARRAYS, PROGRAMS, ROUTING
from .specialisation import by_layer, class_table, language_joint
from .token_classes import CLASSES, token_classes


def main(args: Namespace) -> None:
    check_flags(args, "limit", "batch_size", "max_new_tokens")
    if args.view < 0:
        raise ValueError(f"--view must be at least 0, not {args.view}")
    points, sources = load_points(args)
    with output_folder(args.out) as folder:
        model, tokenizer = load_model(args.model, device=args.device, precision=args.precision)
        names = expert_names(model, args)
        languages = {lang: measure(model, tokenizer, lang, kinds, names, args.batch_size) for lang, kinds in points.items()}
        nmi = {"nmi_language": by_layer(language_joint(languages))}
        figures = {lang: {key: means(value) for key, value in row.items()} for lang, row in languages.items()}
        figures[ALL] = {
            "tokens": sum(row["tokens"] for row in languages.values()),
            **{key: overall(languages, key) for key in ("own_top1", "own_topk", "entropy_bits", "load")},
            "nmi_language": means(nmi["nmi_language"]),
        }
        facts = {"program": ROUTING, "experts": names, "top_k": model.config.num_experts_per_tok, "data": sources, **precision_facts(model)}
        facts |= {key: getattr(args, key) for key in ("model", "split", "limit", "precision", "view", "max_new_tokens")}
        facts["prompt_template"] = prompt_template(tokenizer)
        write_json(folder / ARRAYS, {"experts": names, "classes": CLASSES, "languages": languages, **nmi})
        if args.view:
            programs = view(model, tokenizer, points, args.view, args.max_new_tokens)
            shown = {"model": args.model, "experts": names, "max_new_tokens": args.max_new_tokens, "programs": programs}
            write_json(folder / PROGRAMS, shown)
            (folder / "programs.html").write_text(programs_page(shown), encoding="utf-8")
        write_run(folder, seed=args.seed, figures=figures, **facts)
    for text in (table(figures, names), format_confusion(languages, names), class_table(languages, owns(names, languages))):
        print(text, end="\n\n" if text else "")
    print(f"written to {args.out}")


def measure(model: Any, tokenizer: Any, lang: str, kinds: dict[str, list[Pair]], names: list[str], batch_size: int) -> dict[str, Any]:
    """`measure_routing` of one language's reference programs with the classes of their tokens, and `nmi_class` [L]."""
    points = [point for group in kinds.values() for point in group]
    classes = [token_classes(point.code, lang, tokenizer) for point in points]
    examples = [encode_pair(point, tokenizer) for point in points]
    row = measure_routing(model, examples, own_expert(names, lang), batch_size, classes=classes, num_classes=len(CLASSES))
    return {"n": len(points), **row, "nmi_class": by_layer(row["by_class"])}


def owns(names: list[str], langs: Iterable[str]) -> dict[str, int | None]:
    """The index of each language's own expert."""
    return {lang: own_expert(names, lang) for lang in langs}


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
    for lang in [lang for lang in figures if lang != ALL]:
        row = figures[lang]
        own = ["-" if row[key] is None else f"{100 * row[key]:.1f}" for key in ("own_top1", "own_topk")]
        shares = "".join(f"{100 * share:>{width}.1f}" for share in row["top1"])
        lines.append(f"{LANGUAGES[lang].title:<16}{shares}{own[0]:>12}{own[1]:>12}{row['entropy_bits']:>14.2f}")
    if (nmi := figures[ALL]["nmi_language"]) is not None:
        lines.append(f"normalised mutual information of language and first choice: {nmi:.3f} (0: the choice says nothing; 1: everything)")
    return "\n".join(lines)


def parse() -> ArgumentParser:
    parser = make_parser(ROUTING, __doc__ or "")
    parser.add_argument("--model", required=True, help="a mixture's folder")
    parser.add_argument("--view", type=int, default=2, help="programs of each language to generate and show token by token; 0: none")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="tokens of such a program")
    parser.add_argument("--experts", help="what the experts are, in order, comma-separated (default: as the mixture says)")
    add_point_flags(parser)
    add_precision(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, parse()))
