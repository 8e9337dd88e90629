"""The one loader: (text, code) pairs of one language and split, decoded, filtered and counted."""

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from model.languages import LANGUAGES, get_language, language_title

from .filters import CODE_RULES, near_any, near_duplicates, parses, repeated, squeeze
from .gaps import Gap
from .reading import COLUMNS, Row
from .sources import LEVELS, SPLITS, find_source, group_of, read_splits
from .xlcost import decode, is_token_form

MALFORMED = "malformed row"
UNPARSED = "does not parse"
DUPLICATE = "exact duplicate"
NEAR_DUPLICATE = "near duplicate"
TWO_SPLITS = "also in an earlier split"
NEAR_LATER = "near duplicate in a later split"


@dataclass(frozen=True)
class Pair:
    text: str  # what the program shall do
    code: str  # its source text
    lang: str
    id: str
    group: str  # the problem: one problem has many pairs, and stands in one split (but for `kind` "wording")
    kind: str  # of a test pair of the embedded corpus: "wording" (known problem, new words) or "family" (new problem); else ""
    gap: Gap | None = None  # in training: the completion is what belongs into it


@dataclass(frozen=True)
class Loaded:
    rows: list[Pair]
    dropped: dict[str, int]  # rule: rows it dropped, every rule in the order of its turn
    sha256: str  # of the texts and codes of `rows`, in order
    source: str  # which data set this is, why if it was chosen here, and that it was decoded


def load_pairs(
    source: str | Path,
    lang: str,
    split: str,
    *,
    level: str = "program",
    limit: int | None = None,
    seed: int = 0,
    token_form: bool | None = None,
    max_bad: int | None = None,
) -> Loaded:
    """The pairs of `source` in language `lang` and `split` (train, valid, test).

    source: "auto", "corpus" (embedded), "xlcost" (the hub's), a .jsonl[.gz], .json or .parquet file, or a folder of such
        files per language and split; rows need the columns text and code, and may have id, group, kind, lang, split.
    level: "program", or "snippet": fragments, which no parser is asked about.
    limit: at most so many pairs, drawn with `seed`; a smaller limit's pairs are a larger one's first.
    token_form: whether the code is in XLCoST's token form; by default decided for the whole split by `is_token_form`.
    max_bad: see `reading.read_well_formed`.

    Rows with a `family` column are paraphrases: many texts of one program. Among them near duplicates are kept.
    A row stands in two splits if its code stands in an earlier one too (in the order above); a paraphrase, if its text does;
    a snippet, if both do: "return count;" belongs to many programs. From a file that is divided here also those rows are dropped whose code
    (of snippets: text and code) is nearly that of a row in a later split; a division that comes with the data is taken as it is.

    Of a language that is not one of `LANGUAGES` no parser is asked, and its code is taken as it is.
    """
    language_title(lang)
    for name, value, known in (("split", split, SPLITS), ("level", level, LEVELS)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
    if limit is not None and limit < 1:
        raise ValueError(f"the limit must be at least 1 row, not {limit}")
    path, note = find_source(source, lang, level)
    rows_of, bad = read_splits(path, lang, split, level, max_bad)
    paraphrased = any("family" in row for row in rows_of[split])
    identity = COLUMNS if level == "snippet" else ("text",) if paraphrased else ("code",)
    fresh = _without_those_of_earlier(rows_of, identity)
    rows = fresh[split]
    if token_form is None:
        token_form = lang in LANGUAGES and is_token_form([row["code"] for row in rows])
    if token_form:
        note += ", decoded from XLCoST's token form"
    pairs = _pairs(rows, lang, token_form)

    dropped = {MALFORMED: bad, TWO_SPLITS: len(rows_of[split]) - len(rows)}
    if (later := [row for name in SPLITS[SPLITS.index(split) + 1 :] for row in fresh.get(name, ())]) and not paraphrased:
        ours, theirs = (["\n".join(row[column] for column in identity) for row in part] for part in (rows, later))
        pairs = _drop(dropped, NEAR_LATER, pairs, near_any(ours, theirs))
    for rule, is_bad in CODE_RULES.items():
        pairs = _drop(dropped, rule, pairs, (is_bad(pair.code) for pair in pairs))
    if level == "program" and lang in LANGUAGES:
        codes = {pair.code for pair in pairs}
        verdict = {code: parses(code, lang) for code in tqdm(codes, desc=f"parse {lang} {split}", unit="program")}
        pairs = _drop(dropped, UNPARSED, pairs, (not verdict[pair.code] for pair in pairs))
    pairs = _drop(dropped, DUPLICATE, pairs, repeated((squeeze(pair.text), squeeze(pair.code)) for pair in pairs))
    if not paraphrased:
        pairs = _drop(dropped, NEAR_DUPLICATE, pairs, near_duplicates([f"{pair.text}\n{pair.code}" for pair in pairs]))
    if not pairs:
        raise ValueError(f"{note} has no {split} rows in {lang} that pass the filters: {_counts(dropped)}")
    if limit is not None:
        random.Random(seed).shuffle(pairs)
        pairs = pairs[:limit]
    return Loaded(pairs, dropped, _digest(pairs), note)


def format_table(dropped: dict[str, int]) -> str:
    """Two columns: rule, and how many rows it dropped."""
    width = max(map(len, dropped))
    return "\n".join([f"{'rule':<{width}}  rows dropped", *(f"{rule:<{width}}  {count:12,}" for rule, count in dropped.items())])


def _without_those_of_earlier(rows_of: dict[str, list[Row]], columns: tuple[str, ...]) -> dict[str, list[Row]]:
    """The rows of each split without those that agree in `columns`, but for white space, with one of an earlier split."""
    earlier: set[tuple[str, ...]] = set()
    fresh = {}
    for split, rows in rows_of.items():
        keys = [tuple(squeeze(row[column]) for column in columns) for row in rows]
        fresh[split] = [row for row, key in zip(rows, keys, strict=True) if key not in earlier]
        earlier.update(keys)
    return fresh


def _pairs(rows: list[Row], lang: str, token_form: bool) -> list[Pair]:
    source = {row["code"]: row["code"] for row in rows}
    if token_form:
        get_language(lang)
        source = {code: decode(code, lang) for code in tqdm(source, desc=f"decode {lang}", unit="program")}

    def pair(row: Row) -> Pair:
        name, kind = str(row.get("id") or row["where"]), str(row.get("kind") or "")
        return Pair(row["text"], source[row["code"]], lang, name, group_of(row), kind)

    return [pair(row) for row in rows]


def _drop(dropped: dict[str, int], rule: str, pairs: list[Pair], verdicts: Iterable[bool]) -> list[Pair]:
    """The pairs without those that `verdicts` condemns, which are counted in `dropped`."""
    kept = [pair for pair, bad in zip(pairs, verdicts, strict=True) if not bad]
    dropped[rule] = len(pairs) - len(kept)
    return kept


def _counts(dropped: dict[str, int]) -> str:
    return ", ".join(f"{rule} {count}" for rule, count in dropped.items() if count) or "none is in that split"


def _digest(pairs: list[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        for part in (pair.text, pair.code):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
