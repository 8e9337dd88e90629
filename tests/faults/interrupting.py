"""What interrupts a process: a signal at a place in its run, or a disk of its own that is full."""

import ctypes
import os
import random
import signal
import tempfile
import threading
from bisect import bisect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.forked import DONE, in_child, watch_steps

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
FULL = "full disk"
ROOMY = "size=256m,nr_inodes=100000"
CLONE_NEWNS, CLONE_NEWUSER, MS_REC, MS_PRIVATE, MS_REMOUNT = 0x20000, 0x10000000, 0x4000, 0x40000, 0x20
PAGE = 4096
libc = ctypes.CDLL(None, use_errno=True)


def own_disk(folder: Path) -> None:
    """Mounts a tmpfs on `folder`, in a namespace of this process and its children; OSError where that is refused."""
    if os.geteuid():
        ids = os.geteuid(), os.getegid()
        _call(libc.unshare, CLONE_NEWUSER | CLONE_NEWNS)
        Path("/proc/self/setgroups").write_text("deny")
        for name, own in zip(("uid_map", "gid_map"), ids, strict=True):
            Path(f"/proc/self/{name}").write_text(f"0 {own} 1")
    else:
        _call(libc.unshare, CLONE_NEWNS)
    _call(libc.mount, b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    _call(libc.mount, b"none", bytes(folder), b"tmpfs", 0, ROOMY.encode())


def resize_disk(folder: Path, size: str) -> None:
    _call(libc.mount, b"none", bytes(folder), None, MS_REMOUNT, size.encode())


def _call(function: Any, *args: Any) -> None:
    if function(*args):
        raise OSError(ctypes.get_errno(), f"{function.__name__}: {os.strerror(ctypes.get_errno())}")


def disks_can_be_made() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        (disk := Path(folder) / "disk").mkdir()
        return in_child(lambda: own_disk(disk), Path(folder) / "said") == DONE


@dataclass(frozen=True)
class Trace:
    """An uninterrupted run: when each file operation came, in seconds, and what the disk held at most, in pages and in files."""

    times: list[float]
    pages: tuple[int, int]  # before, at most
    files: tuple[int, int]


@dataclass(frozen=True)
class Point:
    """Where to interrupt: `delay` seconds after file operation number `step` began, at `step` itself if 0; or on which disk."""

    step: int = 0
    delay: float = 0.0
    disk: str = ""


def draw_points(trace: Trace, kind: str, count: int, draw: random.Random) -> list[Point]:
    """By turns before a file operation and at a time, each as likely as any other; of disks, by turns of so many pages and files."""
    points = []
    for number in range(count):
        if kind == FULL:
            (least, most), unit = (trace.files, "nr_inodes={}") if number % 2 else (trace.pages, "size={}k")
            size = draw.randint(least, most - 1)
            points.append(Point(disk=unit.format(size if number % 2 else size * PAGE // 1024)))
        elif number % 2:
            moment = draw.uniform(0, trace.times[-1])
            step = bisect(trace.times, moment)
            points.append(Point(step, moment - (trace.times[step - 1] if step else 0.0)))
        else:
            points.append(Point(draw.randint(1, len(trace.times))))
    return points


def interrupt(signal_number: int, point: Point, folder: Path) -> None:
    """Arms this process: it will send itself the signal at the point."""
    left = point.step

    def send() -> None:
        os.kill(os.getpid(), signal_number)

    def count() -> None:
        nonlocal left
        left -= 1
        if not left:
            threading.Timer(point.delay, send).start() if point.delay else send()

    if point.step:
        watch_steps(folder, count)
    else:
        threading.Timer(point.delay, send).start()
