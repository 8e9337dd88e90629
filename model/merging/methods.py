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

from .sparsify import keep_at_random, keep_between_outliers, keep_by_rank, keep_largest, rescale

REQUIRED = None
_PIECE = 1 << 17  # entries that are combined at a time: temporaries stay in the cache and out of the peak
_PARTIAL_SUM = 1 << 20  # entries that are summed at a time, as the order of a sum decides its last bits
_PARALLEL = 0.9995  # cosine from which the arc is taken as straight
_SHORT = 1e-8  # a norm, or a sum of weights, that is taken as zero


@dataclass(frozen=True)
class Method:
    """What a method takes: parameters with their defaults, of each model (with task vectors: but for the base) or of all together."""

    per_model: Mapping[str, float | None]
    shared: Mapping[str, float | None]
    needs_base: bool = False
    inputs: int | None = None  # how many models, the base among them; None: any number
    sparsify: str | None = None
    consensus: bool = False

    @property
    def is_task_arithmetic(self) -> bool:
        return "lambda" in self.shared


def _task_method(sparsify: str | None = None, consensus: bool = False, normalize: bool = False, rescaled: bool = False) -> Method:
    own: dict[str, float] = {"outliers": {"gamma": 0.01}, "rank": {"epsilon": 0.15}}.get(sparsify or "", {})
    shared = {"normalize": normalize, "rescale": rescaled, "lambda": 1.0, "int8_mask": False}
    return Method({"weight": REQUIRED, "density": 1.0, **own}, shared, True, None, sparsify, consensus)


METHODS = {
    "linear": Method({"weight": REQUIRED}, {"normalize": True}),
    "slerp": Method({}, {"t": REQUIRED}, needs_base=True, inputs=2),
    "passthrough": Method({"scale": 1.0}, {}, inputs=1),
    "task_arithmetic": _task_method(),
    "ties": _task_method("magnitude", consensus=True, normalize=True),
    "dare_linear": _task_method("random", rescaled=True),
    "dare_ties": _task_method("random", consensus=True, rescaled=True),
    "breadcrumbs": _task_method("outliers"),
    "breadcrumbs_ties": _task_method("outliers", consensus=True),
    "della": _task_method("rank", consensus=True, normalize=True, rescaled=True),
    "della_linear": _task_method("rank", rescaled=True),
}
PARAMETERS = sorted({name for method in METHODS.values() for name in (*method.per_model, *method.shared)})


def linear(tensors: Sequence[Tensor], weights: Sequence[float], normalize: bool) -> Tensor:
    """Σ wᵢ Wᵢ, with `normalize` over Σ wᵢ, which must not be zero; computed in fp32, of the first tensor's dtype."""
    scales = torch.tensor(weights, dtype=torch.float32)
    merged = torch.empty_like(tensors[0], memory_format=torch.contiguous_format)
    for out, *parts in zip(merged.view(-1).split(_PIECE), *[tensor.flatten().split(_PIECE) for tensor in tensors], strict=True):
        total = torch.zeros_like(out, dtype=torch.float32)
        for part, scale in zip(parts, scales.unbind(), strict=True):
            total.addcmul_(part.float(), scale)
        out.copy_(total / scales.sum() if normalize else total)
    return merged


def slerp(t: float, start: Tensor, end: Tensor) -> Tensor:
    """The point at `t` of the arc from `start` to `end` (as vectors, at their own lengths); computed in fp32.

    Nearly parallel vectors are interpolated linearly.
    """
    starts, ends = start.flatten().split(_PARTIAL_SUM), end.flatten().split(_PARTIAL_SUM)
    start_norm, end_norm = _norm(starts), _norm(ends)
    cosine = _sum([((a.float() / start_norm) * (b.float() / end_norm)).sum() for a, b in zip(starts, ends, strict=True)]).clamp(-1, 1)
    at = torch.tensor(t, dtype=torch.float32)
    if cosine.abs() > _PARALLEL:
        from_start, from_end = 1 - at, at
    else:
        angle = cosine.acos()
        from_start, from_end = ((1 - at) * angle).sin() / angle.sin(), (at * angle).sin() / angle.sin()
    pieces = [(from_start * a.float() + from_end * b.float()).to(start.dtype) for a, b in zip(starts, ends, strict=True)]
    return torch.cat(pieces).view(start.shape)


def _norm(pieces: Sequence[Tensor]) -> Tensor:
    """The length of a vector in pieces; 1 for a vector of zeros."""
    norm = torch.stack([torch.linalg.vector_norm(piece.float()) for piece in pieces]).norm()
    return torch.where(norm > _SHORT, norm, 1.0)


def _sum(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum()


def sparsify(
    delta: Tensor,
    method: str | None,
    values: Mapping[str, float],
    *,
    rescaled: bool,
    generator: torch.Generator,
    fast_ties: bool = False,
) -> Tensor:
    """A task vector with a share `density` of its entries; may overwrite `delta`. `values`: this model's, of the method's parameters."""
    density = values["density"]
    if method is None or density == 1:
        return delta
    if density == 0:
        return delta.zero_()
    if method == "magnitude":
        mask = keep_largest(delta, density, fast_ties)
    elif method == "outliers":
        mask = keep_between_outliers(delta, density, values["gamma"], fast_ties)
    elif method == "random":
        mask = keep_at_random(delta, density, generator)
    else:
        mask = keep_by_rank(delta, density, values["epsilon"], generator)
    if not rescaled:
        return delta.mul_(mask)
    norm = delta.abs().sum()
    return rescale(delta.mul_(mask), norm)


def add_task_vectors(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], *, consensus: bool, normalize: bool, factor: float
) -> Tensor:
    """base + λ Σ wᵢ δᵢ, in the tensors' dtype.

    `consensus`: at each entry only those δ count whose weighted sign is that of their sum (TIES). `normalize`: over the sum of the weights
    that count. λ is `factor`.
    """
    merged = torch.empty_like(base, memory_format=torch.contiguous_format)
    pieces = zip(
        merged.view(-1).split(_PIECE), base.flatten().split(_PIECE), *[delta.flatten().split(_PIECE) for delta in deltas], strict=True
    )
    weights_M1 = torch.tensor(weights, dtype=base.dtype).unsqueeze(1)
    for out, start, *parts in pieces:
        deltas_MN = (torch.stack(parts) * weights_M1).float()  # rounded; sums of 16-bit values are taken in fp32 and rounded once
        counted = weights_M1.float()
        if consensus:
            sign_N = (_sum_rows(deltas_MN, base.dtype) >= 0).float().mul_(2).sub_(1)  # zero counts as positive
            agree_MN = (deltas_MN * sign_N > 0).float()
            deltas_MN *= agree_MN
            counted = agree_MN.mul_(counted)
        total = _sum_rows(deltas_MN, base.dtype)
        if normalize:
            divisor = _sum_rows(counted, base.dtype)
            total /= divisor.masked_fill_(divisor.abs() <= (0.0 if consensus else _SHORT), 1)
        if factor != 1:
            total *= factor
        torch.add(start, total, out=out)
    return merged


def _sum_rows(rows_MN: Tensor, dtype: torch.dtype) -> Tensor:
    return rows_MN.sum(dim=0).to(dtype)
