"""Output folders of processes that are killed, and of two at a time. (Killed saving and composing: `test_saving.py`, `test_resume.py`.)"""

import multiprocessing
import os
import signal

import pytest

from model.output import check_manifest, output_folder


def write_and_wait(target, ready):
    with output_folder(target) as folder:
        (folder / "large").write_bytes(bytes(1000))
        ready.set()
        signal.pause()


@pytest.fixture
def writer(tmp_path):
    """Another process in the middle of writing tmp_path/out."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=write_and_wait, args=(tmp_path / "out", ready))
    process.start()
    assert ready.wait(120)
    yield process
    process.kill()
    process.join()


def write(target) -> None:
    with output_folder(target) as folder:
        (folder / "small").write_text("whole")


def test_what_a_killed_process_left_is_removed_by_the_next(writer, tmp_path):
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert [path.name for path in tmp_path.iterdir()] == [".out.writing"]
    write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    check_manifest(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"small", "manifest.json"}


def test_what_a_live_process_writes_is_left_alone(writer, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"another process is at work in .*\.out\.writing"):
        write(tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before and len(before) == 4
    write(tmp_path / "other")
