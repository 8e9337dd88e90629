"""The benchmark of merging: it makes what it names, beside a copy, and leaves nothing behind."""

import json
from argparse import Namespace

import pytest

from benchmarks.merging import COPY, COPY_SYNCED, START, Took, benchmark, run_rounds, table


def arguments(folder, **changes) -> Namespace:
    given = {"dir": folder, "layers": 1, "scale": 32, "rounds": 1, "only": [], "json": None, "fast_ties": False, "seed": 0}
    return Namespace(**{**given, **changes})


def test_a_merge_is_measured_beside_a_copy(tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    benchmark(arguments(made, only=["ties of 4 adapters"], json=tmp_path / "figures.json"))
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [COPY, COPY_SYNCED, "ties of 4 adapters"]
    assert rows[2]["peak_bytes"] > 100 << 20 and not list(made.iterdir())


def test_the_start_of_python_is_no_part_of_a_merge():
    rows = table({START: Took(3, 2, 5), COPY: Took(1, 1), "merge": Took(7, 6, 5)}, 4_000_000_000)
    assert [(row["seconds"], row["cpu_seconds"], row["gb_per_second"]) for row in rows] == [(1, 1, 4.0), (4, 4, 1.0)]


def test_a_run_that_is_killed_has_printed_what_it_measured(capsys):
    def killed() -> Took:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_rounds({START: lambda: Took(3, 2, 5), COPY: lambda: Took(1, 1), "merge": lambda: Took(7, 6, 5), "next": killed}, 2, 1 << 30)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [["cp", "1.00", "1.00"], ["merge", "4.00", "4.00"]]


@pytest.mark.parametrize(
    ("changes", "message"), [({"scale": 3}, "--scale a power of two"), ({"only": ["all"]}, "--only has all; there are linear")]
)
def test_mistakes_are_said_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        benchmark(arguments(tmp_path, **changes))
    assert not list(tmp_path.iterdir())
