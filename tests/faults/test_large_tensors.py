"""The C++ operators on tensors of more than 2^31 values, or of bytes where those values would not fit into 12 GiB.

Every input repeats a part of P rows, so every row of a result has a small result to be compared with. P has an odd factor: an offset
that lost a multiple of 2^31 or 2^32 reads another row of the part.

T tokens, K experts per token, E experts, D model width, F expert hidden width, N = T*K pairs, R LoRA rank.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_kernels import backend
from moe_kernels.grouping import group_tokens
from moe_kernels.linear import linear_nf4
from moe_kernels.nf4 import NF4Weight, dequantize_nf4, quantize_nf4
from moe_kernels.routing import route
from tests.moe_kernels.layers import BF16, FP16, FP32, TOLERANCE, Batch, Layer, assert_near, call_layer, choose, randn, random_nf4, results

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(backend.extension_problem()), reason=backend.extension_problem() or "built")]

MANY = 2**31
P = 1012  # 4 x 11 x 23: of rows of 4096 values four are a group of NF4's second quantisation
D = 4096
TIMES = MANY // (P * D) + 1
EQUAL = (0.0, 0.0)
MEMORY = Path("/proc/meminfo")


@pytest.fixture(autouse=True)
def cpp() -> Iterator[None]:
    with backend.use("cpp"):
        yield


def needs(gigabytes: int) -> None:
    """Skips the test where less than so many GB (10^9 bytes) are to be had."""
    if not MEMORY.exists():
        pytest.skip(f"there is no {MEMORY} to say whether {gigabytes} GB are free")
    lines = dict(line.split(":") for line in MEMORY.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024 / 1e9
    if available < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of memory; {available:.1f} GB are available")


def assert_repeats(name: str, whole: Tensor, part: Tensor, tolerance: tuple[float, float] = EQUAL) -> None:
    """`whole` is `part` over and over, by `assert_near`, or to the bit."""
    assert len(whole) % len(part) == 0 and len(whole) > len(part)
    for piece in whole.split(len(part)):
        if tolerance == EQUAL:
            assert torch.equal(piece, part), name
        else:
            assert_near(name, piece, part.float(), tolerance)


def repeat_nf4(part: NF4Weight, times: int) -> NF4Weight:
    """Whole groups of the second quantisation, `times` over."""
    tables = {name: table.repeat(times, *[1] * (table.dim() - 1)) for name, table in part.tensors().items()}
    return replace(part, shape=(part.shape[0] * times, *part.shape[1:]), **tables)


def test_routing_of_more_than_2_to_31_values_and_its_gradients():
    needs(10)
    part, gate, dweights = randn(P, D, seed=1).to(BF16), randn(4, D, seed=2, scale=D**-0.5), randn(P, 2, seed=3)
    found = []
    for times in (1, TIMES):
        x, w = part.repeat(times, 1).requires_grad_(), gate.clone().requires_grad_()
        routing = route(x, w, kind="topk", top_k=2)
        dx, dw = torch.autograd.grad(routing.weights_TK, [x, w], dweights.repeat(times, 1))
        found.append((routing.weights_TK.detach(), routing.experts_TK, routing.logits_TE.detach(), dx, routing.load_E, dw))
        del x
    small, large = found
    assert large[3].numel() > MANY
    for name, whole, rows in zip(("weights", "experts", "logits", "dx"), large, small, strict=False):
        assert_repeats(name, whole, rows)
    assert torch.equal(large[4], small[4] * TIMES)
    assert_near("dw", large[5], small[5].double() * TIMES, TOLERANCE[FP32])


def test_routing_to_more_than_2_to_31_logits():
    needs(12)
    experts, times = 1024, MANY // (P * 1024) + 1
    part, gate = randn(P, 16, seed=1).to(BF16), randn(experts, 16, seed=2)
    small, large = (route(x, gate, kind="topk", top_k=2) for x in (part, part.repeat(times, 1)))
    assert large.logits_TE.numel() > MANY
    for name in ("weights_TK", "experts_TK", "logits_TE"):
        assert_repeats(name, getattr(large, name), getattr(small, name))
    assert torch.equal(large.load_E, small.load_E * times)
    # A sum in fp32 over the tokens, by 16: a hundred thousand additions one after the other cost a digit and a half.
    assert_near("importance", large.importance_E, small.importance_E * times, (2e-4, 4e-4))


def test_grouping_of_more_than_2_to_31_bytes_of_pairs():
    """2^31 pairs would take 52 GB."""
    needs(8)
    experts_TK = choose(P, 12, 8, "skewed")[1].repeat(MANY // (P * 8 * 8) + 1, 1)
    assert experts_TK.nbytes > MANY
    grouping, pairs_N = group_tokens(experts_TK, 12), experts_TK.view(-1)
    assert grouping.offsets_E1[0] == 0 and grouping.offsets_E1[-1] == pairs_N.numel()
    for e in range(12):
        begin, end = grouping.offsets_E1[e : e + 2].tolist()
        own = grouping.order_N[begin:end]
        assert (pairs_N[own] == e).all() and (own[1:] > own[:-1]).all()
        assert torch.equal(grouping.inverse_N[own], torch.arange(begin, end))


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_experts_with_more_than_2_to_31_values_of_pairs_and_their_gradients(dtype):
    """y and dx of every pair, [N, D] before they are added up: they have K times the values of x. bf16 may be packed by twos."""
    needs(14)
    layer = Layer("dense", 10, 8, D, 64, 4, True, dtype)
    batch, times = Batch.of(layer, P), MANY // (P * 8 * D) + 1
    small = replace(batch, dy=batch.dy / 64)  # or the factors' gradients, sums over the tokens, would leave fp16
    large = Batch(*(tensor.repeat(times, 1) for tensor in (small.x, small.weights, small.experts, small.dy)))
    assert large.experts.numel() * D > MANY
    found, expected = (results(layer, given, dtype, grads=True) for given in (large, small))
    for name, whole, part in zip(("y", "dx", "dweights"), found, expected, strict=False):
        assert_repeats(name, whole, part, TOLERANCE[dtype])
    for number, (whole, part) in enumerate(zip(found[3:], expected[3:], strict=True)):  # sums over the tokens
        assert_near(f"gradient {number}", whole, part.float() * times, TOLERANCE[dtype])


def test_experts_that_keep_more_than_2_to_31_values_for_a_backward():
    """g and u of every pair, [N, 2F]. A backward on them would take 22 GB."""
    needs(14)
    layer = Layer("dense", 4, 2, 64, 4096, 0, True, BF16)
    small, times = Batch.of(layer, P), MANY // (P * 2 * 2 * 4096) + 1
    large = Batch(*(tensor.repeat(times, 1) for tensor in (small.x, small.weights, small.experts, small.dy)))
    assert large.experts.numel() * 2 * 4096 > MANY
    found = []
    for batch in (small, large):
        y = call_layer(layer, batch.x.requires_grad_(), batch.weights, batch.experts, layer.base(), [])
        *_, inverse_N, _, preact_N2F, _, _, _ = y.grad_fn.saved_tensors  # as `experts_op` returns them
        found.append((y.detach(), preact_N2F, inverse_N))
        del y
    (small_y, small_preact, small_inverse), (large_y, large_preact, large_inverse) = found
    assert_repeats("y", large_y, small_y, TOLERANCE[BF16])
    for rows in large_inverse.split(len(small_inverse)):
        assert_near("preact", large_preact[rows], small_preact[small_inverse].float(), TOLERANCE[BF16])


def test_nf4_of_more_than_2_to_31_values():
    """Written, bytes and both scales, and read again."""
    needs(8)
    part = randn(P, D, seed=1).to(BF16)
    large = quantize_nf4(part.repeat(TIMES, 1))
    small = quantize_nf4(part, nested_offset=large.nested_offset)
    assert large.nested_offset == pytest.approx(quantize_nf4(part).nested_offset, rel=1e-6)
    for name, table in large.tensors().items():
        assert_repeats(name, table, small.tensors()[name])
    values = dequantize_nf4(large)
    assert values.numel() > MANY
    assert_repeats("values", values, dequantize_nf4(small))


@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_linear_on_a_4_bit_weight_of_more_than_2_to_31_values(dtype, rows):
    needs(4)
    part = random_nf4((P, D), 1)
    x, dy = randn(rows, D, seed=2).to(dtype), randn(rows, P, seed=3).to(dtype)
    found = []
    for times in (1, TIMES):
        leaf = x.clone().requires_grad_()
        y = linear_nf4(leaf, repeat_nf4(part, times))
        last_dy = torch.nn.functional.pad(dy, (P * (times - 1), 0))  # a sum of half a million products in fp32 has lost digits
        found.append((y.detach(), *torch.autograd.grad(y, leaf, last_dy)))
    (small_y, small_dx), (large_y, large_dx) = found
    assert_repeats("y", large_y.T, small_y.T, TOLERANCE[dtype])
    assert_near("dx", large_dx, small_dx.float(), TOLERANCE[dtype])


def test_linear_to_more_than_2_to_31_values():
    """In fp32, as the kernels' results are: of another dtype there would be a second copy."""
    needs(11)
    part, weight, times = randn(P, 64, seed=1), random_nf4((8192 * 5, 64), 2), MANY // (P * 8192 * 5) + 1
    small, large = linear_nf4(part, weight), linear_nf4(part.repeat(times, 1), weight)
    assert large.numel() > MANY
    assert_repeats("y", large, small, TOLERANCE[FP32])


def test_linear_of_more_than_2_to_31_values():
    needs(14)
    part, weight = randn(P, D, seed=1).to(BF16), random_nf4((64, D), 2)
    small, large = linear_nf4(part, weight), linear_nf4(part.repeat(TIMES, 1), weight)
    assert_repeats("y", large, small, TOLERANCE[BF16])
