"""`python -m eval.codebleu`: completes the prompts of fixed test points with a model and scores the programs with CodeBLEU.

RUN holds `samples.jsonl` (one row a point) and `run.json` (figures by language and kind of point, data source, precision). Base, experts
and mixture see the same points, the same prompt and the same greedy decoding. On the embedded corpus "wording" (unseen wordings of seen
problem families) and "family" (unseen families) are drawn and reported apart.
"""

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from model.adapters import is_adapter
from model.cli import add_precision, make_parser, run_command
from model.generation import complete
from model.languages import LANGUAGES, get_language
from model.load import load_model, model_folder
from model.output import check_absent, output_folder, write_run
from model.prompt import format_prompt, prompt_template
from model.same_tokenizer import take_chat_template
from train.data import load_pairs
from train.data.pairs import Pair

from .points import pick_points
from .runs import CODEBLEU, SAMPLES
from .score import PARTS, score_set


def main(args: Namespace) -> None:
    check_flags(args, "limit", "batch_size", "max_new_tokens")
    points, sources = load_points(args)
    model, tokenizer = load_model(args.model, adapter=args.adapter, device=args.device, precision=args.precision)
    if args.prompt_of:
        take_chat_template(tokenizer, [model_folder(args.prompt_of)])
    role = role_of(model, args)
    figures: dict[str, dict[str, Any]] = {}
    samples: list[dict[str, Any]] = []
    for lang, kinds in points.items():
        prompts = [format_prompt(point.text, lang, tokenizer) for points in kinds.values() for point in points]
        print(f"{get_language(lang).title}: " + ", ".join(f"{len(points)} points ({kind})" for kind, points in kinds.items()))
        started = time.perf_counter()
        completions = complete(model, tokenizer, prompts, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size)
        seconds = (time.perf_counter() - started) / len(prompts)
        figures[lang], rows = judge(lang, kinds, completions)
        figures[lang] = {kind: {**row, "generation_seconds_per_point": seconds} for kind, row in figures[lang].items()}
        samples += rows
    own = {key: getattr(args, key) for key in ("adapter", "max_new_tokens", "batch_size", "precision")}
    with output_folder(args.out) as folder:
        with (folder / SAMPLES).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in samples)
        facts = {
            "program": CODEBLEU,
            "name": args.name or role,
            "role": role,
            "prompt_template": prompt_template(tokenizer),
            **own,
            **run_facts(args, model, sources),
        }
        write_run(folder, seed=args.seed, figures=figures, **facts)
    print(table(figures, args.name or role))
    print(f"written to {args.out}")


def check_flags(args: Namespace, *counts: str) -> None:
    """Before anything is loaded: the output must not exist, and the flags named in `counts` must be positive."""
    check_absent(args.out)
    for name in counts:
        if (value := getattr(args, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


def load_points(args: Namespace) -> tuple[dict[str, dict[str, list[Pair]]], dict[str, Any]]:
    """{lang: {kind: points}} and where they came from, which is printed too: {lang: {"source", "sha256", "rows"}}."""
    points: dict[str, dict[str, list[Pair]]] = {}
    sources: dict[str, dict[str, Any]] = {}
    for lang in [args.lang] if args.lang else LANGUAGES:
        loaded = load_pairs(args.data, lang, args.split)
        points[lang] = pick_points(loaded.rows, args.split, args.limit, args.seed)
        sources[lang] = {"source": loaded.source, "sha256": loaded.sha256, "rows": len(loaded.rows)}
    print("data: " + ", ".join(dict.fromkeys(row["source"] for row in sources.values())))
    return points, sources


def role_of(model: Any, args: Namespace) -> str:
    """What the loaded model is: a mixture has experts, an expert is a base with an adapter, anything else is a base."""
    if getattr(model.config, "num_local_experts", 0):
        return "mixture"
    return "expert" if args.adapter or is_adapter(model_folder(args.model)) else "base"


def run_facts(args: Namespace, model: Any, sources: dict[str, Any]) -> dict[str, Any]:
    """What `run.json` says of every run over points: model, points, where they came from, the dtype that the model computes in, and
    "nf4" if its matrices are kept in that."""
    facts = {key: getattr(args, key) for key in ("model", "split", "limit")}
    precision = {"dtype": str(model.dtype).removeprefix("torch."), "quantization": getattr(model.config, "quantization", None)}
    return {**facts, "data": sources, **precision}


def judge(lang: str, kinds: dict[str, list[Pair]], completions: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures by kind and the rows of `samples.jsonl`; `completions` in the order of the points of all kinds."""
    figures: dict[str, Any] = {}
    samples = []
    remaining = iter(completions)
    for kind, points in kinds.items():
        predictions = list(islice(remaining, len(points)))
        scores, figures[kind] = score_set([point.code for point in points], predictions, lang)
        for point, prediction, score in zip(points, predictions, scores, strict=True):
            row = {"id": point.id, "lang": lang, "kind": kind, "group": point.group, "text": point.text, "reference": point.code}
            samples.append({**row, "prediction": prediction, **asdict(score)})
    return figures, samples


def table(figures: dict[str, dict[str, Any]], name: str) -> str:
    """The figures as aligned text, scores x 100."""
    columns = ("CodeBLEU", "corpus", "library", "n-gram", "keywords", "syntax", "data flow")
    lines = [f"{name + ' (x 100)':<24}{'n':>5}{'empty':>7}" + "".join(f"{column:>10}" for column in columns)]
    for lang, kinds in figures.items():
        for kind, row in kinds.items():
            values = [row["codebleu"], row["codebleu_corpus"], row["codebleu_library"], *(row["parts"][part] for part in PARTS)]
            cells = "".join(f"{'-' if value is None else format(100 * value, '.1f'):>10}" for value in values)
            lines.append(f"{get_language(lang).title + ', ' + kind:<24}{row['n']:>5}{row['empty']:>7}{cells}")
    return "\n".join(lines)


def parse() -> ArgumentParser:
    parser = make_parser(CODEBLEU, __doc__ or "")
    parser.add_argument("--model", required=True, help="a base model (folder or hub name), an adapter's folder, or a mixture's folder")
    parser.add_argument("--adapter", help="a PEFT adapter's folder to put on --model")
    parser.add_argument(
        "--prompt-of", metavar="DIR", help="ask in the prompt of this adapter (to compare a base with experts of a chat template)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=650, help="tokens of a completion")
    parser.add_argument("--name", help="label in reports (default: what the model is: base, expert or mixture)")
    add_point_flags(parser)
    add_precision(parser)
    return parser


def add_point_flags(parser: ArgumentParser) -> None:
    """The flags that choose points, and those that every command with a model and points has."""
    parser.add_argument("--data", default="auto", help="auto, corpus, xlcost, a file or a folder with columns text and code")
    parser.add_argument("--lang", choices=list(LANGUAGES), help="one language only (default: all)")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"), help="whose rows")
    parser.add_argument("--limit", type=int, default=50, help="points of each language and kind, drawn by --seed and their ids")
    parser.add_argument("--batch-size", type=int, default=16, help="points run together")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


if __name__ == "__main__":
    sys.exit(run_command(main, parse()))
