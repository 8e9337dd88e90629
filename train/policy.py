"""What is aligned, an adapter, a mixture or a whole model: how it is loaded, what of it learns, and what a plan makes of it."""

import argparse
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from model import MoEForCausalLM
from model.adapters import BASE_FACT, Adapter, base_fact, base_fingerprint, is_adapter
from model.config_file import read_config
from model.configuration_moe import MoEConfig
from model.load import base_of, load_model
from model.peft_model import with_adapter
from model.plan import config_of
from model.tokenizer import read_tokenizer

from .expert import load_base
from .lora import add_lora, factor_config, planned_expert
from .plan import TrainingPlan, plan_training
from .plan_data import Rows
from .plan_models import Make, base_config
from .preference import PreferenceLoss, planned_preference_loss
from .settings import use_checkpointing
from .trained_parts import freeze_all_but, planned_mixture, trained_parts

ADAPTER, MIXTURE, WHOLE = "an adapter", "a mixture", "a whole model"


def kind_of(folder: Path) -> str:
    """What lies in `folder`: ADAPTER, MIXTURE or WHOLE."""
    if is_adapter(folder):
        return ADAPTER
    return MIXTURE if read_config(folder).get("model_type") in (MoEConfig.model_type, "mixtral") else WHOLE


def tokenizer_of(folder: Path, kind: str) -> Any:
    """An adapter's own, which may have a chat template that its base's lacks, if it has one."""
    has_none = kind == ADAPTER and not (folder / "tokenizer_config.json").is_file()
    return read_tokenizer(base_of(folder) if has_none else folder)


def load_policy(folder: Path, kind: str, args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """The model with a gradient for what learns, its tokenizer, and the facts that its `run.json` hands on."""
    checkpointing = use_checkpointing(args, torch.cuda.is_available())
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # PEFT 0.21's own call
    if kind == MIXTURE:
        mixture, tokenizer = load_model(folder)
        freeze_all_but(mixture, trained_parts(args.train, noisy=False))
        return mixture, tokenizer, base_fact(folder)
    if kind == ADAPTER:
        adapter = Adapter(folder)
        base = base_of(folder)
        model, _ = load_base(str(base), checkpointing=checkpointing)
        facts = {key: adapter.run[key] for key in ("lang", "base", BASE_FACT) if key in adapter.run}
        return with_adapter(model, base, folder, trainable=True), tokenizer_of(folder, kind), facts
    model, tokenizer = load_base(str(folder), checkpointing=checkpointing)
    return add_lora(model, factor_config(args)), tokenizer, {"base": str(folder), BASE_FACT: base_fingerprint(folder)}


def plan_alignment(args: argparse.Namespace, folder: Path, kind: str, loss: PreferenceLoss, rows: Rows, *, timed: bool) -> TrainingPlan:
    """Of steps of two sequences for each pair; before the first each passes through the model once, as the reference."""
    if kind == MIXTURE:
        config: Any = config_of(str(folder), None, None, rank=0)
        make: Make = partial(planned_mixture, parts=trained_parts(args.train, noisy=False))
    elif kind == ADAPTER:
        config, adapter = base_config(str(base_of(folder))), Adapter(folder)
        modules = sorted({module.rpartition(".")[2] for module in adapter.modules})
        make = partial(planned_expert, factors=LoraConfig(r=adapter.config["r"], target_modules=modules, task_type="CAUSAL_LM"))
    else:
        config, make = base_config(str(folder)), partial(planned_expert, factors=factor_config(args))
    step = partial(planned_preference_loss, loss=loss)
    return plan_training(config, args, make, rows, step=step, sequences=2, scored=rows.count, timed=timed)


@contextmanager
def deterministic(model: nn.Module) -> Iterator[None]:
    """Switches off dropout, the jitter of a mixture's inputs and, until the end, the gate's noise, in training too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "jitter"):  # numbers that attention and a mixture's block pass to a function
            if hasattr(module, name):
                setattr(module, name, 0.0)
    mixture: Any = model if isinstance(model, MoEForCausalLM) else None
    if mixture:
        mixture.set_router_noise(0)
    try:
        yield
    finally:
        if mixture:
            mixture.set_router_noise(1)
