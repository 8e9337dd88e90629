"""Tuning, without a card: the table's layout, that a forced launch is the one that runs, that nothing is measured twice."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe_kernels import tune
from moe_kernels.launch import TABLES, Launch, choose_launch
from moe_kernels.tune_cases import TARGETS, Setup, Target, every, tiles

ROOT = Path(__file__).parents[2]
FACTS = {"card": "none"}


@pytest.mark.parametrize("path", sorted(TABLES.glob("sm*.json")), ids=lambda path: path.stem)
def test_a_shipped_table_is_written_as_it_was_read(path):
    assert tune.dump_table(json.loads(path.read_text())) == path.read_text()


def test_a_written_row_is_the_launch_that_is_read():
    for at in (Launch(), Launch(block_m=64, num_warps=8), Launch(split_k=4, block_n=8)):
        row = tune.as_row(16, at)
        assert row.pop("tokens") == 16
        assert Launch(**row) == at


def test_neighbours_with_equal_launches_are_one_line():
    a, b = Launch(block_m=2), Launch(block_m=4)
    assert [row["tokens"] for row in tune.merged([(1, a), (2, a), (4, b), (None, b)])] == [2, None]
    assert [row["tokens"] for row in tune.merged([(1, a), (2, b), (None, a)])] == [1, 2, None]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.op}-{target.shape}")
def test_every_operation_launches_what_is_forced(target):
    """The first and the last bucket, recorded on tensors without memory: another launch makes another call."""
    setup = Setup("meta")
    for bound in (target.bounds[0], target.bounds[-1]):
        tokens = target.tokens(bound)
        candidates = target.candidates(tokens)
        assert 2 <= len(candidates) == len(set(candidates)) <= 100
        run = target.make(setup, tokens)
        seen = set()
        for at in candidates[:: max(1, len(candidates) // 4)]:
            calls = tune.recorded(target, at, run, 86)
            assert any(call.options == at.options for call in calls)
            seen.add(str([(call.grid, sorted(call.constants.items(), key=str), call.options) for call in calls]))
        assert len(seen) > 1


def test_forcing_ends_with_its_block():
    before = choose_launch("gram", 16, 64, 5, 86)
    with tune.forced("gram", replace(before, block_m=999), 86), tune.forced("unheard of", Launch(), 86):
        assert choose_launch("gram", 16, 64, 5, 86).block_m == 999
        assert choose_launch("unheard of", 1, 1, 1, 86) == Launch()
    assert choose_launch("gram", 16, 64, 5, 86) == before
    with pytest.raises(ValueError, match="no launch table"):
        choose_launch("unheard of", 1, 1, 1, 86)


def test_the_fastest_that_runs_is_taken_and_nothing_is_measured_twice(tmp_path):
    target = Target("gram", "any", (4, None), lambda setup, tokens: lambda: None, every(block_m=(16, 32, 64)))
    asked = []

    def clock(run):
        asked.append(choose_launch("gram", 1, 1, 1, 86).block_m)
        return {32: 5.0, 64: 2.0}[asked[-1]]

    def examine(calls, arch):
        return {at for at in calls if at.block_m != 16}

    for _ in range(2):  # the second time from the file
        measured = tune.Measured(tmp_path / "measured", FACTS)
        best = tune.best_launch(target, 4, Setup("meta"), 86, measured, examine, clock)
        assert best is not None and best.block_m == 64
    assert asked == [32, 64]
    with pytest.raises(ValueError, match="measured elsewhere"):
        tune.Measured(tmp_path / "measured", {"card": "another"})


def test_a_tuned_table_keeps_the_rest_and_needs_no_entry_that_repeats_another():
    table = {"fused_tokens": 96, "launches": {"route": {"any": [{"tokens": None, "block_m": 1}]}}}
    any_shape = Target("grouped", "any", (16, None), lambda s, t: lambda: None, every(block_m=(16,)))
    targets = [any_shape, replace(any_shape, shape="8x8"), replace(any_shape, shape="9x9"), replace(any_shape, op="gram")]

    def find(target, tokens):
        return None if target.op == "gram" else Launch(block_m=64 if target.shape == "9x9" else 32)

    tuned = tune.tune(targets, table, find)
    assert tuned["launches"] == {
        "route": {"any": [{"tokens": None, "block_m": 1}]},
        "grouped": {"any": [{"tokens": None, "block_m": 32}], "9x9": [{"tokens": None, "block_m": 64}]},
    }
    assert "grouped" not in table["launches"] and tuned["fused_tokens"] == 96


def test_a_new_card_starts_from_the_nearest_table(tmp_path):
    table = tune.start_table(tmp_path / "none.json", 120)
    assert table["like"] == 90 and table["launches"] == {} and table["fused_tokens"] > 0


def test_candidates_are_no_taller_than_there_are_rows():
    assert {at.block_m for at in tiles((16, 64), (64,), (64,))(4)} == {16}
    assert {at.block_m for at in tiles((16, 64), (64,), (64,))(1000)} == {16, 64}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_without_a_card_it_says_so():
    done = subprocess.run([sys.executable, "-m", "moe_kernels.tune"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == "python -m moe_kernels.tune: tuning measures on a CUDA device, and none is there"
