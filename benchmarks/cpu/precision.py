"""`python -m benchmarks.cpu.precision`: what precisions such as `int8` change of a mixture's answers, beside `exact`.

On test pairs of each language: the cosine of the logits with those of `exact` at every position of prompt and program, how often the
likeliest token is another, and the negative log-likelihood of the program's tokens, each after the right ones. With --codebleu also what
the programs that the mixture writes score, and how many are exactly those of `exact`. B batch, S positions, V vocabulary.
"""

import math
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import cosine_similarity, cross_entropy
from tqdm import tqdm

from eval.measure import measure_completions
from eval.points import pick_points
from model.cli import make_parser, run_command
from model.generation import complete
from model.languages import LANGUAGES, get_language
from model.load import load_model
from model.modeling_moe import MoEForCausalLM
from model.prompt import format_prompt
from moe_kernels.backend import PRECISIONS
from train.data import load_pairs
from train.data.pairs import Pair
from train.data.prompts import IGNORED, collate, encode_pairs

EXACT = PRECISIONS[0]
Points = dict[str, dict[str, list[Pair]]]  # {lang: {kind: pairs}}


@dataclass
class Cost:
    """Sums over the positions of the texts, and over the tokens of the programs."""

    positions: int = 0
    cosines: float = 0.0
    least: float = 1.0
    others: int = 0  # positions whose likeliest token is not that of `exact`
    tokens: int = 0
    nll: float = 0.0  # nats
    scores: dict[str, list[float]] = field(default_factory=dict)  # {lang, kind: CodeBLEU of each program}
    programs: list[str] = field(default_factory=list)

    def add(self, logits: torch.Tensor, exact: torch.Tensor, batch: dict[str, torch.Tensor]) -> None:
        """Adds a batch: logits and those of `exact` [B, S, V]."""
        kept = batch["attention_mask"].bool()
        cosines = cosine_similarity(logits.double(), exact.double(), dim=-1)[kept]
        self.positions += len(cosines)
        self.cosines += float(cosines.sum())
        self.least = min(self.least, float(cosines.min()))
        self.others += int((logits.argmax(-1) != exact.argmax(-1))[kept].sum())
        labels = batch["labels"][:, 1:]
        self.tokens += int((labels != IGNORED).sum())
        self.nll += float(cross_entropy(logits[:, :-1].flatten(0, 1).double(), labels.flatten(), ignore_index=IGNORED, reduction="sum"))


def main(args: Namespace) -> None:
    if args.limit < 1 or args.codebleu < 0 or args.batch_size < 1:
        raise ValueError("--limit and --batch-size must be at least 1, --codebleu at least 0")
    model, tokenizer = load_model(args.model, device="cpu")
    if not isinstance(model, MoEForCausalLM):
        raise ValueError(f"{args.model} is not a mixture, so it has no precision but {EXACT!r}")
    rows = {lang: load_pairs(args.data, lang, "test").rows for lang in LANGUAGES}
    costs = {precision: Cost() for precision in PRECISIONS}
    compare_logits(model, tokenizer, pick(rows, args.limit, args.seed), costs, args.batch_size)
    print(table(costs))
    if args.codebleu:
        points = pick(rows, args.codebleu, args.seed)
        for precision, cost in costs.items():
            score_programs(model.set_precision(precision), tokenizer, points, cost, args.max_new_tokens)
        print(codebleu_table(costs))


def pick(rows: dict[str, list[Pair]], limit: int, seed: int) -> Points:
    return {lang: pick_points(pairs, "test", limit, seed) for lang, pairs in rows.items()}


@torch.no_grad()
def compare_logits(model: Any, tokenizer: Any, points: Points, costs: dict[str, Cost], batch_size: int) -> None:
    """Runs every text in every precision; the first precision is the one that the others are compared with."""
    pairs = [pair for kinds in points.values() for pairs in kinds.values() for pair in pairs]
    examples, _ = encode_pairs(pairs, tokenizer, model.config.max_position_embeddings)
    examples.sort(key=lambda example: len(example["input_ids"]))
    for start in tqdm(range(0, len(examples), batch_size), desc="logits", unit="batch"):
        batch = collate(examples[start : start + batch_size], tokenizer.pad_token_id)
        exact = None
        for precision, cost in costs.items():
            logits = model.set_precision(precision)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            exact = logits if exact is None else exact
            cost.add(logits, exact, batch)


def score_programs(model: Any, tokenizer: Any, points: Points, cost: Cost, max_new_tokens: int) -> None:
    for lang, kinds in points.items():
        prompts = [format_prompt(pair.text, lang, tokenizer) for pairs in kinds.values() for pair in pairs]
        programs = complete(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=50)
        _, samples = measure_completions(lang, kinds, programs, seed=0)
        for sample in samples:
            cost.scores.setdefault(f"{get_language(lang).title}, {sample['kind']}", []).append(sample["codebleu"])
        cost.programs += programs


def table(costs: dict[str, Cost]) -> str:
    first = costs[EXACT]
    lines = [f"{first.positions} positions of prompts and programs, {first.tokens} tokens of programs"]
    lines.append(f"{'':10}{'1 - cosine, mean':>18}{'cosine, least':>15}{'other token':>13}{'NLL, nats a token':>19}{'perplexity':>12}")
    for precision, cost in costs.items():
        nll = cost.nll / cost.tokens
        distance, others = max(0.0, 1 - cost.cosines / cost.positions), cost.others / cost.positions
        lines.append(f"{precision:10}{distance:18.2e}{cost.least:15.6f}{others:13.3%}{nll:19.5f}{math.exp(nll):12.4f}")
    return "\n".join(lines)


def codebleu_table(costs: dict[str, Cost]) -> str:
    """CodeBLEU x 100; the programs that are exactly those of `exact` are counted."""
    lines = [f"{'CodeBLEU x 100':24}{'n':>5}" + "".join(f"{precision:>10}" for precision in costs)]
    for kind, scores in costs[EXACT].scores.items():
        lines.append(f"{kind:24}{len(scores):5}" + "".join(f"{100 * mean(cost.scores[kind]):10.1f}" for cost in costs.values()))
    every = {precision: [score for scores in cost.scores.values() for score in scores] for precision, cost in costs.items()}
    lines.append(f"{'all':24}{len(every[EXACT]):5}" + "".join(f"{100 * mean(scores):10.1f}" for scores in every.values()))
    same = [sum(map(str.__eq__, cost.programs, costs[EXACT].programs)) for cost in costs.values()]
    lines.append(f"{'the same program':29}" + "".join(f"{count:10}" for count in same))
    return "\n".join(lines)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def parse() -> ArgumentParser:
    parser = make_parser("benchmarks.cpu.precision", __doc__ or "")
    parser.add_argument("--model", required=True, help="a mixture's folder, NF4")
    parser.add_argument("--data", default="corpus", help="auto, corpus, xlcost, a file or a folder with columns text and code")
    parser.add_argument("--limit", type=int, default=50, help="test pairs of each language and kind whose logits are compared")
    parser.add_argument("--batch-size", type=int, default=8, help="texts run together")
    parser.add_argument("--codebleu", type=int, default=0, help="test points of each language and kind that programs are written for")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="tokens of a program")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, parse()))
