"""Faults and bad input of the experts (shapes, memory, bits): rows 13 to 20, each through the public functions, on every implementation.

T tokens, K experts per token, E experts, D model width, F expert hidden width, R LoRA rank.
"""

import math
import mmap
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moe_kernels import grouped
from moe_kernels.experts import moe_dense
from moe_kernels.grouping import Grouping
from moe_kernels.linear import linear_nf4
from moe_kernels.nf4 import NF4Weight, quantize_nf4
from moe_kernels.routing import Routing, route
from tests.faults.backends import (
    DENSE,
    FULL,
    IMPLEMENTATIONS,
    SHARED,
    assert_all_near,
    every_implementation,
    every_layer,
    oracle,
    poisoned,
    run,
    running,
)
from tests.moe_kernels.layers import BF16, FP32, Batch, Layer, assert_near, call_layer, randn, results

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of Triton's interpreter, on NaN and infinity


def sparse(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory before they are written."""
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def last_of_many(one: Tensor | NF4Weight, experts: int) -> Tensor | NF4Weight:
    """A stack whose last expert is `one` [1, out, in], and of whose other experts no page is in memory."""
    parts = one.tensors() if isinstance(one, NF4Weight) else {"": one}
    stacks = {key: sparse(len(part) * experts, *part.shape[1:], dtype=part.dtype) for key, part in parts.items()}
    for key, part in parts.items():
        stacks[key][-len(part) :] = part
    return replace(one, shape=(experts, *one.shape[1:]), **stacks) if isinstance(one, NF4Weight) else stacks[""]


@every_implementation
@pytest.mark.parametrize("nf4", [False, True])
def test_13_offsets_past_32_bits(nf4, name, monkeypatch):
    """The last of 17,600 experts in a stack of more than 2^31 values; in NF4 of more than 2^31 bytes."""
    experts, width, hidden = 17_600, 2**11, 64 if nf4 else 32
    # All tokens have one expert, so one tile of rows is enough; the interpreter would take a minute over the empty ones.
    monkeypatch.setattr("moe_kernels.grouped.Rows.tiles", lambda rows, block_m, experts: -(-rows.count // block_m))
    shapes = (1, 2 * hidden, width), (1, width, hidden)
    alone = [randn(*shape, seed=number, scale=shape[-1] ** -0.5).to(BF16) for number, shape in enumerate(shapes)]
    alone = [quantize_nf4(one) for one in alone] if nf4 else alone
    stacks = [last_of_many(one, experts) for one in alone]
    assert (stacks[0].packed.numel() if nf4 else stacks[0].numel()) > 2**31
    x, dy = (randn(2, width, seed=seed).to(BF16) for seed in (5, 6))
    found = []
    with running(name):
        for weights, expert in ((stacks, experts - 1), (alone, 0)):
            leaf = x.clone().requires_grad_()
            y = moe_dense(leaf, Routing(torch.ones(2, 1), torch.full((2, 1), expert)), *weights)
            found.append((y.detach(), *torch.autograd.grad(y, leaf, dy)))
    assert all(map(torch.equal, *found)) and all(part.any() for part in found[0])


@pytest.mark.skipif("triton" not in IMPLEMENTATIONS, reason="Triton's interpreter is not on")
@pytest.mark.parametrize("gather", [False, True])
def test_13_rows_past_32_bits(gather, monkeypatch):
    """The last two of more than 2^31 values' rows, in and out, of one Triton kernel; test_large_tensors.py has the C++ operators."""
    width, last = 2**10, randn(2, 2**10, seed=7).to(BF16)
    count = 2**31 // width + 2
    monkeypatch.setattr("moe_kernels.grouped.Rows.tiles", lambda rows, block_m, experts: 1)
    weight = randn(1, width, width, seed=8, scale=width**-0.5).to(BF16)
    found = []
    for rows in (count, 2):
        x, out = sparse(rows, width, dtype=BF16), sparse(rows, width, dtype=BF16)
        order = sparse(rows, dtype=torch.int64)
        x[-2:], order[-2:] = last, torch.arange(rows - 2, rows)
        grouping = Grouping(order, order, torch.tensor([rows - 2, rows]))
        with running("triton"):
            grouped.linear("grouped", x, weight, grouped.Rows(rows, grouping), gather=gather, out=out)
        found.append(out[-2:])
    assert torch.equal(*found) and found[0].any()


@every_implementation
@pytest.mark.parametrize(("width", "hidden"), [(97, 47), (33, 1), (1, 5)], ids=str)
@pytest.mark.parametrize(("layout", "rank"), [("dense", 0), ("lora", 3)])
def test_14_odd_widths(layout, rank, width, hidden, name):
    layer = Layer(layout, 3, 2, width, hidden, rank, False, FP32)
    batch = Batch.of(layer, 7)
    assert_all_near(layer, run(layer, batch, name), oracle(layer, batch))


@pytest.mark.parametrize("name", [name for name in IMPLEMENTATIONS if name != "triton"])
def test_14_a_large_odd_shape(name):
    layer = Layer("dense", 2, 1, 577, 859, 0, False, FP32)
    batch = Batch.of(layer, 727)
    assert_all_near(layer, run(layer, batch, name), oracle(layer, batch))


@every_layer
def test_15_any_strides_of_inputs_and_gradients(layer, name):
    batch = Batch.of(layer, 7)
    expected = run(layer, batch, name)
    for lay in (lambda t: t.mT.contiguous().mT, lambda t: t.repeat_interleave(3, dim=-1)[..., ::3], lambda t: torch.cat([t[:1], t])[1:]):
        strided = replace(batch, x=lay(batch.x), weights=lay(batch.weights), experts=lay(batch.experts), dy=lay(batch.dy))
        found = run(layer, strided, name)
        assert all(map(torch.equal, found, expected)) or name == "reference"  # whose products are a library's, of several loops
        assert_all_near(layer, found, [part.double() for part in expected])
    constant = replace(batch, dy=torch.ones(1, 1).expand(7, layer.width), weights=torch.ones(1, 1).expand(7, 2))
    dense = replace(constant, dy=constant.dy.contiguous(), weights=constant.weights.contiguous())
    assert all(map(torch.equal, run(layer, constant, name), run(layer, dense, name)))


@every_implementation
def test_16_what_does_not_fit_is_refused_with_both_values(name):
    batch, (gate_up, down) = Batch.of(FULL, 5), FULL.base()
    routing = Routing(batch.weights, batch.experts)
    wrong = {
        r"a weight of torch.int64 on cpu does not fit x of torch.float32 on cpu": lambda: moe_dense(batch.x, routing, gate_up, down.long()),
        r"a weight of torch.float32 on meta does not fit x of torch.float32 on cpu": lambda: moe_dense(
            batch.x, routing, gate_up, down.to("meta")
        ),
        r"\[5, 40\], \[4, 48, 40\], \[4, 24, 40\]": lambda: moe_dense(batch.x, routing, gate_up, down.mT),
        r"\[4, 2\], \[5, 2\]": lambda: moe_dense(batch.x, replace(routing, weights_TK=batch.weights[:4]), gate_up, down),
        r"x of shape \[5, 40\] does not fit a gate of shape \[4, 39\]": lambda: route(batch.x, gate_up[0, :4, :39], kind="topk", top_k=1),
        r"x of shape \[5, 40\] do not fit an NF4 weight of shape \[3, 64\]": lambda: linear_nf4(batch.x, quantize_nf4(torch.ones(3, 64))),
    }
    with running(name):  # weights of another floating-point dtype are taken in x's
        assert_near("y", moe_dense(batch.x, routing, gate_up.double(), down.double()), oracle(FULL, batch)[0], FULL.tolerance)
    with running(name):
        for message, call in wrong.items():
            with pytest.raises(ValueError, match=message):
                call()


@every_layer
def test_17_a_graph_gives_the_same_gradients_twice_and_inputs_stay(layer, name):
    batch, base, factors = Batch.of(layer, 9), layer.base(), [factor.requires_grad_() for factor in layer.factors()]
    x, weights = batch.x.requires_grad_(), batch.weights.requires_grad_()
    copies = [tensor.detach().clone() for tensor in (x, weights, batch.dy, *factors)]
    with running(name):
        y = call_layer(layer, x, weights, batch.experts, base, factors)
        kept = y.detach().clone()
        twice = [torch.autograd.grad(y, [x, weights, *factors], batch.dy, retain_graph=True) for _ in range(2)]
        assert all(map(torch.equal, *twice)) and torch.equal(y, kept)
        assert all(map(torch.equal, copies, (x, weights, batch.dy, *factors)))
        with torch.no_grad():
            x.mul_(2)
        try:
            late = torch.autograd.grad(y, [x, weights, *factors], batch.dy)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
        else:  # the reference of a frozen base: it has kept no x
            assert all(map(torch.equal, late, twice[0]))


@every_layer
def test_18_nan_beside_the_rows_is_never_read(layer, name):
    """x, dy and the routing's weights as views into NaN, and scratch memory of NaN: what pads a tile must not reach a sum by 0 x NaN."""
    batch = Batch.of(layer, 11)

    def amid_nan(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (3, 3, 2, 40), value=math.nan)[2:-40, 3:-3]

    amid = replace(batch, x=amid_nan(batch.x), weights=amid_nan(batch.weights), dy=amid_nan(batch.dy))
    expected = run(layer, batch, name)
    with running(name), poisoned(layer):
        assert all(map(torch.equal, results(layer, amid, layer.dtype, grads=True), expected))


@every_layer
def test_19_twice_gives_equal_bits(layer, name):
    batch = Batch.of(layer, 33, "skewed")
    assert all(map(torch.equal, run(layer, batch, name), run(layer, batch, name)))


# fp32: rms and largest difference of a token alone and in a batch. Another number of rows, another order of sums.
BATCH_BOUND = (1e-6, 1e-5)


@every_implementation
@pytest.mark.parametrize("layer", [DENSE, SHARED], ids=str)
def test_20_a_token_alone_and_among_many(layer, name):
    """Routing has equal bits; the experts' sums may be taken in another order for another number of rows: a bound."""
    many = 64 if name == "triton" else 512
    batch, gate = Batch.of(layer, many), randn(4, layer.width, seed=9)
    with running(name):
        whole, alone = (route(x, gate, kind="topk", top_k=2) for x in (batch.x, batch.x[:1]))
        y = results(layer, batch, FP32, grads=False)[0][:1]
        first = replace(batch, x=batch.x[:1], weights=batch.weights[:1], experts=batch.experts[:1])
        single = results(layer, first, FP32, grads=False)[0]
    assert torch.equal(whole.experts_TK[:1], alone.experts_TK)
    if name.startswith("cpp"):
        assert torch.equal(whole.weights_TK[:1], alone.weights_TK)
    assert_near("y", single, y.double(), BATCH_BOUND)
