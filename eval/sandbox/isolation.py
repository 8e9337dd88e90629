"""The command line that isolates a program: setpriv (when started by root), bubblewrap, prlimit, then the program.

Seen inside are /usr and a few folders of /etc, read-only; the job's folder as /job; own, empty /tmp, /proc and /dev. The limits are set
inside, because a user namespace starts a new count of processes. Root's own count has no limit, so root becomes nobody first.
"""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

NOBODY = 65534  # user and group
PATH = "/usr/local/bin:/usr/bin:/bin"
ENVIRONMENT = (f"PATH={PATH}", "LANG=C.UTF-8", "HOME=/tmp", "NODE_PATH=/usr/share/nodejs")  # Debian's node modules lie there
MIB = 1 << 20
# Debian's tools lead through these: javac -> /etc/alternatives/javac, and the JVM's own configuration.
_CONFIGURATION = ("/etc/alternatives", "/etc/ld.so.cache", *map(str, sorted(Path("/etc").glob("java-*-openjdk"))))
_MERGED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")  # links into /usr, or folders where the two are not merged


@cache
def bubblewrap_options() -> str:
    """`bwrap --help`, to see what this version can do; "" if it is not installed."""
    try:
        return subprocess.run(["bwrap", "--help"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


def _find(tool: str) -> str:
    return shutil.which(tool, path=PATH) or tool


def isolate(folder: Path, tmp_mib: int, status: int, seccomp: int | None, writable: bool) -> list[str]:
    """What stands before the program. bubblewrap reports to the descriptor `status` and reads its filter from `seccomp`."""
    drop = [_find("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"] if os.geteuid() == 0 else []
    variables = [part for pair in ENVIRONMENT for part in ("--setenv", *pair.split("=", 1))]
    binds = ["--ro-bind", "/usr", "/usr"]
    for name in _MERGED:
        if os.path.islink(name):
            binds += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            binds += ["--ro-bind", name, name]
    for name in _CONFIGURATION:
        binds += ["--ro-bind-try", name, name]
    # Process 1 is bubblewrap itself, as the same user: who writes to its memory could end the job without a report of how it ended.
    hidden = ["--size", "4096", "--tmpfs", "/proc/1", "--remount-ro", "/proc/1"]
    nested = ["--disable-userns"] if "--disable-userns" in bubblewrap_options() else []
    # fmt: off
    return [
        *drop, _find("bwrap"), "--unshare-all", "--unshare-user", *nested, "--uid", str(NOBODY), "--gid", str(NOBODY),
        "--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv", *variables,
        *binds, "--proc", "/proc", *hidden, "--dev", "/dev", "--size", str(tmp_mib * MIB), "--tmpfs", "/tmp",
        "--bind" if writable else "--ro-bind", str(folder), "/job",
        "--ro-bind-try", str(folder.parent / "support"), "/support", "--chdir", "/job",
        "--remount-ro", "/dev", "--remount-ro", "/",
        "--json-status-fd", str(status), *(["--seccomp", str(seccomp)] if seccomp is not None else []), "--",
    ]
    # fmt: on


def limit(address_mib: int | None, cpu_s: int, processes: int, file_mib: int) -> list[str]:
    """prlimit and its limits, hard ones; `address_mib` is of one process, None for runtimes that reserve more than they use."""
    memory = [f"--as={address_mib * MIB}"] if address_mib else []
    return [
        "prlimit",
        *memory,
        f"--cpu={cpu_s}:{cpu_s + 1}",  # SIGXCPU, then SIGKILL
        f"--nproc={processes}",
        f"--fsize={file_mib * MIB}",
        "--core=0",
        "--nofile=256",
        "--memlock=0",
        "--",
    ]
