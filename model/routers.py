"""The gate of one layer: which experts a token goes to, with what weights, and the losses that keep the experts in use.

Shapes: B batch, S sequence, T = B·S tokens, K experts per token, E experts, D model width, L layers.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import Cache

from moe_kernels.routing import Routing, importance_loss, load_loss, route

from .configuration_moe import MoEConfig

SWITCH_LOSS = ("topk", "switch")  # router types whose auxiliary loss is transformers'; the others have Shazeer et al.'s


class MoERouter(nn.Module):
    """Wg `weight` [E, D] and, for `noisy_topk`, Wnoise `noise_weight` [E, D]; neither is ever quantised.

    `last_routing` is the routing of the last forward, detached. `noise_scale` multiplies the noise; None is 1.
    """

    def __init__(self, config: MoEConfig, layer_idx: int) -> None:
        super().__init__()
        self.kind, self.top_k = config.router_type, config.num_experts_per_tok
        self.layer_idx = layer_idx
        self.num_shared, self.shared_scale = config.num_shared_experts, config.shared_expert_scale
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))
        noisy = config.router_type == "noisy_topk"
        self.noise_weight = nn.Parameter(torch.zeros(config.num_local_experts, config.hidden_size)) if noisy else None
        self.last_routing: Routing | None = None
        self.noise_scale: Tensor | None
        self.register_buffer("noise_scale", None, persistent=False)

    def forward(
        self,
        x_TD: Tensor,
        token_mask_T: Tensor | None,
        noise_seeds: Tensor | None,
        batch: int = 1,
        cache: Cache | None = None,
    ) -> tuple[Tensor, Routing]:
        """Returns the clean logits [T, E] and the routing, whose sums are over the tokens of the mask; no noise without seeds.

        `batch` and `cache` are for `sequence`: x holds so many sequences of equal length, the tokens of the mask choose for theirs, and
        the choice is kept with the cache. The shared experts stand among the routing's weights and experts alone; `last_routing` has none.
        """
        kept = expert_choices(cache) if self.kind == "sequence" and cache is not None else {}
        if self.layer_idx in kept:
            routing = self._as_chosen(x_TD, token_mask_T, kept[self.layer_idx], batch)
        else:
            routing = self._choose(x_TD, token_mask_T, noise_seeds, batch)
            if self.kind == "sequence":
                kept[self.layer_idx] = routing.experts_TK.view(batch, -1)[:, :1]
        fields = routing.weights_TK, routing.experts_TK, routing.logits_TE, routing.importance_E, routing.load_E
        self.last_routing = Routing(*(tensor.detach() for tensor in fields))
        return routing.logits_TE, self._with_shared(routing)

    def _choose(self, x_TD: Tensor, token_mask_T: Tensor | None, noise_seeds: Tensor | None, batch: int) -> Routing:
        is_sequence = self.kind == "sequence"
        return route(
            x_TD,
            self.weight,
            self.noise_weight,
            kind=self.kind,
            top_k=self.top_k,
            noise_seed=None if noise_seeds is None or self.noise_weight is None else noise_seeds[self.layer_idx],
            sequence_ids_T=torch.arange(batch, device=x_TD.device).repeat_interleave(len(x_TD) // batch) if is_sequence else None,
            mask_T=token_mask_T,
            noise_scale=self.noise_scale,
        )

    def _as_chosen(self, x_TD: Tensor, token_mask_T: Tensor | None, experts_B1: Tensor, batch: int) -> Routing:
        """The routing by a choice that was made for `batch` sequences before."""
        if len(experts_B1) != batch:
            raise ValueError(f"the cache holds the expert choices of {len(experts_B1)} sequences, not of {batch}")
        routing = route(x_TD, self.weight, kind="topk", top_k=1)  # for its logits and its weights, which are 1
        experts_T1 = experts_B1.repeat_interleave(len(x_TD) // batch, dim=0)
        counted_T = torch.ones_like(experts_T1[:, 0]) if token_mask_T is None else token_mask_T
        load_E = torch.zeros_like(routing.load_E).index_add(0, experts_T1[:, 0], counted_T.to(routing.load_E.dtype))
        return replace(routing, experts_TK=experts_T1, importance_E=load_E, load_E=load_E)

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


def expert_choices(cache: Cache) -> dict[int, Tensor]:
    """The experts [B, 1] that each gate of the kind `sequence` chose for the sequences of a cache.

    They lie in the cache itself, so that a copy of it keeps them. Beams of one prompt share a choice, so they need no reordering.
    """
    return vars(cache).setdefault("expert_choices", {})


def auxiliary_loss(routing: Routing, token_mask_T: Tensor | None, config: MoEConfig) -> Tensor:
    """The balance loss of one layer that its router type has, over the tokens of the mask."""
    if config.router_type in SWITCH_LOSS:
        return switch_loss(routing, token_mask_T)
    return shazeer_loss(routing, config)  # its sums are over these tokens already


def mean_over_layers(loss: Callable[[Routing, Tensor | None], Tensor], routings: tuple[Routing, ...], token_mask: Tensor | None) -> Tensor:
    """The mean of `loss`(routing, mask [T]) of each layer, on the first layer's device."""
    masks = [None if token_mask is None else token_mask.reshape(-1).to(routing.load_E.device) for routing in routings]
    losses = [loss(routing, mask_T) for routing, mask_T in zip(routings, masks, strict=True)]
    return torch.stack([of_layer.to(losses[0].device) for of_layer in losses]).mean()


def shazeer_loss(routing: Routing, config: MoEConfig) -> Tensor:
    """importance_coef · CV²(importance) + load_coef · CV²(load) of one layer (arXiv:1701.06538, eq. 6-11)."""
    return config.importance_coef * importance_loss(routing.importance_E) + config.load_coef * load_loss(routing.load_E)


def switch_loss(routing: Routing, token_mask_T: Tensor | None) -> Tensor:
    """E · Σ_e f_e P_e of one layer (arXiv:2101.03961, eq. 4-6), over the tokens of the mask.

    f_e: how many tokens go to expert e, P_e: its mean probability. It is K where both are uniform.
    """
    probability_TE = routing.logits_TE.softmax(dim=1)
    tokens: Tensor | int = len(probability_TE)
    if token_mask_T is not None:
        probability_TE, tokens = probability_TE.where(token_mask_T[:, None], 0), token_mask_T.sum().clamp(min=1)
    return probability_TE.shape[1] * torch.dot(routing.load_E / tokens, probability_TE.sum(dim=0) / tokens)


def new_tokens(attention_mask: Tensor | None, tokens: Tensor | None) -> Tensor | None:
    """The columns [B, S] of a padding mask that belong to the tokens of this call; None where there is no such mask."""
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2 or tokens is None:
        return None
    return attention_mask[:, -tokens.shape[1] :].bool()


def prompt_tokens(token_mask: Tensor | None, labels: Tensor) -> Tensor:
    """The tokens [B, S] of the mask that have no label, all of them in a row that has labels everywhere."""
    tokens = torch.ones_like(labels, dtype=torch.bool) if token_mask is None else token_mask
    prompt = tokens & (labels == -100)
    return prompt.where(prompt.any(dim=1, keepdim=True), tokens)


def noise_seeds(seed: int, gates: int, step: Tensor) -> Tensor:
    """A 63-bit seed for each gate at one training step: SplitMix64's finaliser over the three numbers in turn.

    In tensors, as a number that changes from step to step would be compiled anew by `torch.compile` each time.
    """
    state = torch.zeros(gates, dtype=torch.int64, device=step.device)
    for number in (seed, torch.arange(gates, device=step.device), step):
        state = state + number + _signed(0x9E3779B97F4A7C15)
        state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
        state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
        state = state ^ _shifted(state, 31)
    return _shifted(state, 1)


def _signed(number: int) -> int:
    """The int64 with the bits of an unsigned number."""
    return number - (1 << 64)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """`state` >> `bits` with zeros coming in, as for unsigned numbers."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
