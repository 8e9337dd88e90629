"""Where the rows of a data set lie: the embedded corpus, the hub's XLCoST, a folder, or one file that is divided here."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model.languages import LANGUAGES, get_language

from .reading import SUFFIXES, Row, read_well_formed

XLCOST = "codeparrot/xlcost-text-to-code"
SPLITS = ("train", "valid", "test")
LEVELS = ("program", "snippet")
VALID_SHARE = TEST_SHARE = 0.05  # of the groups of a single file; the rest is for training
MIN_CARD_BYTES = 20e9
_SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation"), "test": ("test",)}


def find_source(source: str | Path, lang: str, level: str) -> tuple[Path, str]:
    """The local folder or file that `source` stands for, and one line that names it.

    "auto" is XLCoST on a machine with a CUDA card of 20 GB and the hub within reach, the embedded corpus otherwise.
    """
    if source in ("auto", "corpus", "xlcost") and lang not in LANGUAGES:
        raise ValueError(f"{source} has no {lang!r}, only {', '.join(LANGUAGES)}; give --data a file or a folder with {lang} of your own")
    if source == "auto":
        return _find_auto(lang, level)
    if source == "corpus":
        from ..corpus import build
        from ..processes import processes

        with processes().main_process_first():
            return build(), "corpus"
    if source == "xlcost":
        return _download(lang, level), XLCOST
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no data set {str(source)!r}: name a file, a folder, auto, corpus or xlcost")
    return path, str(path)


def check_levels(path: Path) -> None:
    """`ValueError` if a data set cannot say which of its rows are programs and which are snippets."""
    if path.is_file() and not any("level" in row for row in read_well_formed(path)[0]):
        raise ValueError(f"{path} has no column level (program or snippet), so its levels cannot be mixed by weight")


def has_card() -> bool:
    """Whether this machine has a CUDA card on which a 7B expert can be trained."""
    cards = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return max(cards, default=0) >= MIN_CARD_BYTES


def _find_auto(lang: str, level: str) -> tuple[Path, str]:
    """XLCoST where a 7B expert can be trained and the hub answers, else the embedded corpus; the line says why."""
    if not has_card():
        path, name = find_source("corpus", lang, level)
        return path, f"{name} (auto: no CUDA card of {MIN_CARD_BYTES / 1e9:.0f} GB)"
    try:
        path, name = find_source("xlcost", lang, level)
    except ValueError:
        path, name = find_source("corpus", lang, level)
        return path, f"{name} (auto: {XLCOST} is out of reach)"
    return path, f"{name} (auto: a CUDA card of {MIN_CARD_BYTES / 1e9:.0f} GB and the hub are there)"


def _download(lang: str, level: str) -> Path:
    """The data set's JSON files of one configuration: it is a script data set, which `datasets` >= 4 refuses to load."""
    from huggingface_hub import snapshot_download

    configuration = f"{get_language(lang).xlcost}-{level}-level"
    try:
        folder = Path(snapshot_download(XLCOST, repo_type="dataset", allow_patterns=f"data/{configuration}/*.json"))
    except OSError as error:
        raise ValueError(f"{XLCOST} is neither in the hub's cache nor within reach; give --data a file or folder, or corpus") from error
    if not (folder / "data" / configuration).is_dir():
        raise ValueError(f"the copy of {XLCOST} in the hub's cache lacks {configuration}, and the hub is out of reach")
    return folder


def read_splits(path: Path, lang: str, split: str, level: str, max_bad: int | None) -> tuple[dict[str, list[Row]], int]:
    """The rows of `split` in language `lang` and of the splits before it, in the order of SPLITS, and the malformed rows in its files.

    A folder has one or more files per split. A single file has a column `split`, or is divided here by `group`, with the rows of all
    languages and levels, so that a problem stands in one split whatever is asked for; the splits behind `split` are then returned, too.
    If it has a column `level`, only rows of that level are read.
    """
    wanted = SPLITS[: SPLITS.index(split) + 1]
    if path.is_file():
        rows, bad = read_well_formed(path, max_bad)
        split_of = _division(rows, path)
        if not any("split" in row for row in rows):
            wanted = SPLITS
        rows = _of_level(_of_language(rows, path, lang), path, lang, level)
        return {name: [row for row in rows if split_of(row) in _SPLIT_NAMES[name]] for name in wanted}, bad
    parts: dict[str, list[Row]] = {}
    bad = 0
    for name in wanted:
        try:
            files = _split_files(path, lang, name, level)
        except FileNotFoundError:  # a folder may have a test split alone
            if name == split:
                raise
            continue
        read = [read_well_formed(file, max_bad) for file in files]
        parts[name] = _of_language([row for rows, _ in read for row in rows], path, lang)
        bad = sum(bad for _, bad in read)
    return parts, bad


def _of_language(rows: list[Row], path: Path, lang: str) -> list[Row]:
    """Those whose column `lang` says so, if there is one."""
    if not any("lang" in row for row in rows):
        return rows
    found = [row for row in rows if row.get("lang") == lang]
    if not found:
        spoken = Counter(str(row.get("lang")) for row in rows)
        raise ValueError(f"{path} has no rows of the language {lang!r}; found: {', '.join(sorted(spoken))}")
    return found


def _of_level(rows: list[Row], path: Path, lang: str, level: str) -> list[Row]:
    """Those whose column `level` says so, if there is one."""
    if not any("level" in row for row in rows):
        return rows
    found = [row for row in rows if row.get("level") == level]
    if not found:
        raise ValueError(f"{path} has no rows in {lang} whose column level is {level!r}")
    return found


def _split_files(folder: Path, lang: str, split: str, level: str) -> list[Path]:
    """The files of one split, by the first naming scheme of these that has any; `FileNotFoundError` if none has."""
    known = LANGUAGES.get(lang)
    stem = lang if level == "program" else f"{lang}.{level}"
    for name in _SPLIT_NAMES[split]:
        schemes = [f"{stem}.{name}{suffix}" for suffix in SUFFIXES]
        schemes += [f"{stem.replace('.', '/')}/{name}{suffix}" for suffix in SUFFIXES]
        if known:
            configuration = f"{known.xlcost}-{level}-level"
            schemes += [f"{root}{configuration}/{name}{suffix}" for root in ("data/", "") for suffix in SUFFIXES]
            schemes += [f"{configuration}/*{name}*.parquet", f"{configuration}/{name}/*.parquet"]
        for scheme in schemes:
            if files := sorted(folder.glob(scheme)):
                return files
    raise FileNotFoundError(f"{folder} has no {split} split of {level}s in {lang}: no {stem}.{split}.jsonl.gz nor any of its like")


def _division(rows: list[Row], path: Path) -> Callable[[Row], Any]:
    """The split of a row: its column `split`, else by its group: 5 % of the groups each for valid and test, at least one.

    Groups are ranked by the SHA-256 of their name, so the division depends on nothing but the set of groups.
    """
    if any("split" in row for row in rows):
        return lambda row: row.get("split")
    ranked = sorted({group_of(row) for row in rows}, key=lambda group: hashlib.sha256(group.encode()).digest())
    valid, test = (max(1, round(share * len(ranked))) for share in (VALID_SHARE, TEST_SHARE))
    if len(ranked) < 3:
        raise ValueError(f"{path} has {len(ranked)} problem(s); a file to be divided into {', '.join(SPLITS)} needs at least 3")
    named = dict.fromkeys(ranked[:valid], "valid") | dict.fromkeys(ranked[valid : valid + test], "test")
    return lambda row: named.get(group_of(row), "train")


def group_of(row: Row) -> str:
    """The problem family of a row: its `group` or `family`, else the title of its text ("title | comment ; comment")."""
    return str(row.get("group") or row.get("family") or row["text"].split(" | ")[0])
