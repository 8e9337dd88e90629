"""What a program does in a process of its own: how it ends, at which step it is killed, and how much memory it takes."""

import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import auto, tqdm

DONE, KILLED = 0, -signal.SIGKILL
STEPS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree", "shutil.copyfile"}  # Python's audit events


def in_child(act: Callable[[], int | None], said: Path | None = None) -> int:
    """The status of a forked process: what `act` returns, 1 after an error, negative for a signal. What it says goes to the file `said`."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            torch.set_num_threads(1)  # the parent's other threads are not there
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
            for bars in (tqdm, auto.tqdm):  # transformers' are of the second class
                bars.set_lock(threading.RLock())  # their own is shared with the parent, which would wait for a child that was killed
            if said:
                _redirect(said)
            status = act() or DONE
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _redirect(said: Path) -> None:
    with said.open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)  # not those of pytest


def watch_steps(folder: Path, at: Callable[[], None]) -> None:
    """From now on calls `at` before this process opens a file for writing in `folder`, or changes a name there."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in STEPS and str(folder) in str(args[0]) and (event != "open" or str(args[1] or "w").strip("rb")):
            at()

    sys.addaudithook(hook)


def kill_before_step(number: int, folder: Path) -> None:
    """Kills this process before its `number`th step in `folder`."""
    left = number

    def count() -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    watch_steps(folder, count)


def added_memory(act: Callable[[], object], small: Callable[[], object], folder: Path) -> int:
    """The most bytes that `act` adds to a forked process, mapped files included, but for what `small` took before, such as imports."""

    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("/proc/self/clear_refs, which begins the high-water mark of memory anew, is not here")

    def measured_run() -> None:
        small()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        before = _resident("VmRSS")
        act()
        (folder / "added").write_text(str(_resident("VmHWM") - before))

    assert in_child(measured_run) == DONE
    return int((folder / "added").read_text())


def _resident(name: str) -> int:
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) << 10
