"""What an expert learns, LoRA's factors beside its base's matrices, and how they are stepped.

Dettmers et al. 2023, QLoRA, arXiv:2305.14314; rsLoRA 2312.03732; DoRA 2402.09353; LoRA+ 2402.12354; NEFTune 2310.05914.
"""

import argparse
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedConfig, PreTrainedModel

from model.adapters import ADAPTER_WEIGHTS, Adapter
from model.checkpoint import Checkpoint
from model.experts import PROJECTIONS

from .plan import language_model_loss
from .plan_models import base_in_nf4
from .trainer import PairTrainer

TARGETS = {"ffn": PROJECTIONS, "all": (*PROJECTIONS, "q_proj", "o_proj")}  # keys and values stay those of the base, as in JetMoE
FACTOR_DEFAULTS: dict[str, Any] = {"target": "ffn", "rank": 16, "alpha": 0}


def add_factor_flags(group: Any, *, only_given: bool = False) -> None:
    """Adds the flags for where the factors stand and how large they are. `only_given`: one that is not given is no attribute."""
    default = dict.fromkeys(FACTOR_DEFAULTS, argparse.SUPPRESS) if only_given else FACTOR_DEFAULTS
    text = "ffn: the matrices of a Mixtral expert; all: attention's q and o too"
    group.add_argument("--target", choices=tuple(TARGETS), default=default["target"], help=text)
    group.add_argument("--rank", type=int, default=default["rank"], help="of the LoRA factors")
    group.add_argument("--alpha", type=int, default=default["alpha"], help="LoRA scale numerator; 0: twice the rank")


def check_factors(args: argparse.Namespace) -> None:
    """`ValueError` for a size that makes no sense."""
    if args.rank < 1 or args.alpha < 0:
        raise ValueError(f"--rank must be at least 1 and --alpha not negative, not {args.rank} and {args.alpha}")


def add_lora_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say what is trained beside the base, and how."""
    group = parser.add_argument_group("LoRA")
    add_factor_flags(group)
    group.add_argument("--dropout", type=float, default=0.05, help="of the LoRA factors' input")
    group.add_argument("--rslora", action=argparse.BooleanOptionalAction, default=False, help="scale alpha / sqrt(rank), not alpha / rank")
    group.add_argument(
        "--dora", action=argparse.BooleanOptionalAction, default=False, help="learn a magnitude of each row too; merged only"
    )
    group.add_argument("--init", metavar="DIR", help="adapter of the same base, rank and targets to go on from")
    group.add_argument("--loraplus-ratio", type=float, default=1.0, help="learning rate of B over that of A (LoRA+ advises 16); 1: plain")
    group.add_argument("--neftune-alpha", type=float, default=0.0, help="noise on the embeddings while training (NEFTune takes 5); 0: none")


def check_lora_flags(args: argparse.Namespace) -> None:
    """`ValueError` naming the first of these flags whose value makes no sense, or that `--init` contradicts."""
    check_factors(args)
    if not 0 <= args.dropout < 1:
        raise ValueError(f"--dropout must lie in [0, 1), not {args.dropout}")
    if not 1 <= args.loraplus_ratio < math.inf:
        raise ValueError(f"--loraplus-ratio must be at least 1, not {args.loraplus_ratio}")
    if not 0 <= args.neftune_alpha < math.inf:
        raise ValueError(f"--neftune-alpha must not be negative, but is {args.neftune_alpha}")
    if args.init:
        _check_init(Adapter(Path(args.init)), args)


def _check_init(adapter: Adapter, args: argparse.Namespace) -> None:
    trained = {module.rpartition(".")[2] for module in adapter.modules}
    if trained != set(TARGETS[args.target]):
        raise ValueError(f"--init {args.init} has factors of {', '.join(sorted(trained))}, not those of --target {args.target}")
    ours = lora_config(args)
    for flag, field in (("--rank", "r"), ("--alpha", "lora_alpha"), ("--rslora", "use_rslora"), ("--dora", "use_dora")):
        if (theirs := adapter.config.get(field) or 0) != getattr(ours, field):
            raise ValueError(f"--init {args.init} has {field} = {theirs}, but {flag} says {getattr(ours, field)}; they must be the same")
    for field in ("rank_pattern", "alpha_pattern"):
        if adapter.config.get(field):
            raise ValueError(f"--init {args.init} has a {field}; only adapters with one rank and one alpha are gone on from")


def factor_config(args: argparse.Namespace, **options: Any) -> LoraConfig:
    """Of new factors, by `add_factor_flags`'s flags and PEFT's own options."""
    targets = list(TARGETS[args.target])
    return LoraConfig(r=args.rank, lora_alpha=args.alpha or 2 * args.rank, target_modules=targets, task_type="CAUSAL_LM", **options)


def lora_config(args: argparse.Namespace) -> LoraConfig:
    """Of new factors, by all of `add_lora_flags`'s flags."""
    return factor_config(args, lora_dropout=args.dropout, use_rslora=args.rslora, use_dora=args.dora)


def add_lora(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """The model with new LoRA factors; `ValueError` naming the modules that it does not have."""
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    targets: Any = config.target_modules
    if missing := sorted(set(targets) - names):
        raise ValueError(f"the base {model.name_or_path} has no linear modules named {', '.join(missing)}, which --target trains")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # PEFT 0.21's own call
    expert: Any = get_peft_model(model, config)
    return expert


def planned_expert(config: PreTrainedConfig, bf16: bool, checkpointing: bool, factors: LoraConfig) -> PeftModel:
    """What a plan makes of a base's configuration. DoRA counts as LoRA: its rows' norms are of values, which a plan does not have."""
    return add_lora(base_in_nf4(config, bf16, checkpointing), replace(factors, use_dora=False))


def planned_expert_loss(model: nn.Module, batch: dict[str, Tensor], packing: bool) -> Tensor:
    """`language_model_loss` as `ExpertTrainer` runs it: without a mask; packed rows begin at positions 0."""
    rows = {name: batch[name] for name in ("input_ids", "labels")}
    return language_model_loss(model, rows | {"position_ids": torch.zeros_like(batch["labels"])} if packing else rows)


def go_on_from(expert: PeftModel, args: argparse.Namespace, base: Path) -> None:
    """Puts the factors of `--init`, an adapter of the checkpoint `base`, into the expert; `ValueError` naming what does not fit."""
    Adapter(Path(args.init)).check_base(base, Checkpoint(base))
    result: Any = set_peft_model_state_dict(expert, load_file(Path(args.init) / ADAPTER_WEIGHTS))
    wrong = [*result.unexpected_keys, *(key for key in result.missing_keys if "lora_" in key)]
    if wrong:
        raise ValueError(f"--init {args.init} does not have the factors that are to be trained: {', '.join(wrong[:3])}")


class ExpertTrainer(PairTrainer):
    """A `PairTrainer` with NEFTune's noise, and with LoRA+'s greater rate for B where the ratio is not 1.

    With `packing` a batch is any rows, as those of like length leave no room for another.
    """

    def __init__(self, *args: Any, neftune_alpha: float, loraplus_ratio: float, packing: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if packing:
            self.megabatch = 1
        self.neftune_noise_alpha = neftune_alpha or None
        self.loraplus_ratio = loraplus_ratio

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As PairTrainer's. Padding is on the right, where no token looks: without a mask attention computes only what is causal."""
        inputs.pop("attention_mask", None)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def create_optimizer(self, model: Any = None) -> Optimizer:
        if self.optimizer is None and self.loraplus_ratio != 1:
            trained: Any = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            decay = {"loraplus_weight_decay": self.args.weight_decay}
            self.optimizer = create_loraplus_optimizer(trained, kind, loraplus_lr_ratio=self.loraplus_ratio, **decay, **options)
        return super().create_optimizer(model)
