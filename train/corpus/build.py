"""Writes the corpus: aligned pairs of all languages in XLCoST's columns and token form, once per version and seed.

`{lang}.{train,valid,test}.jsonl.gz`: text, code, id, family, kind. Row by row the languages hold the same problem, variant and
wording. About a tenth of the families, spread over the topics, is never in train (kind "family" in valid or test); of
the others the last title is kept for test and the one before it for validation (kind "wording").
`{lang}.snippet.*`: (comment, the statement below it), valid and test from the unseen families.
`{lang}.tasks.jsonl.gz`: the test rows with plain code, cases and a driver: code + blank line + test is a source file.
"""

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from model import languages
from model.languages import LANGUAGES
from model.output import MANIFEST, output_folder

from ..cache import user_cache
from .definition import Family, load_families
from .encode import encode
from .texts import Wording, draw, write_comment, write_text
from .variants import Programs

SPLITS = ("train", "valid", "test")
TRAIN_ROWS = 12_000  # wanted; a family with few wordings gives fewer than its share
HELD_OUT_ROWS = {"valid": {"wording": 280, "family": 120}, "test": {"wording": 420, "family": 180}}
HELD_OUT_TITLE = {"valid": 2, "test": 1}  # counted from the last title
TRIES = 20  # draws for each row that is wanted


@dataclass(frozen=True)
class Row:
    """One pair in all languages."""

    id: str
    family: str
    kind: str
    wording: Wording


def build(folder: Path | None = None, seed: int = 0) -> Path:
    """The folder of the corpus: `folder`, which must not exist, or one in the user's cache, which is reused."""
    if folder is not None:
        _write(folder, seed)
        return folder
    cached = cache_folder(seed)
    if not (cached / MANIFEST).is_file():
        try:
            _write(cached, seed)
        except OSError:  # another process may have finished it first
            if not (cached / MANIFEST).is_file():
                raise
    return cached


def cache_folder(seed: int) -> Path:
    """Where the corpus of this source code and seed is kept."""
    digest = hashlib.sha256(str(seed).encode())
    for path in [*sorted(Path(__file__).parent.rglob("*.py")), Path(languages.__file__)]:
        digest.update(path.read_bytes())
    return user_cache() / f"corpus-{digest.hexdigest()[:16]}"


def split_families(families: Mapping[str, Family], seed: int) -> dict[str, str]:
    """The split of every family: of each topic about a tenth goes to valid or test, in turn 2 : 3."""
    topics: dict[str, list[str]] = {}
    for row in families.values():
        topics.setdefault(row.topic, []).append(row.name)
    held_out: list[str] = []
    for topic, names in topics.items():
        held_out += Random(f"{seed}/{topic}").sample(names, max(1, round(len(names) / 10)))
    places = {name: "valid" if place % 5 in (1, 3) else "test" for place, name in enumerate(held_out)}
    return {name: places.get(name, "train") for name in families}


def draw_rows(families: Mapping[str, Family], seed: int) -> dict[str, list[Row]]:
    """The rows of each split, shuffled; no text of a held-out title or family is drawn for train."""
    splits = split_families(families, seed)
    members = {split: [families[name] for name, place in splits.items() if place == split] for split in SPLITS}
    rows = {"train": _share(members["train"], TRAIN_ROWS, lambda row: range(len(row.titles) - 2), "train", "", seed)}
    for split, counts in HELD_OUT_ROWS.items():
        back = HELD_OUT_TITLE[split]
        wordings = _share(members["train"], counts["wording"], _title_from_the_end(back), split, "wording", seed)
        whole = _share(members[split], counts["family"], lambda row: range(len(row.titles)), split, "family", seed)
        rows[split] = wordings + whole
    for split, drawn in rows.items():
        Random(f"{seed}/{split}").shuffle(drawn)
    return rows


def _title_from_the_end(back: int) -> Callable[[Family], range]:
    return lambda row: range(len(row.titles) - back, len(row.titles) - back + 1)


def _share(members: list[Family], count: int, titles: Callable[[Family], range], split: str, kind: str, seed: int) -> list[Row]:
    """`count` distinct wordings, the same number of each family (one more of some)."""
    order = Random(f"{seed}/{split}/{kind}").sample(members, len(members))
    rows = []
    for place, family in enumerate(order):
        wanted = count // len(order) + (place < count % len(order))
        random = Random(f"{seed}/{split}/{kind}/{family.name}")
        drawn: dict[Wording, None] = {}
        for _ in range(TRIES * wanted):
            if len(drawn) == wanted:
                break
            drawn[draw(family, titles(family), random)] = None
        for number, wording in enumerate(drawn):
            rows.append(Row(f"{family.name}-{split}-{number}", family.name, kind, wording))
    return rows


def _write(folder: Path, seed: int) -> None:
    families = load_families()
    programs = Programs(families)
    rows = draw_rows(families, seed)
    with output_folder(folder) as target:
        for lang in tqdm(LANGUAGES, desc="corpus", disable=None):
            _write_language(target, lang, rows, families, programs)


def _write_language(target: Path, lang: str, rows: Mapping[str, list[Row]], families: Mapping[str, Family], programs: Programs) -> None:
    encoded = cache(lambda code: encode(code, lang))
    seen: set[tuple[str, str]] = set()
    for split in SPLITS:
        pairs, snippets = [], {}
        for row in rows[split]:
            family, variant = families[row.family], row.wording.variant
            printed = programs.printed(variant, lang)
            facts = {"family": row.family, "kind": row.kind}
            pairs.append({"text": write_text(family, row.wording, lang), "code": encoded(printed.code), "id": row.id, **facts})
            if row.kind == "wording":
                continue
            for place, code in printed.snippets:
                pair = write_comment(family, row.wording, place, lang), encoded(code)
                if pair not in seen:
                    seen.add(pair)
                    snippets[pair] = {"text": pair[0], "code": pair[1], "id": f"{row.id}-{place}", **facts}
        _write_rows(target / f"{lang}.{split}.jsonl.gz", pairs)
        _write_rows(target / f"{lang}.snippet.{split}.jsonl.gz", snippets.values())
    _write_rows(target / f"{lang}.tasks.jsonl.gz", (_task(row, lang, families, programs) for row in rows["test"]))


def _task(row: Row, lang: str, families: Mapping[str, Family], programs: Programs) -> dict[str, Any]:
    """A test row with what judging needs; `cases` are [arguments, expected result]."""
    variant = row.wording.variant
    printed = programs.printed(variant, lang)
    return {
        "task_id": row.id,
        "lang": lang,
        "family": row.family,
        "kind": row.kind,
        "entry_point": printed.entry_point,
        "text": write_text(families[row.family], row.wording, lang),
        "code": printed.code,
        "cases": programs.cases(variant),
        "test": programs.driver(variant, lang),
    }


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, compressed without a time stamp: the same rows give the same bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=6, mtime=0))


def count_rows(folder: Path, lang: str) -> dict[str, Counter[str]]:
    """Rows by kind of each split ("" is train)."""
    counts = {}
    for split in SPLITS:
        with gzip.open(folder / f"{lang}.{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            counts[split] = Counter(json.loads(line)["kind"] for line in file)
    return counts
