"""`python -m train.gate`: trains the gate of a composed mixture by backpropagation, experts frozen.

Only Wg and Wnoise learn (`--train gate+lora`: the experts' LoRA factors too). The loss is the completion's, plus the
importance and load losses that keep all experts in use (Shazeer et al. 2017, arXiv:1701.06538). Every language has an
equal share of the rows (the recipe of BAR, Ai2 2026: a small balanced share of each expert's own data).

The output is the mixture with its new gate, and how often the gate picks each language's own expert.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from model import MoEForCausalLM
from model.adapters import base_fact
from model.checkpoint import model_folder
from model.cli import make_parser, run_command
from model.languages import LANGUAGES
from model.load import load_model
from model.output import output_folder, write_run
from model.plan import config_of

from .data import format_table, load_pairs
from .data.prompts import Example, encode_pairs
from .plan import add_plan_flags, plan_training, show_plan
from .plan_data import find_tokenizer, plan_rows
from .routing import format_choices, measure_routing, own_expert
from .settings import add_training_flags, check_flags
from .trainer import PairTrainer, train_pairs, write_logs
from .workspace import check_free, workspace

TRAINED = {"gate": (".gate.",), "gate+lora": (".gate.", "lora_")}


class GateTrainer(PairTrainer):
    """Sets the step of the routing noise before each forward, so that a resumed run draws the noise of an unbroken one."""

    _micro_step = 0

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        accumulation = self.args.gradient_accumulation_steps
        mixture: Any = self.model
        mixture.set_router_step(self.state.global_step * accumulation + self._micro_step)
        self._micro_step = (self._micro_step + 1) % accumulation
        return super().training_step(*args, **kwargs)


def freeze_all_but(model: nn.Module, parts: tuple[str, ...]) -> nn.Module:
    """The model, with a gradient for the parameters whose name holds one of `parts`; `ValueError` naming a part that no parameter has."""
    for part in parts:
        if not any(part in name for name, _ in model.named_parameters()):
            raise ValueError(f"the mixture has no parameters named *{part}* to train: is it of the lora layout?")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))
    return model


def load_rows(args: argparse.Namespace, tokenizer: Any, split: str, limit: int | None) -> tuple[dict[str, list[Example]], dict[str, str]]:
    """Encoded rows of each language, equally many, and each language's data hash."""
    rows, hashes = {}, {}
    for lang in LANGUAGES:
        loaded = load_pairs(args.data, lang, split, level=args.level, limit=limit, seed=args.seed)
        rows[lang], too_long = encode_pairs(loaded.rows, tokenizer, args.max_length)
        hashes[lang] = loaded.sha256
        dropped = {rule: count for rule, count in (loaded.dropped | too_long).items() if count}
        print(f"{split}, {lang}: {len(rows[lang]):,} rows of {loaded.source}" + (f"\n{format_table(dropped)}" if dropped else ""))
    least = min(map(len, rows.values()))
    if not least:
        raise ValueError(f"a language has no {split} rows within --max-length {args.max_length}")
    return {lang: of_lang[:least] for lang, of_lang in rows.items()}, hashes


def measure(model: MoEForCausalLM, rows: dict[str, list[Example]], batch_size: int) -> dict[str, Any]:
    """`measure_routing` of each language's rows."""
    names = model.config.routed_names or []
    return {lang: measure_routing(model, of_lang, own_expert(names, lang), batch_size) for lang, of_lang in rows.items()}


def train_gate(args: argparse.Namespace) -> None:
    """The command: loads the mixture, trains its gate in a workspace, writes the whole model to `--out`."""
    check_flags(args)
    out = Path(args.out)
    prepare = partial(freeze_all_but, parts=TRAINED[args.train])
    if args.plan:
        rows = plan_rows(args, LANGUAGES, find_tokenizer(args.model))
        return show_plan(plan_training(config_of(args.model, None, None, rank=16), args, prepare, rows))
    check_free(out, resume=args.resume)
    set_seed(args.seed)
    model, tokenizer = load_model(args.model)
    if not isinstance(model, MoEForCausalLM):
        raise ValueError(f"{args.model} is no mixture: compose one with python -m model.compose")
    if model.config.router_type != "noisy_topk":
        print(f"router: {model.config.router_type}, which has no noise to train against")
    plan_training(model.config, args, prepare).check()
    prepare(model)
    train_rows, hashes = load_rows(args, tokenizer, "train", args.limit)
    eval_rows, _ = load_rows(args, tokenizer, "valid", args.eval_limit)
    settings = {key: value for key, value in vars(args).items() if key not in ("resume", "plan", "out")}
    facts = {"model": args.model, "data_sha256": hashes, "settings": settings}
    before = measure(model, eval_rows, args.batch_size)
    with workspace(out, facts, resume=args.resume) as folder:
        mixed = {
            "train": [row for rows in train_rows.values() for row in rows],
            "valid": [row for rows in eval_rows.values() for row in rows],
        }
        trainer = train_pairs(model, tokenizer, mixed["train"], mixed["valid"], args, folder, GateTrainer)
        after = measure(model, eval_rows, args.batch_size)
        print(format_choices(before, after))
        with output_folder(out) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            write_logs(temporary, trainer, folder)
            figures = {**trainer.figures(), "routing_before": before, "routing_after": after}
            write_run(temporary, seed=args.seed, figures=figures, **facts, **base_fact(model_folder(args.model)))
    print(f"mixture: {out}")


def main() -> int:
    parser = make_parser("train.gate", "Trains the gate of a composed mixture; the experts stay as they are.")
    parser.add_argument("--model", required=True, help="folder that python -m model.compose wrote")
    parser.add_argument("--data", default="auto", help="corpus, xlcost, a file or folder; auto: xlcost where Mistral-7B fits, else corpus")
    parser.add_argument("--level", choices=("program", "snippet"), default="program", help="whole programs, or fragments")
    parser.add_argument("--out", required=True, help="output folder")
    parser.add_argument("--train", choices=tuple(TRAINED), default="gate", help="what learns")
    add_plan_flags(parser)
    add_training_flags(parser, learning_rate=1e-3, batch_size=8, epochs=1, max_length=1024)
    return run_command(train_gate, parser)


if __name__ == "__main__":
    raise SystemExit(main())
