"""On a CPU without AVX-512, or without AVX2, the right path runs, and no instruction of another: qemu's CPUs end a process at one."""

import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.backends import EXTENSION

QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
VERSION = subprocess.run([QEMU, "--version"], capture_output=True, text=True).stdout if QEMU else "none"
OLD = re.search(r"version ([1-6]\.|7\.[01]\.)", VERSION)  # without AVX2
ISAS = {"Nehalem": {"portable"}, "Haswell": {"portable", "avx2"}}


@pytest.mark.skipif(not EXTENSION, reason="the C++ extension is not built")
@pytest.mark.skipif(not QEMU or bool(OLD), reason="needs qemu-x86_64 7.2: scripts/install_eval_tools.sh --tests installs it")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="this machine's programs are not for x86-64")
@pytest.mark.parametrize("cpu", ISAS)
def test_kernels_on_another_cpu(cpu):
    """Values and gradients against fp64, in a process whose CPUID is the other CPU's; each instruction set that it offers has run."""
    tests = [Path(__file__).with_name("test_backends_agree.py"), "-k", "values_and_gradients and cpp", "-p", "no:cacheprovider", "-v"]
    python = [QEMU, "-cpu", cpu, sys.executable]
    if subprocess.run([*python, "-c", "import torch"], capture_output=True).returncode == -signal.SIGILL:
        pytest.skip(f"NumPy or PyTorch themselves do not run on a {cpu} of this qemu")
    done = subprocess.run([*python, "-m", "pytest", *tests], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert set(re.findall(r"cpp-(\w+)\] PASSED", done.stdout)) == ISAS[cpu]
