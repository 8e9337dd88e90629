"""The gate of one layer: which experts a token goes to, with what weights, and the losses that keep the experts in use.

Shapes: T tokens, K experts per token, E experts, D model width.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from moe_kernels.routing import Routing, importance_loss, load_loss, route

from .configuration_moe import MoEConfig

_MASK64 = (1 << 64) - 1


class MoERouter(nn.Module):
    """Wg `weight` [E, D] and, for `noisy_topk`, Wnoise `noise_weight` [E, D]; neither is ever quantised.

    `last_routing` is the routing of the last forward, detached.
    """

    def __init__(self, config: MoEConfig, layer_idx: int) -> None:
        super().__init__()
        self.kind, self.top_k = config.router_type, config.num_experts_per_tok
        self.seed, self.layer_idx = config.router_seed, layer_idx
        self.num_shared, self.shared_scale = config.num_shared_experts, config.shared_expert_scale
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))
        noisy = config.router_type == "noisy_topk"
        self.noise_weight = nn.Parameter(torch.zeros(config.num_local_experts, config.hidden_size)) if noisy else None
        self.last_routing: Routing | None = None

    def forward(self, x_TD: Tensor, token_mask_T: Tensor | None, step: int) -> tuple[Tensor, Tensor, Routing]:
        """Returns the clean logits [T, E] of the routed experts, the (importance, load) losses [2] over the mask's tokens, and the routing.

        The shared experts stand in that routing alone: neither the losses nor `last_routing` count them.
        """
        noise_seed = noise_seed_of(self.seed, self.layer_idx, step) if self.training and self.noise_weight is not None else None
        routing = route(x_TD, self.weight, self.noise_weight, kind=self.kind, top_k=self.top_k, noise_seed=noise_seed, mask_T=token_mask_T)
        fields = routing.weights_TK, routing.experts_TK, routing.logits_TE, routing.importance_E, routing.load_E
        self.last_routing = Routing(*(tensor.detach() for tensor in fields))
        losses = torch.stack((importance_loss(routing.importance_E), load_loss(routing.load_E)))
        return routing.logits_TE, losses, self._with_shared(routing)

    @property
    def num_stored(self) -> int:
        """How many experts there are, shared ones included."""
        return self.weight.shape[0] + self.num_shared

    def _with_shared(self, routing: Routing) -> Routing:
        """The routing with every token going to the shared experts too, which come after the routed ones."""
        if not self.num_shared:
            return routing
        tokens, device = len(routing.experts_TK), routing.experts_TK.device
        shared_TS = torch.arange(self.weight.shape[0], self.num_stored, device=device).expand(tokens, -1)
        scale_TS = routing.weights_TK.new_full(shared_TS.shape, self.shared_scale)
        return replace(
            routing,
            weights_TK=torch.cat([routing.weights_TK, scale_TS], dim=1),
            experts_TK=torch.cat([routing.experts_TK, shared_TS], dim=1),
        )


def noise_seed_of(seed: int, layer: int, step: int) -> int:
    """A 63-bit seed for one layer at one training step (SplitMix64's finaliser over the three numbers)."""
    state = 0
    for number in (seed, layer, step):
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state >> 1
