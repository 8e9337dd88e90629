"""Control groups: limits on a whole job, where rlimits hold for one process. They need a writable /sys/fs/cgroup, version 1 or 2."""

import contextlib
import itertools
import os
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_NAME = "moe-sandbox"
_NUMBERS = itertools.count()


def version() -> int | None:
    """The version whose memory and pids controllers this process may use; None if there is none."""
    for number, folders, marks in ((2, (ROOT,), ("cgroup.subtree_control",)), (1, (ROOT / "memory", ROOT / "pids"), ("tasks",))):
        present = all((folder / mark).is_file() and os.access(folder / mark, os.W_OK) for folder in folders for mark in marks)
        if present and (number == 1 or {"memory", "pids"} <= set((ROOT / marks[0]).read_text().split())):
            return number
    return None


def _parents() -> tuple[Path, ...]:
    return {2: (ROOT,), 1: (ROOT / "memory", ROOT / "pids"), None: ()}[version()]


def remove_orphans() -> None:
    """Removes the empty groups of processes that were killed and so could not do it."""
    for parent in _parents():
        for folder in parent.glob(f"{_NAME}-*-*"):
            if not Path("/proc", folder.name.split("-")[2]).exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()


class Cgroup:
    """One job's groups. `join` is the shell text with which its first process enters them."""

    def __init__(self, memory_mib: int, processes: int) -> None:
        name = f"{_NAME}-{os.getpid()}-{next(_NUMBERS)}"
        self._version = version()
        self.folders = [parent / name for parent in _parents()]
        for folder in self.folders:
            folder.mkdir()
        if not self.folders:
            return
        memory = {"memory.limit_in_bytes": memory_mib << 20, "memory.memsw.limit_in_bytes": memory_mib << 20}
        if self._version == 2:
            memory = {"memory.max": memory_mib << 20, "memory.swap.max": 0}
        for file, value in memory.items():
            if (self.folders[0] / file).exists():  # the swap files are absent on kernels without swap accounting
                (self.folders[0] / file).write_text(str(value))
        (self.folders[-1] / "pids.max").write_text(str(processes))

    @property
    def join(self) -> str:
        return "".join(f"echo $$ > '{folder}/cgroup.procs' && " for folder in self.folders)

    def out_of_memory(self) -> bool:
        """Whether the kernel has killed one of its processes for memory."""
        if not self.folders:
            return False
        text = (self.folders[0] / ("memory.events" if self._version == 2 else "memory.oom_control")).read_text()
        return any(line.split()[0] == "oom_kill" and line.split()[1] != "0" for line in text.splitlines())

    def processes(self) -> list[int]:
        return [int(line) for folder in self.folders[-1:] for line in (folder / "cgroup.procs").read_text().split()]

    def close(self) -> None:
        """Removes the groups; the kernel takes a moment to let go of processes that were just killed. A second call does nothing."""
        folders, self.folders = self.folders, []
        for folder in folders:
            for _ in range(100):
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    break
                time.sleep(0.02)
