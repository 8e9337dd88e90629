"""JSON files, and files of JSON lines, read strictly: of a bounded size, no key twice, no name that the system would not take."""

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape of half of a character, or of one of two halves
_BYTES = 100_000_000  # as safetensors' own limit for a header
LINE = 1 << 24  # bytes: some thousand times the longest program
_PART, _PATH = 255, 1024  # bytes of a file's name, as file systems bound it, and of a path in a folder: systems take 1024 to 4096


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; FileNotFoundError or ValueError naming the file otherwise, also where a key is there twice."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if path.stat().st_size > _BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a JSON file here has at most {_BYTES}")
    try:
        value = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def parse_json(text: bytes) -> Any:
    """The value of a JSON text in UTF-8; ValueError otherwise, also where a key is there twice or brackets are nested a thousand deep.

    And where an escape is a lone surrogate, half of a character: no tokenizer and no file takes such a text.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
        if _SURROGATE.search(text):  # few texts have one; the others need not be walked through
            check_text(json.dumps(value, ensure_ascii=False), "a text in it")
        return value
    except RecursionError as error:
        raise ValueError(str(error)) from None


def check_text(text: str, where: str) -> None:
    """ValueError if `text` has a lone surrogate, which comes from an escape in JSON or YAML, or from bytes of a command line."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} has the lone surrogate U+{ord(text[error.start]):04X}; UTF-8 has no bytes for it") from None


def read_lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The lines of a file; ValueError naming `path` for one that is longer than any row, as in a file that a crash filled with zeros."""
    while line := file.readline(LINE + 1):
        if len(line) > LINE:
            raise ValueError(f"{path} has a line of more than {LINE} bytes")
        yield line


def fits_a_path(name: str) -> bool:
    """Whether the system takes `name` for a path, instead of an error that names no file."""
    path = os.fsencode(name)
    return b"\0" not in path and len(path) <= _PATH and all(len(part) <= _PART for part in path.split(b"/"))


def is_finite(value: object) -> bool:
    """Whether `value` is a number that a float can hold: no bool, NaN or infinity, and no whole number of 400 digits."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def fits_int64(value: int) -> bool:
    """Whether what reads the number, torch or a tokenizer, can hold it."""
    return -(1 << 63) <= value < 1 << 63


def shown(value: object, most: int = 200) -> str:
    """How an error quotes a value: its `repr`, of which it has at most so many characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits; YAML reads them, in hexadecimal
        text = "what has a number of more than 4300 digits"
    return text if len(text) <= most else f"{text[:most]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"the key {key!r} is there twice")
        value[key] = item
    return value
