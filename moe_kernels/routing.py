"""Which experts a token goes to, and with what weights.

T tokens, K experts per token, E experts, D model width, S sequences. In all kinds the clean logits are h(x) = x·Wg.

    noisy_topk  H(x) = h(x) + Normal · softplus(x·Wnoise);  G(x) = softmax(TopK(H(x), K))     Shazeer et al. 2017, eq. 3-5
    topk        G(x) = softmax(TopK(h(x), K)): noisy_topk without noise                       Jiang et al. 2024 (Mixtral)
    softmax     G(x) = softmax(h(x)) over all experts: K = E
    switch      K = 1, G(x) = max softmax(h(x)), not renormalised, so that the gate learns    Fedus et al. 2021 (Switch)
    sequence    K = 1, G(x) = 1: each prompt takes the expert of the largest mean logit of its tokens

The choice of `sequence` has no derivative; its gate learns through a straight-through weight p / stop_gradient(p) with p the
chosen probability: exactly 1, with the gradient of log p.
Ties go to the lowest expert. A token with NaN or Inf logits still gets distinct experts in range, and NaN weights.
The formulas stand in `routing_reference.py`, the operator and its derivative in `routing_ops.py`.
Everything is computed in fp32 (fp64 if x is), whatever the dtype of x: a bf16 logit cannot tell close experts apart.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import backend
from .routing_ops import run_route
from .routing_reference import route_reference

KINDS = ("noisy_topk", "topk", "softmax", "switch", "sequence")


@dataclass(frozen=True, eq=False)
class Routing:
    weights_TK: Tensor  # fp32, in descending order of the (noisy) logits
    experts_TK: Tensor  # int64, distinct within a token
    # For the losses; the experts do not read them. Only a routing that `route` has not made lacks them.
    logits_TE: Tensor = None  # type: ignore[assignment]  # fp32, clean
    importance_E: Tensor = None  # type: ignore[assignment]  # fp32: sum over the tokens of each expert's weight
    load_E: Tensor = None  # type: ignore[assignment]  # fp32: expected number of tokens of each expert under the noise; without noise their number


def route(
    x_TD: Tensor,
    w_gate_ED: Tensor,
    w_noise_ED: Tensor | None = None,
    *,
    kind: str,
    top_k: int,
    noise_seed: int | Tensor | None = None,
    sequence_ids_T: Tensor | None = None,
    mask_T: Tensor | None = None,
    noise_scale: Tensor | None = None,
) -> Routing:
    """Routes each of T tokens; differentiable in x, Wg and Wnoise through weights, importance and load.

    `top_k` (1..E) is the K of noisy_topk and topk; softmax takes all experts, switch and sequence one.
    `noise_seed` seeds the noise of noisy_topk; None is no noise (evaluation). The other kinds have none. As a 0-dim int64 tensor on
    the device it can change between two replays of a CUDA graph.
    `noise_scale`, a 0-dim tensor of at least 0, multiplies the noise of noisy_topk: for a schedule that lets it fade. None is 1.
    `sequence_ids_T` (0..T-1, any order; kind sequence only) says which tokens share one choice.
    `mask_T` is False (or 0) for a token that must not count: it is routed, but adds nothing to importance, load or the mean logit of
    its sequence (padding; in kind sequence also the completion, which no prompt has seen).
    `ValueError` for an unknown kind, a K outside 1..E, an argument that the kind needs and lacks or whose shape does not fit, or on a CPU
    a `noise_scale` that is negative or not finite.
    """
    num_experts = w_gate_ED.shape[0]
    if x_TD.dim() != 2 or w_gate_ED.dim() != 2 or x_TD.shape[1] != w_gate_ED.shape[1]:
        raise ValueError(f"x of shape {list(x_TD.shape)} does not fit a gate of shape {list(w_gate_ED.shape)}: they are [T, D] and [E, D]")
    backend.refuse_tangents(x_TD, w_gate_ED, w_noise_ED, noise_scale)
    if kind not in KINDS:
        raise ValueError(f"unknown router kind {kind!r}; known: {', '.join(KINDS)}")
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must lie in 1..{num_experts} (the number of experts), not {top_k}")
    if kind == "sequence" and sequence_ids_T is None:
        raise ValueError("the router kind sequence needs sequence_ids_T")
    readable = noise_scale is not None and noise_scale.device.type == "cpu" and not backend.traced(noise_scale)
    if noise_scale is not None and readable and not 0 <= noise_scale.item() < math.inf:
        raise ValueError(f"noise_scale must be a finite number of at least 0, not {noise_scale.item()}")
    if kind != "noisy_topk":
        noise_seed = w_noise_ED = None
    elif noise_seed is None:
        w_noise_ED = None
    elif w_noise_ED is None:
        raise ValueError("noisy_topk with a noise_seed needs the noise weights w_noise_ED")
    elif not isinstance(noise_seed, Tensor):
        signed = (noise_seed + 2**63) % 2**64 - 2**63
        noise_seed = torch.full((), signed, dtype=torch.int64, device=x_TD.device)
    elif noise_seed.dtype != torch.int64 or noise_seed.numel() != 1 or noise_seed.device != x_TD.device:
        given = f"{noise_seed.dtype} of shape {tuple(noise_seed.shape)} on {noise_seed.device}"
        raise ValueError(f"a noise_seed that is a tensor must be one int64 on {x_TD.device}, where x is, not {given}")
    top_k = {"softmax": num_experts, "switch": 1, "sequence": 1}.get(kind, top_k)
    sequence_ids_T = sequence_ids_T if kind == "sequence" else None
    wanted = (
        ("w_noise_ED", w_noise_ED, w_gate_ED.shape),
        ("sequence_ids_T", sequence_ids_T, x_TD.shape[:1]),
        ("mask_T", mask_T, x_TD.shape[:1]),
    )
    for name, tensor, shape in wanted:
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} of shape {list(tensor.shape)} does not fit x and the gate: it must be {list(shape)}")
    if mask_T is not None:
        mask_T = mask_T.to(torch.bool)
    arguments = x_TD, w_gate_ED, w_noise_ED, noise_seed, sequence_ids_T, mask_T, kind, top_k
    if noise_scale is None or noise_seed is None:
        weights_TK, experts_TK, logits_TE, importance_E, load_E, _ = run_route(*arguments)
    else:  # only while a gate is trained: not worth an argument of every kernel
        weights_TK, experts_TK, logits_TE, importance_E, load_E, _ = route_reference(*arguments, noise_scale)
    return Routing(weights_TK, experts_TK, logits_TE, importance_E, load_E)


def importance_loss(importance_E: Tensor) -> Tensor:
    """CV(importance)²: 0 if all experts weigh the same. Shazeer et al. 2017, eq. 6-7."""
    return _squared_variation(importance_E)


def load_loss(load_E: Tensor) -> Tensor:
    """CV(load)²: 0 if all experts get as many tokens. Shazeer et al. 2017, eq. 11."""
    return _squared_variation(load_E)


def z_loss(logits_TE: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """The mean over the tokens of the mask of log(Σ_e exp(logit_e))²: it keeps logits small; 0 of no tokens. Zoph et al. 2022, eq. 5."""
    squares_T = logits_TE.logsumexp(dim=1).square()
    if mask_T is None:
        return squares_T.sum() / max(1, len(squares_T))
    return squares_T.where(mask_T, 0).sum() / mask_T.sum().clamp(min=1)


def _squared_variation(values_E: Tensor) -> Tensor:
    """Variance over squared mean (of the population, as the authors' code has it); 0 of nothing at all."""
    return values_E.var(correction=0) / (values_E.mean().square() + 1e-10)
