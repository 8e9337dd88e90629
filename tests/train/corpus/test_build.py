"""The data set: deterministic, aligned, large enough, and without leaks between its splits."""

import gzip
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from model.languages import LANGUAGES
from train.corpus.build import SPLITS, build, draw_rows
from train.corpus.definition import load_families


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("corpus") / "out")


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def families_of(folder: Path, lang: str, split: str, kind: str) -> set[str]:
    return {row["family"] for row in read(folder, f"{lang}.{split}") if row["kind"] == kind}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    again = build(tmp_path / "again")
    assert (again / "manifest.json").read_text() == (folder / "manifest.json").read_text()
    families = load_families()
    assert draw_rows(families, 0) == draw_rows(families, 0) != draw_rows(families, 1)


def test_the_cached_corpus_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module = importlib.import_module("train.corpus.build")
    monkeypatch.setattr(module, "_write", lambda target, seed: (target.mkdir(parents=True), (target / "manifest.json").touch()))
    first = build()
    monkeypatch.setattr(module, "_write", lambda target, seed: pytest.fail("built twice"))
    assert build() == first
    assert first.parent == tmp_path / "moe-kernels"


@pytest.mark.parametrize("lang", LANGUAGES)
def test_train_holds_ten_thousand_distinct_pairs(folder: Path, lang: str) -> None:
    assert len({(row["text"], row["code"]) for row in read(folder, f"{lang}.train")}) >= 10_000


def test_rows_are_aligned(folder: Path) -> None:
    for split in SPLITS:
        ids = [[(row["id"], row["family"], row["kind"]) for row in read(folder, f"{lang}.{split}")] for lang in LANGUAGES]
        assert all(column == ids[0] for column in ids)
        assert len(set(ids[0])) == len(ids[0])


def test_unseen_families_are_unseen_in_every_language_and_spread_over_topics(folder: Path) -> None:
    seen = set().union(*(families_of(folder, lang, "train", "") for lang in LANGUAGES))
    for lang in LANGUAGES:
        valid, test = (families_of(folder, lang, split, "family") for split in ("valid", "test"))
        assert not valid & seen and not test & seen and not valid & test
        assert {load_families()[name].topic for name in valid | test} == {row.topic for row in load_families().values()}
        assert 0.07 < len(valid | test) / len(load_families()) < 0.14
        assert families_of(folder, lang, "test", "wording") <= seen


def test_unseen_wordings_are_unseen(folder: Path) -> None:
    """A held-out title stands in no text of train, whatever its prefix, names and comments."""
    rows = draw_rows(load_families(), 0)
    titles = {split: {(row.family, row.wording.title) for row in rows[split] if row.kind != "family"} for split in SPLITS}
    assert not titles["train"] & (titles["valid"] | titles["test"]) and not titles["valid"] & titles["test"]
    texts = {row["text"] for row in read(folder, "python.train")}
    assert not texts & {row["text"] for split in ("valid", "test") for row in read(folder, f"python.{split}")}


def test_tasks_hold_what_judging_needs(folder: Path) -> None:
    for lang in LANGUAGES:
        tasks = read(folder, f"{lang}.tasks")
        assert [row["task_id"] for row in tasks] == [row["id"] for row in read(folder, f"{lang}.test")]
        for row in tasks:
            assert row["entry_point"] in row["code"] and row["entry_point"] in row["test"] and len(row["cases"]) >= 4


def test_every_text_has_its_comments_and_no_open_mark(folder: Path) -> None:
    for row in read(folder, "java.train"):
        title, _, comments = row["text"].partition(" | ")
        assert title and "|" not in comments and "{" not in row["text"] and ";" not in title
        assert len(comments.split(" ; ")) == len(load_families()[row["family"]].comments)


def test_snippets_of_unseen_families_are_not_in_train(folder: Path) -> None:
    train = {(row["text"], row["code"]) for row in read(folder, "cpp.snippet.train")}
    test = {(row["text"], row["code"]) for row in read(folder, "cpp.snippet.test")}
    assert len(train) > 2000 and test and not train & test
