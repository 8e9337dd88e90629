"""`python -m train.align`: direct preference optimisation of an expert, a mixture, or a whole model such as a merge.

What learns: of a PEFT adapter its own factors, on its base in NF4; of a mixture the experts' LoRA factors (`--train` for the gate); of a
whole model, a new adapter on its NF4. The output is what the input was, or the new adapter. The reference is the model as it was given:
for an adapter that is the expert before, not its base, so adapters are not switched off but asked before the first step.
Dropout and the gate's noise stay off, or the policy would differ from the reference before it has learned anything.
"""

import argparse
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import set_seed

from model import MoEForCausalLM
from model.adapters import BASE_FACT, Adapter, base_fact, base_fingerprint, is_adapter
from model.checkpoint import Checkpoint, model_folder
from model.cli import make_parser
from model.config_file import read_config
from model.configuration_moe import MoEConfig
from model.load import base_of, load_model
from model.tokenizer import read_tokenizer

from .data import format_table
from .data.preferences import Preference, digest, divide, encode_preferences, load_preferences
from .expert import load_base
from .gate import freeze_all_but, to_stored_dtype
from .lora import TARGETS
from .preference import LOSSES, PreferenceLoss, PreferenceTrainer, Row, collate_preferences
from .processes import run_in_all
from .settings import add_training_flags, check_flags, use_checkpointing
from .trainer import train_pairs, write_output
from .workspace import check_free, workspace

TRAINED = {"lora": ("lora_",), "gate": (".gate.weight",), "gate+lora": (".gate.weight", "lora_")}  # Wnoise has no gradient without noise
USED = {"an adapter": (), "a mixture": ("train",), "a whole model": ("target", "rank", "alpha")}
DEFAULTS = {"train": "lora", "target": "ffn", "rank": 16, "alpha": 0}


def kind_of(folder: Path) -> str:
    """What lies in `folder`: one of USED."""
    if is_adapter(folder):
        return "an adapter"
    return "a mixture" if read_config(folder).get("model_type") in (MoEConfig.model_type, "mixtral") else "a whole model"


def settle_flags(args: argparse.Namespace, kind: str) -> None:
    """Gives the flags of this kind of model their defaults; `ValueError` for a flag that says nothing about it, or makes no sense."""
    for name, default in DEFAULTS.items():
        if not hasattr(args, name):
            setattr(args, name, default if name in USED[kind] else None)
        elif name not in USED[kind]:
            raise ValueError(f"--{name} says nothing about {args.model}, which is {kind}")
    if args.rank is not None and (args.rank < 1 or args.alpha < 0):
        raise ValueError(f"--rank must be at least 1 and --alpha not negative, not {args.rank} and {args.alpha}")
    if not (args.beta > 0 and math.isfinite(args.beta)):
        raise ValueError(f"--beta must be above 0, not {args.beta}")
    if not 0 <= args.label_smoothing < 0.5:
        raise ValueError(f"--label-smoothing is the share of pairs that are the wrong way round, in [0, 0.5), not {args.label_smoothing}")
    if args.label_smoothing and args.loss == "ipo":
        raise ValueError("--label-smoothing belongs to --loss sigmoid")
    if not (args.sft_weight >= 0 and math.isfinite(args.sft_weight)):
        raise ValueError(f"--sft-weight must not be negative, but is {args.sft_weight}")
    if not 0 < args.valid_share < 1:
        raise ValueError(f"--valid-share is a share of the tasks and must lie in (0, 1), not {args.valid_share}")
    if args.pairs_per_task < 1:
        raise ValueError(f"--pairs-per-task must be at least 1, not {args.pairs_per_task}")


def load_policy(folder: Path, kind: str, args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """The model with a gradient for what learns, its tokenizer, and the facts that its `run.json` hands on."""
    checkpointing = use_checkpointing(args, torch.cuda.is_available())
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # PEFT 0.21's own call
    if kind == "a mixture":
        mixture, tokenizer = load_model(folder)
        freeze_all_but(mixture, TRAINED[args.train])
        return mixture, tokenizer, base_fact(folder)
    if kind == "an adapter":
        adapter = Adapter(folder)
        base = base_of(folder)
        adapter.check_base(base, Checkpoint(base))
        model, tokenizer = load_base(str(base), checkpointing=checkpointing)
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = read_tokenizer(folder)  # it may have a chat template that the base's lacks
        facts = {key: adapter.run[key] for key in ("lang", "base", BASE_FACT) if key in adapter.run}
        return PeftModel.from_pretrained(model, str(folder), is_trainable=True), tokenizer, facts
    model, tokenizer = load_base(str(folder), checkpointing=checkpointing)
    config = LoraConfig(
        r=args.rank, lora_alpha=args.alpha or 2 * args.rank, target_modules=list(TARGETS[args.target]), task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config), tokenizer, {"base": str(folder), BASE_FACT: base_fingerprint(folder)}


@contextmanager
def deterministic(model: nn.Module) -> Iterator[None]:
    """Switches off dropout and, until the end, the gate's noise, in training too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    mixture: Any = model if isinstance(model, MoEForCausalLM) else None
    if mixture:
        mixture.set_router_noise(0)
    try:
        yield
    finally:
        if mixture:
            mixture.set_router_noise(1)


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
    check_free(out, resume=args.resume)
    kind = kind_of(folder)
    settle_flags(args, kind)
    pairs, dropped = load_preferences([Path(path) for path in args.data], args.pairs_per_task, args.seed)
    print(f"{len(pairs):,} pairs of {len({pair.task for pair in pairs}):,} tasks\n{format_table(dropped)}")
    to_train, to_validate = divide(pairs, args.valid_share)
    set_seed(args.seed)
    model, tokenizer, handed_on = load_policy(folder, kind, args)
    train_rows = encode(to_train[: args.limit], "train", tokenizer, args.max_length)
    eval_rows = encode(to_validate[: args.eval_limit], "valid", tokenizer, args.max_length)
    fingerprint = Adapter(folder).fingerprint if kind == "an adapter" else base_fingerprint(folder)
    settings = {key: value for key, value in vars(args).items() if key not in ("resume", "out")}
    data = {"data": args.data, "data_sha256": digest(pairs), "dropped": dropped}
    facts = {"model": str(folder), "model_fingerprint": fingerprint, **data, "settings": settings, **handed_on}
    trainer_class = partial(PreferenceTrainer, preference_loss=PreferenceLoss(args.beta, args.loss, args.label_smoothing, args.sft_weight))
    collator = partial(collate_preferences, pad_token_id=tokenizer.eos_token_id)  # masked by length, so the id does not matter
    with workspace(out, facts, resume=args.resume) as unfinished:
        with deterministic(model):
            trainer: Any = train_pairs(model, tokenizer, train_rows, eval_rows, args, unfinished, trainer_class, collator)
            if kind == "a mixture":
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
    parser.add_argument(
        "--target",
        choices=tuple(TARGETS),
        default=argparse.SUPPRESS,
        help="matrices of a whole model's new adapter, as in train.expert (default: ffn)",
    )
    parser.add_argument("--rank", type=int, default=argparse.SUPPRESS, help="of a whole model's new adapter (default: 16)")
    parser.add_argument(
        "--alpha",
        type=int,
        default=argparse.SUPPRESS,
        help="LoRA scale numerator of a whole model's new adapter; 0: twice the rank (default: 0)",
    )
    add_training_flags(parser, learning_rate=5e-6, batch_size=4, epochs=1, max_length=1024)
    return run_in_all(align, parser)


if __name__ == "__main__":
    raise SystemExit(main())
