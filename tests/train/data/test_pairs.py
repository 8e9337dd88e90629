"""The loader as a whole: handmade sets in which every rule has something to drop, and the folder of real pairs."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from train.data import Loaded, format_table, load_pairs
from train.data.filters import parses, squeeze

WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omicron",
    "pi",
    "rho",
    "sigma",
    "tau",
    "upsilon",
]


def write(folder: Path, split: str, rows: list[dict[str, Any]], lang: str = "cpp") -> None:
    (folder / f"{lang}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def function(number: int, name: str = "f") -> str:
    """A C++ function unlike those of other numbers."""
    words = [WORDS[(number * 7 + i * (number + 3)) % len(WORDS)] + str(number) for i in range(12)]
    return f"int {name}{number}(int n) {{\n" + "".join(f"    n += {word};\n" for word in words) + "    return n;\n}\n"


def test_every_rule_drops_and_counts_its_rows(tmp_path: Path) -> None:
    wide = "int a[] = {" + ", ".join(["12345678"] * 12) + "};\n"
    rows = [{"text": f"program {number}", "code": function(number)} for number in range(20)]
    rows += [
        {"text": "long line", "code": "int x;\n" * 40 + f'string s = "{"x" * 1000}";\n'},
        {"text": "long mean line", "code": wide * 3},
        {"text": "symbols", "code": "int a = ((((((((((((((1))))))))))))));\n"},
        {"text": "generated", "code": "// auto-generated\n" + function(90)},
        {"text": "lost operator", "code": "int f(int n) {\n    if (n == 0 n == 1) return 1;\n}\n"},
        {"text": "program  0", "code": function(0).replace("    ", "\t")},
        {"text": "program 1", "code": function(1).replace("return n", "return m")},
        {"text": "other words for it", "code": function(2)},
    ]
    write(tmp_path, "train", rows)
    loaded = load_pairs(tmp_path, "cpp", "train")
    assert loaded.dropped == {
        "malformed row": 0,
        "also in an earlier split": 0,
        "a line over 1000 characters": 1,
        "mean line over 100 characters": 1,
        "under 25 % alphanumeric": 1,
        "auto-generated": 1,
        "does not parse": 1,
        "exact duplicate": 1,
        "near duplicate": 1,
    }
    assert [pair.code for pair in loaded.rows] == [function(number) for number in range(20)] + [function(2)]
    assert loaded.rows[3].id == "cpp.train.jsonl:4"

    table = format_table(loaded.dropped).splitlines()
    assert len(table) == 10 and len({len(line) for line in table}) == 1 and table[-1].split() == ["near", "duplicate", "1"]


def test_code_of_an_earlier_split_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, "train", [{"text": "a", "code": function(1)}])
    write(tmp_path, "valid", [{"text": "b", "code": function(2)}])
    write(tmp_path, "test", [{"text": text, "code": function(number).replace("    ", "  ")} for number, text in enumerate("wxyz")])
    loaded = load_pairs(tmp_path, "cpp", "test")
    assert [pair.text for pair in loaded.rows] == ["w", "z"] and loaded.dropped["also in an earlier split"] == 2
    assert len(load_pairs(tmp_path, "cpp", "train").rows) == 1


def test_near_duplicates_of_a_later_split_leave_training(tmp_path: Path) -> None:
    """60 long programs in one file, each with a copy that has one more line and another title."""
    long = {number: function(number) * 2 for number in range(60)}
    rows = [{"text": f"program {number}", "code": code} for number, code in long.items()]
    rows += [{"text": f"copy {number}", "code": f"{code}int more = {number};\n"} for number, code in long.items()]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = {split: load_pairs(path, "cpp", split) for split in ("train", "valid", "test")}
    numbers = {split: {pair.text.split()[1] for pair in one.rows} for split, one in loaded.items()}
    assert not numbers["train"] & (numbers["valid"] | numbers["test"]) and not numbers["valid"] & numbers["test"]
    assert [one.dropped.get("near duplicate in a later split") for one in loaded.values()] == [8, 1, None]
    assert [sum(one.dropped.values()) + len(one.rows) for one in loaded.values()] == [108, 6, 6]

    for number, row in enumerate(rows):
        row["split"] = "test" if number < 6 else "train"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = load_pairs(path, "cpp", "train")  # a division that comes with the file is taken as it is
    assert {f"copy {number}" for number in range(6)} < {
        pair.text for pair in train.rows
    } and "near duplicate in a later split" not in train.dropped


def test_paraphrases_are_kept_and_split_by_their_text(tmp_path: Path) -> None:
    """Rows with a family: many texts of one program are the point, and so is a known program under new words in the test."""
    family = {"code": "int f ( int n ) { return n + 1 ; }", "family": "successor"}
    texts = [f"the number that comes right after the given number {word}" for word in WORDS]
    write(tmp_path, "train", [{"text": text, **family} for text in [*texts, texts[0]]])
    write(tmp_path, "test", [{"text": text, **family, "kind": "wording"} for text in ("next integer", texts[1])])
    train, test = load_pairs(tmp_path, "cpp", "train"), load_pairs(tmp_path, "cpp", "test")
    assert [pair.text for pair in train.rows] == texts and train.dropped["exact duplicate"] == 1
    assert "near duplicate" not in train.dropped
    assert [(pair.text, pair.kind, pair.group) for pair in test.rows] == [("next integer", "wording", "successor")]
    assert test.dropped["also in an earlier split"] == 1
    assert test.rows[0].code == "int f(int n) {\n    return n + 1;\n}\n"


def test_token_form_can_be_forced(tmp_path: Path) -> None:
    write(tmp_path, "train", [{"text": "a", "code": "int f ( ) { return 1 ; }"}])
    assert load_pairs(tmp_path, "cpp", "train", token_form=False).rows[0].code == "int f ( ) { return 1 ; }"
    write(tmp_path, "train", [{"text": "a", "code": "int f() { return 1; }"}])
    assert load_pairs(tmp_path, "cpp", "train").rows[0].code == "int f() { return 1; }"
    assert load_pairs(tmp_path, "cpp", "train", token_form=True).rows[0].code == "int f() {\n    return 1;\n}\n"


def test_one_line_source_text_is_kept_as_it_is(tmp_path: Path) -> None:
    codes = ['greeting = "good  morning all"', "total = first + second", "count += 1", "flag = not done"]
    write(tmp_path, "snippet.train", [{"text": f"row {number}", "code": code} for number, code in enumerate(codes)], lang="python")
    loaded = load_pairs(tmp_path, "python", "train", level="snippet")
    assert [pair.code for pair in loaded.rows] == codes and loaded.source == str(tmp_path)


def test_what_was_decoded_is_said(tmp_path: Path) -> None:
    write(tmp_path, "train", [{"text": "a", "code": "int f ( ) { return 1 ; }"}])
    assert load_pairs(tmp_path, "cpp", "train").source == f"{tmp_path}, decoded from XLCoST's token form"


def test_snippets_need_not_parse(tmp_path: Path) -> None:
    write(tmp_path, "snippet.train", [{"text": "loop", "code": "for ( int i = 0 ; i < n ; i ++ ) {"}])
    assert load_pairs(tmp_path, "cpp", "train", level="snippet").rows[0].code == "for (int i = 0; i < n; i++) {\n"


def test_snippet_stands_in_two_splits_if_text_and_code_do(tmp_path: Path) -> None:
    write(tmp_path, "snippet.train", [{"text": "the end", "code": "return count ;"}])
    write(tmp_path, "snippet.test", [{"text": text, "code": "return count ;"} for text in ("the end", "give back the number")])
    loaded = load_pairs(tmp_path, "cpp", "test", level="snippet")
    assert [pair.text for pair in loaded.rows] == ["give back the number"] and loaded.dropped["also in an earlier split"] == 1


def test_limit_draws_by_seed_and_nests(tmp_path: Path) -> None:
    write(tmp_path, "train", [{"text": f"program {number}", "code": function(number)} for number in range(30)])

    def load(limit: int | None, seed: int = 0) -> Loaded:
        return load_pairs(tmp_path, "cpp", "train", limit=limit, seed=seed)

    assert load(20).rows[:5] == load(5).rows == load(5).rows
    assert load(5).rows != load(5, seed=1).rows and load(5).rows != load(None).rows[:5]
    assert load(5).sha256 == load(5).sha256 != load(5, seed=1).sha256
    assert Counter(load(99).rows) == Counter(load(None).rows)


def test_a_language_that_nothing_is_known_of_is_read_as_it_is(tmp_path: Path) -> None:
    """No parser, and no token form: the same one-line code in C++ would be decoded, and a lost operator dropped."""
    rows = [{"text": f"program {number}", "code": f"let {WORDS[number]} = {number} {number} ; x . y ( )"} for number in range(8)]
    write(tmp_path, "train", rows, lang="rust")
    loaded = load_pairs(tmp_path, "rust", "train")
    assert [pair.code for pair in loaded.rows] == [row["code"] for row in rows]
    assert "does not parse" not in loaded.dropped and {pair.lang for pair in loaded.rows} == {"rust"}


def test_user_mistakes(tmp_path: Path) -> None:
    write(tmp_path, "train", [{"text": "lost operator", "code": "int f(int n) {\n    if (n == 0 n == 1) return 1;\n}\n"}])
    (tmp_path / "many.jsonl").write_text("".join(json.dumps({"text": f"t{n}", "code": f"fn f ( ) {{ {n} }}"}) + "\n" for n in range(9)))
    for call, message in [
        (lambda: load_pairs(tmp_path, "C++", "train"), r"the language 'C\+\+' must be one of python, .* or a name in lower case"),
        (lambda: load_pairs("corpus", "rust", "train"), "corpus has no 'rust', only python, .*; give --data a file or a folder"),
        (lambda: load_pairs(tmp_path / "many.jsonl", "rust", "train", token_form=True), "unknown language 'rust'"),
        (lambda: load_pairs(tmp_path, "cpp", "dev"), "unknown split 'dev'; known: train, valid, test"),
        (lambda: load_pairs(tmp_path, "cpp", "train", level="line"), "unknown level 'line'"),
        (lambda: load_pairs(tmp_path, "cpp", "train", limit=0), "at least 1 row, not 0"),
        (lambda: load_pairs(tmp_path, "cpp", "train"), "no train rows in cpp that pass the filters: does not parse 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("lang", ["python", "java", "javascript", "cpp"])
def test_real_pairs(shared_data: Path, lang: str) -> None:
    """Nearly all rows of the curated folder are kept; all that are kept parse, and none stands in the valid split too."""
    test, valid = (load_pairs(shared_data / "pairs", lang, split) for split in ("test", "valid"))
    for loaded in (test, valid):
        assert len(loaded.rows) > 180 and sum(loaded.dropped.values()) < 0.02 * len(loaded.rows)
        assert all(parses(pair.code, lang) and pair.lang == lang and pair.group for pair in loaded.rows)
        assert len({pair.id for pair in loaded.rows}) == len(loaded.rows)
    assert not {squeeze(pair.code) for pair in valid.rows} & {squeeze(pair.code) for pair in test.rows}
    assert not {pair.group for pair in valid.rows} & {pair.group for pair in test.rows}
