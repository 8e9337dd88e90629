"""The fixed shuffled points that base, experts and mixture are all scored on."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from train.data.pairs import Pair


def pick_points(rows: Iterable[Pair], split: str, limit: int, seed: int) -> dict[str, list[Pair]]:
    """{kind: the first `limit` rows of that kind in shuffled order}; the kind of a plain row is named after its split.

    The order is that of SHA-256(seed, id): it depends on the points alone, not on the model, the other languages or the file's order, and a
    smaller limit takes a prefix of what a larger one takes.
    """
    kinds: dict[str, list[Pair]] = defaultdict(list)
    for row in rows:
        kinds[row.kind or split].append(row)
    return {kind: sorted(kinds[kind], key=lambda row: (_rank(row.id, seed), row.text))[:limit] for kind in sorted(kinds, reverse=True)}


def _rank(point: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{point}".encode()).digest()
