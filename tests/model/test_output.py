"""Output folders of processes that are killed, and of two at a time. (Killed saving and composing: `test_saving.py`, `test_resume.py`.)"""

import errno
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.output import check_manifest, output_folder, refuse_existing, sha256_of, write_manifest
from model.resume import resumable_folder
from model.unfinished import unfinished


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


def test_an_output_that_cannot_be_published_keeps_its_work(tmp_path, monkeypatch):
    work, out = unfinished(tmp_path / "out"), tmp_path / "out"
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space"), resumable_folder(out, {}) as folders:
        save_file({"a": torch.ones(1)}, folders.output / "model.safetensors")
    monkeypatch.undo()
    write(out)  # by another command
    with pytest.raises(FileExistsError):
        refuse_existing(out)
    assert (work / "output" / "model.safetensors").is_file()


def test_a_second_command_that_meets_the_output_as_it_appears_does_not_disturb_the_first(tmp_path):
    out = tmp_path / "out"
    with resumable_folder(out, {}) as folders:
        save_file({"a": torch.ones(1)}, folders.output / "model.safetensors")
        shutil.copytree(folders.output, out)
        write_manifest(out)
        (folders.scratch / "done").write_text(sha256_of(out / "manifest.json"))
        with pytest.raises(FileExistsError):
            refuse_existing(out)
        assert folders.scratch.is_dir()
        shutil.rmtree(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
