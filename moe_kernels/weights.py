"""A weight is dense (a tensor) or NF4; operators take both. PyTorch's operators take tensors, numbers and lists of them alone."""

from collections.abc import Sequence

from torch import Tensor

from .nf4 import DTYPES, NF4Weight

Weight = Tensor | NF4Weight
_DENSE = -1  # in place of the dtype's number


def flatten(weights: Sequence[Weight]) -> tuple[list[Tensor], list[float], list[int]]:
    """(tensors, nested offsets, descriptions) from which `restore` makes the same weights on the same memory."""
    tensors: list[Tensor] = []
    offsets: list[float] = []
    ints: list[int] = []
    for weight in weights:
        if isinstance(weight, NF4Weight):
            tensors += weight.tensors().values()
            offsets.append(weight.nested_offset)
            ints += [DTYPES.index(weight.dtype), weight.first_block, len(weight.shape), *weight.shape]
        else:
            tensors.append(weight)
            offsets.append(0.0)
            ints.append(_DENSE)
    return tensors, offsets, ints


def restore(tensors: Sequence[Tensor], offsets: Sequence[float], ints: Sequence[int]) -> list[Weight]:
    """The inverse of `flatten`."""
    weights: list[Weight] = []
    rest, facts = iter(tensors), iter(ints)
    for offset in offsets:
        kind = next(facts)
        if kind == _DENSE:
            weights.append(next(rest))
            continue
        first_block, dims = next(facts), next(facts)
        shape = tuple(next(facts) for _ in range(dims))
        weights.append(NF4Weight(next(rest), next(rest), next(rest), offset, shape, DTYPES[kind], first_block))
    return weights


def stacked(weight: Weight) -> Weight:
    """A stack of one [1, out, in] for a single matrix; a stack as it is."""
    if len(weight.shape) == 3:
        return weight
    if isinstance(weight, NF4Weight):
        return NF4Weight(
            weight.packed, weight.absmax, weight.nested_absmax, weight.nested_offset, (1, *weight.shape), weight.dtype, weight.first_block
        )
    return weight[None]
