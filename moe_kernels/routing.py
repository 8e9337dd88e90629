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
Everything is computed in fp32 (fp64 if x is), whatever the dtype of x: a bf16 logit cannot tell close experts apart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from .noise import standard_normal

KINDS = ("noisy_topk", "topk", "softmax", "switch", "sequence")
SMALLEST_STD = 1e-6  # in the load: below it Φ is a step, and a softplus that underflowed to 0 would give its gradient a NaN


@dataclass(frozen=True, eq=False)
class Routing:
    weights_TK: Tensor  # fp32, in descending order of the (noisy) logits
    experts_TK: Tensor  # int64, distinct within a token
    logits_TE: Tensor  # fp32, clean
    importance_E: Tensor  # fp32: sum over the tokens of each expert's weight
    load_E: Tensor  # fp32: expected number of tokens of each expert under the noise; without noise their number


def route(
    x_TD: Tensor,
    w_gate_ED: Tensor,
    w_noise_ED: Tensor | None = None,
    *,
    kind: str,
    top_k: int,
    noise_seed: int | None = None,
    sequence_ids_T: Tensor | None = None,
    mask_T: Tensor | None = None,
) -> Routing:
    """Routes each of T tokens; differentiable in x, Wg and Wnoise through weights, importance and load.

    `top_k` (1..E) is the K of noisy_topk and topk; softmax takes all experts, switch and sequence one.
    `noise_seed` seeds the noise of noisy_topk; None is no noise (evaluation). The other kinds have none.
    `sequence_ids_T` (0..T-1, any order; kind sequence only) says which tokens share one choice.
    `mask_T` is False for a token that must not count: it is routed, but adds nothing to importance, load or the mean logit of
    its sequence (padding; in kind sequence also the completion, which no prompt has seen).
    `ValueError` for an unknown kind, a K outside 1..E, or an argument that the kind needs and lacks.
    """
    num_experts = w_gate_ED.shape[0]
    if kind not in KINDS:
        raise ValueError(f"unknown router kind {kind!r}; known: {', '.join(KINDS)}")
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must lie in 1..{num_experts} (the number of experts), not {top_k}")
    logits_TE = _project(x_TD, w_gate_ED)
    if kind in ("noisy_topk", "topk"):
        noisy_TE, noise_std_TE = logits_TE, None
        if kind == "noisy_topk" and noise_seed is not None:
            if w_noise_ED is None:
                raise ValueError("noisy_topk with a noise_seed needs the noise weights w_noise_ED")
            noise_std_TE = softplus(_project(x_TD, w_noise_ED))
            noise_TE = standard_normal(noise_seed, len(x_TD), num_experts, x_TD.device)
            noisy_TE = logits_TE + noise_TE * noise_std_TE
        weights_TK, experts_TK, load_TE = _noisy_topk(logits_TE, noisy_TE, noise_std_TE, top_k)
    else:
        choice_TE = _mean_over_sequences(logits_TE, sequence_ids_T, mask_T) if kind == "sequence" else logits_TE
        weights_TK, experts_TK = _softmax_first(choice_TE, kind)
        load_TE = _chosen(experts_TK, num_experts).to(logits_TE.dtype)
    weights_TE = torch.zeros_like(logits_TE).scatter(1, experts_TK, weights_TK)
    if mask_T is not None:
        weights_TE, load_TE = weights_TE.where(mask_T[:, None], 0), load_TE.where(mask_T[:, None], 0)
    return Routing(weights_TK, experts_TK, logits_TE, weights_TE.sum(0), load_TE.sum(0))


def importance_loss(importance_E: Tensor) -> Tensor:
    """CV(importance)²: 0 if all experts weigh the same. Shazeer et al. 2017, eq. 6-7."""
    return _squared_variation(importance_E)


def load_loss(load_E: Tensor) -> Tensor:
    """CV(load)²: 0 if all experts get as many tokens. Shazeer et al. 2017, eq. 11."""
    return _squared_variation(load_E)


def _squared_variation(values_E: Tensor) -> Tensor:
    """Variance over squared mean (of the population, as the authors' code has it); 0 of nothing at all."""
    return values_E.var(correction=0) / (values_E.mean().square() + 1e-10)


def _project(x_TD: Tensor, w_ED: Tensor) -> Tensor:
    """x·w in fp32 or wider, in autocast too."""
    dtype = torch.promote_types(x_TD.dtype, torch.float32)
    with torch.autocast(x_TD.device.type, enabled=False):
        return linear(x_TD.to(dtype), w_ED.to(dtype))


def _noisy_topk(clean_TE: Tensor, noisy_TE: Tensor, noise_std_TE: Tensor | None, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and experts of the K largest noisy logits, and each expert's probability of being chosen anew.

    Shazeer et al. 2017, eq. 8-9: P(x, e) = Φ((h(x)_e - kth_excluding(H(x), K, e)) / std_e), where kth_excluding is the K-th
    largest noisy logit when e itself is left out: the (K+1)-th of all for a chosen expert, the K-th for another. Without noise,
    or with K = E, the choice is certain.
    """
    num_experts = noisy_TE.shape[1]
    sorted_TE, order_TE = noisy_TE.sort(dim=1, descending=True, stable=True)
    weights_TK, experts_TK = sorted_TE[:, :top_k].softmax(dim=1), order_TE[:, :top_k]
    chosen_TE = _chosen(experts_TK, num_experts)
    if noise_std_TE is None or top_k == num_experts:
        return weights_TK, experts_TK, chosen_TE.to(clean_TE.dtype)
    threshold_TE = sorted_TE[:, top_k, None].where(chosen_TE, sorted_TE[:, top_k - 1, None])
    return weights_TK, experts_TK, torch.special.ndtr((clean_TE - threshold_TE) / noise_std_TE.clamp(min=SMALLEST_STD))


def _softmax_first(logits_TE: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Weights and experts of the kinds whose weight is a probability among all experts."""
    probability_TE, order_TE = logits_TE.softmax(dim=1).sort(dim=1, descending=True, stable=True)
    if kind == "softmax":
        return probability_TE, order_TE
    weight_T1, expert_T1 = probability_TE[:, :1], order_TE[:, :1]
    return weight_T1 / weight_T1.detach() if kind == "sequence" else weight_T1, expert_T1


def _mean_over_sequences(logits_TE: Tensor, sequence_ids_T: Tensor | None, mask_T: Tensor | None) -> Tensor:
    """Each token's logits replaced by the mean over the counting tokens of its sequence (0 if none counts)."""
    if sequence_ids_T is None:
        raise ValueError("the router kind sequence needs sequence_ids_T")
    votes_TE, counts_TE = logits_TE, torch.ones_like(logits_TE)
    if mask_T is not None:
        votes_TE, counts_TE = votes_TE.where(mask_T[:, None], 0), counts_TE.where(mask_T[:, None], 0)
    sums_SE = torch.zeros_like(logits_TE).index_add(0, sequence_ids_T, votes_TE)
    counts_SE = torch.zeros_like(logits_TE).index_add(0, sequence_ids_T, counts_TE)
    return (sums_SE / counts_SE.clamp(min=1))[sequence_ids_T]


def _chosen(experts_TK: Tensor, num_experts: int) -> Tensor:
    """Whether each token goes to each expert, bool [T, E]."""
    chosen_TE = torch.zeros(experts_TK.shape[0], num_experts, dtype=torch.bool, device=experts_TK.device)
    return chosen_TE.scatter_(1, experts_TK, True)
