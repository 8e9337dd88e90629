"""The losses that a gate learns by beside the language model's: which routers have which, their weights, and their values for the log.

Shapes: B batch, S sequence, T = B·S tokens, E experts.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from model import MoEForCausalLM
from model.configuration_moe import ROUTER_TYPES, MoEConfig
from model.routers import SWITCH_LOSS, MoERouter, mean_over_layers, new_tokens, prompt_tokens, switch_loss
from moe_kernels.routing import importance_loss, load_loss, z_loss

from .data.prompts import IGNORED

# Each loss's flag: the configuration's field of its weight, and the routers that learn by it. The load's gradient is through the noise.
LOSS_FLAGS = {
    "importance": ("importance_coef", ("noisy_topk", "softmax", "sequence")),
    "load": ("load_coef", ("noisy_topk",)),
    "balance": ("router_aux_loss_coef", SWITCH_LOSS),
    "z_loss": ("router_z_loss_coef", ROUTER_TYPES),
}


def set_losses(config: MoEConfig, args: argparse.Namespace) -> None:
    """Writes the losses' weights into the mixture's configuration; `ValueError` for a flag that its router has no use for."""
    kind = config.router_type
    for flag, (field, kinds) in LOSS_FLAGS.items():
        value = getattr(args, flag)
        if value is not None and kind not in kinds:
            raise ValueError(f"--{flag.replace('_', '-')} is for the routers {', '.join(kinds)}; this one is {kind}")
        if value is not None:
            setattr(config, field, value)
    if args.noise != "constant" and kind != "noisy_topk":
        raise ValueError(f"--noise {args.noise} is for the router noisy_topk; {kind} has no noise")


def label_loss(router_logits: Sequence[Tensor], own_expert_B: Tensor, labels_BS: Tensor) -> Tensor:
    """Cross entropy of each layer's gate logits [T, E] against the row's own expert: summed over completion tokens, mean over layers."""
    target_T = own_expert_B[:, None].where(labels_BS != IGNORED, IGNORED).flatten()
    losses = [cross_entropy(logits_TE, target_T.to(logits_TE.device), reduction="sum") for logits_TE in router_logits]
    return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()


@torch.no_grad()
def router_losses(model: MoEForCausalLM, batch: dict[str, Any]) -> dict[str, Tensor]:
    """The router's own losses, unweighted means over layers, in the forward of this batch that the model has just done."""
    token_mask = new_tokens(batch["attention_mask"], batch["input_ids"])
    if model.config.router_type == "sequence":
        token_mask = prompt_tokens(token_mask, batch["labels"])
    routings: Any = tuple(module.last_routing for module in model.modules() if isinstance(module, MoERouter))
    losses: dict[str, Any] = {"z_loss": lambda routing, mask_T: z_loss(routing.logits_TE, mask_T)}
    if model.config.router_type in SWITCH_LOSS:
        losses["balance_loss"] = switch_loss
    else:
        losses["importance_loss"] = lambda routing, _: importance_loss(routing.importance_E)
        losses["load_loss"] = lambda routing, _: load_loss(routing.load_E)
    return {name: mean_over_layers(loss, routings, token_mask) for name, loss in losses.items()}
