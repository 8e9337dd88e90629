"""What a mixture takes of a device, by part: bytes in memory, bytes and time for one token. Nothing is loaded.

Weights are those of the model's own modules, made without memory, so they are exact; what runs on them is estimated:

    KV cache      L x B x S x 2 x kv heads x head width x a          a = bytes of an activation
    activations   of one layer while the prompt is read, T = B x S:
                  dense  T (3 D + K (F + D)) a                       x, its norm, the sum; h and y of every pair
                  lora   T (3 D + (K + 3) F) a                       and gate, up and sum of h of every token
                  in C++ the experts' part is in fp32, with a packed copy of what a product reads (`csrc/experts_forward.cpp`):
                  dense  T K (2 F + D) 4                     lora   T (2 + K + max(K, 2)) F 4
                  and B x V x (a + 4) of logits; on a card, for many tokens, the layer's largest NF4 matrix in 16 bits

Shared experts are parts of their own: every token meets them. So are attention's factors: all experts' are read for every token.

T tokens, K experts per token, E experts, D model width, F expert hidden width, L layers, V vocabulary, B batch, S context.
"""

import re
from dataclasses import dataclass

import torch

from moe_kernels.cards import Card
from moe_kernels.grouping import active_experts
from moe_kernels.launch import fused_tokens
from moe_kernels.nf4_format import nf4_bytes

from .checkpoint import parse_dtype
from .configuration_moe import MoEConfig
from .modeling_moe import MoEForCausalLM
from .quantization import quantized_matrices

EXPERTS, SHARED, LORA, ATTENTION = "expert weights", "shared base", "LoRA factors", "attention"
SHARED_EXPERTS, ATTENTION_LORA = "shared experts", "attention LoRA"
EMBEDDINGS, REST, CACHE, ACTIVATIONS = "embeddings, head", "norms and gates", "KV cache", "activations"
_PARTS = (
    *((r"\.gate\.", REST), (r"\.self_attn\..*_lora_[AB]$", ATTENTION_LORA), (r"_lora_[AB]$", LORA), (r"\.self_attn\.", ATTENTION)),
    *((r"\.experts\.", EXPERTS), (r"embed_tokens|lm_head", EMBEDDINGS)),
)
# Kernels of a layer for one token: the 48 operations that PyTorch was seen to run, the experts' as `moe_kernels.shipped` launches them.
KERNELS = {"dense": 50, "lora": 60}
# Seen likewise: with shared experts; of attention's gate, two of them its router's; of each projection that experts adapt.
SHARED_KERNELS, ATTENTION_KERNELS, PROJECTION_KERNELS = 4, 5, 5


def weight_bytes(config: MoEConfig) -> dict[str, int]:
    """Bytes of parameters and buffers by part."""
    with torch.device("meta"):  # accelerate's init_empty_weights takes the memory of each parameter first
        model = MoEForCausalLM._from_config(config, dtype=_dtype(config))
    model.tie_weights()
    sizes = {name: tensor.nbytes for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    sizes |= {matrix.full_name: nf4_bytes(torch.Size(matrix.shape).numel()) for matrix in quantized_matrices(model)}
    parts: dict[str, int] = {}
    for name, size in sizes.items():
        part = next((part for pattern, part in _PARTS if re.search(pattern, name)), REST)
        if part == EXPERTS and config.expert_layout == "lora":
            part = SHARED
        parts[part] = parts.get(part, 0) + size
    for part in (EXPERTS, LORA):  # their stacks hold the shared experts' too
        if config.num_shared_experts and part in parts:
            shared = parts[part] * config.num_shared_experts // config.num_stored_experts
            parts |= {part: parts[part] - shared, SHARED_EXPERTS: shared}
    return parts


def cache_bytes(config: MoEConfig, context: int, batch: int) -> int:
    """Bytes of the keys and values of `context` tokens in each of `batch` sequences."""
    kept = min(context, config.sliding_window or context)
    head = config.head_dim or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers * batch * kept * 2 * config.num_key_value_heads * head * _dtype(config).itemsize


def activation_bytes(config: MoEConfig, context: int, batch: int, card: Card | None, is_cuda: bool) -> int:
    """The estimate above for prompts of `context` tokens; of an unknown `card` (None) as if it dequantised whole matrices."""
    tokens, size, width, hidden = batch * context, _dtype(config).itemsize, config.hidden_size, config.intermediate_size
    chosen = _chosen(config)
    is_dense = config.expert_layout == "dense"
    if not is_cuda:  # whose kernels never dequantise a whole matrix
        products = 4 * (chosen * (2 * hidden + width) if is_dense else (2 + chosen + max(chosen, 2)) * hidden)
    else:
        products = size * (chosen * (hidden + width) if is_dense else (chosen + 3) * hidden)
    workspace = dequantised_bytes(config, tokens, card) if is_cuda else 0
    return tokens * (3 * width * size + products) + workspace + batch * config.vocab_size * (size + 4)


def dequantised_bytes(config: MoEConfig, tokens: int, card: Card | None) -> int:
    """Of the layer's largest NF4 matrix in 16 bits, which the Triton kernels make for many tokens."""
    if config.quantization != "nf4" or (card is not None and tokens <= fused_tokens(card.arch)):
        return 0
    matrices = 2 * config.num_stored_experts if config.expert_layout == "dense" else 1
    return _dtype(config).itemsize * config.hidden_size * config.intermediate_size * matrices


@dataclass(frozen=True)
class TokenTime:
    """One decoding step of a batch: seconds by cause, and what the step reads."""

    bytes: float
    memory: float  # the bytes at the bandwidth that kernels reach
    compute: float
    launches: float
    host: float  # eager PyTorch issuing the operations
    floor: float  # the bytes at nominal bandwidth

    @property
    def seconds(self) -> float:
        return max(max(self.memory, self.compute) + self.launches, self.host)


def step_bytes(config: MoEConfig, context: int, batch: int) -> float:
    """Bytes that a decoding step of `batch` tokens reads: every matrix that a token meets, and the cache of `context` tokens."""
    parts, active = weight_bytes(config), active_experts(batch, _routed(config), config.num_local_experts) / config.num_local_experts
    table = 0 if config.tie_word_embeddings else parts[EMBEDDINGS] // 2  # only its rows of the tokens are read
    read = {**parts, EMBEDDINGS: parts[EMBEDDINGS] - table}
    return sum(size * (active if part in (EXPERTS, LORA) else 1) for part, size in read.items()) + cache_bytes(config, context, batch)


def token_time(config: MoEConfig, card: Card, context: int, batch: int) -> TokenTime:
    """A model of a decoding step on `card`, whatever the machine at hand is."""
    read, chosen = step_bytes(config, context, batch), 1 if config.expert_layout == "lora" else _chosen(config)
    width, head = config.hidden_size, config.head_dim or config.hidden_size // config.num_attention_heads
    attention = 2 * width * head * (config.num_attention_heads + config.num_key_value_heads)
    sides = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads, "v_proj": config.num_key_value_heads}
    routed = config.attention_experts or ()
    outs = sum(width + head * sides.get(name, config.num_attention_heads) for name in routed)
    attention += config.num_stored_experts * config.attention_lora_rank * outs  # the factors of all experts meet every token
    factors = _chosen(config) * config.lora_rank * 3 * (width + config.intermediate_size)
    layer = attention + chosen * 3 * width * config.intermediate_size + factors
    weights = config.num_hidden_layers * layer + config.vocab_size * width
    kernels = KERNELS[config.expert_layout] + (SHARED_KERNELS if config.num_shared_experts else 0)
    kernels += ATTENTION_KERNELS + PROJECTION_KERNELS * len(routed) if routed else 0
    kernels *= config.num_hidden_layers
    return TokenTime(
        bytes=read,
        memory=read / (card.dram * card.dram_share),
        compute=2 * batch * weights / card.gemm,
        launches=kernels * card.launch,
        host=kernels * card.host_launch,
        floor=read / card.dram,
    )


def _routed(config: MoEConfig) -> int:
    """Experts that the gate chooses for a token."""
    return {"softmax": config.num_local_experts, "switch": 1, "sequence": 1}.get(config.router_type, config.num_experts_per_tok)


def _chosen(config: MoEConfig) -> int:
    """Experts of a token, the shared ones included."""
    return _routed(config) + config.num_shared_experts


def _dtype(config: MoEConfig) -> torch.dtype:
    return parse_dtype(config.dtype or "float32")
