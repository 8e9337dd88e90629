"""The order of rows, and which of them make up each batch of each process."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from .data.prompts import IGNORED

MEGABATCH = 50  # batches that are sorted by length together: enough to save padding, few enough to stay random


class LengthGroupedSampler(Sampler[int]):
    """Row indices in a random order in which rows of like length are neighbours; equal for equal (seed, epoch).

    `megabatch` batches are sorted by length together; with 1 a batch is any rows.

    transformers' sampler of that name draws from the global generator, whose state at a resume differs from the
    state at the start of the interrupted epoch.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, megabatch: int = MEGABATCH) -> None:
        self.lengths, self.batch_size, self.seed, self.megabatch, self.epoch = lengths, batch_size, seed, megabatch, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        span = self.batch_size * self.megabatch
        chunks = [sorted(order[i : i + span], key=lambda row: -self.lengths[row]) for i in range(0, len(order), span)]
        batches = [chunk[i : i + self.batch_size] for chunk in chunks for i in range(0, len(chunk), self.batch_size)]
        last = batches.pop() if batches and len(batches[-1]) < self.batch_size else []
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[i]
        yield from last


class ProcessBatches(Sampler[list[int]]):
    """Of the batches that `order`'s rows make in turn, every N-th: those of one of N processes.

    So a step of N processes has the rows of a step of one process that accumulates N times as often, micro-batch by micro-batch. All
    processes have equally many batches, or one would wait for the others for ever: one that gets no more rows gets the row `blank`.
    accelerate's BatchSamplerShard repeats rows of the epoch's beginning instead, and does not pass on the epoch after a resume.
    """

    def __init__(self, order: Sampler[int], batch_size: int, process: int, processes: int, blank: int) -> None:
        self.order, self.size, self.process, self.processes, self.blank = order, batch_size, process, processes, blank
        self.batch_size = None  # to accelerate: they differ

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self.order) / (self.size * self.processes))  # type: ignore[arg-type]  # torch's Sampler has no length

    def __iter__(self) -> Iterator[list[int]]:
        rows = list(self.order)
        for turn in range(len(self)):
            start = (turn * self.processes + self.process) * self.size
            yield rows[start : start + self.size] or [self.blank]


def without_labels(row: dict[str, Any]) -> dict[str, Any]:
    """The row with nothing to learn from: it adds nothing to a loss that counts labels."""
    rejected = {"rejected": without_labels(row["rejected"])} if "rejected" in row else {}
    return {**row, "labels": [IGNORED] * len(row["labels"]), **rejected}


def count_tokens(row: dict[str, Any]) -> int:
    """Of a row, or of both sides of a pair."""
    return len(row["input_ids"]) + (count_tokens(row["rejected"]) if "rejected" in row else 0)
