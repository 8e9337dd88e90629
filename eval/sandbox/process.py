"""Starting a program in the sandbox, limiting it, and ending it with everything that it started."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from . import isolation, seccomp
from .cgroup import Cgroup, remove_orphans

EXITED, TIMEOUT, MEMORY, OUTPUT = "exited", "timeout", "memory", "output"  # how a job ended


class SandboxError(RuntimeError):
    """The sandbox did not do its work, so nothing can be said of the program that was to run in it."""


@dataclass(frozen=True)
class Limits:
    """Of one job. Memory is that of the whole job where control groups can be had, else of each process."""

    wall_s: float = 10.0
    cpu_s: int | None = None  # of each process; None: as wall_s
    memory_mib: int = 1024
    processes: int = 64  # and threads
    file_mib: int = 64  # one file
    tmp_mib: int = 64  # all of /tmp
    output_kib: int = 256  # of each captured stream; more ends the job
    address_space: bool = True  # False: for the JVM and node, which reserve more address space than they use


@dataclass(frozen=True)
class Ended:
    """How a job ended, in `status`, and what it wrote, cut at the limit. `returncode` as of subprocess; after a kill it means nothing."""

    status: str
    returncode: int
    stdout: bytes
    stderr: bytes
    wall_s: float


class _Capture(threading.Thread):
    """Reads a stream to its end or to the limit, and calls `full` at the limit."""

    def __init__(self, stream: IO[bytes], limit: int, full: Any) -> None:
        super().__init__(daemon=True)
        self._stream, self._limit, self._full, self.data = stream, limit, full, b""
        self.start()

    def run(self) -> None:
        with self._stream, contextlib.suppress(OSError):
            while piece := os.read(self._stream.fileno(), 1 << 16):
                self.data += piece[: self._limit - len(self.data)]
                if len(self.data) >= self._limit:
                    self._full()
                    return

    def end(self) -> bytes:
        """What was read. Without a pid namespace an escaped child may hold the stream open: it is not waited for."""
        self.join(1.0)
        return self.data


class Job:
    """A running program. `wait` gives its `Ended`; `kill` ends it and its descendants at once."""

    def __init__(self, process: subprocess.Popen[bytes], cgroup: Cgroup, limits: Limits, status: int | None) -> None:
        """`status`: the descriptor on which bubblewrap reports; None without isolation."""
        self._process, self._cgroup, self._limits = process, cgroup, limits
        self._started, self._cause = time.monotonic(), ""
        streams = (process.stdout, process.stderr)
        self._captures = [_Capture(stream, limits.output_kib << 10, self._overflow) if stream else None for stream in streams]
        self._report = _Capture(os.fdopen(status, "rb", buffering=0), 1 << 16, lambda: None) if status is not None else None

    def _overflow(self) -> None:
        self.kill(OUTPUT)

    def kill(self, cause: str = "killed") -> None:
        """Kills the whole process tree: bubblewrap's death takes its pid namespace along, and without one the process group goes."""
        self._cause = self._cause or cause
        with contextlib.suppress(ProcessLookupError):
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def discard(self) -> None:
        """Ends it, however far it has come, and leaves nothing of it."""
        self.kill()
        self.wait()

    def wait(self) -> Ended:
        """Waits for the end or for the wall limit. `SandboxError` if the program was never started."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, self._limits.wall_s - (time.monotonic() - self._started)))
        if self._process.poll() is None:
            self.kill(TIMEOUT)
            self._process.wait()
        wall_s = time.monotonic() - self._started
        if self._report is None:  # no pid namespace that took its processes along
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        stdout, stderr = (capture.end() if capture else b"" for capture in self._captures)
        status, returncode = self._cause or EXITED, self._process.returncode
        if self._cgroup.out_of_memory():
            status = MEMORY
        elif returncode == 128 + signal.SIGXCPU:
            status = TIMEOUT
        self._cgroup.close()
        if self._report is not None and status == EXITED and "exit-code" not in _events(self._report.end()):
            raise SandboxError(f"bubblewrap did not start the program: {stderr.decode(errors='replace').strip()[-500:] or returncode}")
        return Ended(status, returncode, stdout, stderr, wall_s)


def _events(data: bytes) -> dict[str, Any]:
    """What bubblewrap reported: JSON documents, one a line. The program inside cannot write there."""
    events: dict[str, Any] = {}
    for line in data.splitlines():
        events |= json.loads(line)
    return events


class Sandbox:
    """How programs are run: isolated, or without any isolation if `unsafe`. Made by `Sandbox.open`."""

    def __init__(self, *, unsafe: bool = False) -> None:
        self.unsafe = unsafe
        self.facts: dict[str, Any] = {"isolated": not unsafe}

    @classmethod
    def open(cls, *, unsafe: bool = False) -> "Sandbox":
        """A sandbox that was seen to hold: `SandboxError` says what is missing or what a probing program got at."""
        remove_orphans()
        sandbox = cls(unsafe=unsafe)
        if not unsafe:
            from .probe import probe  # it runs programs by this class

            sandbox.facts |= probe(sandbox)
        return sandbox

    def has(self, tool: str) -> bool:
        """Whether programs inside can run `tool`; only /usr is seen there."""
        return shutil.which(tool, path=isolation.PATH) is not None

    def start(
        self,
        command: list[str],
        folder: Path,
        limits: Limits,
        *,
        stdin: Any = subprocess.DEVNULL,
        stdout: Any = subprocess.PIPE,
        writable: bool = False,
    ) -> Job:
        """Starts `command` in `folder`, its working folder. Both outputs are captured unless `stdout` is given.

        A folder `support` beside `folder` is seen as `../support`, read-only.
        """
        if os.geteuid() == 0 and not self.unsafe:
            folder.chmod(0o777 if writable else 0o755)
        address_mib = limits.memory_mib if limits.address_space else None
        cpu_s = limits.cpu_s or int(limits.wall_s) + 1
        inner = isolation.limit(address_mib, cpu_s, limits.processes, limits.file_mib) + command
        read, write, rules = -1, -1, None
        outer: list[str] = []
        # bubblewrap itself is one process, its first child another.
        cgroup = Cgroup(limits.memory_mib, limits.processes + 2)
        if not self.unsafe:
            read, write = os.pipe()
            rules = _pipe_with(seccomp.program())
            outer = isolation.isolate(folder, limits.tmp_mib, write, rules, writable)
        try:
            process = subprocess.Popen(
                # bubblewrap's own environment can be read inside, at /proc/1/environ: it has none, not even the PWD that the shell exports.
                ["/bin/sh", "-c", f'{cgroup.join}exec env -i "$@"', "sh", *(outer or isolation.ENVIRONMENT), *inner],
                cwd=folder,
                env={},
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                pass_fds=[fd for fd in (write, rules) if fd is not None and fd >= 0],
                start_new_session=True,
            )
        except OSError as error:
            cgroup.close()
            if read >= 0:
                os.close(read)
            raise SandboxError(f"cannot start {shlex.join(command)}: {error}") from error
        finally:
            for fd in (write, rules):
                if fd is not None and fd >= 0:
                    os.close(fd)
        return Job(process, cgroup, limits, None if self.unsafe else read)

    def run(self, command: list[str], folder: Path, limits: Limits | None = None, **options: Any) -> Ended:
        """`start` and `wait`."""
        return self.start(command, folder, limits or Limits(), **options).wait()


def _pipe_with(data: bytes | None) -> int | None:
    """A descriptor from which `data` can be read, as it is shorter than a pipe's buffer."""
    if data is None:
        return None
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    return read
