"""Memory by part against what a card or this machine has."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from moe_kernels.cards import CARDS, Card

RUNTIME = {"cuda": 0.6e9, "cpu": 0.9e9}  # bytes: a CUDA context, or Python with torch and transformers


@dataclass(frozen=True)
class Room:
    """Bytes that a process may have, and of what."""

    bytes: float
    where: str
    is_cuda: bool


@dataclass(frozen=True)
class Budget:
    parts: dict[str, float]  # bytes
    room: Room

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        rows = [f"{name:<18} {size / 1e9:8.3f} GB" for name, size in self.parts.items()]
        return "\n".join([*rows, f"{'total':<18} {self.total / 1e9:8.3f} GB", f"{self.room.where:<18} {self.room.bytes / 1e9:8.3f} GB"])

    def check(self, what: str, advice: str) -> None:
        """`ValueError`, naming the largest part and giving `advice`, if it does not fit."""
        if self.total > self.room.bytes:
            largest = max(self.parts, key=lambda name: self.parts[name])
            raise ValueError(
                f"{what} takes {self.total / 1e9:.1f} GB and {self.room.where} has {self.room.bytes / 1e9:.1f} GB; "
                f"the largest part is {largest} ({self.parts[largest] / 1e9:.1f} GB): {advice}"
            )


def room_of(gpu: str) -> Room:
    """What the card called `gpu` has, or this machine (`auto`: its CUDA card if it has one; `cpu`); `ValueError` for another name."""
    if gpu in CARDS:
        return Room(CARDS[gpu].memory, f"one {gpu}", True)
    if gpu == "auto" and torch.cuda.is_available():
        return Room(torch.cuda.mem_get_info()[0], torch.cuda.get_device_name(), True)
    if gpu in ("auto", "cpu"):
        return Room(min(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")), _container_limit()), "this machine", False)
    raise ValueError(f"unknown card {gpu!r}; known: auto, cpu, {', '.join(CARDS)}")


def card_of(gpu: str) -> Card | None:
    """The card called `gpu`, or for `auto` this machine's; None for a CPU, and for a card that is in no table."""
    if gpu != "auto" or not torch.cuda.is_available():
        return CARDS.get(gpu)
    words = torch.cuda.get_device_name().lower().split()
    return next((card for name, card in CARDS.items() if name in words), None)


def _container_limit() -> float:
    """Bytes that the control group allows, infinity if it sets no limit."""
    try:
        return float(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no such group, or the word "max"
        return float("inf")
