"""Damaged files: few malformed rows are named and dropped, many refuse the file; every refusal is one sentence with the path."""

import errno
import gzip
import io
import json
import warnings
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from train.data.reading import read_well_formed


def good(number: int) -> bytes:
    return json.dumps({"text": f"text {number}", "code": f"x = {number}"}).encode()


def write(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a", "code"', "delimiter"),
        (b'{"text": "a"}', "no column 'code'"),
        (b'{"text": "a", "code": 5}', "'code' must be a string, not int"),
        (b'{"text": null, "code": "x"}', "'text' must be a string, not NoneType"),
        (b'{"text": "a", "code": " "}', "'code' is empty"),
        (b'["a", "x"]', "an object"),
        (b'{"text": "\xff", "code": "x"}', "utf-8"),
        (b'{"text": "\\ud800", "code": "x"}', "surrogate"),
    ],
)
def test_malformed_row_is_named_by_file_and_line_and_dropped(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path / "rows.jsonl", [good(1), line, b"", good(2)])
    with pytest.warns(UserWarning, match=rf"rows\.jsonl:2: .*{reason}.*row dropped"):
        rows, bad = read_well_formed(path)
    assert [row["code"] for row in rows] == ["x = 1", "x = 2"] and bad == 1
    assert [row["where"] for row in rows] == ["rows.jsonl:1", "rows.jsonl:4"]
    with pytest.raises(ValueError, match=r"1 malformed rows out of 3, and 0 are allowed; the first: .*rows\.jsonl:2"):
        read_well_formed(path, max_bad=0)


def test_limit_is_ten_rows_or_one_percent_but_never_half(tmp_path: Path) -> None:
    broken = b"{"
    with pytest.warns(UserWarning):
        assert read_well_formed(write(tmp_path / "a.jsonl", [good(i) for i in range(90)] + [broken] * 10))[1] == 10
        assert read_well_formed(write(tmp_path / "b.jsonl", [good(i) for i in range(1980)] + [broken] * 20))[1] == 20
    for name, lines in {"c": [good(1)] * 90 + [broken] * 11, "d": [good(1)] * 1979 + [broken] * 21, "e": [good(1), broken, broken]}.items():
        with pytest.raises(ValueError, match="malformed rows"):
            read_well_formed(write(tmp_path / f"{name}.jsonl", lines))


def test_every_container_gives_the_same_rows(tmp_path: Path) -> None:
    values: list[dict[str, Any]] = [json.loads(good(i)) for i in range(5)]
    lines = b"\n".join(good(i) for i in range(5))
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.json").write_text(json.dumps(values, indent=1))
    (tmp_path / "d.json").write_bytes(lines)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "e.parquet")
    for path in tmp_path.iterdir():
        rows, bad = read_well_formed(path)
        assert bad == 0 and [(row["text"], row["code"]) for row in rows] == [(row["text"], row["code"]) for row in values]


@pytest.mark.parametrize("before", [70, 1 << 16, 200_001])
def test_an_array_may_follow_any_white_space(tmp_path: Path, before: int) -> None:
    content = b"\n" * before + b"[" + good(1) + b",\n" + good(2) + b"]"
    for name, data in {"a.json": content, "b.json.gz": gzip.compress(content)}.items():
        (tmp_path / name).write_bytes(data)
        assert [row["code"] for row in read_well_formed(tmp_path / name)[0]] == ["x = 1", "x = 2"]


def _damaged_parquet() -> bytes:
    """A whole footer over data pages that are not: pyarrow raises OSError, not its ValueError."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([json.loads(good(i)) for i in range(500)]), file)
    content = file.getvalue()
    return content[:4] + b"\xff" * 400 + content[404:]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("b.jsonl", b"\n\n", "is empty"),
        ("b2.jsonl.gz", gzip.compress(b"", mtime=0), r"jsonl\.gz is empty$"),
        ("b3.jsonl.gz", gzip.compress(good(1), mtime=0) + bytes(100), "ends in zeros"),
        ("c.jsonl.gz", gzip.compress(good(1) * 1000, mtime=0)[:-20], "is damaged"),
        ("d.jsonl.gz", good(1), "is damaged"),
        ("e.parquet", b"PAR1 and no more", "is damaged"),
        ("e2.parquet", _damaged_parquet(), "is damaged"),
        ("f.json", b'[{"text": "a"', "is damaged"),
        ("g.csv", b"text,code\n", "must end in one of"),
        ("h.jsonl", b'{"prompt": "a", "answer": "b"}\n', "has the columns answer, prompt; the columns text and code are needed"),
    ],
)
def test_refusals(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message) as caught:
            read_well_formed(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOENT])
def test_the_systems_own_errors_are_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(path: Path) -> None:
        raise OSError(number, "the system says so", str(path))

    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", fail)
    with pytest.raises(OSError, match="the system says so") as caught:
        read_well_formed(tmp_path / "a.parquet")
    assert caught.value.errno == number


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing\.jsonl"):
        read_well_formed(tmp_path / "nothing.jsonl")
