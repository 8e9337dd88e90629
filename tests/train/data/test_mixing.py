"""Levels by weight."""

import json

import pytest

from train.data.mixing import mix, parse_levels
from train.data.sources import check_levels, read_splits

ROWS = {"program": list(range(100)), "snippet": list(range(1000, 2000))}


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("program:0.7,snippet:0.3", None, (99, 43)),  # 100 / 0.7 = 142.9 rows can be had
        ("program:0.7,snippet:0.3", 10, (7, 3)),
        ("snippet:3, program:1", None, (100, 300)),
        ("program,snippet", 7, (4, 3)),
        ("program:0.001,snippet:0.999", None, (1, 1000)),
    ],
)
def test_as_many_rows_as_the_shares_allow_and_none_twice(text, limit, expected):
    mixed = mix(ROWS, parse_levels(text), limit, seed=0)
    assert (len(mixed["program"]), len(mixed["snippet"])) == expected
    for level, drawn in mixed.items():
        assert len(set(drawn)) == len(drawn) and set(drawn) <= set(ROWS[level])


def test_draws_depend_on_the_seed_alone():
    shares = parse_levels("program:0.2,snippet:0.8")
    assert mix(ROWS, shares, 50, seed=3) == mix(ROWS, shares, 50, seed=3) != mix(ROWS, shares, 50, seed=4)
    assert mix(ROWS, parse_levels("program"), 5, seed=3) == {"program": [0, 1, 2, 3, 4]}


@pytest.mark.parametrize(
    "text", ["line", "program:0", "program:-1,snippet:1", "program:x", "program,program", "", "program:", "program:inf"]
)
def test_what_is_no_mix_is_named(text):
    with pytest.raises(ValueError, match=r"--level .* must be one of program, snippet, each once, with a weight above 0"):
        parse_levels(text)


def test_one_file_with_a_column_level(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"text": f"task {number}", "code": f"x{number}", "level": ("program", "snippet")[number % 2]} for number in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_levels(file)
    read = {
        level: [row["code"] for split in ("train", "valid", "test") for row in read_splits(file, "rust", split, level, None)[0][split]]
        for level in ROWS
    }
    assert sorted(read["program"]) == sorted(f"x{number}" for number in range(0, 20, 2)) and len(read["snippet"]) == 10
    file.write_text("".join(json.dumps({"text": row["text"], "code": row["code"]}) + "\n" for row in rows))
    with pytest.raises(ValueError, match="has no column level"):
        check_levels(file)
