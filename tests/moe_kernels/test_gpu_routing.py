"""Routing, its noise and the grouping on a GPU, with the shipped launches, against the reference in fp64 and the CPU's bits."""

from itertools import count

import pytest
import torch
from torch.nn.functional import softplus

from moe_kernels import backend
from moe_kernels.grouping import MOST_KERNEL_EXPERTS, group_tokens, group_tokens_reference
from moe_kernels.noise import standard_normal
from moe_kernels.routing import KINDS, Routing, route
from moe_kernels.routing_ops import route_op
from moe_kernels.routing_reference import route_reference
from tests.moe_kernels.layers import BF16, DEVICE, FP16, FP32, GPU, choose, randn

pytestmark = GPU

EXPERTS_AND_K = [(1, 1), (2, 1), (3, 2), (4, 1), (4, 2), (4, 4), (5, 3), (8, 2), (16, 4), (33, 5), (64, 1), (64, 8)]
OUTPUTS = ("weights_TK", "logits_TE", "importance_E", "load_E")
# Largest error over the largest magnitude. Everything is computed in fp32; a gradient is rounded to the dtype of its input.
TOLERANCE = {FP32: 1e-5, FP16: 2**-11 + 1e-5, BF16: 2**-8 + 1e-5}


def chosen_k(kind, num_experts, top_k):
    return {"softmax": num_experts, "switch": 1, "sequence": 1}.get(kind, top_k)


def draw(kind, tokens, num_experts, width, dtype, seed):
    """Arguments of `route_reference` but the top_k: logits and noise of a std of about 1, a fifth of the tokens masked."""
    x = randn(tokens, width, seed=seed).to(dtype)
    gate, noise = (randn(num_experts, width, seed=seed + part, scale=width**-0.5).to(dtype) for part in (1, 2))
    mask = randn(tokens, seed=seed + 3) > -0.8
    ids = torch.arange(tokens, device=DEVICE) * 7 % max(1, tokens // 3 + 1) if kind == "sequence" else None
    noisy = (noise, torch.tensor(seed, device=DEVICE)) if kind == "noisy_topk" else (None, None)
    return [x, gate, *noisy, ids, mask, kind]


def deciding_logits(arguments, top_k):
    x, gate, noise, seed, ids, mask, kind = arguments
    wide = [None if tensor is None else tensor.double() for tensor in (x, gate, noise)]
    _, _, logits, _, _, saved = route_reference(*wide, seed, ids, mask, kind, top_k)
    if kind == "sequence":
        return saved[0]
    return logits + saved[1] * softplus(saved[0]) if kind == "noisy_topk" else logits


def draw_without_ties(kind, tokens, num_experts, top_k, width, dtype):
    """Inputs none of whose choices hangs on a rounding."""
    for seed in count(1000, 10):
        arguments = draw(kind, tokens, num_experts, width, dtype, seed)
        ordered = deciding_logits(arguments, top_k).sort(dim=1, descending=True).values[:, : top_k + 1]
        if ordered.shape[1] < 2 or (-ordered.diff(dim=1)).min() > 1e-5:
            return arguments
    raise AssertionError


def run(arguments, top_k, cotangents, wide):
    """(routing, gradients of x, Wg and Wnoise); `wide` is the reference in fp64."""
    x, gate, noise, seed, ids, mask, kind = arguments
    leaves = [(tensor.double() if wide else tensor.clone()).requires_grad_() for tensor in (x, gate, noise) if tensor is not None]
    inputs = [*leaves, None][:3]
    if wide:
        routing = Routing(*route_reference(*inputs, seed, ids, mask, kind, top_k)[:5])
    else:
        routing = route(*inputs, kind=kind, top_k=top_k, noise_seed=seed, sequence_ids_T=ids, mask_T=mask)
    used = [(getattr(routing, name), cotangent) for name, cotangent in cotangents.items()]
    total = sum((value * cotangent.to(value.dtype)).sum() for value, cotangent in used)
    return routing, torch.autograd.grad(total, leaves, materialize_grads=True)


def assert_near(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= tolerance * expected.abs().max() + 1e-6


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("tokens", [1, 257])
@pytest.mark.parametrize(("num_experts", "top_k"), EXPERTS_AND_K)
@pytest.mark.parametrize("kind", KINDS)
def test_routing_and_its_gradients(kind, num_experts, top_k, tokens, dtype):
    top_k = chosen_k(kind, num_experts, top_k)
    width = 4096 if num_experts <= 8 else 520
    arguments = draw_without_ties(kind, tokens, num_experts, top_k, width, dtype)
    shapes = [(tokens, top_k), (tokens, num_experts), (num_experts,), (num_experts,)]
    cotangents = {name: randn(*shape, seed=number) for number, (name, shape) in enumerate(zip(OUTPUTS, shapes, strict=True))}
    with backend.use("triton"):
        routing, gradients = run(arguments, top_k, cotangents, wide=False)
    with backend.use("reference"):
        expected, expected_gradients = run(arguments, top_k, cotangents, wide=True)
    assert torch.equal(routing.experts_TK, expected.experts_TK)
    for name in OUTPUTS:
        assert getattr(routing, name).dtype == FP32
        assert_near(getattr(routing, name), getattr(expected, name), TOLERANCE[FP32])
    for actual, true in zip(gradients, expected_gradients, strict=True):
        assert actual.dtype == dtype
        assert_near(actual, true, TOLERANCE[dtype])


@pytest.mark.parametrize("tokens", [2048, 5000])
@pytest.mark.parametrize("kind", KINDS)
def test_choices_of_many_tokens(kind, tokens):
    """Every bucket of the table; where the logits are apart the choice is the reference's, and a choice is always of distinct experts."""
    arguments = draw(kind, tokens, 4, 4096, BF16, seed=5)
    top_k = chosen_k(kind, 4, 2)
    x, gate, noise, seed, ids, mask, _ = arguments
    with backend.use("triton"):
        routing = route(x, gate, noise, kind=kind, top_k=top_k, noise_seed=seed, sequence_ids_T=ids, mask_T=mask)
    with backend.use("reference"):
        order = deciding_logits(arguments, top_k).sort(dim=1, descending=True, stable=True)
    apart = (-order.values[:, : top_k + 1].diff(dim=1)).amin(1) > 1e-4
    assert apart.float().mean() > 0.9
    assert torch.equal(routing.experts_TK[apart], order.indices[apart][:, :top_k])
    assert (routing.experts_TK.sort(dim=1).values.diff(dim=1) > 0).all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 2), (8, 8), (64, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_poisoned_token_harms_itself_only(kind, num_experts, top_k, poison):
    top_k = chosen_k(kind, num_experts, top_k)
    x, gate, noise, seed, _, _, _ = draw(kind, 33, num_experts, 256, BF16, seed=9)
    arguments = {"kind": kind, "top_k": top_k, "noise_seed": seed, "sequence_ids_T": torch.arange(33, device=DEVICE)}
    with backend.use("triton"):
        clean = route(x, gate, noise, **arguments)
        x[7, 3] = poison
        routing = route(x, gate, noise, **arguments)
    others = torch.arange(33, device=DEVICE) != 7
    assert torch.equal(routing.weights_TK[others], clean.weights_TK[others])
    assert torch.equal(routing.experts_TK[others], clean.experts_TK[others])
    chosen = routing.experts_TK[7].tolist()
    assert len(set(chosen)) == len(chosen) and set(chosen) <= set(range(num_experts))
    assert routing.weights_TK[7].isnan().any()


@pytest.mark.parametrize("seed", [0, 1, -1, 1 << 31, 1 << 40, -(1 << 62)])
@pytest.mark.parametrize(("tokens", "num_experts"), [(1, 4), (4096, 4), (77, 64), (500, 3)])
def test_the_noise_has_the_bits_of_the_cpu(tokens, num_experts, seed):
    """In the kernel and in the reference on the card; x is 0, so that the noisy logits are the noise."""
    x, gate = randn(tokens, 64, seed=1), randn(num_experts, 64, seed=2)
    with backend.use("triton"):
        saved = route_op(x, gate, gate, torch.tensor(seed, device=DEVICE), None, None, "noisy_topk", 1)[5]
    expected = standard_normal(seed, tokens, num_experts)
    assert torch.equal(saved[1].cpu(), expected)
    assert torch.equal(standard_normal(seed, tokens, num_experts, DEVICE).cpu(), expected)


@pytest.mark.parametrize("tokens", [0, 1, 5, 64, 1000, 4096])
@pytest.mark.parametrize("routing", ["uniform", "one"])
@pytest.mark.parametrize(("num_experts", "top_k"), EXPERTS_AND_K)
def test_grouping_has_the_bits_of_the_reference(num_experts, top_k, routing, tokens):
    assert num_experts <= MOST_KERNEL_EXPERTS
    experts = choose(tokens, num_experts, top_k, routing)[1]
    with backend.use("triton"):
        grouping = group_tokens(experts, num_experts)
    for actual, expected in zip(
        (grouping.order_N, grouping.inverse_N, grouping.offsets_E1), group_tokens_reference(experts, num_experts), strict=True
    ):
        assert torch.equal(actual, expected)
    pairs = torch.arange(tokens * top_k, device=DEVICE)
    assert torch.equal(grouping.order_N[grouping.inverse_N], pairs)
    assert grouping.offsets_E1[-1] == tokens * top_k


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens(kind):
    arguments = {"kind": kind, "top_k": 2, "noise_seed": 1, "sequence_ids_T": torch.zeros(0, dtype=torch.long, device=DEVICE)}
    with backend.use("triton"):
        routing = route(randn(0, 64, seed=0), randn(4, 64, seed=1), randn(4, 64, seed=2), **arguments)
    assert len(routing.weights_TK) == len(routing.experts_TK) == 0
    assert routing.importance_E.tolist() == routing.load_E.tolist() == [0.0] * 4
