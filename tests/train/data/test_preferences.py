"""Preferences out of pairs and out of judged samples: who is paired with whom, and what is dropped."""

import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer

from eval import judge
from model.generation import decode_behind
from model.infill import encode_piece
from train.data import preferences
from train.data.preferences import Preference, divide, encode_preferences, load_preferences
from train.data.prompts import IGNORED


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sample(task: str, completion: str, outcome: str, **more: object) -> dict:
    return {"task_id": task, "prompt": f"do {task}\n", "completion": completion, "outcome": outcome, "lang": "python", **more}


def pair(number: int, **more: str) -> dict:
    return {"prompt": f"p{number}", "chosen": f"good {number}", "rejected": f"bad {number}", **more}


def test_outcomes_are_those_that_the_judge_gives():
    assert (preferences.PASSED, *preferences.FAILED, *preferences.UNJUDGED) == judge.OUTCOMES
    assert preferences.UNJUDGED == judge.UNJUDGED


def test_what_passed_is_preferred_to_what_failed_in_the_same_task(tmp_path):
    rows = [sample("a", f"a good {i}", "passed") for i in range(2)]
    rows += [sample("a", f"a bad {i}", outcome) for i, outcome in enumerate(("failed", "compile error", "timeout", "memory"))]
    rows += [sample("b", "b good", "passed"), sample("b", "b bad", "failed")]
    rows += [sample("a", "a good 0 ", "passed"), sample("a", "no compiler", "tool missing"), sample("b", "gone", "sandbox error")]
    rows += [
        sample("c", "c bad", "failed"),
        sample("d", "d good", "passed"),
        sample("b", "flaky", "passed"),
        sample("b", "flaky", "timeout"),
    ]
    pairs, dropped = load_preferences([write(tmp_path / "samples.jsonl", rows)], 10, seed=0)
    outcomes = {(row["task_id"], row["completion"]): row["outcome"] for row in rows}
    for found in pairs:
        assert found.prompt == f"do {found.task}\n"
        assert outcomes[found.task, found.chosen] == "passed"
        assert outcomes[found.task, found.rejected] in preferences.FAILED
    assert Counter(found.task for found in pairs) == {"a": 4, "b": 1}
    assert {found.rejected for found in pairs} == {*(f"a bad {i}" for i in range(4)), "b bad"}, "a failing completion was left out"
    assert Counter(found.chosen for found in pairs) == {"a good 0": 2, "a good 1": 2, "b good": 1}, "passing completions are not in balance"
    counts = {
        preferences.NOT_JUDGED: 2,
        preferences.TWICE: 1,
        preferences.BOTH_WAYS: 2,
        preferences.NONE_PASSED: 1,
        preferences.NONE_FAILED: 1,
    }
    assert {rule: count for rule, count in dropped.items() if count} == counts


def test_no_task_outweighs_the_others(tmp_path):
    rows = [sample("a", f"good {i}", "passed") for i in range(9)] + [sample("a", f"bad {i}", "failed") for i in range(9)]
    rows += [sample("b", "good", "passed"), sample("b", "bad", "failed")]
    path = write(tmp_path / "samples.jsonl", rows)
    pairs, dropped = load_preferences([path], 3, seed=0)
    assert Counter(found.task for found in pairs) == {"a": 3, "b": 1}
    assert dropped[preferences.OVER] == 6
    assert load_preferences([path], 3, seed=0)[0] == pairs
    assert load_preferences([path], 3, seed=1)[0] != pairs


def test_samples_of_several_runs_are_paired_by_task_and_language(tmp_path):
    """A reference from another run is preferred in the words in which the failing completion was asked for."""
    for name, rows in {
        "model": [sample("a", "bad", "failed", prompt="### Python\na"), sample("a", "bad", "failed", prompt="### Java\na", lang="java")],
        "references": [sample("a", "solution", "passed")],
    }.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / "samples.jsonl", rows)
    pairs, dropped = load_preferences([tmp_path / "model", tmp_path / "references"], 4, seed=0)
    assert pairs == [Preference("### Python\na", "solution", "bad", "a")]
    assert dropped[preferences.NONE_PASSED] == 1


def test_pairs_of_a_file_are_taken_as_they_are_but_for_repeats(tmp_path):
    rows = [pair(0), pair(0), pair(1, task_id="t"), {**pair(2), "rejected": "good 2\n"}, {**pair(3), "rejected": ""}]
    expected = {Preference("p0", "good 0", "bad 0", "p0"), Preference("p1", "good 1", "bad 1", "t"), Preference("p3", "good 3", "", "p3")}
    table = pyarrow.Table.from_pylist([{"task_id": None, **row} for row in rows])
    pyarrow.parquet.write_table(table, tmp_path / "pairs.parquet")
    for path in (write(tmp_path / "pairs.jsonl", rows), tmp_path / "pairs.parquet"):
        pairs, dropped = load_preferences([path], 4, seed=0)
        assert len(pairs) == 3 and set(pairs) == expected
        assert (dropped[preferences.SAME_PAIR], dropped[preferences.EQUAL]) == (1, 1)


def test_a_task_stands_on_one_side():
    pairs = [Preference(f"p{i}", "good", "bad", f"t{i % 20}") for i in range(60)]
    train, valid = divide(pairs, 0.1)
    assert sorted(train + valid, key=str) == sorted(pairs, key=str)
    assert len({found.task for found in valid}) == 2 and not {found.task for found in valid} & {found.task for found in train}
    with pytest.raises(ValueError, match="all of one task"):
        divide(pairs[:1], 0.1)


def test_both_completions_follow_one_prompt_and_end(tiny_base):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    long = Preference("int f(", "int a", "b" * 200, "t")
    rows, dropped = encode_preferences(
        [Preference("int f(", "int a) {}", "a", "t"), long, Preference("x" * 200, "", "a", "t")], tokenizer, 64
    )
    assert list(dropped.values()) == [1, 1] and len(rows) == 1
    for row, completion in ((rows[0], "int a) {}"), (rows[0]["rejected"], "a")):
        start = row["labels"].count(IGNORED)
        assert row["labels"][:start] == [IGNORED] * start and row["labels"][start:] == row["input_ids"][start:]
        assert tokenizer.decode(row["input_ids"][1:start]) == "int f(" and row["input_ids"][0] == tokenizer.bos_token_id
        assert tokenizer.decode(row["input_ids"][start:-1]) == completion and row["input_ids"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", ["pairs", "samples"])
@pytest.mark.parametrize("whole", [True, False])
def test_what_goes_on_with_a_prompt_gets_the_tokens_that_are_generated_there(whole, kind, tmp_path, metaspace):
    """A continuation is encoded as if text stood before it; what is a text of its own as in training, with the space of its beginning."""
    texts = ["\n    return x", "x + 1"]
    rows = [sample("a", text, outcome, whole=whole) for text, outcome in zip(texts, ("passed", "failed"), strict=True)]
    if kind == "pairs":
        rows = [{"prompt": "def f(x):", "chosen": texts[0], "rejected": texts[1], "whole": whole}]
    (row,), _ = encode_preferences(load_preferences([write(tmp_path / "rows.jsonl", rows)], 1, seed=0)[0], metaspace, 64)
    for example, text in zip((row, row["rejected"]), texts, strict=True):
        learned = [label for label in example["labels"] if label != IGNORED][:-1]
        assert learned == (metaspace(text, add_special_tokens=False)["input_ids"] if whole else encode_piece(metaspace, text))
        assert decode_behind(metaspace, learned, "" if whole else "def f(x):") == text


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question": "q", "answer": "a"}], "has the columns answer, question; prompt, chosen, rejected are needed, or task_id, prompt"),
        ([{"task_id": "a", "completion": "b", "outcome": "passed"}], "has the columns completion, outcome, task_id; prompt"),
        ([{**pair(0), "chosen": [{"role": "user"}]}], "'chosen' must be a string, not list"),
        ([{**pair(0), "rejected": "good 0"}], "no pair is left of .*: chosen equals rejected 1"),
        ([sample("a", "x", "failed"), sample("b", "y", "tool missing")], "not judged .* 1, task without a passing completion 1"),
        ([sample("a", "x", "lucky")], "samples.jsonl:1 has the outcome 'lucky'; known: passed, failed"),
        ([], "is empty"),
    ],
)
def test_a_mistake_is_named(tmp_path, rows, said):
    with pytest.raises(ValueError, match=said):
        load_preferences([write(tmp_path / "samples.jsonl", rows)], 4, seed=0)


def test_a_missing_file_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match=r"run/samples\.jsonl"):
        load_preferences([tmp_path / "run"], 4, seed=0)
