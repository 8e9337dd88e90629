"""Launches of the routing kernels. `routing.py` has the public function, the formulas and the operators.

T tokens, K experts per token, E experts, D model width. Grids come from shapes alone: nothing is read from the device, so
that a CUDA graph can capture a launch and a recorder can take it with tensors on the meta device.
An argument that a kernel will not read is some tensor that is at hand.
"""

import torch
from torch import Tensor

from .launch import Launch, arch_of, choose_launch, launch
from .routing_reference import Forward, Gradients

_BLOCK_E = 8  # experts whose sums a thread keeps at a time; above that x is read again (from the cache) for the next 8
_COUNTERS: dict[torch.device, Tensor] = {}


def route_by_kernels(
    x_TD: Tensor, w_gate_ED: Tensor, w_noise_ED: Tensor | None, seed: Tensor | None,
    sequence_ids_T: Tensor | None, mask_T: Tensor | None, kind: str, top_k: int,
) -> Forward:  # fmt: skip
    """What `routing_reference.route_reference` returns: one launch, or two for kind sequence."""
    from .triton import _routing as kernels  # triton is not everywhere where the reference runs

    (tokens, width), num_experts = x_TD.shape, w_gate_ED.shape[0]
    x_TD, w_gate_ED, w_noise_ED, sequence_ids_T = _contiguous(x_TD, w_gate_ED, w_noise_ED, sequence_ids_T)
    mask_T = _as_bytes(mask_T)
    noisy, masked = seed is not None, mask_T is not None
    of_experts, chosen, block_m = _blocks("route", x_TD, num_experts)
    per_pass = _lanes(chosen, x_TD, w_gate_ED, w_noise_ED)

    fp32 = x_TD.new_empty((), dtype=torch.float32)
    weights_TK, experts_TK = fp32.new_empty(tokens, top_k), fp32.new_empty(tokens, top_k, dtype=torch.int64)
    logits_TE = fp32.new_empty(tokens, num_experts)
    saved = fp32.new_empty(2 if noisy else 1 if kind == "sequence" else 0, tokens, num_experts)
    importance_E, load_E = ((fp32.new_empty if tokens else fp32.new_zeros)(num_experts) for _ in range(2))
    arrived = _arrival_counter(x_TD.device)

    if kind == "sequence":
        launch(
            kernels.project_kernel, (-(-tokens // block_m),), x_TD, w_gate_ED, logits_TE, tokens, width,
            options=chosen.options, BLOCK_M=block_m, **of_experts, **per_pass,
        )  # fmt: skip
        of_experts, chosen, block_m = _blocks("route_sequence", x_TD, num_experts)
        programs = -(-tokens // block_m)
        launch(
            kernels.route_sequence_kernel, (programs,), logits_TE, sequence_ids_T, _or(mask_T, logits_TE), weights_TK, experts_TK, saved,
            importance_E, load_E, fp32.new_empty(programs, 2, num_experts), arrived, tokens,
            options=chosen.options, E=num_experts, E_PAD=of_experts["E_PAD"], MASKED=masked, BLOCK_M=block_m, BLOCK_S=chosen.block_k,
        )  # fmt: skip
    else:
        programs = -(-tokens // block_m)
        launch(
            kernels.route_kernel, (programs,), x_TD, w_gate_ED, _or(w_noise_ED, w_gate_ED), _or(seed, arrived), _or(mask_T, arrived),
            weights_TK, experts_TK, logits_TE, saved, importance_E, load_E, fp32.new_empty(programs, 2, num_experts), arrived,
            tokens, width,
            options=chosen.options, K=top_k, NOISY=noisy, OVER_ALL=kind == "switch", MASKED=masked, BLOCK_M=block_m,
            **of_experts, **per_pass,
        )  # fmt: skip
    return weights_TK, experts_TK, logits_TE, importance_E, load_E, saved


def route_backward_by_kernels(
    dweights_TK: Tensor | None, dlogits_TE: Tensor | None, dimportance_E: Tensor | None, dload_E: Tensor | None,
    x_TD: Tensor, w_gate_ED: Tensor, w_noise_ED: Tensor | None, sequence_ids_T: Tensor | None, mask_T: Tensor | None,
    experts_TK: Tensor, logits_TE: Tensor, saved: Tensor, kind: str, noisy: bool, needs: list[bool],
) -> Gradients:  # fmt: skip
    """The gradients of x, Wg and Wnoise; one that `needs` does not ask for is empty. One launch for x, two for the weights."""
    from .triton import _routing_backward as kernels

    (tokens, width), num_experts = x_TD.shape, w_gate_ED.shape[0]
    x_TD, w_gate_ED, w_noise_ED, sequence_ids_T = _contiguous(x_TD, w_gate_ED, w_noise_ED, sequence_ids_T)
    mask_T = _as_bytes(mask_T)
    given = dict(zip(("DWEIGHTS", "DLOGITS", "DIMPORTANCE", "DLOAD"), (dweights_TK, dlogits_TE, dimportance_E, dload_E), strict=True))
    grads = [_or(grad, logits_TE).contiguous() for grad in given.values()]
    flags = {f"HAS_{name}": grad is not None for name, grad in given.items()}
    dclean_TE, draw_TE = torch.empty_like(logits_TE), torch.empty_like(logits_TE) if noisy else logits_TE
    dx_TD = torch.empty_like(x_TD) if needs[0] else x_TD.new_empty(0)
    of_experts, chosen, block_m = _blocks("route_backward", x_TD, num_experts)
    lanes = _lanes(chosen, x_TD, w_gate_ED, w_noise_ED)
    block_d = lanes["LANES"] * lanes["VECTOR"]
    if kind == "sequence":
        del flags["HAS_DLOAD"]  # a count of tokens
        launch(
            kernels.route_sequence_backward_kernel, (-(-tokens // block_m),), *grads[:3], saved, experts_TK, sequence_ids_T,
            _or(mask_T, logits_TE), w_gate_ED, dclean_TE, dx_TD, tokens, width,
            options=chosen.options, MASKED=mask_T is not None, HAS_DX=needs[0], BLOCK_M=block_m, BLOCK_S=chosen.block_k, BLOCK_D=block_d,
            **flags, **of_experts,
        )  # fmt: skip
    else:
        launch(
            kernels.route_backward_kernel, (-(-tokens // block_m),), *grads, logits_TE, saved, _or(mask_T, logits_TE),
            w_gate_ED, _or(w_noise_ED, w_gate_ED), dclean_TE, draw_TE, dx_TD, tokens, width,
            options=chosen.options, K=experts_TK.shape[1], NOISY=noisy, OVER_ALL=kind == "switch", MASKED=mask_T is not None,
            HAS_DX=needs[0], BLOCK_M=block_m, BLOCK_D=block_d, **flags, **of_experts,
        )  # fmt: skip
    return dx_TD, *_weight_gradients(x_TD, w_gate_ED, w_noise_ED, dclean_TE, draw_TE, needs[1], needs[2] and noisy)


def _weight_gradients(
    x_TD: Tensor, w_gate_ED: Tensor, w_noise_ED: Tensor | None, dclean_TE: Tensor, draw_TE: Tensor, has_gate: bool, has_noise: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dWg and dWnoise: sums over each split of the tokens, then over the splits, both in fixed order."""
    from .triton import _routing_backward as kernels

    dgate_ED = torch.empty_like(w_gate_ED) if has_gate else w_gate_ED.new_empty(0)
    dnoise_ED = torch.empty_like(w_gate_ED if w_noise_ED is None else w_noise_ED) if has_noise else w_gate_ED.new_empty(0)
    if not has_gate and not has_noise:
        return dgate_ED, dnoise_ED
    (tokens, width), num_experts = x_TD.shape, w_gate_ED.shape[0]
    chosen = choose_launch("route_weight", num_experts, width, tokens, arch_of(x_TD.device))
    e_block = min(_BLOCK_E, _next_power(num_experts))
    lanes, vector = 32 * chosen.num_warps, 4
    rows = max(1, -(-tokens // chosen.split_k))
    partial = torch.empty(2, chosen.split_k, num_experts, width, dtype=torch.float32, device=x_TD.device)
    launch(
        kernels.route_dweight_kernel, (-(-width // (lanes * vector)), chosen.split_k, -(-num_experts // e_block)),
        x_TD, dclean_TE, draw_TE, partial[0], partial[1], tokens, width, rows,
        options=chosen.options, E=num_experts, HAS_GATE=has_gate, HAS_NOISE=has_noise, BLOCK_M=chosen.block_m, BLOCK_E=e_block,
        LANES=lanes, VECTOR=vector,
    )  # fmt: skip
    size, block = num_experts * width, 256
    launch(
        kernels.add_splits_kernel, (-(-size // block),), partial, dgate_ED, dnoise_ED, size,
        options={"num_warps": 4, "num_stages": 1}, P=chosen.split_k, HAS_GATE=has_gate, HAS_NOISE=has_noise, BLOCK=block,
    )  # fmt: skip
    return dgate_ED, dnoise_ED


def _blocks(op: str, x_TD: Tensor, num_experts: int) -> tuple[dict[str, int], Launch, int]:
    """Constants of the expert axis, the table's launch, and its tokens in a program, which many experts lower (registers)."""
    tokens, width = x_TD.shape
    chosen = choose_launch(op, num_experts, width, tokens, arch_of(x_TD.device))
    e_pad = _next_power(num_experts)
    block_m = max(1, chosen.block_m * _BLOCK_E // max(e_pad, _BLOCK_E)) if e_pad <= 2 * _BLOCK_E else 1
    return {"E": num_experts, "BLOCK_E": min(_BLOCK_E, e_pad), "E_PAD": e_pad}, chosen, block_m


def _lanes(chosen: Launch, *tensors: Tensor | None) -> dict[str, int]:
    """The columns of a step: a thread takes 16 bytes of the widest of the tensors, a program the columns of all its threads."""
    widest = max(tensor.element_size() for tensor in tensors if tensor is not None)
    return {"LANES": 32 * chosen.num_warps, "VECTOR": 16 // widest}


def _arrival_counter(device: torch.device) -> Tensor:
    """One int32 0, which the last program of a launch sets to 0 again; the launches of a card's default stream share it.

    Other streams get a new one each time: launches of two streams must not share it, a captured graph may be replayed beside the
    stream that it was captured on, and what `torch.compile` allocates while it warms up a graph on its own stream belongs to that graph.
    """
    if device.type == "cuda" and torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        if device not in _COUNTERS:
            _COUNTERS[device] = torch.zeros(1, dtype=torch.int32, device=device)
        return _COUNTERS[device]
    return torch.zeros(1, dtype=torch.int32, device=device)


def _contiguous(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor if tensor is None else tensor.contiguous() for tensor in tensors]  # type: ignore[misc]


def _as_bytes(mask_T: Tensor | None) -> Tensor | None:
    return None if mask_T is None else mask_T.to(torch.bool).contiguous().view(torch.uint8)


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    return stand_in if tensor is None else tensor


def _next_power(number: int) -> int:
    return 1 << (number - 1).bit_length()
