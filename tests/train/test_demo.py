"""scripts/demo.sh itself, from the base to the report, with as many steps and points as a test has time for."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In the place of `python`: of a repeated flag the last counts.
SHORT = """#!/bin/sh
case "$2" in
  train.*) set -- "$@" --max-steps 2 --eval-every 2 --batch-size 2 --eval-limit 2 ;;
  eval.codebleu) set -- "$@" --limit 2 --max-new-tokens 8 ;;
esac
exec {python} "$@"
"""


def test_the_demo_runs_to_its_report_and_again_makes_only_that(tiny_data, tmp_path):
    shim = tmp_path / "bin" / "python"
    shim.parent.mkdir()
    shim.write_text(SHORT.format(python=sys.executable))
    shim.chmod(0o755)
    runs = tmp_path / "runs"
    own = {
        "PATH": f"{shim.parent}:{os.environ['PATH']}",
        "RUNS": str(runs),
        "DATA": str(tiny_data),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }

    def demo() -> dict[str, str]:
        result = subprocess.run(["bash", "scripts/demo.sh"], cwd=ROOT, env=os.environ | own, text=True, capture_output=True)
        assert "== done" in result.stdout, f"{result.stdout[-2000:]}{result.stderr[-2000:]}"
        return {path.parent.name: json.loads(path.read_text())["finished"] for path in runs.glob("*/run.json")}

    first = demo()
    assert (runs / "report" / "report.html").is_file()
    assert {"expert-cpp", "composed", "mixture", "score-base", "score-expert-cpp", "score-mixture", "routing"} < first.keys()
    again = demo()
    assert [name for name in first if again[name] != first[name]] == ["report"]


FAILING = """#!/bin/sh
case "$*" in
  *train.base*) echo base ;;
  *"--lang python"*) echo $$ > "$RUNS/behind"; exec sleep 600 ;;
  *"--lang java"*) while [ ! -s "$RUNS/behind" ]; do sleep 0.01; done; exit 3 ;;
esac
"""


def test_no_run_behind_outlives_a_demo_that_fails(tmp_path):
    """It would hold the lock of its output, and a rerun would be refused."""
    shim = tmp_path / "python"
    shim.write_text(FAILING)
    shim.chmod(0o755)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RUNS": str(tmp_path), "DATA": str(tmp_path)}
    result = subprocess.run(["bash", "scripts/demo.sh"], cwd=ROOT, env=os.environ | own, text=True, capture_output=True)
    assert result.returncode == 3, result.stderr
    behind = int((tmp_path / "behind").read_text())
    for _ in range(500):  # a signal takes a moment
        if not is_running(behind):
            return
        time.sleep(0.01)
    os.kill(behind, signal.SIGKILL)
    pytest.fail("the run behind goes on")


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
