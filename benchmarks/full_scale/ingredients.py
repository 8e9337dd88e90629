"""A base of random weights in Mistral's shape, and adapters of it, written tensor by tensor.

R LoRA rank, V vocabulary.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import init_empty_weights
from peft import LoraConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from tqdm import tqdm
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from model.adapters import ADAPTER_WEIGHTS
from model.checkpoint_writer import CheckpointWriter, save_whole
from model.experts import PROJECTIONS

EXPERTS, RANK = 4, 16
PROMPTS = ("a Python function that sorts", "a Java class that sorts", "a JavaScript function that sorts", "a C++ program that sorts")
STD = 0.02  # of the weights, as Mistral is initialised
LORA_STD = 0.005  # of B: with A as PEFT draws it, B A is a hundredth of the weight


def base_config(layers: int, scale: int) -> MistralConfig:
    """Mistral-7B's shape with `layers` layers, its widths, heads and vocabulary divided by `scale`."""
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 32000, "num_attention_heads": 32, "num_key_value_heads": 8}
    shape = {name: max(1, size // scale) for name, size in shape.items()}
    others = {"num_hidden_layers": layers, "head_dim": 128, "sliding_window": None, "dtype": "bfloat16"}
    return MistralConfig.from_dict({**shape, **others})


def bytes_written(config: MistralConfig) -> int:
    """Of a base and its adapters."""
    base = 2 * sum(math.prod(shape) for shape in _shapes(config).values())
    return base + EXPERTS * config.num_hidden_layers * len(PROJECTIONS) * 4 * RANK * (config.hidden_size + config.intermediate_size)


def _shapes(config: MistralConfig) -> dict[str, tuple[int, ...]]:
    with init_empty_weights():
        return {name: tuple(parameter.shape) for name, parameter in MistralForCausalLM(config).named_parameters()}


def write_base(folder: Path, config: MistralConfig, seed: int) -> None:
    """Config, tokenizer and random weights in bf16, in shards."""
    folder.mkdir()
    config.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    draw = torch.Generator().manual_seed(seed)
    with CheckpointWriter(folder) as writer:
        for name, shape in tqdm(_shapes(config).items(), desc="Base", unit="tensor"):
            tensor = torch.empty(shape, dtype=torch.bfloat16)
            writer.add(name, tensor.fill_(1) if name.endswith("norm.weight") else tensor.normal_(0, STD, generator=draw))


def write_adapters(folder: Path, config: MistralConfig, base: Path, seed: int) -> Path:
    """Four adapters of all FFN matrices, and the recipe that names them; returns the recipe."""
    experts: list[dict[str, Any]] = []
    for index, prompt in enumerate(tqdm(PROMPTS, desc="Adapters", unit="adapter")):
        adapter = folder / f"adapter-{index}"
        settings = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(PROJECTIONS), base_model_name_or_path=str(base))
        settings.save_pretrained(str(adapter))
        draw = torch.Generator().manual_seed(seed + 1 + index)
        save_whole(adapter / ADAPTER_WEIGHTS, dict(_factors(config, draw)))
        experts.append({"source_model": str(adapter), "positive_prompts": [prompt, f"{prompt} numbers"]})
    recipe = folder / "recipe.yml"
    recipe.write_text(yaml.safe_dump({"base_model": str(base), "gate_mode": "hidden", "experts": experts}))
    return recipe


def _factors(config: MistralConfig, draw: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    width, hidden = config.hidden_size, config.intermediate_size
    for layer in range(config.num_hidden_layers):
        for name in PROJECTIONS:
            out, into = (width, hidden) if name == "down_proj" else (hidden, width)
            module = f"base_model.model.model.layers.{layer}.mlp.{name}"
            yield f"{module}.lora_A.weight", torch.empty(RANK, into).uniform_(-1, 1, generator=draw) / math.sqrt(into)
            yield f"{module}.lora_B.weight", torch.empty(out, RANK).normal_(0, LORA_STD, generator=draw)


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte: the smallest that reads any text."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
