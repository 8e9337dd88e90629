"""Random changes of a small file: of its bytes, its numbers, its words, and of the JSON or YAML values in it."""

import gzip
import json
import re
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import yaml

NUMBERS = [b"0", b"-1", b"1", b"2", b"3", b"255", b"65536", b"2147483648", b"4294967296", b"9223372036854775807", b"18446744073709551616"]
NUMBERS += [b"1e999", b"-1e999", b"NaN", b"Infinity", b"1.5", b"0.0", b"-0", b"1e-999", b"9" * 400, b"007", b"0x10", b".nan", b".inf"]
WORDS = [
    b"null",
    b"true",
    b"false",
    b"{}",
    b"[]",
    b'""',
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n\n",
    b"\\ud800",
    b"\xed\xa0\x80",
]
WORDS += [
    b"[" * 2000,
    b"{" * 500,
    b'{"a":' * 2000,
    b"&a [*a]",
    b"!!python/object/apply:os.getcwd []",
    b"<<: *a",
    b"../",
    b"/etc/passwd",
    b": ",
    b"- ",
]
VALUES: list[Any] = [None, True, False, 0, -1, 1, 2, 7, 1 << 31, 1 << 63, 1 << 64, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf")]
VALUES += [
    "",
    "x",
    "1",
    "a/b",
    "../x",
    "\0",
    "\ud800",
    "é" * 50,
    "x" * 3000,
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    {"": 0},
    [1, "a", None, {}],
    [0] * 300,
]


def mutated(data: bytes, name: str, random: Random, others: list[bytes]) -> bytes:
    """`data`, the content of a file called `name`, with one to three random changes; `others` are files that pieces may come from."""
    kinds: list[Callable[[bytes], bytes]] = [lambda d: _bytes(d, random), lambda d: _bytes(d, random), lambda d: _splice(d, random, others)]
    inside = _inside(name, random)
    if inside:
        kinds += [inside] * 4
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = random.choice(kinds)(data)
    return data


def _bytes(data: bytes, random: Random) -> bytes:
    """A change that knows nothing of the format."""
    at = random.randrange(len(data) + 1)
    end = min(len(data), at + random.choice((1, 1, 2, 4, 8, 40, 400)))
    kind = random.randrange(8)
    if kind == 0 and data:
        bit = random.randrange(8 * len(data))
        return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
    if kind == 1:
        return data[:at] + random.randbytes(end - at) + data[end:]
    if kind == 2:
        return data[:at] + data[end:]
    if kind == 3:
        return data[:at]
    if kind == 4:
        return data[:end] + data[at:end] * random.choice((1, 2, 50)) + data[end:]
    if kind == 5:
        return data[:at] + random.choice(WORDS) + data[at:]
    return _word(data, random, rb"-?\d+(\.\d+)?", NUMBERS) if kind == 6 else _word(data, random, rb"[\w.+-]+", WORDS + NUMBERS)


def _word(data: bytes, random: Random, pattern: bytes, instead: list[bytes]) -> bytes:
    """One match of `pattern` is another word."""
    found = list(re.finditer(pattern, data[:4096]))
    if not found:
        return data
    match = random.choice(found)
    return data[: match.start()] + random.choice(instead) + data[match.end() :]


def _splice(data: bytes, random: Random, others: list[bytes]) -> bytes:
    other = random.choice(others)
    at, start = random.randrange(len(data) + 1), random.randrange(len(other))
    return data[:at] + other[start : start + random.choice((4, 40, 400))] + data[random.choice((at, len(data))) :]


def _inside(name: str, random: Random) -> Callable[[bytes], bytes] | None:
    """A change of the values in a file of this name; None if its format has none. A file that is no longer of the format stays as it is."""
    if name.endswith(".gz"):
        return lambda data: gzip.compress(mutated(_plain(data), name.removesuffix(".gz"), random, [b"x"]), mtime=0)
    change = {".json": _json, ".jsonl": _json_line, ".yml": _yaml, ".safetensors": _header}.get("." + name.rpartition(".")[2])

    def careful(data: bytes) -> bytes:
        try:
            return change(data, random)  # type: ignore[misc]
        except (ValueError, RecursionError, IndexError, struct.error, yaml.YAMLError, UnicodeError, KeyError, AttributeError, TypeError):
            return data

    return careful if change else None


def _plain(data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return data


def _json(data: bytes, random: Random) -> bytes:
    return json.dumps(_change(json.loads(data), random)).encode()


def _json_line(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    lines[at] = _json(lines[at], random)
    return b"\n".join(lines)


def _yaml(data: bytes, random: Random) -> bytes:
    return yaml.safe_dump(_change(yaml.safe_load(data), random)).encode()


def _header(data: bytes, random: Random) -> bytes:
    """The JSON header of a safetensors file, with a length that fits it; or the tensors' bytes alone."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    if random.random() < 0.25 and rest:
        at = random.randrange(len(rest))
        return data[: 8 + length] + rest[:at] + random.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\x7f")) + rest[at + 4 :]
    header = _json(header, random)
    return struct.pack("<Q", len(header)) + header + rest


def _change(value: Any, random: Random) -> Any:
    """A JSON value of which one part is another, gone, doubled or renamed."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key, kind = random.choice(list(value)), random.randrange(8)
        if kind == 0:
            return {name: item for name, item in value.items() if name != key}
        if kind == 1:
            return {(random.choice(["x", "", "a.b", str(key).upper()]) if name == key else name): item for name, item in value.items()}
        if kind == 2:
            return {**value, random.choice(["x", "auto_map", "trust_remote_code", "dtype", "__metadata__"]): random.choice(VALUES)}
        if kind == 3:
            return {**value, key: value[random.choice(list(value))]}
        return {**value, key: _change(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.85:
        at = random.randrange(len(value))
        if random.random() < 0.3:
            return value[:at] + value[at + 1 :] if random.random() < 0.5 else [*value, value[at]]
        return [*value[:at], _change(value[at], random), *value[at + 1 :]]
    return random.choice([*VALUES, [value], {"x": value}, str(value)])
