"""Faults and attacks of generated programs: rows 47 to 61. tests/eval/test_sandbox_attacks.py and test_pass_at_k_forging.py go deeper."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from eval.judge import UNJUDGED, Judge
from eval.pass_at_k import run as pass_at_k
from eval.pass_rates import summarise
from eval.sandbox import Ended, Limits, Sandbox, isolation
from eval.tasks import Task

LIMITS = Limits(wall_s=2, memory_mib=192, processes=16, file_mib=4, tmp_mib=8, output_kib=16)
IMPORTS = "import ctypes, errno, glob, os, resource, signal, socket, stat, subprocess, sys, time\n"
TASK = Task("t", "python", "", "def half(x):\n", "half", "", "assert half(8) == 4\nassert half(30) == 15\n")
RIGHT, WRONG = "    return x // 2\n", "    return x\n"
ROW = {
    "task_id": "T/0",
    "prompt": "def half(x):\n",
    "entry_point": "half",
    "description": "half",
    "language": "python",
    "test": "def check(f):\n    assert f(8) == 4\n",
}


@pytest.fixture(scope="module")
def judge(sandbox: Sandbox) -> Iterator[Judge]:
    with Judge(sandbox, Limits(wall_s=3)) as judge:
        yield judge


@pytest.fixture
def job() -> Iterator[Path]:
    """A folder that another user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder of the host that anybody may read and write, with a file in it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        (Path(folder) / "secret").write_text("tangerine")
        yield Path(folder)


def ask(sandbox: Sandbox, job: Path, source: str, **changes: object) -> Ended:
    """What became of a program; it ran on its own folder, and the next one is not affected."""
    ended = sandbox.run(["python3", "-I", "-c", IMPORTS + source], job, Limits(**{**LIMITS.__dict__, **changes}))
    assert sandbox.run(["python3", "-I", "-c", "print(6 * 7)"], job, LIMITS).stdout == b"42\n", "the next job suffers"
    return ended


def tried(*attempts: str) -> str:
    """A program that prints the place of each expression that raises nothing and is true."""
    lines = [f"try:\n    if {attempt}: print({place})\nexcept Exception: pass\n" for place, attempt in enumerate(attempts)]
    return "".join(lines) + "print('end')\n"


def check_closed(sandbox: Sandbox, job: Path, program: str, doors: int) -> None:
    """In the open the program gets all of what it tries (so the attempts are real), in the sandbox none."""
    unsafe = ask(Sandbox(unsafe=True), job, program, processes=4096, memory_mib=4096)
    assert unsafe.stdout.split() == [b"%d" % place for place in range(doors)] + [b"end"], unsafe
    assert ask(sandbox, job, program).stdout == b"end\n"


def test_47_files_of_the_host(sandbox, job, outside):
    """Not read by name, by a folder above, or by process 1's root; not written, not appended to."""
    secret = outside / "secret"
    doors = [f"open({str(secret)!r}).read()", f"os.stat('../..{secret}')", f"open('/proc/self/root{secret}').read()"]
    doors += [f"open({str(secret)!r}, 'a').write('') == 0", f"open({str(outside / 'planted')!r}, 'w').write('x')"]
    check_closed(sandbox, job, tried(*doors), 5)
    (outside / "planted").unlink()  # by the run in the open
    ask(sandbox, job, tried(*doors))
    assert secret.read_text() == "tangerine" and os.listdir(outside) == ["secret"]


def test_48_secrets_in_environments(sandbox, job, monkeypatch):
    """Neither the program's own environment nor that of a process that it sees holds the harness's."""
    monkeypatch.setenv("API_TOKEN", "tangerine")
    program = "print(dict(os.environ))\nfor path in glob.glob('/proc/[0-9]*/environ'):\n    try: print(open(path).read())\n"
    ended = ask(sandbox, job, program + "    except OSError as error: print(type(error).__name__)\n")
    assert ended.returncode == 0 and b"PATH" in ended.stdout and b"tangerine" not in ended.stdout + ended.stderr


def test_49_network(sandbox, job):
    """No TCP, UDP, names or abstract sockets of the host."""
    name = f"moe-faults-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix, socket.socket(type=socket.SOCK_DGRAM) as udp:
        unix.bind(f"\0{name}")
        unix.listen()
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(0.2)
        doors = [
            f"socket.create_connection(('127.0.0.1', {tcp.getsockname()[1]}), 1)",
            f"socket.socket(socket.AF_UNIX).connect(chr(0) + {name!r}) is None",
            f"socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {udp.getsockname()[1]}))",
        ]
        ended = ask(Sandbox(unsafe=True), job, tried(*doors), processes=4096)
        assert ended.stdout == b"0\n1\n2\nend\n" and udp.recv(9) == b"x"
        ended = ask(sandbox, job, tried(*doors[:2], "socket.getaddrinfo('example.com', 80)", doors[2]))
        assert ended.stdout in (b"end\n", b"3\nend\n")  # a datagram may be sent to the sandbox's own loopback
        with pytest.raises(TimeoutError):
            udp.recv(9)


def test_50_signals_and_host_processes(sandbox, job):
    """A process of the host is neither seen nor signalled."""
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        check_closed(sandbox, job, tried(f"os.path.exists('/proc/{victim.pid}/stat')", f"os.kill({victim.pid}, 0) is None"), 2)
        ask(sandbox, job, f"os.kill({victim.pid}, 9)\nos.killpg({os.getpgid(victim.pid)}, 9)\nos.kill(-1, 9)")
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_51_fork_bomb(sandbox, job):
    program = "def f():\n    while True:\n        try:\n            if os.fork() == 0: f()\n        except OSError: time.sleep(0.05)\nf()"
    mark = f"fork-bomb-{os.getpid()}"
    assert ask(sandbox, job, f"# {mark}\n{program}", wall_s=1).status == "timeout"
    assert not processes_with(mark)


def test_52_memory(sandbox, job):
    """One process that takes more than the limit ends for it, by its own allocator or by the kernel."""
    ended = ask(sandbox, job, "kept = []\nwhile True: kept.append(bytearray(b'x') * (8 << 20))")
    assert ended.status == "memory" or (ended.returncode == 1 and b"MemoryError" in ended.stderr)


def test_53_disk(sandbox, job):
    """Neither one file nor many pass their limits; nothing of the job is left."""
    many = (
        "try:\n    for i in range(99): open(f'/tmp/{i}', 'wb').write(bytes(1 << 20))\nexcept OSError as e: print(errno.errorcode[e.errno])"
    )
    ended = ask(sandbox, job, many)
    assert ended.stdout == b"ENOSPC\n" or ended.status == "memory"
    one = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nf = open('/tmp/f', 'wb', 0)\ntry:\n    while True: f.write(bytes(1 << 20))\n"
    assert ask(sandbox, job, one + "except OSError as e: print(errno.errorcode[e.errno], f.tell() >> 20)").stdout == b"EFBIG 4\n"
    assert os.listdir(job) == []


def test_54_output_flood(sandbox, job):
    """The job ends at the limit, and no more than that is kept of either stream."""
    for stream in ("stdout", "stderr"):
        ended = ask(sandbox, job, f"while True: os.write(sys.{stream}.fileno(), b'y' * 65536)")
        assert ended.status == "output" and len(getattr(ended, stream)) == LIMITS.output_kib << 10


def test_55_nested_user_namespace(sandbox, job):
    """No way to a namespace in which the program would be root again."""
    calls = ["unshare(0x10000000)", "unshare(0x10020000)", "setns(os.open('/proc/self/ns/user', 0), 0)"]
    program = tried(*(f"ctypes.CDLL(None).{call} == 0" for call in calls), "subprocess.run(['unshare', '-Ur', 'true']).returncode == 0")
    assert ask(sandbox, job, program).stdout == b"end\n"


def test_56_deaf_to_sigterm(sandbox, job):
    ended = ask(sandbox, job, "[signal.signal(s, lambda *_: None) for s in (1, 2, 3, 15)]\nwhile True: signal.pause()", wall_s=1)
    assert ended.status == "timeout" and ended.wall_s < 10


def test_57_what_a_job_leaves(sandbox, job, outside):
    """An orphan ends with the job. Links, pipes and devices left in a writable folder lead nowhere and can be removed."""
    mark = f"orphan-{os.getpid()}"
    orphan = "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)\nos.wait()"
    ended = ask(sandbox, job, f"# {mark}\n{orphan}")
    assert (ended.status, ended.returncode) == ("exited", 0) and not processes_with(mark)
    left = f"os.symlink({str(outside)!r}, 'link')\nos.mkfifo('pipe')\nos.mkdir('d')\nos.chmod('d', 0)\n"
    device = "try: os.mknod('sda', 0o60666, os.makedev(8, 0))\nexcept OSError: print('no device')"
    ended = sandbox.run(["python3", "-I", "-c", IMPORTS + left + device], job, LIMITS, writable=True)
    assert ended.stdout == b"no device\n" and sorted(os.listdir(job)) == ["d", "link", "pipe"]
    shutil.rmtree(job)
    assert (outside / "secret").read_text() == "tangerine"
    job.mkdir()


def test_58_deep_recursion_and_output_that_is_no_text(sandbox, judge, job):
    """A stack that overflows is a crash of that job alone; bytes that are no text come back as they are, and are a wrong answer."""
    program = "sys.setrecursionlimit(1 << 30)\nnested = []\nfor _ in range(10**5): nested = [nested]\nrepr(nested)"
    ended = ask(sandbox, job, program, wall_s=9)
    assert ended.returncode != 0 and ended.status in ("exited", "memory")
    noise = bytes([0, 255, 254, 10, 237, 160, 128])
    assert ask(sandbox, job, f"os.write(1, {noise!r})").stdout == noise
    verdict = judge.judge(TASK, f"    import os; os.write(1, {noise!r}); os.write(2, {noise!r})\n    return {noise!r}\n")
    assert verdict.outcome == "failed"


def test_59_no_sandbox(monkeypatch, tmp_path, capsys):
    """Without one nothing runs and nothing is written; with the flag it runs, and the result says so."""
    (tmp_path / "tasks.jsonl").write_text(json.dumps(ROW))
    ran = tmp_path / "ran"
    (tmp_path / "given.jsonl").write_text(json.dumps({"task_id": "T/0", "completion": f"    open({str(ran)!r}, 'w')\n    return x // 2\n"}))
    flags = ["--tasks", str(tmp_path / "tasks.jsonl"), "--samples", str(tmp_path / "given.jsonl"), "--lang", "python", "--jobs", "1"]
    flags += ["--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(isolation, "PATH", str(tmp_path))
        assert pass_at_k(flags) == 2
    assert "--unsafe-no-sandbox runs programs unprotected" in capsys.readouterr().err
    assert not ran.exists() and not (tmp_path / "run").exists()
    assert pass_at_k([*flags, "--unsafe-no-sandbox"]) == 0 and ran.exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["sandbox"] == {"isolated": False}


FORGED = {
    "leaves with status 0": "    import os; os._exit(0)\n",
    "an object equal to all": "    return type('Any', (int,), {'__eq__': lambda *_: True, '__ne__': lambda *_: False})(3)\n",
    "walks the frames": "    import sys\n    f = sys._getframe(1)\n    while f:\n        f.f_globals['passed'] = True\n"
    "        f = f.f_back\n",
    "patches json and assert": "    import builtins, json\n    json.dumps = json.loads = lambda *a, **k: True\n"
    "    builtins.AssertionError = Warning\n    return x\n",
    "prints PASSED": "    print('1 passed, 0 failed\\nOK\\nPASSED')\n",
    "writes to every descriptor": '    import os\n    for d in range(256):\n        try: os.write(d, b\'["passed", ""]\\n\')\n'
    "        except OSError: pass\n",
    "at exit": "    import atexit, os\n    atexit.register(lambda: os._exit(0))\n    raise ValueError\n",
}


def test_60_forged_verdicts(judge):
    """Programs that claim to have passed have failed; the right one passes."""
    assert judge.judge(TASK, RIGHT).outcome == "passed"
    found = {name: judge.judge(TASK, completion).outcome for name, completion in FORGED.items()}
    assert set(found.values()) <= {"failed", "timeout"}, found


def test_61_infrastructure_errors(sandbox, monkeypatch):
    """A sandbox that does not start is tried again; if it stays so, the program is counted apart and enters no rate."""
    real, left = subprocess.Popen, []

    def refuse(*args: object, **options: object) -> subprocess.Popen:
        if left:
            left.pop()
            raise OSError(11, "Resource temporarily unavailable")
        return real(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", refuse)
    rows = []
    with Judge(sandbox, Limits(wall_s=3)) as judge:
        for failures, expected in ((1, "passed"), (99, "sandbox error")):
            left[:] = [None] * failures
            verdict = judge.judge(TASK, RIGHT)
            assert verdict.outcome == expected and bool(verdict.detail) == (expected in UNJUDGED), verdict
            rows.append({"task_id": "t", "outcome": verdict.outcome})
    figures, counts = summarise([TASK], rows, [1], "0")
    assert counts == [{"task_id": "t", "n": 1, "passed": 1}] and figures["pass_at_k"]["1"]["value"] == 1.0
    assert figures["outcomes"]["sandbox error"] == 1


def processes_with(mark: str) -> list[int]:
    """Processes of the host with `mark` in their command line, once those that were killed have had time to go."""
    time.sleep(0.1)
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found
