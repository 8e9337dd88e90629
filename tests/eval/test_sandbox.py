"""The sandbox says what it does: limits, outcomes, and no work at all where it does not hold."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eval.judge import Judge
from eval.judge.languages import TOOLCHAINS
from eval.sandbox import Limits, Sandbox, SandboxError, cgroup, isolation, process, seccomp
from eval.tasks import Task


@pytest.fixture
def job() -> Iterator[Path]:
    """A folder that another user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def python(source: str) -> list[str]:
    return ["python3", "-I", "-c", source]


def test_a_program_gets_its_files_and_its_output_comes_back(sandbox: Sandbox, job: Path) -> None:
    (job / "input").write_text("41")
    source = "import sys; print(int(open('input').read()) + 1); print('warn', file=sys.stderr); sys.exit(3)"
    ended = sandbox.run(python(source), job)
    assert (ended.status, ended.returncode, ended.stdout, ended.stderr) == ("exited", 3, b"42\n", b"warn\n")


def test_what_a_compiler_writes_stays(sandbox: Sandbox, job: Path) -> None:
    assert sandbox.run(python("open('made', 'w').write('x')"), job, writable=True).returncode == 0
    assert (job / "made").read_text() == "x"
    assert sandbox.run(python("open('again', 'w')"), job).returncode != 0


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("import time; time.sleep(60)", "timeout"),
        ("while True: pass", "timeout"),
        ("print('x' * 10**6)", "output"),
        ("import sys; sys.stderr.write('x' * 10**6)", "output"),
    ],
)
def test_each_limit_has_its_name(source: str, status: str, sandbox: Sandbox, job: Path) -> None:
    ended = sandbox.run(python(source), job, Limits(wall_s=1, output_kib=16))
    assert ended.status == status
    assert len(ended.stdout) <= 16 << 10


def test_memory_of_a_job_is_counted_together(sandbox: Sandbox, job: Path) -> None:
    if sandbox.facts["cgroup"] is None:
        pytest.skip("; ".join(sandbox.facts["left_open"]))
    ended = sandbox.run(python("x = b'1' * (200 << 20)"), job, Limits(memory_mib=64, address_space=False))
    assert ended.status == "memory"


def test_jobs_do_not_share_their_limits(sandbox: Sandbox, job: Path) -> None:
    """Sixteen jobs of ten processes each under a limit of 12: a count of the user's processes would refuse most."""
    source = "import os, time\nfor _ in range(10):\n    if os.fork() == 0: time.sleep(0.3); os._exit(0)\nprint('done')"
    with ThreadPoolExecutor(16) as pool:
        ended = list(pool.map(lambda _: sandbox.run(python(source), job, Limits(processes=12)), range(16)))
    assert [one.stdout for one in ended] == [b"done\n"] * 16


def test_an_ended_job_leaves_no_control_group(sandbox: Sandbox, job: Path) -> None:
    sandbox.run(python("import time; time.sleep(60)"), job, Limits(wall_s=0.3))
    running = sandbox.start(python("import time; time.sleep(60)"), job, Limits())
    folders = running._cgroup.folders
    time.sleep(0.2)
    running.kill()
    running.wait()
    assert not [folder for folder in folders if folder.exists()]


@pytest.mark.parametrize("fails", ["start", "wait"])
def test_a_job_whose_partner_fails_leaves_no_control_group(fails: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidate's process is there when that of the tests cannot be started, or when the wait for it is broken off."""
    groups: list[list[Path]] = []

    class Recorded(cgroup.Cgroup):
        def __init__(self, *limits: int) -> None:
            super().__init__(*limits)
            groups.append(self.folders)
            if fails == "start" and len(groups) == 2:
                self.close()
                raise SandboxError("no second job")

    def broken_off(self: process.Job) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with Judge(sandbox) as judge, monkeypatch.context() as patch:
        patch.setattr(process, "Cgroup", Recorded)
        if fails == "wait":
            monkeypatch.setattr(process.Job, "wait", broken_off)
        with pytest.raises((SandboxError, KeyboardInterrupt)):
            judge._judge(Task("t", "python", "", "def f():\n", "f", "", "f()\n"), "    while True: pass\n", TOOLCHAINS["python"])
    assert len(groups) == 2
    assert not [folder for folders in groups for folder in folders if folder.exists()]


def test_groups_of_dead_processes_are_removed() -> None:
    if cgroup.version() is None:
        pytest.skip("no control groups")
    dead = subprocess.Popen(["true"])
    dead.wait()
    theirs, ours = (
        cgroup.ROOT / ("memory" if cgroup.version() == 1 else "") / f"moe-sandbox-{pid}-99999" for pid in (dead.pid, os.getpid())
    )
    theirs.mkdir()
    ours.mkdir()
    try:
        Sandbox.open(unsafe=True)
        assert (theirs.exists(), ours.exists()) == (False, True)
    finally:
        ours.rmdir()


def test_the_filter_refuses_by_number(sandbox: Sandbox, job: Path) -> None:
    if seccomp.program() is None:
        pytest.skip("no numbers for this architecture")
    source = "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.syscall(425, 8, 0), ctypes.get_errno())"
    assert sandbox.run(python(source), job).stdout == b"-1 1\n"


def test_a_program_cannot_look_like_a_broken_sandbox(sandbox: Sandbox, job: Path) -> None:
    """A sandbox error is not counted as a wrong answer, so programs must not be able to claim one."""
    source = "import os, sys; sys.stderr.write('bwrap: Creating new namespace failed\\n'); os._exit(1)"
    assert sandbox.run(python(source), job).status == "exited"
    for signal in (9, 15, 6, 11):
        assert sandbox.run(python(f"import os; os.kill(os.getpid(), {signal})"), job).status == "exited"
    assert sandbox.run(python("import os; os.kill(1, 9); print(1)"), job).status == "exited"


def test_a_tool_outside_usr_is_not_there(sandbox: Sandbox) -> None:
    assert sandbox.has("python3")
    assert not sandbox.has("no-such-compiler")


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    monkeypatch.setattr(isolation, "PATH", str(job))
    with pytest.raises(SandboxError, match="bwrap is not installed"):
        Sandbox.open()


def test_a_wrapper_that_isolates_nothing_is_found_out(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """bubblewrap's place is taken by a script that reports as it does and runs the program in the open."""

    def in_the_open(folder: Path, tmp_mib: int, status: int, *_: object) -> list[str]:
        report = (
            "import os, subprocess, sys; code = subprocess.call(sys.argv[2:]); os.write(int(sys.argv[1]), b'{\"exit-code\": %d}' % code)"
        )
        return ["python3", "-c", report, str(status)]

    monkeypatch.setattr(isolation, "isolate", in_the_open)
    with pytest.raises(SandboxError, match=r"it reads files of the host.*it reaches ports of the host"):
        Sandbox.open()


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (("--unshare-all", "--unshare-all --share-net"), "reaches ports of the host"),
        (("--size 4194304 --tmpfs /tmp", "--ro-bind /tmp /tmp"), "reads files of the host"),
        (("--size 4194304", "--size 99999999"), "fills more of /tmp than its limit"),
    ],
    ids=["network", "files", "tmp"],
)
def test_a_hole_in_the_isolation_is_found(keep: tuple[str, str], message: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    real = isolation.isolate
    monkeypatch.setattr(isolation, "isolate", lambda *args: " ".join(real(*args)).replace(*keep).split())
    with pytest.raises(SandboxError, match=message):
        Sandbox.open()


def test_missing_limits_are_found(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "limit", lambda *_: ["prlimit", "--"])
    monkeypatch.setattr(cgroup, "version", lambda: None)
    with pytest.raises(SandboxError, match=r"more processes than its limit.*memory has no limit"):
        Sandbox.open()


def test_what_stays_open_is_said(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "version", lambda: None)
    monkeypatch.setattr(process.seccomp, "program", lambda: None)
    facts = Sandbox.open().facts
    assert (facts["cgroup"], facts["seccomp"], len(facts["left_open"])) == (None, False, 2)


def test_unsafe_is_written_down() -> None:
    assert Sandbox.open(unsafe=True).facts == {"isolated": False}
