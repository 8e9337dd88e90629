"""One set of cases on every implementation, against the reference in fp64, and relations that hold of any of them.

T tokens, K experts per token, E experts, D model width, F expert hidden width, R LoRA rank.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from moe_kernels import backend
from moe_kernels.experts import moe_dense
from moe_kernels.linear import linear_nf4
from moe_kernels.nf4 import dequantize_nf4, quantize_nf4
from moe_kernels.routing import Routing, route
from tests.faults.backends import DENSE, FULL, ISAS, SHARED, every_implementation, poisoned, running
from tests.moe_kernels.layers import BF16, FP16, FP32, FP64, Batch, Layer, assert_near, randn, results

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of Triton's interpreter, on NaN and infinity
TIGHT = (4e-6, 4e-5)  # fp32, rms and largest error: a few roundings

CASES = {  # name: (layer, tokens, routing)
    "usual": (DENSE, 6, "uniform"),
    "shared base": (SHARED, 6, "uniform"),
    "a dense base and its gradients": (FULL, 6, "skewed"),
    "experts without tokens": (DENSE, 9, "one"),
    "one token": (replace(DENSE, rank=0), 1, "uniform"),
    "odd shapes": (Layer("dense", 3, 2, 97, 47, 0, False, FP32), 5, "uniform"),
    "widths of part of a block": (Layer("dense", 2, 1, 96, 80, 2, True, FP32), 5, "uniform"),
    "bf16": (replace(DENSE, dtype=BF16), 6, "uniform"),
    "fp16": (replace(SHARED, dtype=FP16), 6, "uniform"),
}


@every_implementation
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_in_poisoned_memory(case, name):
    layer, tokens, routing = CASES[case]
    batch = Batch.of(layer, tokens, routing)
    with backend.use("reference"):
        true = results(layer, batch, FP64, grads=True)
    with running(name), poisoned(layer):
        mine = results(layer, batch, layer.dtype, grads=True)
    for number, (actual, expected) in enumerate(zip(mine, true, strict=True)):
        assert_near(f"result {number}", actual, expected, layer.tolerance, typical=0.05)


@every_implementation
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_goes_where_it_must_and_no_further(value, name):
    """In an activation: to its token. In an expert's weight: to that expert's tokens. In a routing weight: to its token."""
    batch, (gate_up, down) = Batch.of(FULL, 9), FULL.base()
    routing = Routing(batch.weights, batch.experts)
    with running(name):
        x = batch.x.clone()
        x[4, 7] = value
        spoiled = moe_dense(x, routing, gate_up, down).isfinite().logical_not().any(1)
        assert spoiled.tolist() == [token == 4 for token in range(9)]
        bad = down.clone()
        bad[2, 5, 3] = value
        y = moe_dense(batch.x, routing, gate_up, bad)
        assert torch.equal(y.isfinite().logical_not(), (batch.experts == 2).any(1)[:, None] & (torch.arange(FULL.width) == 5))
        weights = batch.weights.clone()
        weights[3, 1] = value
        y = moe_dense(batch.x, replace(routing, weights_TK=weights), gate_up, down)
        assert y.isfinite().all(1).tolist() == [token != 3 for token in range(9)]


@every_implementation
@pytest.mark.parametrize("scale", [1e-30, 1e-38, 1e-41, 1e18])
def test_denormal_and_huge_activations(scale, name):
    """fp32 keeps denormals (AVX512-BF16 alone takes them for zero, and does not run here); a huge gate saturates without a NaN."""
    x, q = randn(4, 64, seed=1) * scale, quantize_nf4(randn(32, 64, seed=2))
    with running(name):
        y = linear_nf4(x, q)
        expected = x.double() @ dequantize_nf4(q).double().T
    assert (y.double() - expected).abs().max() <= 1e-5 * expected.abs().max() + 64 * 2**-149
    gate_up, down = torch.ones(1, 2, 1) * 1e4, torch.ones(1, 1, 1)
    routing = Routing(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int64))
    with running(name):
        y = moe_dense(torch.tensor([[1.0], [-1.0]]), routing, gate_up, down)
    torch.testing.assert_close(y, torch.tensor([[1e8], [0.0]]))


@every_implementation
@pytest.mark.parametrize("size", [1.0, 1e4, -1e4])
def test_routings_agree_on_large_logits_and_ties(size, name):
    x, gate = randn(7, 16, seed=3), randn(6, 16, seed=4) * size
    gate[4] = gate[1]  # two experts that always tie
    whole = x.round(), gate.round()  # whole numbers: logits without rounding, or a library's product may break a tie
    true = (whole[0].double() @ whole[1].double().T).sort(dim=1, descending=True, stable=True)
    with running(name):
        routing, exact = (route(*pair, kind="topk", top_k=3) for pair in ((x, gate), whole))
    assert torch.equal(exact.experts_TK, true.indices[:, :3])
    assert_near("weights of whole numbers", exact.weights_TK, true.values[:, :3].softmax(1), TIGHT)
    logits = (x.double() @ gate.double().T).gather(1, routing.experts_TK)
    rounding = 1e-6 * max(1, abs(size))  # of a logit, and so of the logarithm of a weight
    assert_near("weights", routing.weights_TK, logits.softmax(1), (2 * rounding, 20 * rounding))


def compute(x: Tensor, gate: Tensor, base: list[Tensor], top_k: int = 2) -> Tensor:
    return moe_dense(x, route(x, gate, kind="topk", top_k=top_k), *base)


@pytest.fixture
def layer() -> tuple[Tensor, Tensor, list[Tensor]]:
    return randn(9, FULL.width, seed=5), randn(4, FULL.width, seed=6), FULL.base()


@every_implementation
def test_permuted_tokens_have_permuted_outputs(layer, name):
    x, gate, base = layer
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    with running(name):
        assert_near("y", compute(x[order], gate, base), compute(x, gate, base)[order].double(), TIGHT)


@every_implementation
def test_permuted_experts_with_their_gate_change_nothing(layer, name):
    x, gate, base = layer
    order = torch.tensor([2, 0, 3, 1])
    with running(name):
        assert_near("y", compute(x, gate[order], [w[order] for w in base]), compute(x, gate, base).double(), TIGHT)


@every_implementation
def test_a_token_twice_has_two_equal_rows(layer, name):
    x, gate, base = layer
    x = torch.cat([x, x[2:3]])
    with running(name):
        y = compute(x, gate, base)
    assert torch.equal(y[-1], y[2])


@every_implementation
def test_all_experts_are_the_dense_sum(layer, name):
    x, gate, (gate_up, down) = layer
    with running(name):
        y = compute(x, gate, [gate_up, down], top_k=4)
    g, u = (x.double() @ gate_up.double().mT).chunk(2, dim=2)  # [E, T, F]
    weights = (x.double() @ gate.double().T).softmax(1)
    assert_near("y", y, torch.einsum("etf,edf,te->td", silu(g) * u, down.double(), weights), TIGHT)


@every_implementation
def test_a_split_batch_is_the_whole(layer, name):
    x, gate, base = layer
    with running(name):
        parts = torch.cat([compute(part, gate, base) for part in x.split([1, 5, 3])])
        assert_near("y", parts, compute(x, gate, base).double(), TIGHT)


@every_implementation
def test_scaled_routing_weights_scale_the_output(layer, name):
    x, gate, base = layer
    with running(name):
        routing = route(x, gate, kind="topk", top_k=2)
        y = moe_dense(x, routing, *base)
        assert torch.equal(moe_dense(x, replace(routing, weights_TK=routing.weights_TK * 4), *base), y * 4)  # a power of two: no rounding


@pytest.mark.skipif(not ISAS, reason="the extension is not built")
@pytest.mark.parametrize("best", ISAS)
def test_a_cpu_without_the_better_instruction_sets_takes_the_next(best, monkeypatch):
    """MOE_KERNELS_ISA leaves out what is above `best`, as CPUID does on such a CPU; the tests above run on each set so."""
    monkeypatch.setenv("MOE_KERNELS_ISA", best)
    assert torch.ops.moe_kernels.cpu_isa() == best
