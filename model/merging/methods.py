"""The merge methods as functions on the tensors of one name, and the parameters that each takes.

linear: Wortsman et al. 2022, arXiv:2203.05482. slerp: Shoemake 1985, "Animating rotation with quaternion curves".
task_arithmetic: Ilharco et al. 2022, arXiv:2212.04089. ties: Yadav et al. 2023, arXiv:2306.01708.
dare_*: Yu et al. 2023, arXiv:2311.03099. della*: Deep et al. 2024, arXiv:2406.11617.
breadcrumbs*: Davari and Belilovsky 2023, arXiv:2312.06795. Task vectors are differences from a base.

Results have the bits of mergekit 0.1.5 on a CPU, so sums are taken in its order and precision. M models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .parallel import Run, at_least_fp32, pieces, scratch_copies
from .sparsify import keep_at_random, keep_between_outliers, keep_by_rank, keep_largest, mask_dtype

REQUIRED = None
_PARALLEL = 0.9995  # cosine from which the arc is taken as straight
_SHORT = 1e-8  # a norm, or a sum of weights, that is taken as zero


@dataclass(frozen=True)
class Method:
    """What a method takes: parameters with their defaults, of each model (with task vectors: but for the base) or of all together."""

    per_model: Mapping[str, float | None]
    shared: Mapping[str, float | None]
    needs_base: bool = False
    inputs: int | None = None  # how many models, the base among them; None: any number
    uses_task_vectors: bool = False
    sparsify: str | None = None
    consensus: bool = False


_OWN: Mapping[str, dict[str, float]] = {"outliers": {"gamma": 0.01}, "rank": {"epsilon": 0.15}}


def _task_method(sparsify: str | None = None, consensus: bool = False, normalize: bool = False, rescaled: bool = False) -> Method:
    thinning: dict[str, float] = {"density": 1.0, **_OWN.get(sparsify, {})} if sparsify else {}
    shared = {"normalize": normalize, "lambda": 1.0, "int8_mask": False, **({"rescale": rescaled} if sparsify else {})}
    return Method(
        per_model={"weight": REQUIRED, **thinning},
        shared=shared,
        needs_base=True,
        uses_task_vectors=True,
        sparsify=sparsify,
        consensus=consensus,
    )


METHODS = {
    "linear": Method(per_model={"weight": REQUIRED}, shared={"normalize": True}),
    "slerp": Method(per_model={}, shared={"t": REQUIRED}, needs_base=True, inputs=2),
    "passthrough": Method(per_model={"scale": 1.0}, shared={}, inputs=1),
    "task_arithmetic": _task_method(),
    "ties": _task_method("magnitude", consensus=True, normalize=True),
    "dare_linear": _task_method("random", rescaled=True),
    "dare_ties": _task_method("random", consensus=True, rescaled=True),
    "breadcrumbs": _task_method("outliers"),
    "breadcrumbs_ties": _task_method("outliers", consensus=True),
    "della": _task_method("rank", consensus=True, normalize=True, rescaled=True),
    "della_linear": _task_method("rank", rescaled=True),
}
BOOLEANS = {name for method in METHODS.values() for name, default in method.shared.items() if isinstance(default, bool)}
PARAMETERS = sorted({name for method in METHODS.values() for name in (*method.per_model, *method.shared)})


def linear(tensors: Sequence[Tensor], weights: Sequence[float], normalize: bool) -> Tensor:
    """Σ wᵢ Wᵢ, with `normalize` over Σ wᵢ, which must not be zero; computed in fp32 (fp64), of the first tensor's dtype."""
    work = at_least_fp32(tensors[0].dtype)
    scales = torch.tensor(weights, dtype=work)
    total = torch.zeros(tensors[0].shape, dtype=work)
    for tensor, scale in zip(tensors, scales, strict=True):
        total.addcmul_(tensor.to(work), scale)
    return (total.div_(scales.sum()) if normalize else total).to(tensors[0].dtype)


def slerp(t: float, start: Tensor, end: Tensor, out: Tensor | None = None, run: Run = map) -> Tensor:
    """The point at `t` of the arc from `start` to `end` (as vectors, at their own lengths); of their dtype or into `out`.

    Computed in fp32 (fp64). Nearly parallel vectors are interpolated linearly.
    """
    a, b, parts = start.flatten(), end.flatten(), pieces(start.numel())
    norms = torch.stack(list(run(lambda part: torch.stack([row.norm() for row in scratch_copies(a[part], b[part])]), parts))).norm(dim=0)
    start_norm, end_norm = torch.where(norms > _SHORT, norms, 1.0)

    def product(part: slice) -> Tensor:
        from_a, from_b = scratch_copies(a[part], b[part])
        return from_a.div_(start_norm).mul_(from_b.div_(end_norm)).sum()

    cosine = torch.stack(list(run(product, parts))).sum().clamp(-1, 1)
    at = torch.tensor(t, dtype=cosine.dtype)
    if cosine.abs() > _PARALLEL:
        from_start, from_end = 1 - at, at
    else:
        angle = cosine.acos()
        from_start, from_end = ((1 - at) * angle).sin() / angle.sin(), (at * angle).sin() / angle.sin()
    merged = torch.empty_like(start, memory_format=torch.contiguous_format) if out is None else out

    def interpolate(part: slice) -> None:
        from_a, from_b = scratch_copies(a[part], b[part])
        merged.view(-1)[part] = from_a.mul_(from_start).add_(from_b.mul_(from_end)).to(start.dtype)

    list(run(interpolate, parts))
    return merged


def precisions(method: str, dtype: torch.dtype, fast_ties: bool) -> tuple[torch.dtype, torch.dtype]:
    """In which magnitudes are compared, and in which the mask is applied to a task vector in `dtype`: as in mergekit on a CPU.

    The largest are found in fp32, where 16-bit values have the same order (`fast_ties`: these as they are, since nothing is sorted). What
    a random mask leaves is computed in fp32 (of bf16: in bf16).
    """
    if method in ("random", "rank"):
        return dtype, mask_dtype(dtype)
    return (dtype if fast_ties and dtype.itemsize == 2 else torch.float32), dtype


def choose(magnitudes: Tensor, method: str, values: Mapping[str, float], *, seed: str, fast_ties: bool = False, run: Run = map) -> Tensor:
    """The mask of a share `density` of a task vector's entries; `magnitudes` may be overwritten.

    `values`: this model's, of the method's parameters.
    """
    density = values["density"]
    if method == "magnitude":
        return keep_largest(magnitudes, density, fast_ties, run)
    if method == "outliers":
        return keep_between_outliers(magnitudes, density, values["gamma"], fast_ties, run)
    if method == "random":
        return keep_at_random(magnitudes, density, seed, run)
    return keep_by_rank(magnitudes, density, values["epsilon"], seed, fast_ties, run)


def add_task_vectors(
    base: Tensor, deltas: Sequence[Tensor | None], weights: Sequence[float], *, consensus: bool, normalize: bool, factor: float
) -> Tensor:
    """base + λ Σ wᵢ δᵢ, in the base's dtype; a δ that is None is zero, and the others are overwritten.

    `consensus`: at each entry only those δ count whose weighted sign is that of their sum (TIES). `normalize`: over the sum of the weights
    that count. λ is `factor`.
    """
    weights_M, work = torch.tensor(weights, dtype=base.dtype), at_least_fp32(base.dtype)
    deltas_MN = torch.empty((len(deltas), *base.shape), dtype=work)  # rounded; sums of 16-bit values are taken in fp32 and rounded once
    for row, delta, weight in zip(deltas_MN, deltas, weights_M, strict=True):
        row.zero_() if delta is None else row.copy_(delta.mul_(weight))
    if consensus:
        sign_N = torch.ge(_sum_rows(deltas_MN, base.dtype), 0, out=torch.empty(base.shape, dtype=work))  # zero counts as positive
        sign_N.mul_(2).sub_(1)
        total = _sum_rows(deltas_MN.mul_(sign_N).clamp_(min=0), base.dtype).mul_(sign_N)
    else:
        total = _sum_rows(deltas_MN, base.dtype)
    if normalize:
        counted = weights_M.to(work)
        if consensus:
            counted = torch.gt(deltas_MN, 0, out=torch.empty_like(deltas_MN)).mul_(counted.view(-1, *[1] * base.dim()))
        divisor = _sum_rows(counted, base.dtype)
        total /= divisor.add_(torch.le(divisor.abs(), 0.0 if consensus else _SHORT, out=torch.empty_like(divisor)))
    if factor != 1:
        total *= factor
    return base + total


def _sum_rows(rows_MN: Tensor, dtype: torch.dtype) -> Tensor:
    return rows_MN.sum(dim=0).to(dtype)
