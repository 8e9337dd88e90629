"""`python -m train.gate`: trains the gate of a composed mixture by backpropagation, experts frozen.

Only Wg and Wnoise learn (`--train gate+lora`: the experts' LoRA factors too). The loss is the completion's, plus the losses of the router:
importance and load, which keep all experts in use (Shazeer et al. 2017, arXiv:1701.06538), the balance loss of `topk` and `switch`, the
z-loss, and, if wanted, the cross entropy of the gate's logits against the row's own expert. The gate sees a small share of the
rows, every language equally many (the recipe of BAR, Ai2 2026: 5 % of the experts' own data).

The output is the mixture with its new gate, and how often the gate picks each language's own expert.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, set_seed

from model import MoEConfig, MoEForCausalLM
from model.adapters import base_fact, base_fingerprint
from model.checkpoint import model_folder
from model.cli import make_parser
from model.configuration_moe import ROUTER_TYPES
from model.languages import LANGUAGES
from model.load import load_model
from model.plan import config_of
from model.prompt import prompt_template
from model.tokenizer import read_tokenizer

from .gate_losses import LOSS_FLAGS, set_losses
from .gate_rows import languages_of, load_rows
from .gate_trainer import NOISES, GateTrainer, collate_labelled
from .plan import add_plan_flags, plan_training, show_plan
from .plan_data import find_tokenizer, plan_rows, rows_of
from .policy import MIXTURE, kind_of
from .processes import run_in_all
from .results import write_output
from .routing import format_choices, format_confusion, format_line, measure_languages, own_expert
from .settings import add_training_flags, check_flags, settings_of
from .trained_parts import freeze_all_but, planned_mixture, to_stored_dtype, trained_parts
from .trainer import train_pairs
from .workspace import check_free, workspace

LORA_LEARNING_RATE = 2e-4
ROUTING_ROWS = 32  # of each language, some 2,500 tokens: their routing is reported at each evaluation, all at the start and the end


def check_gate_flags(args: argparse.Namespace) -> None:
    """`ValueError` naming the first flag whose value makes no sense, or which is without effect; the factors' rate gets its default."""
    check_flags(args)
    for name in (*LOSS_FLAGS, "label_loss"):
        value = getattr(args, name)
        if value is not None and value < 0:
            raise ValueError(f"--{name.replace('_', '-')} is a weight and must not be negative, but is {value}")
    if not 0 < args.share <= 1:
        raise ValueError(f"--share must lie in (0, 1], not {args.share}")
    if not hasattr(args, "lora_learning_rate"):
        args.lora_learning_rate = LORA_LEARNING_RATE if args.train == "gate+lora" else None
    elif args.train == "gate":
        raise ValueError("--lora-learning-rate is that of the LoRA factors, which --train gate leaves as they are")
    elif args.lora_learning_rate <= 0:
        raise ValueError(f"--lora-learning-rate must be above 0, not {args.lora_learning_rate}")


def mixture_config(args: argparse.Namespace) -> MoEConfig:
    """The configuration of `--model` with the flags' router and losses; `ValueError` if it is no mixture, or has no use for a flag.

    For a plan it may be that of a recipe or a shape.
    """
    if not args.plan and kind_of(model_folder(args.model)) != MIXTURE:
        raise ValueError(f"{args.model} is no mixture: compose one with python -m model.compose")
    config = config_of(args.model, None, None, rank=16)
    config.router_type = args.router or config.router_type
    set_losses(config, args)
    return config


def load_mixture(args: argparse.Namespace) -> tuple[MoEForCausalLM, PreTrainedTokenizerBase]:
    """The mixture with the flags' router and losses, and `--seed` for its noise."""
    loaded: Any = load_model(args.model, router_type=args.router)
    model, tokenizer = loaded
    set_losses(model.config, args)
    model.config.router_seed = args.seed
    return model, tokenizer


def train_gate(args: argparse.Namespace) -> None:
    """The command: loads the mixture, trains its gate in a workspace, writes the whole model to `--out`."""
    check_gate_flags(args)
    out = Path(args.out)
    parts = trained_parts(args.train, noisy=args.noise != "none")
    make = partial(planned_mixture, parts=parts)
    if args.plan:
        rows = plan_rows(args, LANGUAGES, find_tokenizer(args.model), share=args.share)
        return show_plan(plan_training(mixture_config(args), args, make, rows))
    check_free(out, resume=args.resume)
    config = mixture_config(args)
    names = config.routed_names or [f"expert{index}" for index in range(config.num_local_experts)]
    if args.label_loss and not any(own_expert(names, lang) is not None for lang in languages_of(args, names)):
        raise ValueError(f"--label-loss needs experts that are named after languages; those of {args.model} are {', '.join(names)}")
    tokenizer = read_tokenizer(model_folder(args.model))
    train_rows, hashes = load_rows(args, tokenizer, names, "train", args.share, args.limit)
    eval_rows, eval_hashes = load_rows(args, tokenizer, names, "valid", 1.0, args.eval_limit)
    if not args.ignore_plan:  # before the mixture takes its part of what is free
        lengths = [len(row["input_ids"]) for rows in train_rows.values() for row in rows]
        plan_training(config, args, make, rows_of(lengths, "counted"), timed=False).check()
    set_seed(args.seed)
    model, tokenizer = load_mixture(args)
    freeze_all_but(model, parts)
    facts = {
        "model": args.model,
        "model_fingerprint": base_fingerprint(model_folder(args.model)),
        "data_sha256": hashes,
        "valid_sha256": eval_hashes,
        "rows": {lang: len(rows) for lang, rows in train_rows.items()},
        "settings": settings_of(args),
    }
    before = measure_languages(model, eval_rows, names, args.batch_size)
    print(f"before: {format_line(before)}")
    with workspace(out, facts, resume=args.resume) as folder:
        mixed = {
            "train": [row for rows in train_rows.values() for row in rows],
            "valid": [row for rows in eval_rows.values() for row in rows],
        }
        few = {lang: rows[:ROUTING_ROWS] for lang, rows in eval_rows.items()}
        trainer_class = partial(GateTrainer, flags=args, routing_rows=few, names=names)
        collator = partial(collate_labelled, pad_token_id=tokenizer.pad_token_id)
        trainer = train_pairs(model, tokenizer, mixed["train"], mixed["valid"], args, folder, trainer_class, collator)
        to_stored_dtype(model)
        after = measure_languages(model, eval_rows, names, args.batch_size)
        print("\n\n".join(table for table in (format_choices(before, after), format_confusion(after, names)) if table))
        figures = {"routing_before": before, "routing_after": after}
        more = {"prompt_template": prompt_template(tokenizer), **base_fact(model_folder(args.model))}
        write_output(out, trainer, folder, figures=figures, **facts, **more)
    print(f"mixture: {out}")


def add_gate_flags(parser: argparse.ArgumentParser) -> None:
    """What learns, on which share of the data, by which losses."""
    group = parser.add_argument_group("gate")
    group.add_argument(
        "--train", choices=("gate", "gate+lora"), default="gate", help="what learns; lora: all experts' factors, in the lora layout"
    )
    group.add_argument("--router", choices=ROUTER_TYPES, help="router kind (default: the mixture's)")
    group.add_argument(
        "--share", type=float, default=0.05, help="of each language's rows; all languages have equally many, at most --limit"
    )
    text = f"peak for the LoRA factors of gate+lora (default: {LORA_LEARNING_RATE}); --learning-rate is the gate's"
    group.add_argument("--lora-learning-rate", type=float, default=argparse.SUPPRESS, help=text)
    group.add_argument("--noise", choices=NOISES, default="constant", help="of noisy_topk over the run; linear and cosine fall to 0")
    unset = "(default: the mixture's configuration, 0.01 as composed)"
    group.add_argument("--importance", type=float, help=f"weight of the importance loss {unset}")
    group.add_argument("--load", type=float, help=f"weight of the load loss of noisy_topk {unset}")
    group.add_argument("--balance", type=float, help="weight of the balance loss of topk and switch (default: the configuration, 0.001)")
    group.add_argument("--z-loss", type=float, help="weight of the z-loss (default: the mixture's configuration, 0)")
    group.add_argument("--label-loss", type=float, default=0.0, help="weight of the cross entropy of gate logits against the own expert")


def main() -> int:
    parser = make_parser("train.gate", "Trains the gate of a composed mixture; the experts stay as they are.")
    parser.add_argument("--model", required=True, help="folder that python -m model.compose wrote")
    parser.add_argument("--data", default="auto", help="corpus, xlcost, a file or folder; auto: xlcost where Mistral-7B fits, else corpus")
    parser.add_argument("--level", choices=("program", "snippet"), default="program", help="whole programs, or fragments")
    parser.add_argument("--out", required=True, help="output folder")
    add_plan_flags(parser)
    add_gate_flags(parser)
    add_training_flags(parser, learning_rate=1e-3, batch_size=8, epochs=1, max_length=1024)
    return run_in_all(train_gate, parser)


if __name__ == "__main__":
    raise SystemExit(main())
