"""Who goes where in a benchmark: lists [T][K] of distinct experts, from a seed of their own.

`uniform` is a random choice; `zipf` prefers expert e with weight 1 / (e + 1) all the time; `markov` stays with two experts for some 40
tokens before it turns to two others, as programs in one language do. None of them is a recording; `from_file` reads a file of recorded
choices.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

Choices = list[list[int]]


def weighted(tokens: int, weights: list[float], top_k: int, draw: random.Random) -> Choices:
    """Experts drawn without replacement: the K smallest of exponentials with these rates."""
    return [sorted(range(len(weights)), key=lambda e: draw.expovariate(weights[e]))[:top_k] for _ in range(tokens)]


def uniform(tokens: int, experts: int, top_k: int) -> Choices:
    return weighted(tokens, [1.0] * experts, top_k, random.Random(1))


def zipf(tokens: int, experts: int, top_k: int) -> Choices:
    return weighted(tokens, [1 / (e + 1) for e in range(experts)], top_k, random.Random(2))


def markov(tokens: int, experts: int, top_k: int) -> Choices:
    draw = random.Random(3)
    chosen: Choices = []
    while len(chosen) < tokens:
        favourites = draw.sample(range(experts), min(2, experts))
        weights = [8.0 if e in favourites else 1.0 for e in range(experts)]
        chosen += weighted(1 + int(draw.expovariate(1 / 40)), weights, top_k, draw)
    return chosen[:tokens]


def from_file(path: Path) -> Callable[[int, int, int], Choices]:
    """The recorded choices of a JSON list [T][K], from its beginning and over again; `ValueError` if they do not fit."""
    recorded: Choices = json.loads(path.read_text())

    def choose(tokens: int, experts: int, top_k: int) -> Choices:
        if any(len(set(row)) != top_k or not set(row) <= set(range(experts)) for row in recorded):
            raise ValueError(f"{path} does not hold {top_k} distinct experts of {experts} for every token")
        return [recorded[t % len(recorded)] for t in range(tokens)]

    return choose


ROUTINGS: dict[str, Callable[[int, int, int], Choices]] = {"uniform": uniform, "zipf": zipf, "markov": markov}
