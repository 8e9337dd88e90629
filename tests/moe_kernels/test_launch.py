"""The tables of launches and the function that reads them."""

import dataclasses
import json

import pytest
import torch

from moe_kernels import launch as launching
from moe_kernels.launch import ARCHITECTURES, TABLES, Launch, choose_launch, fused_tokens, read_table, record_launches, table_architectures

TABLE = {
    "fused_tokens": 100,
    "launches": {
        "op": {
            "64x32": [{"tokens": 4, "block_m": 4}, {"tokens": None, "block_m": 8}],
            "any": [{"tokens": 16, "block_m": 16}, {"tokens": None, "block_m": 32, "num_warps": 8}],
        }
    },
}


@pytest.fixture
def two_tables(tmp_path, monkeypatch):
    """One for 8.0 and one for 8.9, whose blocks are twice as large."""
    for arch, factor in ((80, 1), (89, 2)):
        table = json.loads(json.dumps(TABLE))
        table["fused_tokens"] *= factor
        for rows in table["launches"]["op"].values():
            for row in rows:
                row["block_m"] *= factor
        (tmp_path / f"sm{arch}.json").write_text(json.dumps(table))
    monkeypatch.setattr(launching, "TABLES", tmp_path)
    caches = (launching.read_file, launching.read_table, launching.table_architectures)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize(
    ("rows", "columns", "tokens", "block_m"),
    [(64, 32, 1, 4), (64, 32, 4, 4), (64, 32, 5, 8), (64, 32, 10**9, 8), (32, 64, 16, 16), (1, 1, 17, 32)],
)
def test_the_exact_shape_goes_before_the_general_and_the_first_bucket_that_holds(two_tables, rows, columns, tokens, block_m):
    assert choose_launch("op", rows, columns, tokens, 80).block_m == block_m


@pytest.mark.parametrize(("arch", "factor"), [(75, 1), (80, 1), (86, 1), (89, 2), (90, 2), (120, 2)])
def test_the_nearest_table_that_is_not_newer_than_the_card(two_tables, arch, factor):
    assert choose_launch("op", 1, 1, 1, arch).block_m == 16 * factor
    assert fused_tokens(arch) == 100 * factor


def test_a_table_may_say_only_what_differs_from_another(two_tables, monkeypatch):
    (launching.TABLES / "sm90.json").write_text(json.dumps({"like": 80, "fused_tokens": 7, "launches": {"other": TABLE["launches"]["op"]}}))
    launching.table_architectures.cache_clear()
    assert fused_tokens(90) == 7
    assert choose_launch("op", 1, 1, 1, 90) == choose_launch("op", 1, 1, 1, 80) == choose_launch("other", 1, 1, 1, 90)


def test_an_unknown_operation_is_refused(two_tables):
    with pytest.raises(ValueError, match="no launch table has the operation 'nothing'; known: op"):
        choose_launch("nothing", 1, 1, 1, 80)


def test_a_launch_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Launch().block_m = 2  # type: ignore[misc]


@pytest.mark.parametrize("arch", table_architectures())
def test_shipped_tables_hold_every_number_of_tokens_and_blocks_that_triton_takes(arch):
    assert arch in ARCHITECTURES and (TABLES / f"sm{arch}.json").is_file()
    for op, shapes in read_table(arch).items():
        assert "any" in shapes, op
        for entries in shapes.values():
            bounds = [most for most, _ in entries]
            assert bounds[-1] is None and bounds[:-1] == sorted(set(bounds[:-1])), op
            for _, at in entries:
                for block in (at.block_m, at.block_n, at.block_k, at.split_k, at.num_warps):
                    assert block > 0 and block & (block - 1) == 0, (op, at)


def test_recording_runs_nothing_and_an_empty_grid_is_no_launch():
    x = torch.empty(4, device="meta")
    with record_launches(86) as calls:
        launching.launch(None, (2, 3), x, 7, options={"num_warps": 4}, BLOCK=8)
        launching.launch(None, (0,), x, options={})
        assert launching.recording() and launching.arch_of(x.device) == 86
    assert not launching.recording()
    (call,) = calls
    assert (call.grid, call.args[1], call.constants, call.options) == ((2, 3), 7, {"BLOCK": 8}, {"num_warps": 4})
