"""How much memory a QLoRA run takes, by part, before anything is loaded.

The parts, in bytes (T tokens of a batch, D model width, F FFN width, L layers, V vocabulary, a = bytes of an activation):

    quantised weights   linear weights x 4.127 / 8          NF4 with nested absmax: 4 + 8/64 + 32/(64 x 256) bits
    other weights       (embeddings + head + norms) x 4     never quantised; PEFT keeps them in fp32 while training
    adapters            LoRA parameters x 4                  fp32
    gradients           LoRA parameters x 4
    optimizer           LoRA parameters x 8                  AdamW's two moments
    activations         checkpointed: L x T x D x a + one layer's; else L x one layer's; one layer keeps (16 D + 5 F) x T x a
    logits              min(T x V, CHUNK) x 4 x 3            of a chunk (loss.py): logits, their fp32 copy, their gradient
    dequantised         the widest matrix x a                bitsandbytes' transient in forward and backward
    runtime             CUDA context, or Python with torch and transformers
"""

import argparse

from transformers import AutoConfig, PreTrainedConfig

from model.budget import RUNTIME, Budget, room_of
from moe_kernels.cards import CARDS
from moe_kernels.nf4_format import NF4

from .loss import CHUNK
from .settings import has_bf16, use_checkpointing

ADVICE = "try a smaller --batch-size or --max-length, or --checkpointing on"


def plan_expert(base: str, args: argparse.Namespace) -> Budget:
    """The plan of `train.expert` for the base's configuration and the chosen card; `ValueError` for an unknown card."""
    config = read_config(base)
    room = room_of(args.gpu)
    a = 2 if (CARDS[args.gpu].has_bf16 if args.gpu in CARDS else args.gpu == "auto" and has_bf16()) else 4
    D, F, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    head = getattr(config, "head_dim", None) or D // config.num_attention_heads
    q, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    attention, ffn = 2 * D * q + 2 * D * kv, 3 * D * F
    lora = 3 * (D + F) + (0 if args.target == "ffn" else 2 * (D + q))
    trained = L * args.rank * lora
    tokens = args.batch_size * args.max_length
    layer = (16 * D + 5 * F) * tokens * a
    checkpointing = use_checkpointing(args, room.is_cuda)
    parts = {
        "quantised weights": L * (attention + ffn) * NF4.bits / 8,
        "other weights": (2 * config.vocab_size * D + (2 * L + 1) * D) * 4,
        "adapters": trained * 4,
        "gradients": trained * 4,
        "optimizer": trained * 8,
        "activations": L * tokens * D * a + layer if checkpointing else L * layer,
        "logits": min(tokens * config.vocab_size, CHUNK) * 4 * 3,
        "dequantised": D * F * a,
        "runtime": RUNTIME["cuda" if room.is_cuda else "cpu"],
    }
    return Budget(parts, room)


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
