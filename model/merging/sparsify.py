"""Which entries of a task vector are kept: the largest (TIES), random ones (DARE), both (DELLA), all but outliers (Breadcrumbs).

All are decided by magnitudes: the absolute values, which may be overwritten. The largest are found among at most fp32, as by mergekit.
`run` maps a function over items, on several cores or on one.
TIES: Yadav et al. 2023, arXiv:2306.01708. DARE: Yu et al. 2023, arXiv:2311.03099. DELLA: Deep et al. 2024, arXiv:2406.11617.
Breadcrumbs: Davari and Belilovsky 2023, arXiv:2312.06795.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..seeds import generator
from .parallel import Run, blocks, pieces

_SAMPLE = 1 << 16  # magnitudes that tell roughly where the k-th largest of all lies
_NOTHING = 1e-7  # a sum of magnitudes below which nothing is rescaled


def keep_largest(magnitudes: Tensor, density: float, fast_ties: bool = False, run: Run = map) -> Tensor:
    """The mask of the `density` · n entries of largest magnitude (at least one).

    Of equal magnitudes at the limit, which large tensors always have, it keeps those that PyTorch's unstable sort puts first, as mergekit
    does, or with `fast_ties` the first, which is many times faster.
    """
    count = max(1, int(density * magnitudes.numel()))
    mask = _largest(magnitudes, count, fast_ties, run)
    return _mask_of(_order(magnitudes, descending=True)[:count], magnitudes) if mask is None else mask


def keep_between_outliers(magnitudes: Tensor, density: float, gamma: float, fast_ties: bool = False, run: Run = map) -> Tensor:
    """The mask of `density` · n entries: the largest but for the `gamma` · n very largest. Equal ones: see `keep_largest`."""
    total, kept, outliers = magnitudes.numel(), int(density * magnitudes.numel()), int(gamma * magnitudes.numel())
    dropped = max(0, total - kept - outliers)
    large, too_large = (_largest(magnitudes, count, fast_ties, run) for count in (total - dropped, total - dropped - kept))
    if large is None or too_large is None:
        return _mask_of(_order(magnitudes, descending=False)[dropped : dropped + kept], magnitudes)
    return large & ~too_large


def _order(magnitudes: Tensor, descending: bool) -> Tensor:
    """The places of the sorted magnitudes, which are overwritten: a second copy in fp32 would be 0.5 GB of a 7B's embedding."""
    values, places = magnitudes.flatten().float(), torch.empty(magnitudes.numel(), dtype=torch.int64)
    torch.sort(values, descending=descending, out=(values, places))
    return places


def _mask_of(places: Tensor, magnitudes: Tensor) -> Tensor:
    return torch.zeros(magnitudes.numel(), dtype=torch.bool).index_fill_(0, places, True).view(magnitudes.shape)


def keep_at_random(magnitudes: Tensor, density: float, seed: str, run: Run = map) -> Tensor:
    """A mask that keeps each entry with probability `density`."""
    return _draw_mask(magnitudes, lambda part: torch.full_like(part, density, dtype=mask_dtype(part.dtype)), seed, run)


def keep_by_rank(magnitudes: Tensor, density: float, epsilon: float, seed: str, fast_ties: bool = False, run: Run = map) -> Tensor:
    """A mask that keeps an entry with a probability from density − ε, for the smallest of its row, to density + ε, for the largest.

    Equal magnitudes, of which a row in bf16 has hundreds, rank as PyTorch's unstable sort puts them, as in mergekit, or with `fast_ties` in
    their order, which is many times faster.
    """

    def probability(part: Tensor) -> Tensor:
        rows = part.reshape(-1, part.shape[-1])
        order = _order_of_rows(rows) if fast_ties else rows.argsort(dim=1)
        rank_N = torch.arange(1, rows.shape[1] + 1).to(mask_dtype(rows.dtype))
        chance_N = (rank_N - rank_N[0]) / (rank_N[-1] - rank_N[0]) * 2 * epsilon + (density - epsilon)
        return torch.empty(rows.shape, dtype=chance_N.dtype).scatter_(1, order, chance_N.expand_as(order)).view(part.shape)

    return _draw_mask(magnitudes, probability, seed, run)


def _order_of_rows(rows: Tensor) -> Tensor:
    """Of each row, the places from the smallest magnitude to the largest, equal ones in their order: sorted by 16 bits at a time.

    NumPy sorts 16-bit numbers by radix, ten times faster than PyTorch compares.
    """
    digits = rows.contiguous().view(torch.int16).numpy().reshape(*rows.shape, -1)  # the lowest first
    order = np.argsort(digits[..., 0].view(np.uint16), axis=1, kind="stable")
    for place in range(1, digits.shape[-1]):
        digit = np.take_along_axis(digits[..., place].view(np.uint16), order, axis=1)
        order = np.take_along_axis(order, np.argsort(digit, axis=1, kind="stable"), axis=1)
    return torch.from_numpy(order)


def _draw_mask(magnitudes: Tensor, probability: Callable[[Tensor], Tensor], seed: str, run: Run) -> Tensor:
    mask = torch.empty(magnitudes.shape, dtype=torch.bool)

    def fill(rows: slice) -> None:
        mask[rows] = bernoulli(probability(magnitudes[rows]), generator(f"{seed} {rows.start}"))

    list(run(fill, blocks(mask.shape)))
    return mask


def mask_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which a random mask's probabilities and what it leaves of tensors of `dtype` are computed: as in mergekit on a CPU."""
    return dtype if dtype == torch.bfloat16 else torch.float32


def bernoulli(probability: Tensor, generator: torch.Generator) -> Tensor:
    """A mask that is true with the probability given for each entry; three times faster than `torch.bernoulli`."""
    return torch.rand(probability.shape, generator=generator) < probability


def rescaling(magnitudes: Tensor, mask: Tensor) -> Tensor:
    """The factor that gives what `mask` keeps the L1 norm of all; overwrites `magnitudes`."""
    norm, kept = magnitudes.sum(), magnitudes.mul_(mask).sum()
    return torch.ones_like(norm) if norm < _NOTHING or kept < _NOTHING else norm / kept


def _largest(magnitudes: Tensor, count: int, first_of_equals: bool, run: Run) -> Tensor | None:
    """The mask of the `count` entries of largest magnitude; None if that is a choice among equal ones, and not the first are wanted."""
    if count == 0:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    # As whole numbers their bits have the same order, and NumPy, which is faster here, has no bf16.
    bits = magnitudes.flatten().view(torch.int32 if magnitudes.element_size() == 4 else torch.int16).numpy()
    limit, surplus = kth_largest(bits, count, run)
    if surplus and not first_of_equals:
        return None
    mask, places = np.empty(bits.shape, dtype=bool), pieces(len(bits))
    list(run(lambda piece: np.greater_equal(bits[piece], limit, out=mask[piece]), places))
    if surplus:
        equal = list(run(lambda piece: np.flatnonzero(bits[piece] == limit) + piece.start, places))
        mask[np.concatenate(equal)[-surplus:]] = False
    return torch.from_numpy(mask).view(magnitudes.shape)


def kth_largest(values: NDArray[Any], k: int, run: Run = map) -> tuple[Any, int]:
    """The k-th largest of whole numbers that are not negative, and how many beyond k are at least as large.

    Only those between two values of a sample are sorted out, and all of them if the sample misleads (Floyd and Rivest 1975, "Expected time
    bounds for selection").
    """
    sample = np.sort(values[:: len(values) // _SAMPLE | 1])  # an odd step, as widths are even
    place, margin = round(len(sample) * (1 - k / len(values))), round(3 * math.sqrt(len(sample)))  # six standard deviations at least
    narrow = sample[max(0, place - margin)], sample[min(len(sample) - 1, place + margin)]
    for low, high in (narrow, (0, np.iinfo(values.dtype).max)):

        def look(piece: slice, low: Any = low, high: Any = high) -> tuple[int, NDArray[Any]]:
            part = values[piece]
            larger = part > high
            return int(np.count_nonzero(larger)), part[(part >= low) & ~larger]

        found = list(run(look, pieces(len(values))))
        larger, between = sum(count for count, _ in found), np.concatenate([part for _, part in found])
        if larger < k <= larger + len(between):
            break
    limit = np.partition(between, len(between) - (k - larger))[len(between) - (k - larger)]
    return limit, larger + int(np.count_nonzero(between >= limit)) - k
