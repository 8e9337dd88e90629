"""Which entries of a task vector are kept: the largest (TIES), random ones (DARE), both (DELLA), all but outliers (Breadcrumbs).

TIES: Yadav et al. 2023, arXiv:2306.01708. DARE: Yu et al. 2023, arXiv:2311.03099. DELLA: Deep et al. 2024, arXiv:2406.11617.
Breadcrumbs: Davari and Belilovsky 2023, arXiv:2312.06795.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

_PIECE = 1 << 20  # entries that are looked at at a time
_ROWS = 256  # that are ranked at a time: their places are int64, four times the size of bf16
_NOTHING = 1e-7  # a sum of magnitudes below which nothing is rescaled


def keep_largest(delta: Tensor, density: float, fast_ties: bool = False) -> Tensor:
    """The mask of the `density` · n entries of largest magnitude (at least one).

    Of equal magnitudes at the limit, which large tensors always have, it keeps those that PyTorch's unstable sort puts first, as mergekit
    does, or with `fast_ties` the first, which is many times faster.
    """
    count = max(1, int(density * delta.numel()))
    mask = _largest(delta, count, fast_ties)
    return _mask_of(_magnitudes(delta).argsort(descending=True)[:count], delta) if mask is None else mask


def keep_between_outliers(delta: Tensor, density: float, gamma: float, fast_ties: bool = False) -> Tensor:
    """The mask of `density` · n entries: the largest but for the `gamma` · n very largest. Equal ones: see `keep_largest`."""
    total, kept, outliers = delta.numel(), int(density * delta.numel()), int(gamma * delta.numel())
    dropped = max(0, total - kept - outliers)
    large, too_large = (_largest(delta, count, fast_ties) for count in (total - dropped, total - dropped - kept))
    if large is None or too_large is None:
        return _mask_of(_magnitudes(delta).argsort()[dropped : dropped + kept], delta)
    return large & ~too_large


def _magnitudes(delta: Tensor) -> Tensor:
    return delta.abs().float().flatten()


def _mask_of(places: Tensor, delta: Tensor) -> Tensor:
    return torch.zeros(delta.numel(), dtype=torch.bool).index_fill_(0, places, True).view(delta.shape)


def keep_at_random(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """A mask that keeps each entry with probability `density`."""
    return draw(torch.full_like(delta, density), generator)


def keep_by_rank(delta: Tensor, density: float, epsilon: float, generator: torch.Generator) -> Tensor:
    """A mask that keeps an entry with a probability from density − ε, for the smallest of its row, to density + ε, for the largest."""
    rows = delta.reshape(-1, delta.shape[-1])
    probability = torch.empty_like(rows)
    for out, part in zip(probability.split(_ROWS), rows.split(_ROWS), strict=True):
        order = part.abs().argsort(dim=1)
        places = torch.arange(1, part.shape[1] + 1).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, places).to(delta.dtype)
        lowest, highest = rank.aminmax(dim=1, keepdim=True)
        torch.add((rank - lowest) / (highest - lowest) * 2 * epsilon, density - epsilon, out=out)
    return draw(probability, generator).view(delta.shape)


def draw(probability: Tensor, generator: torch.Generator) -> Tensor:
    """A mask that is true with the probability given for each entry; three times faster than `torch.bernoulli`."""
    return torch.rand(probability.shape, generator=generator) < probability


def rescale(kept: Tensor, norm: Tensor) -> Tensor:
    """`kept`, in place, times the factor that gives it the L1 norm `norm`."""
    own = kept.abs().sum()
    return kept if norm < _NOTHING or own < _NOTHING else kept.mul_(norm / own)


def _largest(delta: Tensor, count: int, first_of_equals: bool) -> Tensor | None:
    """The mask of the `count` entries of largest magnitude; None if that is a choice among equal ones, and not the first are wanted."""
    if count == 0:
        return torch.zeros_like(delta, dtype=torch.bool)
    threshold, surplus = _kth_largest(delta, count)
    if surplus and not first_of_equals:
        return None
    mask = torch.cat([bits >= threshold for bits in _pieces(delta)])
    if surplus:
        equal = [(bits == threshold).nonzero().flatten() + index * _PIECE for index, bits in enumerate(_pieces(delta))]
        mask[torch.cat(equal)[-surplus:]] = False
    return mask.view(delta.shape)


def _pieces(delta: Tensor) -> Iterator[Tensor]:
    """The bits of the magnitudes, which are ordered as these are, a few at a time: so there is no second tensor of this size."""
    wide = delta.element_size() == 4
    for piece in delta.flatten().split(_PIECE):
        yield piece.view(torch.int32) & 0x7FFFFFFF if wide else piece.view(torch.int16) & 0x7FFF


def _kth_largest(delta: Tensor, k: int) -> tuple[int, int]:
    """The bits of the k-th largest magnitude, and how many beyond k are at least as large.

    Found by counting the upper 16 bits, then, of fp32, the lower 16. One core takes 1.5 ns (bf16) or 5 ns an entry, where `kthvalue`
    takes 15 and a sort 100.
    """
    if delta.element_size() == 2:
        return _kth_in_counts(_count(_pieces(delta)), k)
    high, surplus = _kth_in_counts(_count(bits >> 16 for bits in _pieces(delta)), k)
    same = torch.cat([bits[bits >> 16 == high] & 0xFFFF for bits in _pieces(delta)])
    low, surplus = _kth_in_counts(_count([same]), len(same) - surplus)
    return high << 16 | low, surplus


def _count(pieces: Iterable[Tensor]) -> Tensor:
    """How often each value below 2^16 occurs."""
    return torch.stack([torch.bincount(piece, minlength=1 << 16) for piece in pieces]).sum(dim=0)


def _kth_in_counts(counts: Tensor, k: int) -> tuple[int, int]:
    """The k-th largest of counted values, and how many beyond k are at least as large."""
    at_least = counts.flip(0).cumsum(0).flip(0)
    value = int((at_least >= k).nonzero()[-1])
    return value, int(at_least[value]) - k
