"""The file of the gate mode `data`: JSON lines with the columns `lang` (whose row it is) and `text` (what is read: prompt and program)."""

from pathlib import Path
from typing import Any, NamedTuple

from .strict_json import parse_json, read_lines


class Rows(NamedTuple):
    """One expert's texts: those that its row of the gate is made of, and every fourth, kept to scale and judge it."""

    fitted: list[str]
    held: list[str]


def find_gate_data(name: str, beside: Path) -> Path:
    """The file, by its own path or beside the recipe's folder; FileNotFoundError if neither is there."""
    for path in (Path(name), beside / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"there is no file {name} (gate_data)")


def read_gate_data(path: Path, langs: list[str], limit: int) -> list[Rows]:
    """The first `limit` rows of each of `langs`; rows of other languages are passed over.

    ValueError naming the first malformed line, or a language that has fewer than two rows.
    """
    texts: dict[str, list[str]] = {lang: [] for lang in langs}
    others = set()
    with path.open("rb") as file:
        for number, line in enumerate(read_lines(file, path), 1):
            lang, text = _read_row(line, f"{path}:{number}")
            if lang not in texts:
                others.add(lang)
            elif len(texts[lang]) < limit:
                texts[lang].append(text)
    for lang, own in texts.items():
        if len(own) < 2:
            found = f"; it also has {', '.join(sorted(others))}" if others else ""
            raise ValueError(f"{path} has {len(own)} row(s) of the lang {lang!r}; an expert needs at least 2{found}")
    return [Rows([text for n, text in enumerate(own) if n % 4 != 1], own[1::4]) for own in texts.values()]


def _read_row(line: bytes, where: str) -> tuple[str, str]:
    try:
        row: Any = parse_json(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    for column in ("lang", "text"):
        if not isinstance(row, dict) or not isinstance(row.get(column), str) or not row[column].strip():
            raise ValueError(f"{where}: a row needs the columns lang and text, both texts that are not empty")
    return row["lang"], row["text"]
