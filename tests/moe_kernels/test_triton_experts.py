"""The experts' Triton kernels, in Triton's interpreter, against the formula in fp64: values and all gradients."""

from dataclasses import dataclass

import pytest
import torch

from moe_kernels import backend, experts_triton
from moe_kernels.experts import ExpertLoRA, LoRA, moe_dense, moe_lora
from moe_kernels.linear import linear_nf4
from moe_kernels.nf4 import dequantize_nf4, quantize_nf4
from moe_kernels.routing import Routing

pytestmark = pytest.mark.skipif(bool(backend.triton_problem()), reason=backend.triton_problem() or "Triton runs")

DENSE, SHARED = moe_dense, moe_lora
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# Of the error: rms over the rms of the true values, and the largest over |true value| + rms. A rounding or two of each dtype.
TOLERANCE = {BF16: (1e-2, 6e-2), FP16: (1.5e-3, 8e-3), FP32: (4e-6, 4e-5)}
SCALINGS = (0.5, 2.0, 1.5)


@dataclass
class Case:
    """A layer: layout, T, E, K, D, F, R (0: no LoRA), whether the base is NF4, dtype."""

    layout: object
    tokens: int
    experts: int
    top_k: int
    width: int
    hidden: int
    rank: int
    nf4: bool
    dtype: torch.dtype

    def __post_init__(self):
        draw = torch.Generator().manual_seed(self.tokens * 31 + self.experts)

        def randn(*shape, scale=1.0):
            return (torch.randn(shape, generator=draw) * scale).to(self.dtype)

        e, d, f, r = self.experts, self.width, self.hidden, self.rank
        shapes = [(e, 2 * f, d), (e, d, f)] if self.layout is DENSE else [(f, d), (f, d), (d, f)]
        self.x = randn(self.tokens, d)
        self.base = [randn(*shape, scale=shape[-1] ** -0.5) for shape in shapes]
        if self.nf4:
            self.base = [quantize_nf4(w) for w in self.base]
        self.factors = [randn(e, *shape, scale=0.3) for shape in [(r, d), (f, r), (r, d), (f, r), (r, f), (d, r)]] if r else []
        self.weights = torch.rand(self.tokens, self.top_k, generator=draw)
        self.choice = torch.stack([torch.randperm(e, generator=draw)[: self.top_k] for _ in range(self.tokens)])
        self.dy = randn(self.tokens, d)

    def run(self, dtype, grads=True):
        """[y, dx, dweights, dense base's gradients, factors' gradients] with everything in `dtype`."""

        def leaf(tensor):
            return tensor.detach().to(dtype, copy=True).requires_grad_(grads)

        x, weights = leaf(self.x), self.weights.to(torch.promote_types(dtype, FP32), copy=True).requires_grad_(grads)
        if self.nf4:
            base = [dequantize_nf4(q).to(dtype) for q in self.base] if dtype == torch.float64 else self.base
        else:
            base = [leaf(w) for w in self.base]
        factors = [leaf(factor) for factor in self.factors]
        parts = [LoRA(a, b, s) for a, b, s in zip(factors[::2], factors[1::2], SCALINGS, strict=False)]
        y = self.layout(x, Routing(weights, self.choice), *base, *([ExpertLoRA(*parts)] if parts else []))
        if not grads:
            return [y]
        y.backward(self.dy.to(dtype))
        return [y.detach(), x.grad, weights.grad, *([] if self.nf4 else [w.grad for w in base]), *(factor.grad for factor in factors)]

    def check(self):
        with backend.use("triton"):
            results = self.run(self.dtype)
        for number, (mine, true) in enumerate(zip(results, self.run(torch.float64), strict=True)):
            rms_bound, max_bound = TOLERANCE[self.dtype]
            assert mine.shape == true.shape
            error, size = (mine.double() - true), true.square().mean().sqrt()
            assert error.square().mean().sqrt() <= rms_bound * size, f"result {number}"
            assert (error.abs() <= max_bound * (true.abs() + size)).all(), f"result {number}"


SHAPES = [(1, 4, 2, 64, 64), (2, 4, 2, 64, 128), (5, 4, 2, 128, 192), (7, 4, 4, 64, 64), (9, 1, 1, 128, 64), (9, 8, 3, 64, 64)]


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("rank", [0, 3, 16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_layout_on_nf4(shape, rank, dtype):
    Case(DENSE, *shape, rank, True, dtype).check()


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("rank", [3, 16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lora_layout_on_nf4(shape, rank, dtype):
    Case(SHARED, *shape, rank, True, dtype).check()


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize(("layout", "rank"), [(DENSE, 0), (DENSE, 4), (SHARED, 4)])
@pytest.mark.parametrize("shape", [(6, 4, 2, 100, 90), (11, 3, 3, 33, 50)], ids=str)
def test_dense_base_of_any_width_and_its_gradients(shape, layout, rank, dtype):
    Case(layout, *shape, rank, False, dtype).check()


@pytest.mark.parametrize("layout", [DENSE, SHARED])
def test_widths_that_are_no_whole_blocks_take_the_workspace(layout):
    Case(layout, 6, 4, 2, 96, 80, 4, True, FP32).check()


@pytest.mark.parametrize("tokens", [20, 70, 170])
@pytest.mark.parametrize("layout", [DENSE, SHARED])
def test_every_bucket_of_the_table(layout, tokens):
    Case(layout, tokens, 4, 2, 64, 64, 8, True, BF16).check()


@pytest.mark.parametrize("layout", [DENSE, SHARED])
def test_a_rank_of_several_tiles(layout):
    Case(layout, 5, 2, 1, 64, 64, 100, True, FP32).check()


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("layout", [DENSE, SHARED])
def test_many_tokens_go_through_the_workspace(layout, dtype, monkeypatch):
    monkeypatch.setattr(experts_triton, "fused_tokens", lambda arch: 0)
    Case(layout, 9, 4, 2, 64, 128, 4, True, dtype).check()


@pytest.mark.parametrize("layout", [DENSE, SHARED])
def test_all_tokens_to_one_expert_leaves_exact_zeros_to_the_others(layout):
    case = Case(layout, 21, 4, 1, 64, 64, 4, False, FP32)
    case.choice.fill_(2)
    case.check()
    with backend.use("triton"):
        results = case.run(FP32)
    stacks = [grad for grad in results[3:] if grad.dim() == 3]
    assert len(stacks) == (8 if layout is DENSE else 6)
    for grad in stacks:
        assert grad[2].count_nonzero() and not grad[[0, 1, 3]].count_nonzero()


@pytest.mark.parametrize("layout", [DENSE, SHARED])
def test_no_tokens(layout):
    case = Case(layout, 1, 4, 2, 64, 64, 4, True, FP32)
    case.x, case.weights, case.choice, case.dy = (tensor[:0] for tensor in (case.x, case.weights, case.choice, case.dy))
    with backend.use("triton"):
        assert [len(result) for result in case.run(FP32)[:2]] == [0, 0]


@pytest.fixture
def poisoned():
    """Memory that nobody wrote reads as NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all() and torch.ones(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("layout", [DENSE, SHARED])
def test_nothing_is_read_that_was_not_written(layout, poisoned):
    case = Case(layout, 18, 5, 2, 64, 64, 3, True, BF16)
    case.choice[:] = torch.tensor([0, 3])
    case.check()


@pytest.mark.parametrize("layout", [DENSE, SHARED])
def test_repeats_have_equal_bits(layout):
    case = Case(layout, 23, 4, 2, 64, 128, 4, True, BF16)
    with backend.use("triton"):
        first = case.run(BF16)
        for _ in range(2):
            assert all(map(torch.equal, first, case.run(BF16)))


@pytest.mark.parametrize("layout", [DENSE, SHARED])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_stays_with_its_token(layout, value):
    case = Case(layout, 12, 4, 2, 64, 64, 4, True, FP32)
    case.x[5, 7] = value
    with backend.use("triton"):
        y, dx, *_ = case.run(FP32)
    for result in (y, dx):
        assert result[5].isnan().any()
        assert result[torch.arange(12) != 5].isfinite().all()


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("shape", [(4, 96, 64), (70, 128, 192), (3, 40, 100), (7, 5, 6)], ids=str)
def test_linear_nf4(shape, dtype):
    tokens, out, width = shape
    q = quantize_nf4(torch.randn(out, width).to(dtype))
    x, dy = torch.randn(tokens, width).to(dtype), torch.randn(tokens, out).to(dtype)
    w = dequantize_nf4(q).double()
    leaf = x.clone().requires_grad_()
    with backend.use("triton"):
        y = linear_nf4(leaf, q)
        y.backward(dy)
    for mine, true in [(y.detach(), x.double() @ w.T), (leaf.grad, dy.double() @ w)]:
        assert (mine.double() - true).norm() <= TOLERANCE[dtype][0] * true.norm()


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("shape", [(64, 128), (5, 7), (3, 96, 64), (300, 100), (1,)], ids=str)
def test_dequantised_values_are_those_of_bitsandbytes_bit_for_bit(shape, dtype):
    q = quantize_nf4(torch.randn(shape).to(dtype))
    with backend.use("reference"):
        expected = dequantize_nf4(q)
    with backend.use("triton"):
        assert torch.equal(dequantize_nf4(q), expected)


def test_an_expert_of_a_stack_is_dequantised_where_it_lies():
    q = quantize_nf4(torch.randn(3, 64, 96))
    with backend.use("triton"):
        whole = dequantize_nf4(q)
        for e in range(3):
            assert torch.equal(dequantize_nf4(q.expert(e)), whole[e])
