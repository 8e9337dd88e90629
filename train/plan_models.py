"""The models that training commands make, each as its command loads it and Trainer prepares it; a plan makes them on the meta device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import prepare_model_for_kbit_training
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from model.checkpoint import parse_dtype
from model.config_file import model_config
from model.configuration_moe import MoEConfig
from model.modeling_moe import MoEForCausalLM

from .trace import FakeLinear4bit, give_nf4

Make = Callable[[Any, bool, bool], nn.Module]  # of a configuration; whether in bf16, and with checkpointing


def base_in_nf4(config: PreTrainedConfig, bf16: bool, checkpointing: bool) -> PreTrainedModel:
    """As `train.expert.load_base` makes it."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            model.set_submodule(name, FakeLinear4bit(module, dtype))
    model.is_loaded_in_4bit = True  # PEFT asks
    return prepare_model_for_kbit_training(
        model, use_gradient_checkpointing=checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False}
    )


def mixture(config: MoEConfig, bf16: bool, checkpointing: bool) -> nn.Module:
    """As `model.load.load_model` makes it."""
    dtype = parse_dtype(config.dtype or "float32")
    with init_empty_weights():
        model: Any = MoEForCausalLM._from_config(config, dtype=dtype)
    give_nf4(model, dtype)
    return _checkpointed(model, checkpointing)


def whole(config: PreTrainedConfig, bf16: bool, checkpointing: bool) -> nn.Module:
    """As `train.base` makes it, in fp32."""
    return _checkpointed(AutoModelForCausalLM.from_config(config), checkpointing)


def _checkpointed(model: Any, checkpointing: bool) -> nn.Module:
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def base_config(base: str) -> PreTrainedConfig:
    """The configuration of a base; `ValueError` if the folder or hub name has none, or it is not shaped like Mistral's."""
    folder = Path(base)
    try:
        config = model_config(folder) if folder.is_dir() else AutoConfig.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise
        raise ValueError(f"the base {base!r} is neither a folder with a config.json nor a model within reach on the hub") from error
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    missing = [name for name in needed if not hasattr(config, name)]
    if missing:
        raise ValueError(f"the base {base!r} ({config.model_type}) is not Mistral-shaped: its configuration lacks {', '.join(missing)}")
    return config
