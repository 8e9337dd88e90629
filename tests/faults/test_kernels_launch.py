"""Which implementation and which launch runs, and where: rows 21 to 24."""

import os
import subprocess
import sys
from functools import lru_cache

import pytest
import torch

from moe_kernels import backend
from moe_kernels.launch import choose_launch
from tests.faults.backends import DENSE
from tests.moe_kernels.layers import FP32, Batch, results

PROGRAM = """
import sys
sys.modules.update(dict.fromkeys({absent!r}))
import torch
from moe_kernels import backend
from moe_kernels.experts import moe_dense
from moe_kernels.nf4 import NF4Weight
from moe_kernels.routing import route
x, base = torch.randn(5, 64), [torch.randn(4, 128, 64), torch.randn(4, 64, 64)]
y = moe_dense(x, route(x, torch.randn(4, 64), kind="topk", top_k=2), *base)
assert y.isfinite().all() and torch.equal(y, y)
print(backend.active())
for name in ("cpp", "triton"):
    try:
        with backend.use(name):
            print(name)
    except ValueError as error:
        print(error)
"""


@lru_cache
def run_without(*absent: str) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(absent=absent)], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.splitlines()


BARE = ("triton", "bitsandbytes", "transformers", "moe_kernels._C")


def test_21_without_triton_a_card_or_the_extension_the_package_runs_and_says_how():
    """An absent module is None in sys.modules, as an import of it then fails."""
    assert run_without(*BARE)[0] == "reference"


def test_22_a_forced_implementation_that_cannot_run_is_an_error_that_says_why():
    _, cpp, triton = run_without(*BARE)
    assert cpp.startswith("the C++ extension is not built") and triton == "the package triton is not installed"


def test_23_a_launch_that_cannot_run_is_no_candidate_and_an_unknown_one_an_error(tmp_path):
    """Nothing is tuned in a user's run. What a card refuses is dropped; where nothing runs the launch stays."""
    from moe_kernels import tune
    from moe_kernels.tune_cases import Setup, Target, every

    target = Target("gram", "any", (None,), lambda setup, tokens: lambda: None, every(block_m=(16, 4096)))
    for examine, best in ((lambda calls, arch: {at for at in calls if at.block_m == 16}, 16), (lambda calls, arch: set(), None)):
        measured = tune.Measured(tmp_path / f"{best}", {})
        found = tune.best_launch(target, 8, Setup("meta"), 86, measured, examine, clock=lambda run: 1.0)
        assert (found and found.block_m) == best
    table = {"launches": {"gram": {"any": [{"tokens": None, "block_m": 16}]}}}
    assert tune.tune([target], table, lambda target, tokens: None) == table
    with pytest.raises(ValueError, match="no launch table has the operation 'gran'"):
        choose_launch("gran", 1, 1, 1, 86)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_24_another_stream_and_the_current_card():
    """Equal bits on a stream of its own; tests/moe_kernels/test_gpu_runtime.py has a card that is not the current one."""
    batch, stream = Batch.of(DENSE, 9), torch.cuda.Stream()
    with backend.use("triton"):
        expected = results(DENSE, batch, FP32, grads=True)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = results(DENSE, batch, FP32, grads=True)
        torch.cuda.current_stream().wait_stream(stream)
    assert all(map(torch.equal, found, expected)) and found[0].device == batch.x.device
