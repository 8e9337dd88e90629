"""The points depend on their ids and the seed, on nothing else."""

from eval.points import pick_points
from train.data.pairs import Pair


def pairs(count: int, kind: str = "", tag: str = "") -> list[Pair]:
    return [Pair(f"text {i}", f"code {i}", "cpp", f"{kind}{tag}{i}", f"g{i}", kind) for i in range(count)]


def ids(rows: list[Pair]) -> list[str]:
    return [row.id for row in rows]


def test_order_of_the_file_and_other_rows_do_not_matter() -> None:
    rows = pairs(100)
    picked = ids(pick_points(rows, "test", 20, 0)["test"])
    assert picked == ids(pick_points(rows[::-1], "test", 20, 0)["test"])
    assert picked == ids(pick_points(rows + pairs(30, "family"), "test", 20, 0)["test"])
    assert picked[:5] == ids(pick_points(rows, "test", 5, 0)["test"])
    assert len(set(picked)) == 20
    assert picked != ids(rows)[:20]
    assert picked != ids(pick_points(rows, "test", 20, 1)["test"])


def test_kinds_are_drawn_apart_and_a_short_kind_is_taken_whole() -> None:
    picked = pick_points(pairs(60, "wording") + pairs(7, "family"), "test", 50, 0)
    assert {kind: len(rows) for kind, rows in picked.items()} == {"wording": 50, "family": 7}
    assert all(row.kind == kind for kind, rows in picked.items() for row in rows)
    assert list(picked) == ["wording", "family"]
