"""The merged model's tensors, one after the other: nothing but one name's tensors is held at a time."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from .methods import METHODS, add_task_vectors, linear, slerp, sparsify
from .plan import VOCABULARY, Step, Term
from .vocabulary import Alignment


@dataclass(frozen=True)
class Merger:
    """How the steps of a plan are computed: the method, its precisions (None: the models'), the seed of masks, `keep_largest`'s option."""

    method: str
    dtype: torch.dtype | None
    out_dtype: torch.dtype | None
    alignment: Alignment | None
    seed: int
    fast_ties: bool

    def tensors(self, steps: Sequence[Step]) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of every step, in their order; each depends on its own step and the seed alone."""
        for step in steps:
            yield step.name, self._merge(step)

    def _merge(self, step: Step) -> Tensor:
        merged = self._add_task_vectors(step, step.base) if step.base else self._interpolate(step)
        return merged.to(self.out_dtype or merged.dtype)

    def _interpolate(self, step: Step) -> Tensor:
        tensors = [self._read(term, self._dtype(step.terms)) for term in step.terms]
        if self.method == "slerp":
            return slerp(step.values["t"], *tensors)
        if self.method == "passthrough":
            scale = step.terms[0].values["scale"]
            return tensors[0] if scale == 1 else tensors[0] * scale
        return linear(tensors, [term.values["weight"] for term in step.terms], bool(step.values["normalize"]))

    def _add_task_vectors(self, step: Step, base_term: Term) -> Tensor:
        method, values = METHODS[self.method], step.values
        base = self._read(base_term, self._dtype([base_term, *step.terms]))
        deltas = []
        for index, term in enumerate(step.terms):
            delta = self._task_vector(term, base_term, base)
            if delta is not None:
                generator = _generator(self.seed, step.name, index)
                rescaled = bool(values["rescale"])
                delta = sparsify(delta, method.sparsify, term.values, rescaled=rescaled, generator=generator, fast_ties=self.fast_ties)
            deltas.append(delta)
        if all(delta is None for delta in deltas):
            return base
        zeros = base.new_zeros(()).expand_as(base)
        return add_task_vectors(
            base,
            [zeros if delta is None else delta for delta in deltas],
            [term.values["weight"] for term in step.terms],
            consensus=method.consensus,
            normalize=bool(values["normalize"]),
            factor=values["lambda"],
        )

    def _task_vector(self, term: Term, base_term: Term, base: Tensor) -> Tensor | None:
        if term.name != base_term.name or self._is_aligned(term):
            return self._read(term, base.dtype) - base
        return term.source.task_vector(term.name, base_term.source, base)

    def _read(self, term: Term, dtype: torch.dtype) -> Tensor:
        if self.alignment is not None and self._is_aligned(term):
            return self.alignment.tensor(term.source, term.name, dtype)
        return term.source.tensor(term.name, dtype)

    def _is_aligned(self, term: Term) -> bool:
        return self.alignment is not None and term.name in VOCABULARY

    def _dtype(self, terms: Sequence[Term]) -> torch.dtype:
        return self.dtype or reduce(torch.promote_types, [term.source.weights.tensor(term.name).dtype for term in terms])


def _generator(seed: int, name: str, index: int) -> torch.Generator:
    """Of the random mask of one model's tensor: the same whichever tensors come before it."""
    digest = hashlib.sha256(f"{seed} {name} {index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
