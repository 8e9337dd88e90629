"""The session on a GPU keeps its deadline and its files, shown with an interpreter that hangs."""

import os
import subprocess
import tarfile
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_session.sh"
HANGING = """#!/usr/bin/env bash
case "$*" in
    *get_device_name*) echo NVIDIA H200 ;;
    *get_device_capability*) echo sm90 ;;
    *xdist* | *bitsandbytes*) exit 1 ;;
    *) echo started; trap '' INT; sleep 300 ;;
esac
"""


def test_what_does_not_end_takes_the_time_of_what_follows_and_not_more(tmp_path):
    """At 2 per cent the whole has 10 seconds; the tests alone take 3, and the 5 until they are killed."""
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(HANGING)
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "SCALE": "2"}
    done = subprocess.run(["bash", str(SCRIPT), str(out)], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    log = (out / "session.log").read_text().splitlines()
    assert log[0].startswith("tests: status 137") and log[0].endswith(", cut")
    assert [line for line in log if "no time left" in line] == log[1:] and len(log) >= 4
    assert sorted(path.name for path in out.iterdir()) == ["logs.tar.gz", "session.log"]
    with tarfile.open(out / "logs.tar.gz") as logs:
        assert logs.extractfile("tests.log").read() == b"started\n"
