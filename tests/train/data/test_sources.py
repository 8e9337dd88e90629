"""Which files a source stands for, and how one file is divided."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
import torch

from train.data import sources
from train.data.sources import find_source, group_of, read_splits

NAMINGS = [
    ("cpp.{}.jsonl", "program", "valid"),
    ("cpp.snippet.{}.jsonl", "snippet", "valid"),
    ("cpp/{}.jsonl", "program", "validation"),
    ("data/C++-program-level/{}.json", "program", "valid"),
    ("data/C++-snippet-level/{}.json", "snippet", "valid"),
    ("C++-program-level/{}-00000-of-00001.parquet", "program", "validation"),
    ("C++-snippet-level/{}/0000.parquet", "snippet", "validation"),
    ("C++-program-level/xlcost-text-to-code-{}.parquet", "program", "validation"),
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, lang: str, split: str, level: str = "program") -> list[dict[str, Any]]:
    return read_splits(path, lang, split, level, None)[0][split]


def row(number: int, **more: str) -> dict[str, Any]:
    return {"text": f"title {number} | comment", "code": f"int x{number};", **more}


@pytest.mark.parametrize(("naming", "level", "valid"), NAMINGS)
def test_every_naming_of_a_folder(tmp_path: Path, naming: str, level: str, valid: str) -> None:
    for number, name in enumerate(("train", valid, "test")):
        write(tmp_path / naming.format(name), [row(number)])
    for number, split in enumerate(("train", "valid", "test")):
        assert [one["code"] for one in read(tmp_path, "cpp", split, level)] == [f"int x{number};"]
    other = "snippet" if level == "program" else "program"
    with pytest.raises(FileNotFoundError, match=f"no train split of {other}s in cpp"):
        read(tmp_path, "cpp", "train", other)
    with pytest.raises(FileNotFoundError, match="in java"):
        read(tmp_path, "java", "train", level)


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    for shard in (1, 0, 2):
        write(tmp_path / "Python-program-level" / f"train-0000{shard}-of-00003.parquet", [row(shard)])
    assert [one["code"] for one in read(tmp_path, "python", "train")] == ["int x0;", "int x1;", "int x2;"]


def test_single_file_is_divided_by_group(tmp_path: Path) -> None:
    rows = [row(number, group=f"g{number % 200}") for number in range(600)]
    path = write(tmp_path / "rows.jsonl", rows)
    parts = {split: read(path, "cpp", split) for split in ("train", "valid", "test")}
    groups = {split: {group_of(one) for one in part} for split, part in parts.items()}
    assert {split: len(names) for split, names in groups.items()} == {"train": 180, "valid": 10, "test": 10}
    assert len(set().union(*groups.values())) == 200 and sum(map(len, parts.values())) == 600

    assert sorted(groups["test"]) == ["g123", "g160", "g166", "g173", "g26", "g36", "g38", "g40", "g79", "g8"]  # in every process
    write(path, rows[::-1])  # the division hangs on the groups alone
    assert {group_of(one) for one in read(path, "cpp", "test")} == groups["test"]


def test_small_file_still_has_every_split(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row(number) for number in range(3)])
    assert [len(read(path, "cpp", split)) for split in ("train", "valid", "test")] == [1, 1, 1]
    write(path, [row(1), row(2)])
    with pytest.raises(ValueError, match=r"2 problem.*at least 3"):
        read(path, "cpp", "train")


@pytest.mark.parametrize("column", ["lang", "level"])
def test_a_problem_stands_in_one_split_whatever_is_asked_for(tmp_path: Path, column: str) -> None:
    """The second half of the file has problems of its own, so a division of its rows alone would cut elsewhere."""
    asked = {"lang": [("cpp", "program"), ("java", "program")], "level": [("cpp", "program"), ("cpp", "snippet")]}[column]
    rows = [row(n, lang=lang, level=level) for half, (lang, level) in enumerate(asked) for n in range(60 * half, 120)]
    path = write(tmp_path / "rows.jsonl", rows)
    splits: dict[str, set[str]] = {}
    for lang, level in asked:
        for split in ("train", "valid", "test"):
            for one in read(path, lang, split, level):
                splits.setdefault(group_of(one), set()).add(split)
    assert len(splits) == 120 and all(len(found) == 1 for found in splits.values())
    assert Counter(split for (split,) in splits.values()) == {"train": 108, "valid": 6, "test": 6}


def test_columns_split_and_lang_are_obeyed(tmp_path: Path) -> None:
    rows = [row(0, split="train", lang="cpp"), row(1, split="validation", lang="cpp"), row(2, split="train", lang="java")]
    path = write(tmp_path / "rows.jsonl", rows)
    assert [one["code"] for one in read(path, "cpp", "train")] == ["int x0;"]
    assert [one["code"] for one in read(path, "cpp", "valid")] == ["int x1;"]
    assert [one["code"] for one in read(path, "java", "train")] == ["int x2;"]
    with pytest.raises(ValueError, match="no rows of the language 'python'; found: cpp, java"):
        read(path, "python", "train")


def test_group_is_the_title_where_nothing_says_otherwise() -> None:
    assert group_of(row(1)) == "title 1"
    assert group_of(row(1, family="f")) == "f"
    assert group_of(row(1, family="f", group="g")) == "g"


def test_unknown_source() -> None:
    with pytest.raises(FileNotFoundError, match="no data set 'nowhere'"):
        find_source("nowhere", "cpp", "program")


def test_hub_copy_is_found_by_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data" / "C++-program-level" / "train.json", [row(7)])
    asked = {}

    def download(repository: str, **options: str) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    path, name = find_source("xlcost", "cpp", "program")
    assert asked == {
        "repository": "codeparrot/xlcost-text-to-code",
        "repo_type": "dataset",
        "allow_patterns": "data/C++-program-level/*.json",
    }
    assert name == "codeparrot/xlcost-text-to-code"
    assert [one["code"] for one in read(path, "cpp", "train")] == ["int x7;"]
    with pytest.raises(ValueError, match="lacks Java-program-level"):
        find_source("xlcost", "java", "program")


def test_no_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repository: str, **options: str) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("many lines\nof explanation")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ValueError, match="neither in the hub's cache nor within reach") as caught:
        find_source("xlcost", "cpp", "program")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gigabytes", "online", "reason"),
    [
        ([], True, "no CUDA card of 20 GB"),
        ([8, 16], True, "no CUDA card of 20 GB"),
        ([24], False, "out of reach"),
        ([8, 24], True, "the hub are there"),
    ],
)
def test_auto_says_what_it_took_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: list[int], online: bool, reason: str
) -> None:
    cards = [SimpleNamespace(total_memory=gb * 10**9) for gb in gigabytes]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    monkeypatch.setattr("train.corpus.build", lambda: tmp_path / "corpus")

    def download(lang: str, level: str) -> Path:
        if not online:
            raise ValueError("out of reach")
        return tmp_path / "xlcost"

    monkeypatch.setattr(sources, "_download", download)
    path, name = find_source("auto", "cpp", "program")
    took_xlcost = online and max(gigabytes, default=0) >= 20
    assert path == tmp_path / ("xlcost" if took_xlcost else "corpus")
    assert name.startswith("codeparrot/xlcost-text-to-code (auto" if took_xlcost else "corpus (auto") and reason in name
