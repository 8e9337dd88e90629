"""`python -m train.align`: direct preference optimisation of an expert, a mixture, or a whole model such as a merge.

What learns: of a PEFT adapter its own factors, on its base in NF4; of a mixture the experts' LoRA factors (`--train` for the gate); of a
whole model, a new adapter on its NF4. The output is what the input was, or the new adapter. The reference is the model as it was given:
for an adapter that is the expert before, not its base, so adapters are not switched off but asked before the first step.
Dropout and the gate's noise stay off, or the policy would differ from the reference before it has learned anything.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from model.adapters import Adapter, base_fingerprint
from model.checkpoint import model_folder
from model.cli import make_parser

from .data import format_table
from .data.preferences import Preference, digest, divide, encode_preferences, load_preferences
from .lora import FACTOR_DEFAULTS, add_factor_flags, check_factors
from .plan import add_plan_flags, show_plan
from .plan_data import rows_of
from .policy import ADAPTER, MIXTURE, WHOLE, deterministic, kind_of, load_policy, plan_alignment, tokenizer_of
from .preference import LOSSES, PreferenceLoss, PreferenceTrainer, Row, collate_preferences, longer_side
from .processes import run_in_all
from .results import write_output
from .settings import add_training_flags, check_flags, settings_of
from .trained_parts import TRAINED, to_stored_dtype
from .trainer import train_pairs
from .workspace import check_free, workspace

USED = {ADAPTER: (), MIXTURE: ("train",), WHOLE: tuple(FACTOR_DEFAULTS)}
DEFAULTS = {"train": "lora", **FACTOR_DEFAULTS}


def settle_flags(args: argparse.Namespace, kind: str) -> None:
    """Gives the flags of this kind of model their defaults; `ValueError` for a flag that says nothing about it, or makes no sense."""
    for name, default in DEFAULTS.items():
        if not hasattr(args, name):
            setattr(args, name, default if name in USED[kind] else None)
        elif name not in USED[kind]:
            raise ValueError(f"--{name} says nothing about {args.model}, which is {kind}")
    if kind == WHOLE:
        check_factors(args)
    if args.beta <= 0:
        raise ValueError(f"--beta must be above 0, not {args.beta}")
    if not 0 <= args.label_smoothing < 0.5:
        raise ValueError(f"--label-smoothing is the share of pairs that are the wrong way round, in [0, 0.5), not {args.label_smoothing}")
    if args.label_smoothing and args.loss == "ipo":
        raise ValueError("--label-smoothing belongs to --loss sigmoid")
    if args.sft_weight < 0:
        raise ValueError(f"--sft-weight must not be negative, but is {args.sft_weight}")
    if not 0 < args.valid_share < 1:
        raise ValueError(f"--valid-share is a share of the tasks and must lie in (0, 1), not {args.valid_share}")
    if args.pairs_per_task < 1:
        raise ValueError(f"--pairs-per-task must be at least 1, not {args.pairs_per_task}")


def encode(pairs: list[Preference], split: str, tokenizer: Any, max_length: int) -> list[Row]:
    """The rows of one split; prints how many there are, and how many were too long."""
    rows, dropped = encode_preferences(pairs, tokenizer, max_length)
    if not rows:
        raise ValueError(f"none of the {len(pairs)} {split} pairs fits --max-length {max_length}")
    too_long = ", ".join(f"{count} {rule}" for rule, count in dropped.items() if count)
    print(f"{split}: {len(rows):,} pairs" + (f"; dropped: {too_long}" if too_long else ""))
    return rows


def table(before: dict[str, float], after: dict[str, float]) -> str:
    """The validation pairs before and after, a line for each figure."""
    head = f"{'validation pairs':<20}{'before':>10}{'after':>10}"
    return "\n".join([head, *(f"{name:<20}{before[name]:>10.3f}{after[name]:>10.3f}" for name in before)])


def align(args: argparse.Namespace) -> None:
    """The command: loads, trains in a workspace, and writes what came out to `--out`."""
    check_flags(args)
    out, folder = Path(args.out), model_folder(args.model)
    if not args.plan:
        check_free(out, resume=args.resume)
    kind = kind_of(folder)
    settle_flags(args, kind)
    pairs, dropped = load_preferences([Path(path) for path in args.data], args.pairs_per_task, args.seed)
    print(f"{len(pairs):,} pairs of {len({pair.task for pair in pairs}):,} tasks\n{format_table(dropped)}")
    to_train, to_validate = divide(pairs, args.valid_share)
    loss = PreferenceLoss(args.beta, args.loss, args.label_smoothing, args.sft_weight)
    train_rows = encode(to_train[: args.limit], "train", tokenizer_of(folder, kind), args.max_length)
    rows = rows_of([longer_side(row) for row in train_rows], "counted")
    if args.plan:
        return show_plan(plan_alignment(args, folder, kind, loss, rows, timed=True))
    if not args.ignore_plan:  # before the model takes its part of what is free
        plan_alignment(args, folder, kind, loss, rows, timed=False).check()
    set_seed(args.seed)
    model, tokenizer, handed_on = load_policy(folder, kind, args)
    eval_rows = encode(to_validate[: args.eval_limit], "valid", tokenizer, args.max_length)
    fingerprint = Adapter(folder).fingerprint if kind == ADAPTER else base_fingerprint(folder)
    data = {"data": args.data, "data_sha256": digest(pairs), "dropped": dropped}
    facts = {"model": str(folder), "model_fingerprint": fingerprint, **data, "settings": settings_of(args), **handed_on}
    trainer_class = partial(PreferenceTrainer, preference_loss=loss)
    collator = partial(collate_preferences, pad_token_id=tokenizer.eos_token_id)  # masked by length, so the id does not matter
    with workspace(out, facts, resume=args.resume) as unfinished:
        with deterministic(model):
            trainer: Any = train_pairs(model, tokenizer, train_rows, eval_rows, args, unfinished, trainer_class, collator)
            if kind == MIXTURE:
                to_stored_dtype(model)
            after = trainer.score(eval_rows, "after, valid")
        reference = torch.tensor([row["reference"] for row in eval_rows])
        figures = {
            "before": trainer.measure(torch.stack([reference, reference], dim=1)),
            "after": trainer.measure(torch.stack([after, reference], dim=1)),
        }
        print(table(**figures))
        write_output(out, trainer, unfinished, figures=figures, **facts)
    print(f"{kind}: {out}\npass rate: python -m eval.pass_at_k --model {out} --before RUN (of {args.model}, on other tasks) ...")


def main() -> int:
    parser = make_parser("train.align", "Aligns an expert, a mixture or a whole model with preferences (DPO).")
    parser.add_argument("--model", required=True, help="folder of a PEFT adapter, of a mixture, or of a whole model such as a merge")
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="PAIRS",
        help="files with the columns prompt, chosen, rejected; or folders of eval.pass_at_k: passing against failing completions",
    )
    parser.add_argument("--out", required=True, help="output folder")
    parser.add_argument("--pairs-per-task", type=int, default=4, help="pairs of one prompt at most")
    parser.add_argument("--valid-share", type=float, default=0.1, help="share of the tasks whose pairs are kept for validation")
    parser.add_argument("--loss", choices=LOSSES, default=LOSSES[0], help="of Rafailov et al. 2023 (sigmoid) or Azar et al. 2023 (ipo)")
    parser.add_argument("--beta", type=float, default=0.1, help="how strongly the policy is held to the reference")
    parser.add_argument("--label-smoothing", type=float, default=0.0, help="share of the pairs thought to be the wrong way round")
    parser.add_argument("--sft-weight", type=float, default=0.0, help="of the chosen completion's mean -log p per token, added to the loss")
    parser.add_argument("--train", choices=tuple(TRAINED), default=argparse.SUPPRESS, help="what learns in a mixture (default: lora)")
    text = "defaults: target ffn, rank 16, alpha twice the rank"
    add_factor_flags(parser.add_argument_group("a whole model's new adapter", text), only_given=True)
    add_plan_flags(parser)
    add_training_flags(parser, learning_rate=5e-6, batch_size=4, epochs=1, max_length=1024)
    return run_in_all(align, parser)


if __name__ == "__main__":
    raise SystemExit(main())
