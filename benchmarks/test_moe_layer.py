"""One 4x7B layer beside its peers on a CUDA device, all in one run: see `benchmarks/gpu_layer.py`, whose tables this prints.

pytest benchmarks/test_moe_layer.py -s        with MOE_BENCH_OUT=FILE the figures go there as JSON too
"""

import os
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_layer
from benchmarks.gpu_peers import OURS
from benchmarks.routings import ROUTINGS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def bench():
    before = gpu_layer.hardware()
    made = gpu_layer.Bench(seconds=0.5)
    yield made
    if "MOE_BENCH_OUT" in os.environ:
        gpu_layer.save(made, Path(os.environ["MOE_BENCH_OUT"]), before, cut=False)


@pytest.mark.parametrize("tokens", gpu_layer.TOKENS)
@pytest.mark.parametrize(
    ("operation", "routing"), sorted({(o, r) for o, _, r in gpu_layer.points(gpu_layer.OPERATIONS, (1,), list(ROUTINGS))})
)
def test_layer(bench, operation, routing, tokens):
    rows = gpu_layer.run_point(bench, operation, tokens, routing)
    print(gpu_layer.show(rows))
    assert OURS in {row["name"] for row in rows}
