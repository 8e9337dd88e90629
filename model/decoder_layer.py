"""A decoder layer: Mixtral's around a mixture block of our own, and around attention of ours where experts differ in it.

Shapes: B batch, S sequence, T = B·S tokens, D model width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.mixtral.modeling_mixtral import MixtralAttention, MixtralRMSNorm

from .attention import MoEAttention
from .configuration_moe import ATTENTION, MoEConfig
from .experts import DenseExperts, LoraExperts
from .quantization import NF4Linear
from .routers import MoERouter


class MoEBlock(nn.Module):
    """Router and experts of one layer."""

    def __init__(self, config: MoEConfig, layer_idx: int) -> None:
        super().__init__()
        self.jitter = config.router_jitter_noise
        self.gate = MoERouter(config, layer_idx)
        self.experts = LoraExperts(config) if config.expert_layout == "lora" else DenseExperts(config)

    def forward(self, hidden_BSD: Tensor, token_mask_BS: Tensor | None, noise_seeds: Tensor | None, cache: Cache | None = None) -> Tensor:
        if self.training and self.jitter > 0:  # as in Mixtral, what the experts read is jittered too
            hidden_BSD = hidden_BSD * torch.empty_like(hidden_BSD).uniform_(1 - self.jitter, 1 + self.jitter)
        x_TD = hidden_BSD.reshape(-1, hidden_BSD.shape[-1])
        token_mask_T = None if token_mask_BS is None else token_mask_BS.reshape(-1)
        _, routing = self.gate(x_TD, token_mask_T, noise_seeds, len(hidden_BSD), cache)
        return self.experts(x_TD, routing).view_as(hidden_BSD)


class MoEDecoderLayer(GradientCheckpointingLayer):
    """Mixtral's decoder layer around a `MoEBlock`."""

    def __init__(self, config: MoEConfig, layer_idx: int) -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.self_attn = (MoEAttention if config.attention_experts else MixtralAttention)(config, layer_idx)
        if config.quantization == "nf4":
            for name in ATTENTION:
                linear = getattr(self.self_attn, name)
                setattr(self.self_attn, name, NF4Linear(linear.in_features, linear.out_features))
        self.mlp = MoEBlock(config, layer_idx)
        self.input_layernorm = MixtralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = MixtralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, hidden_states: Tensor, token_mask: Tensor | None = None, noise_seeds: Tensor | None = None, **attention_arguments: Any
    ) -> Tensor:
        """`noise_seeds`, one for each gate, are an argument, not state, so that a checkpointed recompute draws the same noise."""
        if isinstance(self.self_attn, MoEAttention):
            attention_arguments |= {"token_mask": token_mask, "noise_seeds": noise_seeds}
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **attention_arguments)
        hidden_states = hidden_states + attended
        cache = attention_arguments.get("past_key_values")
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states), token_mask, noise_seeds, cache)
