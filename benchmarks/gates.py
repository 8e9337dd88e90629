"""`python -m benchmarks.gates RUNS`: the gates of a finished study's four experts before any training, mode by mode, and its trained gate.

Of the valid split's programs, in per cent, mean over layers: the tokens whose first choice is the language's own expert, and the loss (nats
per token) over all languages. The mixtures are composed in NF4 into a temporary folder; `gate_data` comes from the train split.
"""

import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn.functional import cross_entropy

from model.cli import make_parser, run_command
from model.compose import compose
from model.gates import GATE_MODES
from model.languages import LANGUAGES
from model.load import load_model
from train.data.__main__ import main as write_rows
from train.data.__main__ import parse as parse_rows
from train.data.pairs import load_pairs
from train.data.prompts import IGNORED, Example, collate, encode_pairs
from train.routing import means, measure_routing, own_expert


def main(args: Namespace) -> None:
    recipe = yaml.safe_load((args.runs / "compose.yml").read_text())
    tokenizer = load_model(args.runs / "mixture")[1]
    pairs = {lang: load_pairs(args.data, lang, "valid", limit=args.limit, seed=args.seed).rows for lang in LANGUAGES}
    rows = {lang: encode_pairs(own, tokenizer, args.max_length)[0] for lang, own in pairs.items()}
    table = [f"| gate | {' | '.join(LANGUAGES)} | mean | loss |", "|---" * (len(LANGUAGES) + 3) + "|"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "rows.jsonl"
        write_rows(parse_rows().parse_args([str(data), "--data", args.data, "--limit", str(args.gate_rows), "--seed", str(args.seed)]))
        for mode in GATE_MODES:
            path = folder / f"{mode}.yml"
            path.write_text(yaml.safe_dump(_with_mode(recipe, mode, data, args.gate_rows)))
            out = folder / mode
            compose(Namespace(config=str(path), out=str(out), layout=None, quantize="nf4", seed=args.seed))
            table.append(_row(mode, out, rows))
    table.append(_row("trained (train.gate)", args.runs / "mixture", rows))
    print("\n".join(table))


def _with_mode(recipe: dict[str, Any], mode: str, data: Path, gate_rows: int) -> dict[str, Any]:
    recipe = {**recipe, "gate_mode": mode}
    if mode != "data":
        return recipe
    langs = list(LANGUAGES)
    experts = [{**expert, "lang": lang} for expert, lang in zip(recipe["experts"], langs, strict=True)]
    return {**recipe, "experts": experts, "gate_data": str(data), "gate_rows": gate_rows}


def _row(name: str, folder: Path, rows: dict[str, list[Example]]) -> str:
    model, _ = load_model(folder)
    names, shares = model.config.routed_names, []
    total = tokens = 0.0
    for lang, examples in rows.items():
        measured = measure_routing(model, examples, own_expert(names, lang), batch_size=16)
        shares.append(100 * means(measured["own_top1"]))
        for start in range(0, len(examples), 16):
            batch = collate(examples[start : start + 16], pad_token_id=0)
            labels = batch.pop("labels")[:, 1:]
            with torch.inference_mode():
                logits = model(**batch, use_cache=False).logits[:, :-1]
            total += float(cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"))
            tokens += int((labels != IGNORED).sum())
    cells = " | ".join(f"{share:.1f}" for share in [*shares, sum(shares) / len(shares)])
    return f"| {name} | {cells} | {total / tokens:.4f} |"


def parse() -> ArgumentParser:
    parser = make_parser("benchmarks.gates", __doc__ or "")
    parser.add_argument("runs", type=Path, help="folder that `make demo` wrote")
    parser.add_argument("--data", default="corpus", help="what the experts were trained on")
    parser.add_argument("--limit", type=int, default=64, help="programs of each language")
    parser.add_argument("--gate-rows", type=int, default=32, help="rows of each language for the gate mode data")
    parser.add_argument("--max-length", type=int, default=384, help="of a program with its prompt, in tokens")
    return parser


if __name__ == "__main__":
    raise SystemExit(run_command(main, parse()))
