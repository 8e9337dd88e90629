"""How much memory a QLoRA run takes, by part, before anything is loaded.

The parts, in bytes (T tokens of a batch, D model width, F FFN width, L layers, V vocabulary, a = bytes of an activation):

    quantised weights   linear weights x 4.127 / 8          NF4 with nested absmax: 4 + 8/64 + 32/(64 x 256) bits
    other weights       (embeddings + head + norms) x 4     never quantised; PEFT keeps them in fp32 while training
    adapters            LoRA parameters x 4                  fp32
    gradients           LoRA parameters x 4
    optimizer           LoRA parameters x 8                  AdamW's two moments
    activations         checkpointed: L x T x D x a + one layer's; else L x one layer's; one layer keeps (16 D + 5 F) x T x a
    logits              T x V x 4 x 3                        logits, their fp32 copy, their gradient
    dequantised         the widest matrix x a                bitsandbytes' transient in forward and backward
    runtime             CUDA context, or Python with torch and transformers
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig

from .settings import has_bf16, use_checkpointing

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
CARDS = {"t4": 15.6e9, "a10g": 23.7e9, "l4": 23.7e9, "4090": 25.2e9, "h100": 85.0e9}  # usable bytes
WITHOUT_BF16 = ("t4",)  # trains in fp32
RUNTIME = {"cuda": 0.6e9, "cpu": 0.9e9}


@dataclass(frozen=True)
class Plan:
    parts: dict[str, float]  # bytes
    room: float  # bytes
    where: str

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        rows = [f"{name:<18} {size / 1e9:8.3f} GB" for name, size in self.parts.items()]
        return "\n".join([*rows, f"{'total':<18} {self.total / 1e9:8.3f} GB", f"{self.where:<18} {self.room / 1e9:8.3f} GB"])

    def check(self) -> None:
        """`ValueError` if the run does not fit."""
        if self.total > self.room:
            largest = max(self.parts, key=lambda name: self.parts[name])
            raise ValueError(
                f"this run takes {self.total / 1e9:.1f} GB and {self.where} has {self.room / 1e9:.1f} GB; the largest part is {largest} "
                f"({self.parts[largest] / 1e9:.1f} GB): try a smaller --batch-size or --max-length, or --checkpointing on"
            )


def plan_expert(base: str, args: argparse.Namespace) -> Plan:
    """The plan of `train.expert` for the base's configuration and the chosen card; `ValueError` for an unknown card."""
    config = read_config(base)
    room, where, cuda = _room(args.gpu)
    a = 2 if (args.gpu in CARDS and args.gpu not in WITHOUT_BF16) or (args.gpu == "auto" and has_bf16()) else 4
    D, F, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    head = getattr(config, "head_dim", None) or D // config.num_attention_heads
    q, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    attention, ffn = 2 * D * q + 2 * D * kv, 3 * D * F
    lora = 3 * (D + F) + (0 if args.target == "ffn" else 2 * (D + q))
    trained = L * args.rank * lora
    tokens = args.batch_size * args.max_length
    layer = (16 * D + 5 * F) * tokens * a
    checkpointing = use_checkpointing(args, cuda)
    parts = {
        "quantised weights": L * (attention + ffn) * NF4_BITS / 8,
        "other weights": (2 * config.vocab_size * D + (2 * L + 1) * D) * 4,
        "adapters": trained * 4,
        "gradients": trained * 4,
        "optimizer": trained * 8,
        "activations": L * tokens * D * a + layer if checkpointing else L * layer,
        "logits": tokens * config.vocab_size * 4 * 3,
        "dequantised": D * F * a,
        "runtime": RUNTIME["cuda" if cuda else "cpu"],
    }
    return Plan(parts, room, where)


def read_config(base: str) -> PreTrainedConfig:
    """The configuration of a base; `ValueError` if the folder or hub name has none, or it is not shaped like Mistral's."""
    try:
        config = AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise ValueError(f"the base {base!r} is neither a folder with a config.json nor a model within reach on the hub") from error
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    missing = [name for name in needed if not hasattr(config, name)]
    if missing:
        raise ValueError(f"the base {base!r} ({config.model_type}) is not Mistral-shaped: its configuration lacks {', '.join(missing)}")
    return config


def _room(gpu: str) -> tuple[float, str, bool]:
    """Bytes that a run may take, the name of what has them, and whether it is a CUDA card."""
    if gpu in CARDS:
        return CARDS[gpu], f"one {gpu}", True
    if gpu == "auto" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], torch.cuda.get_device_name(), True
    if gpu in ("auto", "cpu"):
        return min(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")), _container_limit()), "this machine", False
    raise ValueError(f"unknown card {gpu!r}; known: auto, cpu, {', '.join(CARDS)}")


def _container_limit() -> float:
    """Bytes that the control group allows, infinity if it sets no limit."""
    try:
        return float(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no such group, or the word "max"
        return float("inf")
