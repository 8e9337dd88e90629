"""A command in a process of its own, and the most memory that it took."""

import re
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_PAUSE = 0.02  # s between looks


@dataclass
class Watched:
    """Bytes at the peak: `resident` counts mapped files too, which the system can take back at any time; `anonymous` does not."""

    output: str = ""
    seconds: float = 0.0
    resident: int = 0
    anonymous: int = 0


def run_watched(command: list[str]) -> Watched:
    """Runs `command`, whose progress goes on to stderr; `ValueError` with its exit status if that is not 0."""
    seen, begin = Watched(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watcher = threading.Thread(target=_watch, args=(process, seen))
    watcher.start()
    try:
        seen.output, _ = process.communicate()
    finally:
        process.kill()
        watcher.join()
    seen.seconds = time.perf_counter() - begin
    if process.returncode:
        raise ValueError(f"{' '.join(command[1:4])} ended with status {process.returncode}")
    return seen


def _watch(process: subprocess.Popen, seen: Watched) -> None:
    """The system itself keeps the highest resident size, but not that of anonymous memory."""
    while process.poll() is None:
        status = memory_of(process.pid)
        seen.resident = max(seen.resident, status.get("VmHWM", 0))
        seen.anonymous = max(seen.anonymous, status.get("RssAnon", 0))
        time.sleep(_PAUSE)


def memory_of(process: int | str = "self") -> dict[str, int]:
    """The sizes in /proc/PID/status in bytes by name; empty if the process has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: int(size) << 10 for name, size in re.findall(r"(\w+):\s+(\d+) kB", status)}
