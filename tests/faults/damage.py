"""Kinds of damage that a file can have: what stands in it, and what stands in its place."""

import gzip
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pyarrow
import pyarrow.parquet

_ALIASES = "\n".join([f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]" for n in range(12)])
_PICKLE = b"\x80\x04cposix\nsystem\n(S'touch ran'\ntR."


def _header(entries: object, length: int | None = None, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _flip(at: float) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        place = int(at * (len(data) - 1))
        return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]

    return flip


def _cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(share * len(data))]


def _values(instead: object) -> Callable[[bytes], bytes]:
    """Every field of the outer object is `instead`; of what is no JSON, the text of `instead` alone."""

    def change(data: bytes) -> bytes:
        try:
            value = json.loads(data.split(b"\n")[0] if data.count(b"}\n") > 1 else data)
            return json.dumps(dict.fromkeys(value, instead)).encode()
        except (ValueError, TypeError):
            return json.dumps(instead).encode()

    return change


def _instead(content: bytes) -> Callable[[bytes], bytes]:
    return lambda _: content


@cache
def _zeros() -> bytes:
    return gzip.compress(bytes(1 << 28), mtime=0)  # 256 MB in 260 kB


@cache
def _rows_bomb() -> bytes:
    """A Parquet file of some kB whose rows are 800 MB: one long text, said 400 times by its number in a dictionary."""
    file = io.BytesIO()
    long = pyarrow.array(["x" * (1 << 20)] * 400).dictionary_encode()
    table = pyarrow.table(dict.fromkeys(("text", "code", "prompt", "chosen", "rejected"), long))
    pyarrow.parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": _instead(b""),
    "one byte": _cut(0.0001),
    "a quarter of it": _cut(0.25),
    "half of it": _cut(0.5),
    "all but its last byte": lambda data: data[:-1],
    "a byte changed at the start": _flip(0),
    "a byte changed at a third": _flip(0.33),
    "a byte changed near the end": _flip(0.9),
    "twice itself": lambda data: data + data,
    "backwards": lambda data: data[::-1],
    "zeros": lambda data: bytes(len(data)),
    "NUL bytes within": lambda data: data[:9] + b"\0\0\0" + data[9:],
    "invalid UTF-8": lambda data: data[:9] + b"\xff\xfe\x80" + data[9:],
    "a lone surrogate": lambda data: data[:9] + b"\xed\xa0\x80" + data[9:],
    "UTF-16": lambda data: data.decode("latin-1").encode("utf-16"),
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "a list": _instead(b"[]"),
    "a number": _instead(b"5"),
    "null": _instead(b"null"),
    "a text": _instead(b'"x"'),
    "an empty object": _instead(b"{}"),
    "another object": _instead(b'{"a": {"b": [1, 2, {"c": null}]}}'),
    "the same key twice": lambda data: data.replace(b"{", b'{"x": 1, "x": 2, ', 1),
    "fields that are null": _values(None),
    "fields that are texts": _values("x"),
    "fields that are lists": _values([[1], {}]),
    "fields that are huge": _values(10**300),
    "fields that are negative": _values(-1),
    "fields that are NaN": _values(float("nan")),
    "fields that are true": _values(True),
    "fields that are paths": _values("../../etc/passwd"),
    "fields that are addresses": _values("https://example.org/x"),
    "numbers of 5000 digits": lambda data: data.replace(b"1", b"1" * 5000),
    "100,000 open brackets": _instead(b"[" * 100_000),
    "100,000 objects in each other": _instead(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "100,000 dashes": _instead(b"- " * 100_000),
    "aliases of aliases": _instead(_ALIASES.encode()),
    "a tag of Python": _instead(b"!!python/object/apply:os.system ['touch ran']"),
    "a tag of Python in a field": lambda data: data + b"\nx: !!python/object/new:os.system [touch ran]\n",
    "a pickle": _instead(_PICKLE),
    "a zip": _instead(b"PK\x03\x04" + bytes(60)),
    "an ELF program": _instead(b"\x7fELF" + bytes(60)),
    "a header of 2**63 bytes": _instead(_header({}, 1 << 63)),
    "a header of 100 MB": _instead(_header({}, 100_000_000)),
    "a tensor of 2**62 values": _instead(_header({"a": {"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 1 << 64]}})),
    "tensors that share their bytes": _instead(
        _header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, data=bytes(4))
    ),
    "compressed zeros": lambda _: _zeros(),
    "compressed garbage": lambda data: gzip.compress(zlib.compress(data), mtime=0),
    "a Parquet file of one repeated text": lambda _: _rows_bomb(),
    "a Parquet foot without a head": _instead(b"PAR1" + struct.pack("<I", 1 << 31) + b"PAR1"),
    "one line of 300 kB": _instead(b"x" * 300_000),
}


def _link(path: Path, target: Path | str) -> None:
    path.unlink()
    path.symlink_to(target)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)


PLACES: dict[str, Callable[[Path], None]] = {
    "gone": Path.unlink,
    "a directory": _directory,
    "a FIFO that nobody writes to": _fifo,
    "a link to itself": lambda path: _link(path, path),
    "a link to nowhere": lambda path: _link(path, "/nowhere/at/all"),
    "a link to a device": lambda path: _link(path, "/dev/zero"),
    "a link to a directory": lambda path: _link(path, "/"),
    "a terabyte of nothing": _sparse,
}
