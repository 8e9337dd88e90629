"""Random numbers whose seed is a text, so that each draw has a seed of its own and none depends on those before it."""

import hashlib

import torch


def generator(seed: str) -> torch.Generator:
    """Random numbers that depend on nothing but a text."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little"))
