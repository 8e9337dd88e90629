"""Routing's gradients on the device. `moe_kernels/routing.py` has the formulas, `routing_launch.py` the launches.

T tokens, K experts per token, E experts, D model width, P splits of the tokens. What the forward chose is computed again
from its logits by the same functions. A token's gradients belong to one program and the sums over tokens run in fixed order:
equal bits from run to run.
"""

import triton
import triton.language as tl

from ._routing import (
    INVERSE_SQRT_2PI,
    SMALLEST_STD,
    _clamped_std,
    _counts,
    _margin,
    _rank,
    _softmax,
    _softplus,
)


@triton.jit(do_not_specialize=["T"])
def route_backward_kernel(
    dweights_ptr,  # [T, K] fp32, read if HAS_DWEIGHTS
    dlogits_ptr,  # [T, E] fp32, read if HAS_DLOGITS
    dimportance_ptr,  # [E] fp32, read if HAS_DIMPORTANCE
    dload_ptr,  # [E] fp32, read if HAS_DLOAD
    logits_ptr,  # [T, E] fp32
    saved_ptr,  # [2, T, E] fp32, read if NOISY: x·Wnoise and the normals
    mask_ptr,  # [T] uint8, read if MASKED
    w_gate_ptr,  # [E, D]
    w_noise_ptr,  # [E, D], read if NOISY
    dclean_ptr,  # [T, E] fp32, out: the gradient of x·Wg
    draw_ptr,  # [T, E] fp32, out if NOISY: the gradient of x·Wnoise
    dx_ptr,  # [T, D], out if HAS_DX
    T,
    D,
    E: tl.constexpr,
    K: tl.constexpr,
    NOISY: tl.constexpr,
    OVER_ALL: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_DWEIGHTS: tl.constexpr,
    HAS_DLOGITS: tl.constexpr,
    HAS_DIMPORTANCE: tl.constexpr,
    HAS_DLOAD: tl.constexpr,
    HAS_DX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
    E_PAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Kinds noisy_topk, topk, softmax and switch: from the outputs' gradients to those of the logits, and to x's."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    e = tl.arange(0, E_PAD)
    inside = (t < T)[:, None] & (e < E)[None, :]
    at = t[:, None] * E + e[None, :]
    clean = tl.load(logits_ptr + at, mask=inside, other=0.0)
    noisy = clean
    if NOISY:
        raw = tl.load(saved_ptr + at, mask=inside, other=0.0)
        noise = tl.load(saved_ptr + (t[:, None] + T) * E + e[None, :], mask=inside, other=0.0)
        noisy = clean + noise * _softplus(raw)
    rank = _rank(noisy, E, E_PAD)
    chosen = inside & (rank < K)
    counts = inside & _counts(mask_ptr, t, T, MASKED)[:, None]

    dweights = tl.zeros([BLOCK_M, E_PAD], tl.float32)
    if HAS_DWEIGHTS:
        dweights += tl.load(dweights_ptr + t[:, None] * K + rank, mask=chosen, other=0.0)
    if HAS_DIMPORTANCE:
        dimportance = tl.load(dimportance_ptr + e, mask=e < E, other=0.0)[None, :]
        dweights += tl.where(counts & chosen, dimportance, 0.0)
    probability = _softmax(noisy, inside if OVER_ALL else chosen)
    dnoisy = probability * (dweights - tl.sum(probability * dweights, 1)[:, None])
    dclean = tl.zeros([BLOCK_M, E_PAD], tl.float32)
    if HAS_DLOGITS:
        dclean += tl.load(dlogits_ptr + at, mask=inside, other=0.0)

    if NOISY:
        dstd = tl.zeros([BLOCK_M, E_PAD], tl.float32)
        if HAS_DLOAD and K < E:
            std = _clamped_std(raw)
            z = _margin(clean, noisy, rank, std, K)
            dload = tl.load(dload_ptr + e, mask=e < E, other=0.0)[None, :]
            dmargin = tl.where(counts, dload * tl.exp(-0.5 * z * z) * INVERSE_SQRT_2PI / std, 0.0)
            dclean += dmargin
            # The threshold is the (K+1)-th value for those that are chosen and the K-th for the others.
            dnext = -tl.sum(tl.where(rank < K, dmargin, 0.0), 1)[:, None]
            dlast = -tl.sum(tl.where(rank < K, 0.0, dmargin), 1)[:, None]
            dnoisy += tl.where(rank == K, dnext, tl.where(rank == K - 1, dlast, 0.0))
            dstd -= tl.where(_softplus(raw) < SMALLEST_STD, 0.0, dmargin * z)  # the clamp holds below
        dstd += dnoisy * noise
        draw = dstd * tl.where(raw > 20.0, 1.0, tl.sigmoid(raw))
        tl.store(draw_ptr + at, draw, mask=inside)
    dclean += dnoisy
    tl.store(dclean_ptr + at, dclean, mask=inside)
    if HAS_DX:
        _store_dx(dclean_ptr, draw_ptr, w_gate_ptr, w_noise_ptr, dx_ptr, t, T, D, E, NOISY, BLOCK_M, BLOCK_E, BLOCK_D)


@triton.jit(do_not_specialize=["T"])
def route_sequence_backward_kernel(
    dweights_ptr,  # [T, 1] fp32, read if HAS_DWEIGHTS
    dlogits_ptr,  # [T, E] fp32, read if HAS_DLOGITS
    dimportance_ptr,  # [E] fp32, read if HAS_DIMPORTANCE
    mean_ptr,  # [T, E] fp32: the mean logits of each token's sequence
    experts_ptr,  # [T, 1] int64
    ids_ptr,  # [T] int64
    mask_ptr,  # [T] uint8, read if MASKED
    w_gate_ptr,  # [E, D]
    dclean_ptr,  # [T, E] fp32, out
    dx_ptr,  # [T, D], out if HAS_DX
    T,
    D,
    E: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_DWEIGHTS: tl.constexpr,
    HAS_DLOGITS: tl.constexpr,
    HAS_DIMPORTANCE: tl.constexpr,
    HAS_DX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_E: tl.constexpr,
    E_PAD: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Kind sequence: the straight-through weight has the gradient of log p, which each voter of the sequence shares in."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    e = tl.arange(0, E_PAD)
    inside = (t < T)[:, None] & (e < E)[None, :]
    at = t[:, None] * E + e[None, :]
    own_id = tl.load(ids_ptr + t, mask=t < T, other=-1)
    dlog = tl.zeros([BLOCK_M], tl.float32)
    votes = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, T, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        same = tl.load(ids_ptr + s, mask=s < T, other=-2)[None, :] == own_id[:, None]
        counts = _counts(mask_ptr, s, T, MASKED)
        dweights = tl.zeros([BLOCK_S], tl.float32)
        if HAS_DWEIGHTS:
            dweights += tl.load(dweights_ptr + s, mask=s < T, other=0.0)
        if HAS_DIMPORTANCE:
            dweights += tl.load(dimportance_ptr + tl.load(experts_ptr + s, mask=s < T, other=0), mask=counts, other=0.0)
        dlog += tl.sum(tl.where(same, dweights[None, :], 0.0), 1)
        votes += tl.sum((same & counts[None, :]).to(tl.float32), 1)
    probability = _softmax(tl.load(mean_ptr + at, mask=inside, other=0.0), (e < E)[None, :])
    expert = tl.load(experts_ptr + t, mask=t < T, other=0)
    dmean = dlog[:, None] * (tl.where(e[None, :] == expert[:, None], 1.0, 0.0) - probability)
    voter = inside & _counts(mask_ptr, t, T, MASKED)[:, None]
    dclean = tl.where(voter, dmean / tl.maximum(votes, 1.0)[:, None], 0.0)
    if HAS_DLOGITS:
        dclean += tl.load(dlogits_ptr + at, mask=inside, other=0.0)
    tl.store(dclean_ptr + at, dclean, mask=inside)
    if HAS_DX:
        _store_dx(dclean_ptr, dclean_ptr, w_gate_ptr, w_gate_ptr, dx_ptr, t, T, D, E, False, BLOCK_M, BLOCK_E, BLOCK_D)


@triton.jit
def _store_dx(
    dclean_ptr, draw_ptr, w_gate_ptr, w_noise_ptr, dx_ptr, t, T, D,
    E: tl.constexpr, NOISY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dx = dclean·Wgᵀ + draw·Wnoiseᵀ of tokens `t`, from the gradients that this program has just stored.

    Through memory: kept in registers, each thread would need, and so compute, those of all experts (1,120 bytes of spills at E = 64).
    """
    tl.debug_barrier()  # the gradients of one thread are read by all
    for d0 in range(0, D, BLOCK_D):
        d = d0 + tl.arange(0, BLOCK_D)
        dx = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for first in range(0, E, BLOCK_E):
            e = (first + tl.arange(0, BLOCK_E))[None, :, None]
            of_token = t[:, None, None] * E + e
            in_token = (t[:, None, None] < T) & (e < E)
            of_weight = e * D + d[None, None, :]
            in_weight = (e < E) & (d < D)[None, None, :]
            gate = tl.load(w_gate_ptr + of_weight, mask=in_weight, other=0.0).to(tl.float32)
            dx += tl.sum(tl.load(dclean_ptr + of_token, mask=in_token, other=0.0) * gate, 1)
            if NOISY:
                noise = tl.load(w_noise_ptr + of_weight, mask=in_weight, other=0.0).to(tl.float32)
                dx += tl.sum(tl.load(draw_ptr + of_token, mask=in_token, other=0.0) * noise, 1)
        tl.store(dx_ptr + t[:, None] * D + d[None, :], dx, mask=(t < T)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["T", "rows"])
def route_dweight_kernel(
    x_ptr,  # [T, D]
    dclean_ptr,  # [T, E] fp32
    draw_ptr,  # [T, E] fp32, read if HAS_NOISE
    dgate_ptr,  # [P, E, D], out if HAS_GATE
    dnoise_ptr,  # [P, E, D], out if HAS_NOISE
    T,
    D,
    rows,  # tokens of one split
    E: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """dWg = dcleanᵀ·x and dWnoise = drawᵀ·x over each split's tokens. A program owns LANES * VECTOR columns of BLOCK_E experts.

    A thread owns VECTOR columns; a gradient that it loads meets all of them. BLOCK_M rows are loaded at a time, to hide latency.
    """
    d = (tl.program_id(0) * LANES + tl.arange(0, LANES)[None, :, None]) * VECTOR + tl.arange(0, VECTOR)[None, None, :]
    split = tl.program_id(1)
    e = tl.program_id(2) * BLOCK_E + tl.arange(0, BLOCK_E)
    gate = tl.zeros([BLOCK_E, LANES, VECTOR], tl.float32)
    noise = tl.zeros([BLOCK_E, LANES, VECTOR], tl.float32)
    end = tl.minimum(split * rows + rows, T)
    for first in range(split * rows, end, BLOCK_M):
        for i in tl.static_range(BLOCK_M):
            t = tl.cast(first, tl.int64) + i
            # Limits, as Triton 3.9's interpreter takes no mask made of a scalar and a block.
            columns, experts = tl.where(t < end, D, 0), tl.where(t < end, E, 0)
            x = tl.load(x_ptr + t * D + d, mask=d < columns, other=0.0).to(tl.float32)
            if HAS_GATE:
                gate += tl.load(dclean_ptr + t * E + e, mask=e < experts, other=0.0)[:, None, None] * x
            if HAS_NOISE:
                noise += tl.load(draw_ptr + t * E + e, mask=e < experts, other=0.0)[:, None, None] * x
    out = (split.to(tl.int64) * E + e[:, None, None]) * D + d
    inside = (e < E)[:, None, None] & (d < D)
    if HAS_GATE:
        tl.store(dgate_ptr + out, gate, mask=inside)
    if HAS_NOISE:
        tl.store(dnoise_ptr + out, noise, mask=inside)


@triton.jit
def add_splits_kernel(
    partial_ptr,  # [2, P, E, D] fp32
    dgate_ptr,  # [E, D], out if HAS_GATE
    dnoise_ptr,  # [E, D], out if HAS_NOISE
    size,  # E * D
    P: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds the splits' sums in their order."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if HAS_GATE:
        total = tl.zeros([BLOCK], tl.float32)
        for split in range(P):
            total += tl.load(partial_ptr + split * size + i, mask=i < size, other=0.0)
        tl.store(dgate_ptr + i, total, mask=i < size)
    if HAS_NOISE:
        total = tl.zeros([BLOCK], tl.float32)
        for split in range(P, 2 * P):
            total += tl.load(partial_ptr + split * size + i, mask=i < size, other=0.0)
        tl.store(dnoise_ptr + i, total, mask=i < size)
