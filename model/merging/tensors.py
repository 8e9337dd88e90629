"""The merged model's tensors, one after the other: nothing but one name's tensors is held at a time, and one more while it is written."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from .methods import METHODS, add_task_vectors, choose, linear, precisions, slerp
from .parallel import Rows, Run, ahead, blocks, several_cores
from .plan import VOCABULARY, Step, Term
from .sources import difference
from .sparsify import rescaling
from .vocabulary import Alignment


@dataclass
class Merger:
    """How the steps of a plan are computed: the method, its precisions, the seed of masks, `keep_largest`'s option.

    `dtype` None: the models'. `out_dtype` None: that of the arithmetic, or with `in_base_dtype` that of the base's tensor.
    """

    method: str
    dtype: torch.dtype | None
    out_dtype: torch.dtype | None
    in_base_dtype: bool
    alignment: Alignment | None
    seed: int
    fast_ties: bool
    run: Run = field(default=map, init=False)  # several cores', while `tensors` is at work
    _scratch: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8), init=False)

    def tensors(self, steps: Sequence[Step]) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of every step, in their order; each depends on its own step and the seed alone."""
        with several_cores() as self.run:
            yield from ahead((step.name, self._merge(step)) for step in steps)

    def _merge(self, step: Step) -> Tensor:
        dtype = self._dtype([step.base, *step.terms] if step.base else step.terms)
        if step.base is not None:
            return self._add_task_vectors(step, step.base, dtype)
        if self.method == "slerp":
            start, end = (self._rows(term, dtype)(slice(None)) for term in step.terms)
            return slerp(step.values["t"], start, end, torch.empty(start.shape, dtype=self._out_dtype(step, dtype)), self.run)
        inputs = [self._rows(term, dtype) for term in step.terms]
        if self.method == "passthrough":
            scale = step.terms[0].values["scale"]
            return self._fill(step, dtype, lambda rows: inputs[0](rows) * scale if scale != 1 else inputs[0](rows))
        weights, normalize = [term.values["weight"] for term in step.terms], bool(step.values["normalize"])
        return self._fill(step, dtype, lambda rows: linear([read(rows) for read in inputs], weights, normalize))

    def _fill(self, step: Step, dtype: torch.dtype, make: Callable[[slice], Tensor]) -> Tensor:
        """The tensor whose rows `make` makes."""
        merged = torch.empty(self._shape(step.base or step.terms[0]), dtype=self._out_dtype(step, dtype))
        self._write(merged, make)
        return merged

    def _write(self, out: Tensor, make: Callable[[slice], Tensor]) -> None:
        def write(rows: slice) -> None:
            out[rows] = make(rows)

        list(self.run(write, blocks(out.shape)))

    def _add_task_vectors(self, step: Step, base_term: Term, dtype: torch.dtype) -> Tensor:
        thinnings = [self._thinning(step, index, term, base_term, dtype) for index, term in enumerate(step.terms)]
        base = self._rows(base_term, dtype)  # after them: sorting a 7B's embedding takes 2.6 GB, and the base's file would add 0.26
        deltas = [self._task_vector(term, base_term, base, dtype) for term in step.terms]
        if all(delta is None for delta in deltas):
            return self._fill(step, dtype, base)
        weights = [term.values["weight"] for term in step.terms]
        consensus, normalize, factor = METHODS[self.method].consensus, bool(step.values["normalize"]), step.values["lambda"]

        def merge(rows: slice) -> Tensor:
            parts = [delta and thin(delta(rows), rows) for delta, thin in zip(deltas, thinnings, strict=True)]
            return add_task_vectors(base(rows), parts, weights, consensus=consensus, normalize=normalize, factor=factor)

        return self._fill(step, dtype, merge)

    def _thinning(self, step: Step, index: int, term: Term, base_term: Term, dtype: torch.dtype) -> Callable[[Tensor, slice], Tensor]:
        """What makes rows of a task vector sparse, in place, as the method asks for."""
        method, density = METHODS[self.method].sparsify, term.values.get("density", 1)
        if method is None or density == 1:
            return lambda part, rows: part
        if density == 0:
            return lambda part, rows: part.zero_()
        compared, work = precisions(method, dtype, self.fast_ties)
        magnitudes = self._magnitudes(term, base_term, dtype, compared)
        if magnitudes is None:
            return lambda part, rows: part
        seed = f"{self.seed} {step.name} {index}"
        mask = choose(magnitudes, method, term.values, seed=seed, fast_ties=self.fast_ties, run=self.run)
        again = self._magnitudes(term, base_term, dtype, work) if step.values["rescale"] else None  # a sort has overwritten them
        factor = None if again is None else rescaling(again, mask)

        def thin(part: Tensor, rows: slice) -> Tensor:
            part = part.to(work).mul_(mask[rows].view(torch.uint8).to(work))  # as bytes: truth values take four times as long
            return (part if factor is None else part.mul_(factor)).to(dtype)

        return thin

    def _magnitudes(self, term: Term, base_term: Term, dtype: torch.dtype, out_dtype: torch.dtype) -> Tensor | None:
        """The magnitudes of a whole task vector, in `out_dtype`, None if it is nothing; its files are closed again, to make room."""
        delta = self._task_vector(term, base_term, self._rows(base_term, dtype), dtype)
        if delta is None:
            return None
        magnitudes = self._empty(self._shape(base_term), out_dtype)
        self._write(magnitudes, lambda rows: delta(rows).abs_())
        return magnitudes

    def _empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Memory for magnitudes, the same each time: pages that are new cost more than the arithmetic on them."""
        size = shape.numel() * dtype.itemsize
        if self._scratch.numel() < size:
            self._scratch = torch.empty(0, dtype=torch.uint8)  # the old one goes first
            self._scratch = torch.empty(size, dtype=torch.uint8)
        return self._scratch[:size].view(dtype).view(shape)

    def _task_vector(self, term: Term, base_term: Term, base: Rows, dtype: torch.dtype) -> Rows | None:
        if self._is_aligned(term):
            return difference(self._rows(term, dtype), base)
        return term.source.task_vector(term.name, base_term.source, base_term.name, base, dtype)

    def _rows(self, term: Term, dtype: torch.dtype) -> Rows:
        if self.alignment is not None and self._is_aligned(term):
            return self.alignment.aligned(term.source, term.name, dtype)
        return term.source.rows(term.name, dtype)

    def _shape(self, term: Term) -> torch.Size:
        shape = term.source.shape(term.name)
        return torch.Size((self.alignment.size, *shape[1:])) if self.alignment is not None and self._is_aligned(term) else shape

    def _is_aligned(self, term: Term) -> bool:
        return self.alignment is not None and term.name in VOCABULARY

    def _dtype(self, terms: Sequence[Term]) -> torch.dtype:
        return self.dtype or reduce(torch.promote_types, [term.source.dtype(term.name) for term in terms])

    def _out_dtype(self, step: Step, dtype: torch.dtype) -> torch.dtype:
        base = step.base or step.terms[0]
        return self.out_dtype or (base.source.dtype(base.name) if self.in_base_dtype else dtype)
