"""Workspaces of training runs."""

import pytest

from train.workspace import workspace


def test_a_second_run_leaves_the_first_alone(tmp_path):
    out = tmp_path / "out"
    with workspace(out, {"steps": 1}, resume=False) as folder:
        (folder / "begun").touch()
        with (
            pytest.raises(ValueError, match=r"another process is at work in .*\.out\.unfinished"),
            workspace(out, {"steps": 2}, resume=False),
        ):
            pytest.fail("two at a time")
        assert (folder / "begun").exists()
    assert list(tmp_path.iterdir()) == []
