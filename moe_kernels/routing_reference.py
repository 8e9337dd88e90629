"""The reference of routing, in plain torch; `routing.py` says what it computes. T tokens, K experts per token, E experts, D model width."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from .noise import standard_normal

SMALLEST_STD = 1e-6  # in the load: below it Φ is a step, and a softplus that underflowed to 0 would give its gradient a NaN

Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor]


def route_reference(
    x_TD: Tensor,
    w_gate_ED: Tensor,
    w_noise_ED: Tensor | None,
    seed: Tensor | None,
    sequence_ids_T: Tensor | None,
    mask_T: Tensor | None,
    kind: str,
    top_k: int,
    noise_scale: Tensor | None = None,
) -> Forward:
    """The fields of `Routing`, and what the kernels' backward wants of the forward: raw noise logits and normals, or mean logits."""
    num_experts = w_gate_ED.shape[0]
    logits_TE = _project(x_TD, w_gate_ED)
    saved = logits_TE.new_empty(0, *logits_TE.shape)
    if kind in ("noisy_topk", "topk"):
        noisy_TE, noise_std_TE = logits_TE, None
        if w_noise_ED is not None and seed is not None:
            raw_TE = _project(x_TD, w_noise_ED)
            noise_std_TE = softplus(raw_TE) if noise_scale is None else softplus(raw_TE) * noise_scale
            noise_TE = standard_normal(seed, len(x_TD), num_experts, x_TD.device)
            noisy_TE = logits_TE + noise_TE * noise_std_TE
            saved = torch.stack((raw_TE, noise_TE.to(raw_TE.dtype)))
        weights_TK, experts_TK, load_TE = _noisy_topk(logits_TE, noisy_TE, noise_std_TE, top_k)
    else:
        choice_TE = logits_TE
        if sequence_ids_T is not None:
            choice_TE = _mean_over_sequences(logits_TE, sequence_ids_T, mask_T)
            saved = choice_TE[None]
        weights_TK, experts_TK = _softmax_first(choice_TE, kind)
        load_TE = _chosen(experts_TK, num_experts).to(logits_TE.dtype)
    weights_TE = torch.zeros_like(logits_TE).scatter(1, experts_TK, weights_TK)
    if mask_T is not None:
        weights_TE, load_TE = weights_TE.where(mask_T[:, None], 0), load_TE.where(mask_T[:, None], 0)
    return weights_TK.contiguous(), experts_TK.contiguous(), logits_TE, weights_TE.sum(0), load_TE.sum(0), saved


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
    sorted_TE, order_TE = logits_TE.sort(dim=1, descending=True, stable=True)
    probability_TE = sorted_TE.softmax(dim=1)
    if kind == "softmax":
        return probability_TE, order_TE
    weight_T1, expert_T1 = probability_TE[:, :1], order_TE[:, :1]
    return weight_T1 / weight_T1.detach() if kind == "sequence" else weight_T1, expert_T1


def _mean_over_sequences(logits_TE: Tensor, sequence_ids_T: Tensor, mask_T: Tensor | None) -> Tensor:
    """Each token's logits replaced by the mean over the counting tokens of its sequence (0 if none counts)."""
    votes_TE, counts_TE = logits_TE, torch.ones_like(logits_TE)
    if mask_T is not None:
        votes_TE, counts_TE = votes_TE.where(mask_T[:, None], 0), counts_TE.where(mask_T[:, None], 0)
    sums_SE = torch.zeros_like(logits_TE).index_add(0, sequence_ids_T, votes_TE)
    counts_SE = torch.zeros_like(logits_TE).index_add(0, sequence_ids_T, counts_TE)
    return (sums_SE / counts_SE.clamp(min=1))[sequence_ids_T]


def _chosen(experts_TK: Tensor, num_experts: int) -> Tensor:
    """Whether each token goes to each expert, bool [T, E]."""
    chosen_TE = torch.zeros(experts_TK.shape[0], num_experts, dtype=torch.bool, device=experts_TK.device)
    return chosen_TE.scatter(1, experts_TK, True)


def route_backward_reference(
    dweights_TK: Tensor | None,
    dlogits_TE: Tensor | None,
    dimportance_E: Tensor | None,
    dload_E: Tensor | None,
    x_TD: Tensor,
    w_gate_ED: Tensor,
    w_noise_ED: Tensor | None,
    seed: Tensor | None,
    sequence_ids_T: Tensor | None,
    mask_T: Tensor | None,
    kind: str,
    top_k: int,
    needs: list[bool],
) -> Gradients:
    """The gradients of x, Wg and Wnoise by automatic differentiation; one that `needs` does not ask for is empty."""
    leaves = [None if tensor is None else tensor.detach() for tensor in (x_TD, w_gate_ED, w_noise_ED)]
    wanted = [leaf.requires_grad_() for leaf, need in zip(leaves, needs, strict=True) if leaf is not None and need]
    x, w_gate, w_noise = leaves
    assert x is not None and w_gate is not None
    with inside_an_operator():
        weights_TK, _, logits_TE, importance_E, load_E, _ = route_reference(x, w_gate, w_noise, seed, sequence_ids_T, mask_T, kind, top_k)
        outputs = weights_TK, logits_TE, importance_E, load_E
        grads = dweights_TK, dlogits_TE, dimportance_E, dload_E
        used = [i for i, out in enumerate(outputs) if grads[i] is not None and out.requires_grad]
        if used:
            found = torch.autograd.grad([outputs[i] for i in used], wanted, [grads[i] for i in used], materialize_grads=True)
        else:
            found = tuple(torch.zeros_like(leaf) for leaf in wanted)
    of_wanted = iter(found)
    dx, dgate, dnoise = (next(of_wanted) if leaf is not None and leaf.requires_grad else x_TD.new_empty(0) for leaf in leaves)
    return dx, dgate, dnoise


@contextmanager
def inside_an_operator() -> Iterator[None]:
    """Lets autograd record within the implementation of a custom operator, below which PyTorch has switched it off.

    torch.func.vjp would do it by public means, but not under the schema check of `torch.library.opcheck`.
    """
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False), torch.enable_grad():
        yield
