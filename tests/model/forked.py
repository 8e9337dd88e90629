"""What a program does in a process of its own: how it ends, and how much memory it takes."""

import os
import re
import signal
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from tqdm import auto, tqdm

DONE, KILLED = 0, -signal.SIGKILL


def in_child(act: Callable[[], object]) -> int:
    """The exit status of a forked process that does `act`, negative for a signal."""
    pid = os.fork()
    if not pid:
        for bars in (tqdm, auto.tqdm):  # transformers' are of the second class
            bars.set_lock(threading.RLock())  # their own is shared with the parent, which would wait for a child that was killed
        try:
            act()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(DONE)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


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
