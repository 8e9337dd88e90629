"""What is seen to hold before the sandbox is trusted: a program inside tries what the sandbox must stop.

An isolation that fails silently is worse than none: on a host that refuses namespaces, or with a wrapper called bwrap that does nothing,
the programs would run in the open.
"""

import json
import re
import secrets
import socket
import subprocess
from typing import TYPE_CHECKING, Any

from model.stopping import scratch_folder

from . import cgroup, seccomp

if TYPE_CHECKING:
    from .process import Limits, Sandbox

_INSIDE = """
import ctypes, json, os, resource, socket, sys
secret_file, secret, port, processes, tmp_mib = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
open_doors = []

def attempt(name, action):
    try:
        if action():
            open_doors.append(name)
    except Exception:  # whatever stopped it, it has not got out
        pass

def fill():
    with open("/tmp/fill", "wb", buffering=0) as file, open("/tmp/fill2", "wb", buffering=0) as second:
        for _ in range(tmp_mib + 1):
            (file if file.tell() < tmp_mib << 19 else second).write(bytes(1 << 20))
    return True

def multiply():
    children = []
    try:
        for _ in range(processes + 1):
            child = os.fork()
            if child == 0:
                os.close(pipe[1])
                os.read(pipe[0], 1)
                os._exit(0)
            children.append(child)
        return True
    finally:
        os.close(pipe[1])
        for child in children:
            os.waitpid(child, 0)

status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines() if ":" in line)
attempt("it runs as root", lambda: os.getuid() == 0 or int(status["CapEff"], 16) or int(status["CapBnd"], 16))
attempt("it may gain privileges", lambda: status["NoNewPrivs"].strip() != "1")
attempt("it sees processes of the host", lambda: sum(name.isdigit() for name in os.listdir("/proc")) > 4)
attempt("it reads files of the host", lambda: open(secret_file).read() == secret)
attempt("it reads the environment of the harness", lambda: open("/proc/1/environ", "rb").read())
attempt("it writes to /usr", lambda: open("/usr/probe", "w"))
attempt("it writes to its job's folder", lambda: open("probe", "w"))
attempt("it reaches ports of the host", lambda: socket.create_connection(("127.0.0.1", port), 2))
attempt("it has a network", lambda: [name for _, name in socket.if_nameindex() if name != "lo"])
libc = ctypes.CDLL(None)
attempt("it makes a user namespace", lambda: libc.unshare(0x10000000) == 0)
attempt("it fills more of /tmp than its limit", fill)
pipe = os.pipe()
attempt("it starts more processes than its limit", multiply)
attempt("its memory has no limit", lambda: len(bytearray(int(sys.argv[6]) << 20)))
print(json.dumps(open_doors))
"""
# Two processes that together pass the memory limit, each under it: only a control group counts them together. The second waits until the
# first has its memory: on a busy machine one of two that begin at once may be done before the other has any.
_TOGETHER = """
import os, sys
size = int(sys.argv[1]) << 20
has_memory, say = os.pipe()
child = os.fork()
if child:
    data = bytearray(b"x") * size
    os.write(say, b"x")
    print("both" if os.waitpid(child, 0)[1] == 0 else "one")
else:
    os.close(say)
    os.read(has_memory, 1)
    data = bytearray(b"x") * size
"""


def probe(sandbox: "Sandbox") -> dict[str, Any]:
    """What isolates, for the results: bubblewrap's version, the control groups', whether system calls are filtered, and what stays open.

    `SandboxError` naming what is not installed or what the probing program got at.
    """
    from .process import Limits, SandboxError

    for tool, package in (("bwrap", "bubblewrap"), ("prlimit", "util-linux"), ("setpriv", "util-linux"), ("python3", "python3")):
        if not sandbox.has(tool):
            raise SandboxError(f"{tool} is not installed: run scripts/install_eval_tools.sh, or apt install {package}")
    limits = Limits(memory_mib=256, processes=16, tmp_mib=4, wall_s=20)
    if found := _open_doors(sandbox, limits):
        raise SandboxError(f"the sandbox does not hold here: {'; '.join(found)}")
    version = subprocess.run(["bwrap", "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    counted = not _together(sandbox, limits)
    left = [] if counted else ["memory is limited by process, not by job (no writable control group): a job may use it times its processes"]
    left += [] if seccomp.program() else ["system calls are not filtered: their numbers on this architecture are not known"]
    return {"bubblewrap": version, "cgroup": cgroup.version() if counted else None, "seccomp": bool(seccomp.program()), "left_open": left}


def _open_doors(sandbox: "Sandbox", limits: "Limits") -> list[str]:
    """What the program inside could do and should not have."""
    from .process import SandboxError

    secret = secrets.token_hex()
    with scratch_folder("moe-probe-") as job, scratch_folder("moe-probe-") as outside, socket.create_server(("127.0.0.1", 0)) as server:
        outside.chmod(0o755)  # only the sandbox is to keep the program from the file
        file = outside / "secret"
        file.write_text(secret)
        file.chmod(0o644)
        numbers = (server.getsockname()[1], limits.processes, limits.tmp_mib, 2 * limits.memory_mib)
        ended = sandbox.run(["python3", "-I", "-c", _INSIDE, str(file), secret, *map(str, numbers)], job, limits)
        if ended.status == "memory":  # the kernel's answer to the last attempt, which stood for it alone
            rest = _INSIDE.replace('attempt("its memory', '0 and attempt("its memory')
            ended = sandbox.run(["python3", "-I", "-c", rest, str(file), secret, *map(str, numbers)], job, limits)
    text = ended.stdout.decode(errors="replace").strip()
    if ended.status != "exited" or not re.fullmatch(r"\[.*\]", text):
        raise SandboxError(
            f"the probing program ended with {ended.status} {ended.returncode}: {ended.stderr.decode(errors='replace')[-500:]}"
        )
    return json.loads(text)


def _together(sandbox: "Sandbox", limits: "Limits") -> bool:
    """Whether two processes may each use most of the memory limit."""
    with scratch_folder("moe-probe-") as job:
        part = limits.memory_mib * 2 // 3
        return b"both" in sandbox.run(["python3", "-I", "-c", _TOGETHER, str(part)], job, limits).stdout
