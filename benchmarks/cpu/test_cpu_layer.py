"""One MoE block in 4-bit beside its peers on a CPU, all in one run: see `benchmarks/cpu/layer.py`, whose tables this prints.

pytest benchmarks/cpu -s        with MOE_BENCH_OUT=FILE the figures go there as JSON too

Peers that are not installed are left out, with the reason; MOE_LLAMA_CPP and MOE_IK_LLAMA name folders with builds of ggml. It takes some
ten minutes and 8 GB on a machine that does nothing else. What makes it shorter: MOE_BENCH_ONLY, a regular expression of peers;
MOE_BENCH_SECONDS for the rounds of one T (default 20, at least five rounds); MOE_BENCH_CACHE, a folder that keeps converted weights. A
layer of MOE_BENCH_WIDTH=512 and MOE_BENCH_HIDDEN=1024 tries it in a minute.
"""

import os
from pathlib import Path

import pytest

from benchmarks.cpu import layer, step
from benchmarks.cpu.contender import EXACT, INT8
from benchmarks.cpu.targets import TOKENS


@pytest.fixture(scope="module")
def bench():
    made = layer.Bench()
    yield made
    for name, reason in (made.left_out | made.wrong).items():
        print(f"left out: {name}: {reason}")
    if "MOE_BENCH_OUT" in os.environ:
        layer.save(made, Path(os.environ["MOE_BENCH_OUT"]))


@pytest.mark.parametrize("tokens", TOKENS)
def test_layer(bench, tokens):
    point = layer.run_point(bench, tokens)
    print(layer.show(point))
    assert not bench.wrong
    names = {row["name"] for row in point["rows"]}
    assert EXACT in names
    assert INT8 in names or bench.left_out[INT8].startswith("ValueError")  # not on every CPU


@pytest.mark.parametrize("tokens", TOKENS[-1:])
def test_training_step(bench, tokens):
    bench.made.clear()  # the peers' weights: a step takes room of its own
    point = step.run_step(bench, tokens)
    print(step.show(point))
    errors = {row["name"]: row["error"] for row in point["rows"]}
    assert errors[EXACT] < 0.01  # bitsandbytes reads fp32 where ours are bf16
