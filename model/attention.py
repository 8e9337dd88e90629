"""Attention in which experts differ too: the gate mixes LoRA factors of its projections, as it mixes the experts' FFNs.

    P(x) = W x + Σ_e G(x)_e B_e A_e x        for P in config.attention_experts

with a gate G of its own, which sees what attention sees. A token's keys and values depend on that token alone, so the cache is one for all
experts. With q and o alone this is JetMoE's mixture of attention experts on shared keys and values (Shen et al. 2024, arXiv:2404.07413).

Shapes: B batch, S sequence, T = B·S tokens, E experts (shared ones included), D model width, R LoRA rank.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.mixtral.modeling_mixtral import MixtralAttention, apply_rotary_pos_emb, eager_attention_forward

from .configuration_moe import MoEConfig
from .routers import MoERouter


class MoEAttention(MixtralAttention):
    """Mixtral's attention with a `gate`, and for each projection of `attention_experts` its `<projection>_lora_A` [E, R, in] and `_lora_B`
    [E, out, R]; PEFT's scaling is inside B.
    """

    def __init__(self, config: MoEConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.gate = MoERouter(config, layer_idx + config.num_hidden_layers)  # the index of its noise: no other gate's
        self.routed = tuple(config.attention_experts or ())
        experts, rank = config.num_stored_experts, config.attention_lora_rank
        for name in self.routed:
            projection = getattr(self, name)
            self.register_parameter(f"{name}_lora_A", nn.Parameter(torch.empty(experts, rank, projection.in_features)))
            self.register_parameter(f"{name}_lora_B", nn.Parameter(torch.empty(experts, projection.out_features, rank)))

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        token_mask: Tensor | None = None,
        noise_seeds: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """`MixtralAttention.forward` with routed projections; `token_mask` [B, S] and `noise_seeds` as in `MoERouter.forward`."""
        shape_BSD = hidden_states.shape
        token_mask_T = None if token_mask is None else token_mask.reshape(-1)
        _, routing = self.gate(hidden_states.reshape(-1, shape_BSD[-1]), token_mask_T, noise_seeds, shape_BSD[0], past_key_values)
        absent_TE = routing.weights_TK.new_zeros(len(routing.experts_TK), self.gate.num_stored)
        gates_BSE = absent_TE.scatter_add(1, routing.experts_TK, routing.weights_TK).view(*shape_BSD[:-1], -1)

        def heads(name: str) -> Tensor:
            return self._project(name, hidden_states, gates_BSE).view(*shape_BSD[:-1], -1, self.head_dim).transpose(1, 2)

        query, key, value = heads("q_proj"), heads("k_proj"), heads("v_proj")
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.config.sliding_window,
            **kwargs,
        )
        return self._project("o_proj", attended.reshape(*shape_BSD[:-1], -1), gates_BSE), weights

    def _project(self, name: str, x: Tensor, gates_BSE: Tensor) -> Tensor:
        """The projection with its share of every expert. All experts' factors meet every token: E·R columns are few beside D."""
        y: Tensor = getattr(self, name)(x)
        if name not in self.routed:
            return y
        a_ERI, b_EOR = (getattr(self, f"{name}_lora_{factor}").to(x.dtype) for factor in "AB")
        z_BSER = linear(x, a_ERI.flatten(0, 1)).unflatten(-1, a_ERI.shape[:2]) * gates_BSE[..., None].to(x.dtype)
        return y + linear(z_BSER.flatten(-2), b_EOR.transpose(0, 1).flatten(1))
