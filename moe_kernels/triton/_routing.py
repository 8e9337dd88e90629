"""Routing on the device. `moe_kernels/routing.py` has the formulas and their reference, `routing_launch.py` the launches.

T tokens, K experts per token, E experts, D model width, P programs of a launch. A program owns BLOCK_M tokens and works on
[BLOCK_M, E_PAD] tiles; E_PAD is the power of two at or above E, and what stands in its columns past E is never used.
Everything is fp32; products of rows come from multiplication and addition, not from tensor cores, whose inputs would be rounded.
"""

import math

import triton
import triton.language as tl

SMALLEST_STD: tl.constexpr = tl.constexpr(1e-6)  # as in the reference
ANGLE: tl.constexpr = tl.constexpr(2 * math.pi * 2**-32)
HALF_PI: tl.constexpr = tl.constexpr(1.57079632673412561417)  # its first 33 bits, so that small multiples are exact
HALF_PI_REST: tl.constexpr = tl.constexpr(6.07710050650619224932e-11)
SQRT_HALF: tl.constexpr = tl.constexpr(math.sqrt(0.5))
INVERSE_SQRT_2PI: tl.constexpr = tl.constexpr(1 / math.sqrt(2 * math.pi))


@triton.jit(do_not_specialize=["T"], do_not_specialize_on_alignment=["seed_ptr"])
def route_kernel(
    x_ptr,  # [T, D]
    w_gate_ptr,  # [E, D]
    w_noise_ptr,  # [E, D], read if NOISY
    seed_ptr,  # [1] int64, read if NOISY
    mask_ptr,  # [T] uint8, read if MASKED
    weights_ptr,  # [T, K] fp32, out
    experts_ptr,  # [T, K] int64, out
    logits_ptr,  # [T, E] fp32, out
    saved_ptr,  # [2, T, E] fp32, out if NOISY: x·Wnoise and the normals, for the backward
    importance_ptr,  # [E] fp32, out
    load_ptr,  # [E] fp32, out
    partial_ptr,  # [P, 2, E] fp32, scratch
    arrived_ptr,  # [1] int32, 0 before and after
    T,
    D,
    E: tl.constexpr,
    K: tl.constexpr,
    NOISY: tl.constexpr,
    OVER_ALL: tl.constexpr,  # the softmax is over all experts (switch), not over the chosen
    MASKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
    E_PAD: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Kinds noisy_topk, topk, softmax (K = E) and switch, in one launch."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    e = tl.arange(0, E_PAD)
    inside = (t < T)[:, None] & (e < E)[None, :]
    clean, raw = _project(x_ptr, w_gate_ptr, w_noise_ptr, t, T, D, E, NOISY, BLOCK_M, BLOCK_E, E_PAD, LANES, VECTOR)
    at = t[:, None] * E + e[None, :]
    tl.store(logits_ptr + at, clean, mask=inside)
    noisy = clean
    if NOISY:
        noise = _standard_normal(tl.load(seed_ptr), at)
        tl.store(saved_ptr + at, raw, mask=inside)
        tl.store(saved_ptr + (t[:, None] + T) * E + e[None, :], noise, mask=inside)
        noisy = clean + noise * _softplus(raw)

    rank = _rank(noisy, E, E_PAD)
    chosen = rank < K
    weights = tl.where(chosen, _softmax(noisy, (e < E)[None, :] if OVER_ALL else chosen), 0.0)
    place = t[:, None] * K + rank
    tl.store(weights_ptr + place, weights, mask=inside & chosen)
    tl.store(experts_ptr + place, tl.broadcast_to(e.to(tl.int64)[None, :], [BLOCK_M, E_PAD]), mask=inside & chosen)

    load = chosen.to(tl.float32)
    if NOISY and K < E:
        load = _normal_cdf(_margin(clean, noisy, rank, _clamped_std(raw), K))
    counts = inside & _counts(mask_ptr, t, T, MASKED)[:, None]
    _sum_over_programs(
        tl.sum(tl.where(counts, weights, 0.0), 0), tl.sum(tl.where(counts, load, 0.0), 0),
        importance_ptr, load_ptr, partial_ptr, arrived_ptr, E, E_PAD,
    )  # fmt: skip


@triton.jit(do_not_specialize=["T"])
def project_kernel(
    x_ptr,  # [T, D]
    w_gate_ptr,  # [E, D]
    logits_ptr,  # [T, E] fp32, out
    T,
    D,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,
    E_PAD: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """The clean logits alone: the first of the two launches of kind sequence."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    e = tl.arange(0, E_PAD)
    clean, _ = _project(x_ptr, w_gate_ptr, w_gate_ptr, t, T, D, E, False, BLOCK_M, BLOCK_E, E_PAD, LANES, VECTOR)
    tl.store(logits_ptr + t[:, None] * E + e[None, :], clean, mask=(t < T)[:, None] & (e < E)[None, :])


@triton.jit(do_not_specialize=["T"])
def route_sequence_kernel(
    logits_ptr,  # [T, E] fp32
    ids_ptr,  # [T] int64
    mask_ptr,  # [T] uint8, read if MASKED
    weights_ptr,  # [T, 1] fp32, out: 1, or NaN
    experts_ptr,  # [T, 1] int64, out
    mean_ptr,  # [T, E] fp32, out: the mean logits of each token's sequence
    importance_ptr,  # [E] fp32, out
    load_ptr,  # [E] fp32, out
    partial_ptr,  # [P, 2, E] fp32, scratch
    arrived_ptr,  # [1] int32, 0 before and after
    T,
    E: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
    E_PAD: tl.constexpr,
):
    """Kind sequence. Every token adds up its own sequence, T² comparisons in all but no sort and no atomics: 4 M at T = 2048."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    e = tl.arange(0, E_PAD)
    own_id = tl.load(ids_ptr + t, mask=t < T, other=-1)
    total = tl.zeros([BLOCK_M, E_PAD], tl.float32)
    votes = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, T, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        same = (tl.load(ids_ptr + s, mask=s < T, other=-2)[None, :] == own_id[:, None]) & _counts(mask_ptr, s, T, MASKED)[None, :]
        logits = tl.load(logits_ptr + s.to(tl.int64)[:, None] * E + e[None, :], mask=(s < T)[:, None] & (e < E)[None, :], other=0.0)
        total += tl.sum(tl.where(same[:, :, None], logits[None, :, :], 0.0), 1)
        votes += tl.sum(same.to(tl.float32), 1)
    mean = total / tl.maximum(votes, 1.0)[:, None]
    inside = (t < T)[:, None] & (e < E)[None, :]
    tl.store(mean_ptr + t[:, None] * E + e[None, :], mean, mask=inside)

    chosen = _rank(mean, E, E_PAD) == 0
    probability = _softmax(mean, (e < E)[None, :])
    weights = tl.where(chosen, tl.where(probability == probability, 1.0, probability), 0.0)
    tl.store(weights_ptr + tl.broadcast_to(t[:, None], [BLOCK_M, E_PAD]), weights, mask=inside & chosen)
    tl.store(experts_ptr + t, tl.sum(tl.where(chosen, e.to(tl.int64)[None, :], 0), 1), mask=t < T)
    counts = inside & _counts(mask_ptr, t, T, MASKED)[:, None]
    _sum_over_programs(
        tl.sum(tl.where(counts, weights, 0.0), 0), tl.sum(tl.where(counts, chosen.to(tl.float32), 0.0), 0),
        importance_ptr, load_ptr, partial_ptr, arrived_ptr, E, E_PAD,
    )  # fmt: skip


@triton.jit
def _project(
    x_ptr, w_gate_ptr, w_noise_ptr, t, T, D,
    E: tl.constexpr, NOISY: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, E_PAD: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """x·Wg and x·Wnoise (or zeros) of tokens `t`, fp32 [BLOCK_M, E_PAD] each; x is read once where E <= BLOCK_E.

    The last axis, VECTOR values that make one 16-byte load, is added up at once within a thread; the LANES axis covers the
    program's threads, and is added up once, at the end. So a thread keeps BLOCK_M * BLOCK_E sums of each matrix.
    """
    row = t[:, None, None, None]
    lane = tl.arange(0, LANES)[None, None, :, None] * VECTOR + tl.arange(0, VECTOR)[None, None, None, :]
    clean = tl.zeros([BLOCK_M, E_PAD], tl.float32)
    raw = tl.zeros([BLOCK_M, E_PAD], tl.float32)
    for first in range(0, E, BLOCK_E):
        e = (first + tl.arange(0, BLOCK_E))[None, :, None, None]
        gate = tl.zeros([BLOCK_M, BLOCK_E, LANES], tl.float32)
        noise = tl.zeros([BLOCK_M, BLOCK_E, LANES], tl.float32)
        for d0 in range(0, D, LANES * VECTOR):
            d = d0 + lane
            x = tl.load(x_ptr + row * D + d, mask=(row < T) & (d < D), other=0.0).to(tl.float32)
            gate += tl.sum(x * tl.load(w_gate_ptr + e * D + d, mask=(e < E) & (d < D), other=0.0).to(tl.float32), 3)
            if NOISY:
                noise += tl.sum(x * tl.load(w_noise_ptr + e * D + d, mask=(e < E) & (d < D), other=0.0).to(tl.float32), 3)
        clean = _put_columns(clean, tl.sum(gate, 2), first, BLOCK_M, BLOCK_E, E_PAD)
        if NOISY:
            raw = _put_columns(raw, tl.sum(noise, 2), first, BLOCK_M, BLOCK_E, E_PAD)
    return clean, raw


@triton.jit
def _put_columns(whole, part, first, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, E_PAD: tl.constexpr):
    """`whole` [BLOCK_M, E_PAD] with its columns from `first` on replaced by `part` [BLOCK_M, BLOCK_E]."""
    repeated = tl.broadcast_to(part[:, None, :], [BLOCK_M, E_PAD // BLOCK_E, BLOCK_E]).reshape([BLOCK_M, E_PAD])
    return tl.where((tl.arange(0, E_PAD) // BLOCK_E == first // BLOCK_E)[None, :], repeated, whole)


@triton.jit
def _standard_normal(seed, index):
    """Number `index` (int64) of the stream of `seed` (int64): `moe_kernels/noise.py`, bit for bit."""
    zero = (index * 0).to(tl.uint32)
    word0, word1, _, _ = tl.philox(seed, index.to(tl.uint32), (index >> 32).to(tl.uint32), zero, zero)
    radius = tl.sqrt(-2.0 * tl.log((word0.to(tl.float64) + 1.0) * 2**-32))
    return (radius * _cosine(word1)).to(tl.float32)


@triton.jit
def _cosine(word):
    """cos(word * 2π / 2^32) of a uint32 in fp64, to about an ulp. (CUDA's own keeps 48 bytes of local memory a thread for huge angles.)

    The angle less its nearest multiple q of π/2, which fdlibm's two-part π/2 leaves exact; then Taylor's series on [-π/4, π/4],
    whose first term left out is 5e-17.
    """
    quarters = ((word >> 29) + 1) >> 1  # 0..4
    q = quarters.to(tl.float64)
    # `fma` of nothing: else the compiler would fuse the product, rounded in the reference, with the difference.
    angle = tl.fma(word.to(tl.float64), tl.full(q.shape, ANGLE, tl.float64), tl.zeros(q.shape, tl.float64))
    r = (angle - q * HALF_PI) - q * HALF_PI_REST
    even = quarters % 2 == 0  # the cosine of r, else its sine: one series, since fp64 runs at 1/64 of fp32's rate
    value = tl.full(r.shape, 1.0, tl.float64)
    for i in tl.static_range(16, 0, -2):
        next_term = tl.where(even, tl.full(r.shape, 1.0 / (i * (i - 1)), tl.float64), tl.full(r.shape, 1.0 / (i * (i + 1)), tl.float64))
        value = 1.0 - value * (r * r * next_term)
    value = tl.where(even, value, value * r)
    return tl.where((quarters == 1) | (quarters == 2), -value, value)


@triton.jit
def _softplus(raw):
    """log(1 + exp(raw)), and raw itself above 20, as torch has it.

    log(1 + z) loses the digits of a small z; times z / ((1 + z) - 1) they come back (Goldberg 1991, theorem 4).
    """
    z = tl.exp(tl.minimum(raw, 20.0, propagate_nan=tl.PropagateNan.ALL))
    rounded = 1.0 + z
    small = tl.where(rounded == 1.0, z, tl.log(rounded) * (z / tl.where(rounded == 1.0, 1.0, rounded - 1.0)))
    return tl.where(raw > 20.0, raw, small)


@triton.jit
def _clamped_std(raw):
    return tl.maximum(_softplus(raw), SMALLEST_STD, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _rank(values, E: tl.constexpr, E_PAD: tl.constexpr):
    """The place of each of `values` [BLOCK_M, E_PAD] in its row's descending order; ties in column order.

    NaN counts as the largest, as in torch's sort, and a column past E as the smallest, so the ranks of experts are 0..E-1.
    """
    bits = values.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers that compare as the floats do
    order = tl.where(values == 0.0, 0, tl.where(values != values, 0x7FFFFFFF, order))
    e = tl.arange(0, E_PAD)
    order = tl.where((e < E)[None, :], order, -0x80000000)
    ours, others = order[:, :, None], order[:, None, :]
    before = (others > ours) | ((others == ours) & (e[None, None, :] < e[None, :, None]))
    return tl.sum(before.to(tl.int32), 2)


@triton.jit
def _value_of_rank(values, rank, wanted):
    """The value [BLOCK_M, 1] that stands at place `wanted` of each row."""
    return tl.sum(tl.where(rank == wanted, values, 0.0), 1)[:, None]


@triton.jit
def _softmax(values, among):
    """Softmax over those of each row that are `among`; 0 elsewhere."""
    top = tl.max(tl.where(among, values, float("-inf")), 1)[:, None]
    exponential = tl.where(among, tl.exp(values - top), 0.0)
    return exponential / tl.sum(exponential, 1)[:, None]


@triton.jit
def _margin(clean, noisy, rank, std, K: tl.constexpr):
    """(h(x)_e - kth_excluding(H(x), K, e)) / std_e: Shazeer et al. 2017, eq. 9."""
    threshold = tl.where(rank < K, _value_of_rank(noisy, rank, K), _value_of_rank(noisy, rank, K - 1))
    return (clean - threshold) / std


@triton.jit
def _normal_cdf(z):
    return 0.5 + 0.5 * tl.erf(z * SQRT_HALF)


@triton.jit
def _counts(mask_ptr, t, T, MASKED: tl.constexpr):
    """Whether tokens `t` count in the sums."""
    if MASKED:
        return tl.load(mask_ptr + t, mask=t < T, other=0) != 0
    else:
        return t < T


@triton.jit
def _sum_over_programs(
    importance, load, importance_ptr, load_ptr, partial_ptr, arrived_ptr, E: tl.constexpr, E_PAD: tl.constexpr
):  # fmt: skip
    """Adds the programs' [E_PAD] sums in the order of the programs, whichever of them finishes last.

    A float atomic would add them in the order of arrival, and a second launch would cost 2-3 µs.
    """
    programs = tl.num_programs(0)
    e = tl.arange(0, E_PAD)
    own = partial_ptr + tl.program_id(0) * 2 * E + e
    tl.store(own, importance, mask=e < E)
    tl.store(own + E, load, mask=e < E)
    tl.debug_barrier()  # the atomic is one thread's; the others' stores must come before it
    if tl.atomic_add(arrived_ptr, 1, sem="acq_rel") == programs - 1:
        ROWS: tl.constexpr = 1024 // (E_PAD if E_PAD > 8 else 8)  # twice as many at E = 4 spill 8 bytes on sm_90
        importance = tl.zeros([E_PAD], tl.float32)
        load = tl.zeros([E_PAD], tl.float32)
        for first in range(0, programs, ROWS):
            p = first + tl.arange(0, ROWS)
            at = partial_ptr + p[:, None] * 2 * E + e[None, :]
            there = (p < programs)[:, None] & (e < E)[None, :]
            importance += tl.sum(tl.load(at, mask=there, other=0.0, cache_modifier=".cg"), 0)  # L1 may hold what was there before
            load += tl.sum(tl.load(at + E, mask=there, other=0.0, cache_modifier=".cg"), 0)
        tl.store(importance_ptr + e, importance, mask=e < E)
        tl.store(load_ptr + e, load, mask=e < E)
        tl.store(arrived_ptr, 0)
