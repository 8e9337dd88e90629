"""A whole mixture on a CPU beside transformers' Mixtral: see `benchmarks/cpu/model.py`, whose tables this prints.

pytest benchmarks/cpu -s -k model        some five minutes and 7 GB on two cores

MOE_BENCH_MODEL names the folder of a mixture that is measured too, such as runs/demo/mixture; MOE_BENCH_LAYERS=2 makes the random one of a
billion active parameters smaller; MOE_BENCH_SECONDS (default 10) is for the rounds
of prefill and again of decode, at least three rounds.
"""

import os

import pytest

from benchmarks.cpu.model import run_model
from benchmarks.cpu.model_peers import OURS, PEERS, random_mixture
from model.modeling_moe import MoEForCausalLM

SECONDS = float(os.environ.get("MOE_BENCH_SECONDS", "10"))
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 1024}
LARGE = {"hidden_size": 2048, "intermediate_size": 5632, "vocab_size": 32000}  # 12 layers: 1.02 billion active parameters
LAYERS = int(os.environ.get("MOE_BENCH_LAYERS", "12"))


def test_small_model():
    mixture = random_mixture(**SMALL, **EXPERTS, num_attention_heads=4, num_key_value_heads=2)
    rows = {row["name"]: row for row in run_model("a small random mixture", mixture, seconds=1)}
    assert {OURS, *PEERS.values()} <= set(rows)
    assert rows[PEERS["fp32"]]["cosine_least"] > 0.9999
    for row in rows.values():
        assert row["cosine_mean"] > 0.99, row  # in another precision a token whose experts nearly tie may go elsewhere


@pytest.mark.skipif("MOE_BENCH_MODEL" not in os.environ, reason="MOE_BENCH_MODEL names no mixture")
def test_given_model():
    folder = os.environ["MOE_BENCH_MODEL"]
    rows = run_model(folder, MoEForCausalLM.from_pretrained(folder), SECONDS)
    assert OURS in {row["name"] for row in rows}


def test_large_model():
    mixture = random_mixture(**LARGE, **EXPERTS, num_hidden_layers=LAYERS, num_attention_heads=32, num_key_value_heads=8)
    rows = run_model("a random mixture", mixture, SECONDS)
    assert OURS in {row["name"] for row in rows}
