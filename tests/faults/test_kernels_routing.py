"""Faults and bad input of routing and grouping: rows 7 to 12, each through the public functions, on every implementation.

T tokens, K experts per token, E experts, D model width, F expert hidden width, R LoRA rank.
"""

import math

import pytest
import torch
from torch import Tensor

from moe_kernels.experts import moe_dense
from moe_kernels.grouping import group_tokens
from moe_kernels.routing import KINDS, Routing, route
from tests.faults.backends import FULL, every_implementation, running
from tests.moe_kernels.layers import FP16, assert_near, randn

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of Triton's interpreter, on NaN and infinity


@every_implementation
@pytest.mark.parametrize("kind", KINDS)
def test_07_nan_router_logits(kind, name):
    """The poisoned token gets distinct experts in range; only its own output is NaN, the others keep their bits."""
    tokens, gate, wnoise = 9, randn(4, FULL.width, seed=2), randn(4, FULL.width, seed=4, scale=0.1)
    x, base, others = randn(tokens, FULL.width, seed=1), FULL.base(), torch.arange(tokens) != 4
    arguments = {"kind": kind, "top_k": 2, "noise_seed": 3, "sequence_ids_T": torch.arange(tokens)}

    def compute(value: float) -> tuple[Routing, Tensor]:
        routed = x.clone()
        routed[4, 7] = value
        routing = route(routed, gate, wnoise, **arguments)
        return routing, moe_dense(x, routing, *base)  # the logits alone are poisoned

    with running(name):
        clean, expected = compute(0.5)
        for poison in (math.nan, math.inf, -math.inf):
            routing, y = compute(poison)
            assert all(len(set(row)) == len(row) and set(row) <= set(range(4)) for row in routing.experts_TK.tolist())
            assert torch.equal(routing.experts_TK[others], clean.experts_TK[others])
            assert y[4].isnan().all()
            assert_near("the other tokens", y[others], expected[others].double(), (1e-6, 1e-5))


@every_implementation
@pytest.mark.parametrize("logits", [[1.0] * 6, [0.0, -0.0] * 3, [2.0, 3.0, 3.0, 2.0, 3.0, 1.0], [math.nan] * 6], ids=str)
def test_08_ties_go_to_the_lowest_expert(logits, name):
    order = torch.tensor(logits).sort(descending=True, stable=True).indices
    with running(name):
        for top_k in (1, 2, 5):
            routing = route(torch.ones(3, 1), torch.tensor(logits)[:, None], kind="topk", top_k=top_k)
            assert torch.equal(routing.experts_TK, order[:top_k].expand(3, -1))


@every_implementation
@pytest.mark.parametrize("size", [1e4, torch.finfo(FP16).max, 1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_09_large_logits_have_finite_weights(kind, size, name):
    gate = torch.tensor([[1.0], [-1.0], [0.999], [0.5]]) * size
    with running(name):
        routing = route(
            torch.tensor([[1.0], [-1.0]]), gate, torch.ones(4, 1), kind=kind, top_k=2, noise_seed=0, sequence_ids_T=torch.arange(2)
        )
    assert routing.weights_TK.isfinite().all() and routing.load_E.isfinite().all()
    assert routing.experts_TK[:, 0].tolist() == [0, 1]
    torch.testing.assert_close(routing.weights_TK.sum(1), torch.ones(2), rtol=0, atol=1e-4)  # switch: without the other experts' share


@every_implementation
@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (3, 2), (7, 5), (64, 6), (65, 3), (1024, 2), (1025, 7)])
def test_10_any_number_of_experts(experts, top_k, name):
    x, gate = randn(5, 12, seed=1), randn(experts, 12, seed=2)
    expected = (x.double() @ gate.double().T).sort(dim=1, descending=True, stable=True)
    with running(name):
        routing = route(x, gate, kind="topk", top_k=top_k)
        grouping = group_tokens(routing.experts_TK, experts)
    assert torch.equal(routing.experts_TK, expected.indices[:, :top_k])
    assert_near("weights", routing.weights_TK, expected.values[:, :top_k].softmax(1), (1e-5, 1e-4))
    pairs = routing.experts_TK.flatten()
    assert torch.equal(grouping.order_N, pairs.argsort(stable=True))
    assert torch.equal(grouping.offsets_E1.diff(), pairs.bincount(minlength=experts))


@every_implementation
def test_11_ids_past_16_bits_and_pairs_past_31(name):
    """No key packs an expert and a place: 70,000 experts are grouped. The kernels count pairs in 32 bits: more is refused."""
    ids = torch.tensor([[69_999, 3], [65_536, 65_535], [3, 0]])
    with running(name):
        assert group_tokens(ids, 70_000).order_N.tolist() == [5, 1, 4, 3, 2, 0]
        if name == "triton":
            with pytest.raises(ValueError, match=r"2147483648 pairs .*less than 2147483648"):
                group_tokens(torch.zeros(1, 1, dtype=torch.int64).expand(1 << 30, 2), 4)


@every_implementation
def test_12_noise(name):
    x, gate, wnoise = randn(9, 16, seed=1), randn(4, 16, seed=2), randn(4, 16, seed=3)
    with running(name):
        clean = route(x, gate, kind="topk", top_k=2)
        evaluated = route(x, gate, wnoise, kind="noisy_topk", top_k=2)
        noisy = route(x, gate, wnoise, kind="noisy_topk", top_k=2, noise_seed=1)
        silent = route(x, gate, wnoise, kind="noisy_topk", top_k=2, noise_seed=1, noise_scale=torch.tensor(0.0))
        underflowed = route(
            torch.cat([x, torch.ones(9, 1)], 1),
            torch.cat([gate, torch.zeros(4, 1)], 1),
            torch.tensor([[0.0] * 16 + [-200.0]] * 4),
            kind="noisy_topk",
            top_k=2,
            noise_seed=1,
        )  # softplus(-200) is 0 in fp32
        for scale in (-1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"noise_scale must be a finite number of at least 0, not {scale}"):
                route(x, gate, wnoise, kind="noisy_topk", top_k=2, noise_seed=1, noise_scale=torch.tensor(scale))
        nan = route(x, gate, wnoise * math.nan, kind="noisy_topk", top_k=2, noise_seed=1)
    assert not torch.equal(noisy.weights_TK, clean.weights_TK)
    for same in (evaluated, silent, underflowed):
        assert torch.equal(same.experts_TK, clean.experts_TK)
        torch.testing.assert_close(same.weights_TK, clean.weights_TK, rtol=1e-6, atol=1e-6)
    assert nan.weights_TK.isnan().all()  # seen, and not a choice that looks sound
    assert nan.experts_TK.min() >= 0 and nan.experts_TK.max() < 4
