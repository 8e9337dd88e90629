"""Output folders of processes that are killed, and of two at a time. (Killed saving and composing: `test_saving.py`, `test_resume.py`.)"""

import errno
import importlib
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from model.cli import run_command
from model.output import check_manifest, output_folder, refuse_existing, sha256_of, write_json, write_manifest, write_run
from model.resume import resumable_folder
from model.saving import replaced_files
from model.strict_json import read_json
from model.unfinished import locked, unfinished, writing


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


def save_into(folder):
    folder.mkdir(exist_ok=True)
    return replaced_files(folder)


@pytest.mark.parametrize("writing_to", [output_folder, save_into])
def test_what_gets_its_name_is_on_the_disk_before_and_the_name_after(writing_to, tmp_path, monkeypatch):
    """What a loss of power leaves: a rename may reach the disk before the contents of what it names, unless these were synced."""
    events = []

    def watched(act, describe):
        def call(*args):
            events.append(describe(*args))
            return act(*args)

        return call

    monkeypatch.setattr(os, "fsync", watched(os.fsync, lambda descriptor: Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
    monkeypatch.setattr(os, "rename", watched(os.rename, lambda source, target: (Path(source), Path(target))))
    with writing_to(tmp_path / "out") as folder:
        for name in ("a", "sub/b"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(name)
    [(place, (source, target))] = [(place, event) for place, event in enumerate(events) if isinstance(event, tuple)]
    assert source == folder and set(events[:place]) >= {source / name for name in ("", "a", "sub", "sub/b", "manifest.json")}
    assert target.parent in events[place + 1 :]


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


def test_the_record_of_a_run_tells_how_to_repeat_it_and_on_what_it_was_made(tmp_path, monkeypatch):
    """Tests here run as a module of pytest's or as a script of no module."""
    monkeypatch.setattr("sys.argv", ["/somewhere/eval/pass_at_k.py", "--lang", "java"])
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name="eval.pass_at_k")))
    write_run(tmp_path, seed=0, figures={})
    facts = read_json(tmp_path / "run.json")
    assert facts["command"] == ["python", "-m", "eval.pass_at_k", "--lang", "java"]
    assert {"tree-sitter", "tree-sitter-java", "tree-sitter-cpp"} < facts["versions"].keys()
    model = subprocess.run(["lscpu"], env={"LC_ALL": "C", "PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True).stdout
    assert facts["machine"]["model"] is None or facts["machine"]["model"] in model
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None))
    write_run(tmp_path, seed=0, figures={})
    assert read_json(tmp_path / "run.json")["command"][0] == "pass_at_k.py"


@pytest.mark.parametrize("name", ["n" * 244, "a\0b"], ids=["long", "null"])
def test_an_output_that_cannot_be_a_path_is_named(tmp_path, monkeypatch, name):
    """Two names lie beside it until it is whole, the longer by twelve bytes."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is no path that can be made"):
        refuse_existing(Path(name))
    with output_folder(Path("n" * 243)) as folder:
        (folder / "file").write_text("it")


@pytest.mark.parametrize("name", ["/proc", "/proc/self", "empty", "dangling", "."])
def test_a_place_that_nothing_can_be_renamed_to_is_refused_at_the_start(tmp_path, monkeypatch, name):
    """An empty one passed, and the work was lost when its folder could not be removed to make room."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(ValueError, match=f"the output {name} is (a link|a mount point|no name of a folder), .*name a folder within: .*out"):
        refuse_existing(Path(name))


@pytest.mark.parametrize("module", ["model.export", "eval.codebleu", "eval.routing"])
def test_a_second_process_is_found_before_the_model_is_loaded(tmp_path, capsys, monkeypatch, module):
    out, command = tmp_path / "out", importlib.import_module(module)
    points = [] if module == "model.export" else ["--data", "corpus", "--lang", "cpp"]
    monkeypatch.setattr("sys.argv", ["", "--model", str(tmp_path / "nowhere"), "--out", str(out), *points])
    with locked(writing(out)):
        assert (command.main() if module == "model.export" else run_command(command.main, command.parse())) == 2
    assert "another process is at work in" in capsys.readouterr().err


def test_a_number_that_json_has_not_is_refused(tmp_path):
    """Python would write NaN, which no other reader takes."""
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"run\.json cannot be written: .*(nan|inf)"):
            write_json(tmp_path / "run.json", {"figures": {"loss": value}})
    assert not list(tmp_path.iterdir())
