"""Programs that try to get out of the sandbox, or to use up what the host has. Each prints OPEN if it got what it wanted."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from eval.sandbox import Ended, Limits, Sandbox

LIMITS = Limits(wall_s=3, memory_mib=256, processes=32, file_mib=16, tmp_mib=16, output_kib=64)
RUNTIME = Limits(wall_s=10, memory_mib=512, processes=64, file_mib=16, tmp_mib=16, output_kib=64, address_space=False)  # the JVM and node

PYTHON = """
import ctypes, fcntl, glob, mmap, os, resource, signal, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(action):
    try:
        print("OPEN" if action() else "closed", flush=True)
    except BaseException as error:
        print("closed", type(error).__name__, flush=True)
"""
# @SECRET@ is a file of the host, @FOLDER@ a folder that anybody may write to, @PORT@ and @ABSTRACT@ are sockets, @PID@ is a process.
PYTHON_ATTACKS = {
    "read a host file": "attempt(lambda: open('@SECRET@').read())",
    "read a host file by a symlink": "os.symlink('@SECRET@', '/tmp/link')\nattempt(lambda: open('/tmp/link').read())",
    "read a host file by a hard link": "attempt(lambda: os.link('@SECRET@', '/tmp/link') or open('/tmp/link').read())",
    "read a host file by /proc/1/root": "attempt(lambda: open('/proc/1/root@SECRET@').read())",
    "read a host file by dots from the job": "attempt(lambda: open('/job/' + '../' * 20 + '@SECRET@').read())",
    "read a host file by /proc/1/cwd": "attempt(lambda: os.listdir('/proc/1/cwd/..') != os.listdir('/'))",
    "list users": "attempt(lambda: open('/etc/passwd').read())",
    "read password hashes": "attempt(lambda: open('/etc/shadow').read())",
    "read home folders": "attempt(lambda: os.listdir('/root') or os.listdir('/home'))",
    "write a host file": "attempt(lambda: open('@FOLDER@/planted', 'w').write('x'))",
    "write to /usr": "attempt(lambda: open('/usr/lib/planted', 'w'))",
    "write to the job's folder": "attempt(lambda: open('/job/planted', 'w'))",
    "write to the root": "attempt(lambda: open('/planted', 'w'))",
    "read the harness's environment": "attempt(lambda: open('/proc/1/environ', 'rb').read())",
    "find a secret in its own environment": "attempt(lambda: 'swordfish' in str(os.environ))",
    "see host processes": "attempt(lambda: len([p for p in os.listdir('/proc') if p.isdigit()]) > 4)",
    "signal a host process": "attempt(lambda: os.kill(@PID@, 9) is None)",
    "signal everything": "os.kill(-1, 0)\nattempt(lambda: os.kill(@PID@, 0) is None)",
    "connect to a host port": "attempt(lambda: socket.create_connection(('127.0.0.1', @PORT@), 1))",
    "connect to a host port by IPv6": "attempt(lambda: socket.create_connection(('::1', @PORT@), 1))",
    "connect to an abstract socket": "s = socket.socket(socket.AF_UNIX)\nattempt(lambda: s.connect('\\0@ABSTRACT@') is None)",
    "send a datagram": "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nattempt(lambda: s.sendto(b'x', ('8.8.8.8', 53)))",
    "resolve a name": "attempt(lambda: socket.getaddrinfo('example.com', 80))",
    "open a raw socket": "attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))",
    "make a user namespace": "attempt(lambda: libc.unshare(0x10000000) == 0)",
    "clone a user namespace": "attempt(lambda: libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) >= 0)",
    "trace its parent": "attempt(lambda: libc.ptrace(16, 1, 0, 0) == 0)",
    "read its parent's memory": "attempt(lambda: open('/proc/1/mem', 'rb'))",
    "mount": "attempt(lambda: libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0)",
    "remount /usr writable": "attempt(lambda: libc.mount(b'none', b'/usr', None, 4096 | 32, None) == 0)",
    "make a device": "attempt(lambda: os.mknod('/tmp/sda', 0o60666, os.makedev(8, 0)) is None)",
    "open a disk": "attempt(lambda: [open(p, 'rb') for p in glob.glob('/dev/[sv]d*') + glob.glob('/dev/nvme*')])",
    "open kernel memory": "attempt(lambda: open('/dev/mem', 'rb') or open('/proc/kcore', 'rb'))",
    "write a kernel setting": "attempt(lambda: open('/proc/sys/kernel/hostname', 'w').write('x'))",
    "write to sysrq": "attempt(lambda: open('/proc/sysrq-trigger', 'w').write('h'))",
    "use io_uring": "attempt(lambda: libc.syscall(425, 8, (ctypes.c_char * 120)()) >= 0)",
    "use bpf": "attempt(lambda: libc.syscall(321, 5, (ctypes.c_char * 128)(), 128) >= 0)",
    "use a keyring": "attempt(lambda: libc.syscall(250, 0, -3, 1) >= 0 or libc.syscall(248, b'user', b'a', b'b', 1, -3) >= 0)",
    "use userfaultfd": "attempt(lambda: libc.syscall(323, 1) >= 0)",
    "use perf events": "attempt(lambda: libc.syscall(298, (ctypes.c_char * 128)(), 0, -1, -1, 0) >= 0)",
    "become root": "attempt(lambda: os.setuid(0) is None)",
    "gain privileges by a setuid program": "attempt(lambda: b'uid=0' in subprocess.run(['su', '-c', 'id'], capture_output=True).stdout)",
    "raise its limits": "attempt(lambda: resource.setrlimit(resource.RLIMIT_NPROC, (4096, 4096)) is None)",
    "leave its control group": "attempt(lambda: open('/sys/fs/cgroup/cgroup.procs', 'w'))",
    "type into the terminal": "attempt(lambda: fcntl.ioctl(os.open('/dev/tty', os.O_RDWR), 0x5412, b'x') == 0)",
    "find descriptors of the harness": "attempt(lambda: [fd for fd in os.listdir('/proc/self/fd') if int(fd) > 3])",
}
# name: (program, how it may end); nothing of it may be left over.
EXHAUSTION = {
    "fork bomb": ("while True:\n    try: os.fork()\n    except OSError: time.sleep(0.01)", {"timeout"}),
    "threads without end": (
        "while True:\n    try: threading.Thread(target=time.sleep, args=(99,)).start()\n    except RuntimeError: break\nos._exit(0)",
        {"exited", "timeout"},
    ),
    "memory": ("print('OPEN' if bytearray(1 << 30) else '')", {"exited", "memory"}),
    "memory by many processes": (
        "for _ in range(20):\n    if os.fork() == 0:\n        x = bytearray(b'1') * (100 << 20)\n        time.sleep(60)\ntime.sleep(60)",
        {"memory", "timeout"},
    ),
    "shared memory": ("m = mmap.mmap(-1, 1 << 30)\nfor i in range(0, 1 << 30, 4096): m[i] = 1\nprint('OPEN')", {"exited", "memory"}),
    "a full /tmp": (
        "for i in range(64):\n    with open(f'/tmp/{i}', 'wb') as f: f.write(bytes(1 << 20))\nprint('OPEN')",
        {"exited", "memory"},
    ),
    "a huge file": ("f = open('/tmp/f', 'wb')\nf.seek(1 << 40)\nf.write(b'x')\nf.flush()\nprint('OPEN')", {"exited"}),
    "a flood of output": ("while True: print('x' * 4096)", {"output"}),
    "a flood of errors": ("while True: sys.stderr.write('x' * 4096)", {"output"}),
    "an endless loop": ("while True: pass", {"timeout"}),
    "deaf to signals": (
        "[signal.signal(s, signal.SIG_IGN) for s in range(1, 32) if s not in (9, 19)]\nwhile True: time.sleep(1)",
        {"timeout"},
    ),
    "an orphan": ("if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\nos._exit(0)", {"exited"}),
    "an orphan that holds the output": ("if os.fork() == 0:\n    os.setsid()\n    time.sleep(60)", {"exited", "timeout"}),
    "deep recursion": ("sys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1)\nf(0)", {"exited", "memory", "timeout"}),
    "output that is no text": ("sys.stdout.buffer.write(bytes(range(256)))", {"exited"}),
}

JAVASCRIPT = """
const fs = require("fs"), net = require("net"), child = require("child_process"), os = require("os");
function attempt(action) {
    try { console.log(action() ? "OPEN" : "closed"); } catch (error) { console.log("closed", error.code); }
}
"""
JAVASCRIPT_ATTACKS = {
    "read a host file": "attempt(() => fs.readFileSync('@SECRET@', 'utf8'))",
    "write a host file": "attempt(() => fs.writeFileSync('@FOLDER@/planted', 'x') === undefined)",
    "shell": "attempt(() => child.execSync('cat @SECRET@', {stdio: ['ignore', 'pipe', 'ignore']}).length)",
    "read the harness's environment": "attempt(() => fs.readFileSync('/proc/1/environ').length)",
    "signal a host process": "attempt(() => process.kill(@PID@, 0))",
    "connect to a host port": "net.connect(@PORT@, '127.0.0.1', () => console.log('OPEN')).on('error', () => console.log('closed'))",
    "fetch": "fetch('http://127.0.0.1:@PORT@/').then(() => console.log('OPEN'), () => console.log('closed'))",
    "network interfaces": "attempt(() => Object.keys(os.networkInterfaces()).some((name) => name !== 'lo'))",
    "write to the job's folder": "attempt(() => fs.writeFileSync('/job/planted', 'x') === undefined)",
    "a symlink out": "attempt(() => { fs.symlinkSync('@SECRET@', '/tmp/l'); return fs.readFileSync('/tmp/l'); })",
    "memory": "const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 1)); console.log('OPEN')",
    "a full /tmp": "attempt(() => { for (let i = 0; i < 64; i++) fs.writeFileSync('/tmp/' + i, Buffer.alloc(1 << 20)); return true; })",
}

JAVA = """
import java.io.*; import java.net.*; import java.nio.file.*; import java.util.*;
class Main {
    interface Action { boolean run() throws Throwable; }
    static void attempt(Action action) {
        try { System.out.println(action.run() ? "OPEN" : "closed"); } catch (Throwable error) { System.out.println("closed " + error); }
    }
    public static void main(String[] args) throws Throwable { %s }
}
"""
JAVA_ATTACKS = {
    "read a host file": 'attempt(() -> Files.readString(Path.of("@SECRET@")).length() > 0);',
    "write a host file": 'attempt(() -> Files.writeString(Path.of("@FOLDER@/planted"), "x") != null);',
    "shell": 'attempt(() -> new ProcessBuilder("cat", "@SECRET@").start().getInputStream().read() >= 0);',
    "read the harness's environment": 'attempt(() -> Files.readAllBytes(Path.of("/proc/1/environ")).length > 0);',
    "connect to a host port": 'attempt(() -> { new Socket("127.0.0.1", @PORT@); return true; });',
    "network interfaces": "attempt(() -> Collections.list(NetworkInterface.getNetworkInterfaces()).stream()"
    '.anyMatch(n -> !n.getName().equals("lo")));',
    "end a host process": "attempt(() -> ProcessHandle.of(@PID@).map(ProcessHandle::destroyForcibly).orElse(false));",
    "write to the job's folder": 'attempt(() -> Files.writeString(Path.of("/job/planted"), "x") != null);',
    "memory": "attempt(() -> { List<byte[]> all = new ArrayList<>();"
    " for (int i = 0; i < 1024; i++) all.add(new byte[1 << 20]); return true; });",
    "threads without end": "attempt(() -> { for (int i = 0; i < 200; i++) { Thread t = new Thread(() -> { try { Thread.sleep(9999); }"
    " catch (InterruptedException e) {} }); t.setDaemon(true); t.start(); } return true; });",
    "a full /tmp": 'attempt(() -> { for (int i = 0; i < 64; i++) Files.write(Path.of("/tmp/" + i), new byte[1 << 20]); return true; });',
}

CPP = """
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
void report(bool open) { std::puts(open ? "OPEN" : "closed"); std::fflush(stdout); }
int attack() { %s }
int main() { return attack(); }
"""
CPP_ATTACKS = {
    "read a host file": 'report(open("@SECRET@", O_RDONLY) >= 0); return 0;',
    "write a host file": 'report(open("@FOLDER@/planted", O_CREAT | O_WRONLY, 0644) >= 0); return 0;',
    "connect to a host port": "sockaddr_in a{}; a.sin_family = AF_INET; a.sin_port = htons(@PORT@); a.sin_addr.s_addr = htonl(0x7f000001);"
    " report(connect(socket(AF_INET, SOCK_STREAM, 0), (sockaddr*)&a, sizeof a) == 0); return 0;",
    "trace its parent": "report(ptrace(PTRACE_SEIZE, 1, 0, 0) == 0); return 0;",
    "chroot": 'report(mkdir("/tmp/x", 0755) == 0 && chroot("/tmp/x") == 0); return 0;',
    "a namespace by clone3": "struct { unsigned long f, p[10]; } a{}; a.f = 0x10000000; a.p[3] = SIGCHLD;"
    " long r = syscall(435, &a, 88); if (r == 0) _exit(0); report(r > 0); return 0;",
    "the 32-bit system calls": 'long r; asm volatile("int $0x80" : "=a"(r)'
    ' : "a"(21), "b"(0), "c"(0), "d"(0) : "memory"); report(r == 0); return 0;',
    "the x32 system calls": "report(syscall(0x40000000 + 165, 0, 0, 0, 0, 0) == 0); return 0;",
    "a file handle": "report(syscall(304, AT_FDCWD, 0, 0) >= 0 || errno != EPERM); return 0;",
    "memory": "for (int i = 0; i < 1024; i++) { char* p = (char*)malloc(1 << 20); if (!p) return 1;"
    " memset(p, 1, 1 << 20); } report(true); return 0;",
    "fork bomb": "for (;;) fork();",
    "the stack": "volatile char big[1 << 16]; big[0] = 1; return attack() + big[0];",
    "a core dump": 'if (fork() == 0) abort(); sleep(1); report(access("core", F_OK) == 0 || access("/tmp/core", F_OK) == 0); return 0;',
}


@dataclass(frozen=True)
class Host:
    """What attackers aim at."""

    secret: Path
    folder: Path
    port: int
    abstract: str
    process: subprocess.Popen[bytes]

    def aim(self, source: str) -> str:
        marks = {"SECRET": self.secret, "FOLDER": self.folder, "PORT": self.port, "ABSTRACT": self.abstract, "PID": self.process.pid}
        for mark, value in marks.items():
            source = source.replace(f"@{mark}@", str(value))
        return source

    def check(self) -> None:
        assert self.process.poll() is None, "the host's process was killed"
        assert not list(self.folder.iterdir()), "a file was planted on the host"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    folder = base / "open"
    folder.mkdir()
    folder.chmod(0o777)
    (base / "secret").write_text("swordfish")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    name = f"moe-sandbox-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"\0{name}")
        unix.listen()
        yield Host(base / "secret", folder, server.getsockname()[1], name, process)
    process.kill()
    process.wait()
    shutil.rmtree(base)


@pytest.fixture
def job() -> Iterator[Path]:
    """A folder that another user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def leftovers(mark: str) -> list[str]:
    """Processes of the host with `mark` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(str(path))
        except OSError:
            continue
    return found


def run_python(sandbox: Sandbox, source: str, job: Path, limits: Limits = LIMITS) -> Ended:
    return sandbox.run(["python3", "-I", "-c", PYTHON + source], job, limits)


@pytest.mark.parametrize("name", PYTHON_ATTACKS)
def test_python_does_not_get_out(name: str, sandbox: Sandbox, host: Host, job: Path) -> None:
    ended = run_python(sandbox, host.aim(PYTHON_ATTACKS[name]), job)
    assert b"OPEN" not in ended.stdout, ended
    assert b"closed" in ended.stdout or name == "signal everything", f"the attack did not run: {ended}"
    host.check()


def test_the_attacks_are_real(host: Host, job: Path) -> None:
    """Without the sandbox the same programs reach what they want; otherwise the tests above would show nothing."""
    for name in (
        "read a host file",
        "read a host file by a symlink",
        "see host processes",
        "connect to a host port",
        "connect to an abstract socket",
    ):
        (Path("/tmp") / "link").unlink(missing_ok=True)
        ended = run_python(Sandbox(unsafe=True), host.aim(PYTHON_ATTACKS[name]), job)
        assert b"OPEN" in ended.stdout, (name, ended)
    (Path("/tmp") / "link").unlink(missing_ok=True)


@pytest.mark.parametrize("name", EXHAUSTION)
def test_python_does_not_use_up_the_host(name: str, sandbox: Sandbox, host: Host, job: Path) -> None:
    source, allowed = EXHAUSTION[name]
    mark = f"exhaustion-{os.getpid()}-{time.monotonic_ns()}"
    started = time.monotonic()
    ended = run_python(sandbox, f"# {mark}\n{source}", job, replace(LIMITS, wall_s=1.5))
    assert ended.status in allowed, ended
    assert b"OPEN" not in ended.stdout
    assert len(ended.stdout) + len(ended.stderr) <= 2 * LIMITS.output_kib << 10
    assert time.monotonic() - started < 10 * LIMITS.wall_s
    assert not leftovers(mark)
    assert run_python(sandbox, "print('next')", job).stdout == b"next\n", "the next job suffers"


def check_attack(ended: Ended, name: str, host: Host) -> None:
    assert b"OPEN" not in ended.stdout, ended
    assert b"closed" in ended.stdout or name in ("memory", "fork bomb", "the stack", "the x32 system calls", "the 32-bit system calls"), (
        ended
    )
    host.check()


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("name", JAVASCRIPT_ATTACKS)
def test_javascript_does_not_get_out(name: str, sandbox: Sandbox, host: Host, job: Path) -> None:
    (job / "attack.js").write_text(JAVASCRIPT + host.aim(JAVASCRIPT_ATTACKS[name]))
    check_attack(sandbox.run(["node", "attack.js"], job, RUNTIME), name, host)


def some_slow(names: dict[str, str], fast: set[str]) -> list[object]:
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed")
@pytest.mark.parametrize("name", some_slow(JAVA_ATTACKS, {"read a host file", "memory"}))
def test_java_does_not_get_out(name: str, sandbox: Sandbox, host: Host, job: Path) -> None:
    (job / "Main.java").write_text(JAVA % host.aim(JAVA_ATTACKS[name]))
    command = ["java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "Main.java"]
    check_attack(sandbox.run(command, job, RUNTIME), name, host)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize(
    "name",
    some_slow(
        CPP_ATTACKS, {"read a host file", "a namespace by clone3", "the 32-bit system calls", "the x32 system calls", "memory", "fork bomb"}
    ),
)
def test_cpp_does_not_get_out(name: str, sandbox: Sandbox, host: Host, job: Path) -> None:
    (job / "attack.cpp").write_text(CPP % host.aim(CPP_ATTACKS[name]))
    built = sandbox.run(["g++", "-O0", "-w", "-o", "attack", "attack.cpp"], job, Limits(wall_s=60), writable=True)
    assert built.returncode == 0, built
    check_attack(sandbox.run(["./attack"], job, LIMITS), name, host)


@pytest.mark.parametrize(
    "source",
    ['#include "@SECRET@"', '#include "/etc/passwd"', '__asm__(".incbin \\"@SECRET@\\"");', '#include "/dev/zero"'],
    ids=["file", "users", "incbin", "endless"],
)
def test_the_compiler_reads_nothing_of_the_host(source: str, sandbox: Sandbox, host: Host, job: Path) -> None:
    (job / "attack.cpp").write_text(host.aim(source) + "\nint main() {}\n")
    limits = Limits(wall_s=10, memory_mib=512, output_kib=64)
    ended = sandbox.run(["g++", "-o", "attack", "attack.cpp"], job, limits, writable=True)
    assert (ended.status, ended.returncode) != ("exited", 0), ended
    assert b"swordfish" not in ended.stderr + ended.stdout
    assert b"root:" not in ended.stderr
