"""Rows out of files: JSON lines (gzipped or not), a JSON array, Parquet.

A row is a dict with at least the strings `text` and `code`, or with what other columns the caller names. A malformed
row is named by file and line in a warning and left out, as long as there are few of them.
"""

import gzip
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet

from model.strict_json import parse_json, read_lines

Row = dict[str, Any]

COLUMNS = ("text", "code")
SUFFIXES = (".jsonl.gz", ".jsonl", ".json.gz", ".json", ".parquet")
MAX_BAD_ROWS, MAX_BAD_SHARE = 10, 0.01
# Unpacked, a file may be so many times its size, and a small one so many bytes: XLCoST's programs shrink to a fifth, a bomb a thousandfold.
MAX_GROWTH, FREE_BYTES = 100, 1 << 22
MAX_ARRAY = 1 << 28  # bytes: it is parsed as a whole
_PIECE = 1 << 16  # bytes of white space that are passed over at a time
_FEW = 64  # bytes: more than gzip takes for nothing, which ends in zeros
_BATCH = 4  # rows of a Parquet file that are unpacked before their size is known


def read_well_formed(
    path: Path, max_bad: int | None = None, columns: tuple[str, ...] = COLUMNS, may_be_empty: tuple[str, ...] = ()
) -> tuple[list[Row], int]:
    """The well-formed rows of `path`, each with its place `where` ("name:line"), and the number of malformed ones.

    `columns`: what every row has as a string, which holds more than white space but for those of `may_be_empty`.

    `max_bad`: malformed rows to put up with; by default 10 or 1 % of the rows, whichever is more, but less than half of them.
    `ValueError` if there are more, if the file is empty or damaged, or if no row has the columns; `FileNotFoundError`
    if there is no such file.
    """
    rows: list[Row] = []
    bad: list[str] = []
    found: list[str] = []
    for line, value in _values(path):
        try:
            row = parse_json(value) if isinstance(value, bytes) else value
            if isinstance(row, dict) and not found:
                found = sorted(row)
            _check(row, columns, may_be_empty)
        except ValueError as error:
            bad.append(f"{path}:{line}: {error}")
        else:
            row["where"] = f"{path.name}:{line}"
            rows.append(row)
    if not rows and not bad:
        raise ValueError(f"{path} is empty")
    if not rows and found and not set(columns) <= set(found):
        raise ValueError(f"{path} has the columns {', '.join(found)}; the columns {' and '.join(columns)} are needed")
    total = len(rows) + len(bad)
    allowed = min(max(MAX_BAD_ROWS, int(MAX_BAD_SHARE * total)), total // 2) if max_bad is None else max_bad
    if len(bad) > allowed:
        raise ValueError(f"{path} has {len(bad)} malformed rows out of {total}, and {allowed} are allowed; the first: {bad[0]}")
    for reason in bad:
        warnings.warn(f"{reason}; row dropped", stacklevel=2)
    return rows, len(bad)


def first_columns(path: Path) -> list[str]:
    """The columns of the first row of `path` that is an object; none if no row is. A missing or damaged file as for `read_well_formed`."""
    for _, value in _values(path):
        with suppress(ValueError):
            row = parse_json(value) if isinstance(value, bytes) else value
            if isinstance(row, dict):
                return list(row)
    return []


def _check(row: Any, columns: tuple[str, ...], may_be_empty: tuple[str, ...]) -> None:
    """`ValueError` saying what is wrong with `row`."""
    if not isinstance(row, dict):
        raise ValueError(f"an object with {' and '.join(columns)} was expected, not {type(row).__name__}")
    for column in columns:
        if column not in row:
            raise ValueError(f"no column {column!r}")
        value = row[column]
        if not isinstance(value, str):
            raise ValueError(f"{column!r} must be a string, not {type(value).__name__}")
        if not value.strip() and column not in may_be_empty:
            raise ValueError(f"{column!r} is empty")


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """(line or row number from 1, bytes of a JSON line or a ready value) of every row of `path`."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path} must end in one of {', '.join(SUFFIXES)}")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty")
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
        else:
            yield from _json(path)
    except (EOFError, OSError, zlib.error, ValueError) as error:
        if getattr(error, "errno", None) is not None:  # the system's, such as a full disk; gzip and pyarrow give damage no number
            raise
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from error


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, unpacked if it is gzipped; ValueError if one is longer than any row, or if they grow as no text does."""
    left = _most_bytes(path)
    with _opened(path) as file:
        for line in read_lines(file, path):
            left -= len(line)
            if left < 0:
                raise _grown(path)
            yield line


def _opened(path: Path) -> Any:
    if path.suffix != ".gz":
        return path.open("rb")
    if path.stat().st_size > _FEW:
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            if not any(file.read(8)):  # gzip would look through all zeros for another part, a byte at a time
                raise ValueError(f"{path} ends in zeros, where its length and checksum should be")
    return gzip.open(path)


def _first_byte(file: Any, most: int) -> bytes:
    """The first byte that is not white space, of so many at most; none if there is none."""
    for _ in range(0, most, _PIECE):
        piece = file.read(_PIECE)
        if not piece or piece.strip():
            return piece.lstrip()[:1]
    return b""


def _grown(path: Path) -> ValueError:
    return ValueError(f"{path} unpacks to more than {MAX_GROWTH} times its size")


def _most_bytes(path: Path) -> int:
    return max(MAX_GROWTH * path.stat().st_size, FREE_BYTES)


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    left, number = _most_bytes(path), 0
    with pyarrow.parquet.ParquetFile(path) as file:
        if sum(file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)) > left:
            raise _grown(path)
        for batch in file.iter_batches(_BATCH):
            left -= batch.nbytes
            if left < 0:
                raise _grown(path)
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    """One value a line, or, if the file starts with an array, its elements."""
    with _opened(path) as file:
        if _first_byte(file, _most_bytes(path)) == b"[":
            if path.stat().st_size > MAX_ARRAY:
                raise ValueError(f"a JSON array here has at most {MAX_ARRAY} bytes; JSON lines may have any number")
            file.seek(0)
            most = min(MAX_ARRAY, _most_bytes(path))
            whole = file.read(most + 1)
            if len(whole) > most:
                raise _grown(path)
            yield from enumerate(parse_json(whole), 1)
            return
    yield from ((number, line) for number, line in enumerate(lines_of(path), 1) if line.strip())
