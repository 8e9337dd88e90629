"""`python -m eval.codebleu`: completes the prompts of fixed test points with a model and scores the programs with CodeBLEU,
exact match, edit similarity, chrF and whether they parse or compile (docs/metrics.md). Or scores completions made elsewhere.

RUN holds `samples.jsonl` (one row a point) and `run.json` (figures by language and kind of point, data source, precision). Base, experts
and mixture see the same points, the same prompt and the same greedy decoding. On the embedded corpus "wording" (unseen wordings of seen
problem families) and "family" (unseen families) are drawn and reported apart.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from model.adapters import is_adapter
from model.cli import add_precision, make_parser, run_command
from model.cost import model_cost, precision_facts
from model.languages import get_language
from model.load import load_model, model_fingerprint, model_folder
from model.output import RUN, output_folder, refuse_existing, sha256_of, write_run
from model.prompt import prompt_template
from model.same_tokenizer import take_chat_template
from model.strict_json import read_json

from .answers import ORACLE, ROUTERS, Answers, ask, check_router
from .compiles import compile_all
from .completions import write_rows
from .cost import speed
from .measure import measure_completions, score_table
from .points import Points, add_point_flags, given_completions, load_points
from .runs import CODEBLEU, SAMPLES
from .sandbox import Sandbox, SandboxError
from .tasks.task import check_stop, unfenced
from .tools import tool_versions

SETTINGS = ("model", "adapter", "router", "split", "limit", "max_new_tokens", "batch_size", "precision", "stop", "prompt_of")


def main(args: Namespace) -> None:
    check_flags(args, "limit", "batch_size", "max_new_tokens", "jobs")
    check_stop(args.stop)
    sandbox = open_sandbox(args.unsafe_no_sandbox) if args.compile else None
    points, sources = load_points(args)
    with output_folder(args.out) as folder:
        if args.samples:
            completions = given_completions(args.samples, points)  # first of all: a hash of what is no file of rows may never end
            given = {"path": str(args.samples), "sha256": sha256_of(args.samples)}
            shown = write_scores(folder, args, points, completions, None, sandbox, samples=given, data=sources)
        else:
            model, tokenizer = load(args, points)
            answers = answer(model, tokenizer, points, args)
            completions = {lang: row.texts(tokenizer, args.max_new_tokens, args.stop) for lang, row in answers.items()}
            facts = model_facts(args, model, tokenizer)
            shown = write_scores(folder, args, points, completions, answers, sandbox, **facts, data=sources)
    print(f"{shown}\nwritten to {args.out}")


def load(args: Namespace, langs: Iterable[str]) -> tuple[Any, Any]:
    """The model and tokenizer that the flags name, to be asked in `langs`; ValueError for a router that it cannot have."""
    router = None if args.router == ORACLE else args.router
    model, tokenizer = load_model(args.model, adapter=args.adapter, device=args.device, precision=args.precision, router_type=router)
    if args.router:
        check_router(args.model, model.config.to_dict(), args.router, langs)
    if args.prompt_of:
        take_chat_template(tokenizer, [model_folder(args.prompt_of)])
    return model, tokenizer


def answer(model: Any, tokenizer: Any, points: Points, args: Namespace) -> dict[str, Answers]:
    """The model's answers to all points of each language."""
    answers = {}
    for lang, kinds in points.items():
        print(f"{get_language(lang).title}: " + ", ".join(f"{len(points)} points ({kind})" for kind, points in kinds.items()))
        chosen = [point for group in kinds.values() for point in group]
        settings = {"max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size, "router": args.router}
        answers[lang] = ask(model, tokenizer, lang, chosen, **settings)
    return answers


def write_scores(
    folder: Path,
    args: Namespace,
    points: Points,
    completions: dict[str, list[str]],
    answers: dict[str, Answers] | None = None,
    sandbox: Sandbox | None = None,
    **facts: Any,
) -> str:
    """Measures the completions of each language, in the order of its points, writes the run to `folder`, and returns its table.

    `answers`: of the model that made them, for the losses and the time, if it made them at this length.
    """
    programs = {lang: [unfenced(text, lang) for text in texts] for lang, texts in completions.items()}
    fenced = sum(program != text for lang, texts in completions.items() for program, text in zip(programs[lang], texts, strict=True))
    compiler = partial(compile_all, sandbox=sandbox, jobs=args.jobs) if sandbox else None
    figures: dict[str, dict[str, Any]] = {}
    samples: list[dict[str, Any]] = []
    for lang, kinds in points.items():
        own = answers[lang] if answers else None
        figures[lang], rows = measure_completions(lang, kinds, programs[lang], args.seed, compiler, own.losses if own else None)
        if own and own.length == args.max_new_tokens:
            figures[lang] = {kind: {**row, "generation_seconds_per_point": own.seconds} for kind, row in figures[lang].items()}
        samples += rows
    settings = {key: getattr(args, key) for key in SETTINGS}
    facts = {
        "program": CODEBLEU,
        "role": "base",
        "samples": None,
        "prompt_template": None,  # nobody knows how completions made elsewhere were asked for
        "fenced": fenced,
        **settings,
        "sandbox": sandbox.facts if sandbox else None,
        "tools": tool_versions(points) if sandbox else None,
        **facts,
    }
    if answers and all(own.length == args.max_new_tokens for own in answers.values()):
        seconds = sum(own.seconds * len(own.ids) for own in answers.values())
        facts["cost"] = {**facts["cost"], **speed(sum(own.tokens for own in answers.values()), seconds, args.batch_size)}
    name = args.name or facts["role"]
    write_rows(folder / SAMPLES, samples)
    write_run(folder, seed=args.seed, figures=figures, name=name, **facts)
    if uncompiled := sum(row.get("uncompiled", 0) for kinds in figures.values() for row in kinds.values()):
        print(f"{uncompiled} programs could not be given to a compiler and leave the rate: see docs/metrics.md", file=sys.stderr)
    return score_table(figures, name)


def model_facts(args: Namespace, model: Any, tokenizer: Any) -> dict[str, Any]:
    """What `run.json` says of the model that answered."""
    facts = {
        "role": role_of(model, args),
        "adapter_lang": adapter_lang(args),
        "prompt_template": prompt_template(tokenizer),
        **precision_facts(model),
        "cost": model_cost(model),
    }
    return {**facts, "fingerprint": model_fingerprint(args.model, args.adapter)}


def adapter_lang(args: Namespace) -> str | None:
    """The language that the adapter was trained on, by its own `run.json`; None if there is no adapter, or it does not say."""
    folder = model_folder(args.adapter or args.model)
    said = read_json(folder / RUN).get("lang") if is_adapter(folder) and (folder / RUN).is_file() else None
    return None if said is None else str(said)


def open_sandbox(unsafe: bool) -> Sandbox:
    """The sandbox that compilers run in; ValueError if it does not hold."""
    try:
        return Sandbox.open(unsafe=unsafe)
    except SandboxError as error:
        raise ValueError(f"{error}. --unsafe-no-sandbox compiles programs unprotected") from error


def check_flags(args: Namespace, *counts: str) -> None:
    """Before anything is loaded: the output must not exist, and the flags named in `counts` must be positive."""
    refuse_existing(args.out)
    for name in counts:
        if (value := getattr(args, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


def role_of(model: Any, args: Namespace) -> str:
    """What the loaded model is: a mixture has experts, an expert is a base with an adapter, anything else is a base."""
    if getattr(model.config, "num_local_experts", 0):
        return "mixture"
    return "expert" if args.adapter or is_adapter(model_folder(args.model)) else "base"


def parse() -> ArgumentParser:
    parser = make_parser(CODEBLEU, __doc__ or "")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a causal language model (folder or hub name), an adapter's folder, or a mixture's folder")
    source.add_argument("--samples", type=Path, help="JSONL of completions made elsewhere: id (of the point) and completion")
    parser.add_argument("--adapter", help="a PEFT adapter's folder to put on --model")
    parser.add_argument("--router", choices=ROUTERS, help="of a mixture, in place of its own; oracle: each language's own expert alone")
    parser.add_argument(
        "--prompt-of", metavar="DIR", help="ask in the prompt of this adapter (to compare a base with experts of a chat template)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=650, help="tokens of a completion; with --samples, what they were made with")
    parser.add_argument(
        "--stop", nargs="+", default=[], help="a completion ends before the first of these: for a model without an EOS of its own"
    )
    parser.add_argument("--name", help="label in reports (default: what the model is: base, expert or mixture)")
    parser.add_argument(
        "--compile", action="store_true", help="the share of programs that compile, in the sandbox (about 1 s each in Java and C++)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="programs compiled at once")
    parser.add_argument(
        "--unsafe-no-sandbox", action="store_true", help="compile with this user's rights, unprotected; recorded in run.json"
    )
    add_point_flags(parser)
    add_precision(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, parse()))
