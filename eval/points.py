"""The fixed shuffled points that base, experts and mixture are all scored on, and the flags that choose them."""

import hashlib
from argparse import ArgumentParser, Namespace
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.languages import LANGUAGES
from train.data import load_pairs
from train.data.pairs import Pair

from .run_files import Maybe
from .runs import read_rows

Points = dict[str, dict[str, list[Pair]]]  # [language][kind]


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


def add_point_flags(parser: ArgumentParser) -> None:
    """The flags that choose points, and those that every command with a model and points has."""
    parser.add_argument("--data", default="auto", help="auto, corpus, xlcost, a file or a folder with columns text and code")
    parser.add_argument("--lang", choices=list(LANGUAGES), help="one language only (default: all)")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"), help="whose rows")
    parser.add_argument("--limit", type=int, default=50, help="points of each language and kind, drawn by --seed and their ids")
    parser.add_argument("--batch-size", type=int, default=16, help="points run together")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def load_points(args: Namespace, langs: Iterable[str] = LANGUAGES) -> tuple[Points, dict[str, Any]]:
    """{lang: {kind: points}} and where they came from, which is printed too: {lang: {"source", "sha256", "rows"}}.

    Of `--lang`, or of `langs` without it.
    """
    points: Points = {}
    sources: dict[str, dict[str, Any]] = {}
    for lang in [args.lang] if args.lang else langs:
        loaded = load_pairs(args.data, lang, args.split)
        name, times = Counter(row.id for row in loaded.rows).most_common(1)[0]
        if times > 1:
            raise ValueError(f"{loaded.source} has several {lang} points with the id {name!r}, which has to tell them apart")
        points[lang] = pick_points(loaded.rows, args.split, args.limit, args.seed)
        sources[lang] = {"source": loaded.source, "sha256": loaded.sha256, "rows": len(loaded.rows)}
    print("data: " + ", ".join(dict.fromkeys(row["source"] for row in sources.values())))
    return points, sources


def given_completions(path: Path, points: Points) -> dict[str, list[str]]:
    """{lang: completions in the order of the points} from a JSONL file with `id` and `completion`; rows of other points are left out.

    `lang` is needed where points of two languages have one id. ValueError for a row without its columns, two rows of one point, or a point
    without one.
    """
    found: dict[tuple[str | None, str], str] = {}
    for row in read_rows(path, ("id", "completion"), {"id": str, "completion": str, "lang?": Maybe(str)}):
        key = (row.get("lang"), row["id"])
        if key in found:
            raise ValueError(f"{path}: point {row['id']!r} has two completions")
        found[key] = row["completion"]
    completions = {}
    for lang, kinds in points.items():
        chosen = [point for group in kinds.values() for point in group]
        rows = [found.get((lang, point.id), found.get((None, point.id))) for point in chosen]
        if absent := [point.id for point, row in zip(chosen, rows, strict=True) if row is None]:
            message = f"{path} lacks {len(absent)} of the {len(rows)} {lang} points, such as {absent[0]!r}"
            raise ValueError(f"{message}; the points depend on --data, --split, --limit and --seed")
        completions[lang] = [row for row in rows if row is not None]
    return completions
