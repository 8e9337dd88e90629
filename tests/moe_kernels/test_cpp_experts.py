"""Both expert layouts and the 4-bit linear layer in C++, on every instruction set of this CPU, against dequantise-and-matmul in fp64.

T tokens, K experts per token, E experts, D model width, F expert hidden width, R LoRA rank.
"""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from moe_kernels import backend
from moe_kernels.experts import moe_dense
from moe_kernels.linear import linear_nf4
from moe_kernels.nf4 import NF4Weight, dequantize_nf4, quantize_nf4
from moe_kernels.nf4_format import NF4
from moe_kernels.routing import Routing
from moe_kernels.weights import flatten
from tests.moe_kernels.layers import (
    BF16,
    FP16,
    FP32,
    FP64,
    ROUTINGS,
    TOLERANCE,
    Batch,
    Layer,
    assert_near,
    call_layer,
    check,
    choose,
    randn,
    results,
)

pytestmark = pytest.mark.skipif(bool(backend.extension_problem()), reason=backend.extension_problem() or "built")

ISAS = backend.cpu_isas() if not backend.extension_problem() else ["portable"]
# Every E, K, rank, base and dtype, odd ones among them. Widths that are no whole blocks are expanded first.
LAYERS = [
    Layer("dense", 4, 2, 256, 512, 0, True, BF16),
    Layer("dense", 4, 2, 256, 512, 16, True, FP16),
    Layer("dense", 4, 2, 256, 512, 8, True, FP32),
    Layer("dense", 8, 2, 512, 256, 64, True, BF16),
    Layer("dense", 1, 1, 128, 192, 4, True, BF16),
    Layer("dense", 3, 3, 192, 320, 0, True, FP16),
    Layer("dense", 16, 4, 128, 128, 0, True, FP32),
    Layer("dense", 64, 8, 64, 128, 3, True, BF16),
    Layer("dense", 5, 2, 96, 80, 4, True, BF16),
    Layer("dense", 4, 2, 100, 90, 5, False, FP32),
    Layer("dense", 4, 2, 256, 384, 0, False, BF16),
    Layer("lora", 4, 2, 256, 512, 16, True, BF16),
    Layer("lora", 4, 2, 256, 512, 128, True, FP16),
    Layer("lora", 8, 3, 128, 192, 3, True, FP32),
    Layer("lora", 2, 1, 192, 128, 32, True, BF16),
    Layer("lora", 5, 5, 100, 90, 4, False, BF16),
]
TOKENS = (1, 2, 3, 5, 16, 17, 33, 65, 129, 600)
CASES = [
    (layer, tokens, routing)
    for layer in LAYERS
    for tokens in TOKENS
    for routing in ROUTINGS
    if routing == "uniform" or tokens in (1, 17, 600)
]
DENSE, SHARED = Layer("dense", 4, 2, 128, 192, 4, True, FP32), Layer("lora", 4, 2, 128, 192, 4, True, FP32)


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("MOE_KERNELS_ISA", request.param)
    assert torch.ops.moe_kernels.cpu_isa() == request.param
    return request.param


@pytest.mark.parametrize(("layer", "tokens", "routing"), CASES, ids=str)
def test_values_and_gradients(layer, tokens, routing, monkeypatch):
    batch = Batch.of(layer, tokens, routing)
    for name in ISAS:
        monkeypatch.setenv("MOE_KERNELS_ISA", name)
        check(layer, batch, "cpp")


@pytest.mark.parametrize("layer", [DENSE, SHARED], ids=str)
def test_fp64_is_computed_in_fp64(layer):
    batch = Batch.of(layer, 9)
    with backend.use("cpp"):
        mine = results(layer, batch, FP64, grads=True)
    with backend.use("reference"):
        true = results(layer, batch, FP64, grads=True)
    for actual, expected in zip(mine, true, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("layer", [DENSE, SHARED], ids=str)
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_threads_and_repeats_change_no_bit(layer, dtype, isa):
    threads, found = torch.get_num_threads(), []
    layer = replace(layer, dtype=dtype)
    many, few = Batch.of(layer, 301), Batch.of(layer, 3)
    with backend.use("cpp"):
        for count in (1, 2, 5, 2):
            torch.set_num_threads(count)
            call = many.x, many.weights, many.experts, layer.base(), layer.factors()
            coarse = call_layer(layer, *call, precision="int8")
            found.append([*results(layer, many, dtype, grads=True), *results(layer, few, dtype, grads=True), coarse])
    torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@pytest.mark.parametrize("layer", [DENSE, SHARED], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tokens", [12, 80])
def test_a_nan_stays_with_its_token(layer, value, tokens, isa):
    batch = Batch.of(layer, tokens)
    batch.x[5, 7] = value
    with backend.use("cpp"):
        y, dx, *_ = results(layer, batch, FP32, grads=True)
    for result in (y, dx):
        assert result[5].isnan().any()
        assert result[torch.arange(tokens) != 5].isfinite().all()


@pytest.mark.parametrize("layer", [DENSE, SHARED], ids=str)
def test_no_tokens(layer):
    batch = Batch.of(layer, 0)
    with backend.use("cpp"):
        assert [len(result) for result in results(layer, batch, FP32, grads=True)[:2]] == [0, 0]


@pytest.mark.parametrize("layer", [DENSE, SHARED], ids=str)
def test_inputs_that_lie_anyhow_in_memory(layer, isa):
    """Transposed, expanded, and at addresses that no vector is aligned to."""
    batch = Batch.of(layer, 21)
    x = torch.empty(21 * 128 + 1)[1:].view(128, 21).t().copy_(batch.x)
    weights = batch.weights[:, :1].expand(-1, 2)
    experts = batch.experts.t().contiguous().t()
    base = [odd_address(weight) for weight in layer.base()]
    factors = [factor.transpose(1, 2).contiguous().transpose(1, 2) for factor in layer.factors()]
    with backend.use("cpp"):
        found = call_layer(layer, x, weights, experts, base, factors)
        expected = call_layer(layer, batch.x, weights.contiguous(), batch.experts, layer.base(), layer.factors())
    assert torch.equal(found, expected)


def odd_address(q):
    """The same weight, with every table one element off its allocation's start."""
    return q.with_tensors(
        {name: torch.cat([table.flatten()[:1], table.flatten()])[1:].view(table.shape) for name, table in q.tensors().items()}
    )


def test_an_expert_of_a_stack_with_a_shared_nested_group(isa):
    stack = quantize_nf4(randn(3, 64, 192, seed=1))
    x = randn(5, 192, seed=2)
    with backend.use("cpp"):
        for e in range(3):
            expert = stack.expert(e)
            assert expert.first_block == e * 192 % 256
            expected = x.double() @ dequantize_nf4(expert).double().T
            assert_near("y", linear_nf4(x, expert), expected, TOLERANCE[FP32])


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("stored", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("shape", [(1, 64, 64), (4, 96, 128), (70, 129, 192), (3, 40, 100), (7, 5, 6), (600, 72, 320)], ids=str)
def test_linear_nf4(shape, stored, dtype, isa):
    tokens, out, width = shape
    q = quantize_nf4(randn(out, width, seed=3).to(stored))
    x, dy = randn(tokens, width, seed=4).to(dtype), randn(tokens, out, seed=5).to(dtype)
    w = dequantize_nf4(q).double()
    leaf = x.clone().requires_grad_()
    with backend.use("cpp"):
        y = linear_nf4(leaf, q)
        y.backward(dy)
        assert_near("without gradients", linear_nf4(x, q), x.double() @ w.T, TOLERANCE[dtype])
    for mine, true in [(y.detach(), x.double() @ w.T), (leaf.grad, dy.double() @ w)]:
        assert_near("linear", mine, true, TOLERANCE[dtype])


def test_linear_nf4_takes_any_leading_dimensions_and_none(isa):
    q = quantize_nf4(randn(96, 64, seed=6))
    with backend.use("cpp"):
        rows = linear_nf4(randn(6, 64, seed=7), q, bias=torch.ones(96))
        assert torch.equal(linear_nf4(randn(6, 64, seed=7).view(2, 3, 64), q, bias=torch.ones(96)), rows.view(2, 3, 96))
        assert linear_nf4(torch.empty(0, 64), q).shape == (0, 96)


@pytest.mark.parametrize("stored", [BF16, FP16, FP32], ids=str)
def test_the_weights_are_those_of_dequantize_bit_for_bit(stored, isa):
    """A row of the identity takes a weight's column as it is: nothing is added to it but zeros."""
    q = quantize_nf4(randn(80, 192, seed=8).to(stored))
    eye, expected = torch.eye(192), dequantize_nf4(q).float().T
    with backend.use("cpp"):
        few = torch.cat([linear_nf4(part, q) for part in eye.split(3)])
        many = linear_nf4(eye, q)
        leaf = torch.zeros(80, 192, requires_grad=True)
        linear_nf4(leaf, q).backward(torch.eye(80))
    assert torch.equal(few, expected)
    assert torch.equal(many, expected)
    assert torch.equal(leaf.grad, expected.T)


@pytest.mark.parametrize("stored", [BF16, FP16, FP32], ids=str)
def test_the_weights_are_those_of_dequantize_in_bf16_too(stored, isa):
    """Where bf16 is multiplied in hardware, by kernels of their own."""
    q = quantize_nf4(randn(80, 192, seed=8).to(stored))
    eye, expected = torch.eye(192, dtype=BF16), dequantize_nf4(q).to(BF16).T
    with backend.use("cpp"):
        few = torch.cat([linear_nf4(part, q) for part in eye.split(3)])
        many = linear_nf4(eye, q)
        leaf = torch.zeros(80, 192, dtype=BF16, requires_grad=True)
        linear_nf4(leaf, q).backward(torch.eye(80, dtype=BF16))
    assert torch.equal(few, expected)
    assert torch.equal(many, expected)
    assert torch.equal(leaf.grad, expected.T)


def int8_of(x):
    """x as the precision int8 sees it, fp64: in blocks of 64, rounded to 127ths of their largest value."""
    blocks = x.unflatten(1, (-1, 64))
    scale = blocks.abs().amax(2, keepdim=True) / 127
    return (blocks * (1 / scale)).round().nan_to_num().double().mul(scale).flatten(1)


def int8_weights(q):
    """q as the precision int8 sees it, fp64: levels rounded to 112ths."""
    exact = NF4Weight(q.packed, q.absmax, q.nested_absmax, q.nested_offset, q.shape, FP32)
    values = dequantize_nf4(exact).double().view(-1, 64)
    nibbles = torch.stack([q.packed.view(-1) >> 4, q.packed.view(-1) & 15], 1).view(-1, 64).long()
    levels = torch.tensor(NF4.levels, dtype=FP64)
    absmax = (values / levels[nibbles]).nan_to_num().amax(1, keepdim=True)
    return (levels.mul(112).round().div(112)[nibbles] * absmax).view(q.shape)


@pytest.mark.parametrize(
    "shape", [(1, 64, 64), (1, 80, 320), (2, 80, 320), (3, 33, 128), (9, 64, 192), (40, 100, 448), (600, 64, 128)], ids=str
)
def test_int8_is_exact_on_what_it_rounds(shape, isa):
    tokens, out, width = shape
    q = quantize_nf4(randn(out, width, seed=9))
    x = randn(tokens, width, seed=10)
    x[-1, :64] = 0 if width > 64 else 1
    with backend.use("cpp"):
        y = linear_nf4(x, q, precision="int8")
    assert_near("int8", y, int8_of(x) @ int8_weights(q).T, TOLERANCE[FP32])


@pytest.mark.parametrize("tokens", [1, 2, 9, 40])
@pytest.mark.parametrize("layer", [Layer("dense", 4, 2, 256, 320, 0, True, BF16), Layer("lora", 4, 2, 256, 320, 4, True, FP32)], ids=str)
def test_int8_experts_are_near_the_exact_ones(layer, tokens, isa):
    x, (weights, experts) = randn(tokens, 256, seed=11).to(layer.dtype), choose(tokens, 4, 2, "uniform")
    base, factors = layer.base(), layer.factors()
    with backend.use("cpp"):
        exact = call_layer(layer, x, weights, experts, base, factors).float()
        coarse = call_layer(layer, x, weights, experts, base, factors, precision="int8").float()
    error = (coarse - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.03


def test_a_precision_that_cannot_be_had_is_refused():
    q, x = quantize_nf4(randn(64, 64, seed=12)), randn(2, 64, seed=13)
    with backend.use("cpp"):
        with pytest.raises(ValueError, match="unknown precision 'int4'; known: exact, int8"):
            linear_nf4(x, q, precision="int4")
        with pytest.raises(ValueError, match="precision 'int8' has no gradients"):
            linear_nf4(x.requires_grad_(), q, precision="int8")
        with pytest.raises(ValueError, match="precision 'int8' has no gradients"):
            linear_nf4(x.detach(), q, torch.zeros(64, requires_grad=True), precision="int8")
        with pytest.raises(ValueError, match=r"rows are multiples of 64, not a NF4 weight of shape \[64, 96\]"):
            linear_nf4(randn(2, 96, seed=13), quantize_nf4(randn(64, 96, seed=12)), precision="int8")
        routing = Routing(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"not a dense weight of shape \[1, 128, 64\]"):
            moe_dense(x.detach(), routing, randn(1, 128, 64, seed=14), randn(1, 64, 64, seed=15), precision="int8")
    with backend.use("reference"), pytest.raises(ValueError, match="precision 'int8' needs the C\\+\\+ extension"):
        linear_nf4(x.detach(), q, precision="int8")


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("MOE_KERNELS_ISA", "avx1024")
    with backend.use("cpp"), pytest.raises(ValueError, match="avx1024"):
        linear_nf4(randn(2, 64, seed=14), quantize_nf4(randn(64, 64, seed=15)))


def test_sizes_are_checked_before_memory_is_read():
    q = quantize_nf4(randn(64, 64, seed=16))
    tables, offsets, ints = flatten([q])
    with backend.use("cpp"):
        with pytest.raises(ValueError, match="do not have the sizes"):
            torch.ops.moe_kernels.linear_cpp(randn(2, 64, seed=17), [tables[0], tables[1][:-1], tables[2]], offsets, ints, False, 0)
        with pytest.raises(ValueError, match="has one weight, not 0"):
            torch.ops.moe_kernels.linear_cpp(randn(2, 64, seed=17), [], [], [], False, 0)
        with pytest.raises(ValueError, match=r"first block .* at least 0, not -256"):
            torch.ops.moe_kernels.linear_cpp(
                randn(2, 64, seed=17), [*tables[:2], tables[2][:0]], offsets, [ints[0], -256, *ints[2:]], False, 0
            )
        routing = Routing(torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.int64))
        with pytest.raises(ValueError, match="not a whole number of NF4 blocks"):
            moe_dense(randn(3, 3, seed=19), routing, quantize_nf4(randn(2, 6, 3, seed=20)), quantize_nf4(randn(2, 3, 3, seed=21)))


def misfits():
    """Arguments of the operator that do not fit each other, each a way to read memory that is not there."""
    layer = DENSE
    batch, base, factors = Batch.of(layer, 6), layer.base(), layer.factors()
    good = {"x": batch.x, "weights": batch.weights, "experts": batch.experts, "base": base, "factors": factors}
    other = replace(layer, width=64, hidden=64)
    return {
        "factors of fewer experts": good | {"factors": [factor[:1] for factor in factors]},
        "factors of another width": good | {"factors": other.factors()},
        "a rank of zero": good | {"factors": [factor[:, :0] if i % 2 == 0 else factor[..., :0] for i, factor in enumerate(factors)]},
        "fewer weights than ids": good | {"weights": batch.weights[:, :1]},
        "more rows of routing than tokens": good | {"weights": batch.weights.repeat(9, 1), "experts": batch.experts.repeat(9, 1)},
        "no experts for a token": good | {"weights": batch.weights[:, :0], "experts": batch.experts[:, :0]},
        "ids that are no integers": good | {"experts": batch.experts.float()},
        "an id that is no expert": good | {"experts": batch.experts + 1},
        "x of another width": good | {"x": batch.x[:, :64]},
        "matrices of different experts": good | {"base": [base[0], other.base()[1]]},
        "one matrix": good | {"base": base[:1]},
    }


@pytest.mark.parametrize("name", misfits() if not backend.extension_problem() else [])
def test_what_does_not_fit_is_refused_before_memory_is_read(name):
    call = misfits()[name]
    tensors, offsets, ints = flatten(call["base"])
    with pytest.raises(ValueError):
        torch.ops.moe_kernels.experts_cpp(
            call["x"], call["weights"], call["experts"], tensors, offsets, ints, call["factors"], [1.0, 1.0, 1.0], True, 0
        )


def test_the_default_dtype_changes_nothing():
    """Loaders set it while they load; the map of absmax is made at the first use."""
    program = (
        "import torch; from moe_kernels.nf4 import quantize_nf4; from moe_kernels.linear import linear_nf4;"
        "q = quantize_nf4(torch.randn(64, 64)); torch.set_default_dtype(torch.bfloat16);"
        "print(linear_nf4(torch.ones(1, 64, dtype=torch.float32), q).dtype)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "torch.float32"
