"""Both expert layouts against a loop over tokens in fp64 that is the formula, and their gradients against finite differences."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import silu

from moe_kernels import backend
from moe_kernels.experts import ExpertLoRA, LoRA, moe_dense, moe_lora
from moe_kernels.nf4 import dequantize_nf4, quantize_nf4
from moe_kernels.routing import Routing, route

T, D, F, E, R = 11, 6, 10, 4, 3


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64).to(dtype)


def make_routing(x, kind="topk", top_k=2, num_experts=E):
    return route(x, randn(num_experts, x.shape[1], seed=7, dtype=x.dtype), kind=kind, top_k=top_k)


def make_lora(scaling=0.5, num_experts=E, width=D, hidden=F, dtype=torch.float64):
    def factors(out, into, seed):
        return LoRA(randn(num_experts, R, into, seed=seed, dtype=dtype), randn(num_experts, out, R, seed=seed, dtype=dtype), scaling)

    return ExpertLoRA(w1=factors(hidden, width, 1), w3=factors(hidden, width, 2), w2=factors(width, hidden, 3))


def make_bases(run, dtype=torch.float64, width=D, hidden=F):
    """The dense matrices that the layout `run` takes."""
    if run is moe_dense:
        return [randn(E, 2 * hidden, width, dtype=dtype), randn(E, width, hidden, dtype=dtype)]
    return [randn(hidden, width, seed=1, dtype=dtype), randn(hidden, width, seed=2, dtype=dtype), randn(width, hidden, seed=3, dtype=dtype)]


def merged(w, lora):
    return torch.stack([w + lora.scaling * b @ a for a, b in zip(lora.a, lora.b, strict=True)])


def oracle(x, routing, w1, w3, w2):
    """y = sum of g_e W2_e (silu(W1_e x) * W3_e x), one token at a time; w1, w3, w2 have an expert dimension."""
    rows = []
    for token, weights, experts in zip(x, routing.weights_TK, routing.experts_TK.tolist(), strict=True):
        terms = [g * (w2[e] @ (silu(w1[e] @ token) * (w3[e] @ token))) for g, e in zip(weights, experts, strict=True)]
        rows.append(sum(terms))
    return torch.stack(rows)


@pytest.mark.parametrize(("kind", "top_k"), [("topk", 1), ("topk", 2), ("topk", 4), ("softmax", 1), ("switch", 1)])
def test_dense_is_the_formula(kind, top_k):
    x = randn(T, D)
    routing = make_routing(x, kind, top_k)
    w1, w3, w2 = randn(E, F, D, seed=1), randn(E, F, D, seed=2), randn(E, D, F, seed=3)
    y = moe_dense(x, routing, torch.cat([w1, w3], dim=1), w2)
    torch.testing.assert_close(y, oracle(x, routing, w1, w3, w2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "top_k"), [("topk", 1), ("topk", 2), ("topk", 4), ("softmax", 1), ("switch", 1)])
def test_lora_layout_is_base_plus_ba(kind, top_k):
    x, lora = randn(T, D), make_lora()
    routing = make_routing(x, kind, top_k)
    w1, w3, w2 = randn(F, D, seed=1), randn(F, D, seed=2), randn(D, F, seed=3)
    experts = [merged(w, factors) for w, factors in [(w1, lora.w1), (w3, lora.w3), (w2, lora.w2)]]
    expected = oracle(x, routing, *experts)
    shared = moe_lora(x, routing, w1, w3, w2, lora)
    on_dense = moe_dense(x, routing, torch.cat([w1, w3]).expand(E, -1, -1), w2.expand(E, -1, -1), lora)
    merged_dense = moe_dense(x, routing, torch.cat(experts[:2], dim=1), experts[2])
    for y in (shared, on_dense, merged_dense):
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def factors_of(lora):
    return [tensor for part in (lora.w1, lora.w3, lora.w2) for tensor in (part.a, part.b)]


@pytest.mark.parametrize("run", [moe_dense, moe_lora])
def test_gradients(run):
    """Of x, the gate (through the weights), the dense matrices and all factors."""
    width, hidden = 3, 4

    def forward(x, w_gate, *rest):
        a1, b1, a3, b3, a2, b2 = rest[-6:]
        factors = ExpertLoRA(LoRA(a1, b1, 0.5), LoRA(a3, b3, 0.5), LoRA(a2, b2, 0.5))
        return run(x, route(x, w_gate, kind="topk", top_k=2), *rest[:-6], factors)

    factors = factors_of(make_lora(width=width, hidden=hidden))
    inputs = [randn(5, width), randn(E, width, seed=7), *make_bases(run, width=width, hidden=hidden), *factors]
    assert torch.autograd.gradcheck(forward, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize("tokens", [1, 11])
def test_nf4_weights_are_their_dequantised_values(tokens):
    """One forward and backward with NF4 against the same with the dequantised tensors: equal to fp32 rounding."""
    num_experts, width, hidden = 3, 64, 96
    w_gate_up, w_down = randn(num_experts, 2 * hidden, width), randn(num_experts, width, hidden)
    stacks = [quantize_nf4(w.float()) for w in (w_gate_up, w_down)]
    bases = [quantize_nf4(w.float()) for w in (w_gate_up[0, :hidden], w_gate_up[0, hidden:], w_down[0])]
    lora = make_lora(num_experts=num_experts, width=width, hidden=hidden, dtype=torch.float32)
    x = randn(tokens, width, dtype=torch.float32).requires_grad_()
    routing = make_routing(x, num_experts=num_experts)
    for run, weights in [(moe_dense, stacks), (moe_lora, bases)]:
        results = []
        for form in (weights, [dequantize_nf4(q) for q in weights]):
            y = run(x, routing, *form, lora)
            results.append((y, torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0]))
        for actual, expected in zip(*results, strict=True):
            assert (actual - expected).norm() < 2e-6 * expected.norm()


@pytest.mark.parametrize("run", [moe_dense, moe_lora])
def test_an_expert_without_tokens_gets_zero_gradients(run):
    lora, bases = make_lora(), make_bases(run)
    per_expert = factors_of(lora) + (bases if run is moe_dense else [])
    for tensor in per_expert:
        tensor.requires_grad_()
    x = randn(T, D).abs()
    routing = route(x, -torch.arange(E)[:, None] * torch.ones(E, D, dtype=x.dtype), kind="topk", top_k=2)
    assert set(routing.experts_TK.flatten().tolist()) == {0, 1}
    run(x, routing, *bases, lora).sum().backward()
    for tensor in per_expert:
        assert tensor.grad[0].any()
        assert tensor.grad[1].any()
        assert not tensor.grad[2:].any()


@pytest.mark.parametrize("run", [moe_dense, moe_lora])
def test_a_poisoned_token_harms_itself_only(run):
    lora, x, bases = make_lora(), randn(T, D), make_bases(run)
    clean = run(x, make_routing(x), *bases, lora)
    x[4] = float("nan")
    y = run(x, make_routing(x), *bases, lora)
    others = torch.arange(T) != 4
    torch.testing.assert_close(y[others], clean[others], rtol=1e-12, atol=1e-12)
    assert y[4].isnan().all()


IMPLEMENTATIONS = ["reference", *([] if backend.extension_problem() else ["cpp"])]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("run", [moe_dense, moe_lora])
def test_without_tokens_every_gradient_is_zero(run, implementation):
    x = torch.zeros(0, D, requires_grad=True)
    bases = [base.requires_grad_() for base in make_bases(run, torch.float32)]
    lora = make_lora(dtype=torch.float32)
    leaves = [x, *bases, *(factor.requires_grad_() for factor in factors_of(lora))]
    weights = torch.zeros(0, 2, requires_grad=True)
    with backend.use(implementation):
        run(x, Routing(weights, torch.zeros(0, 2, dtype=torch.int64)), *bases, lora).sum().backward()
        with torch.autocast("cpu", torch.bfloat16):
            assert run(x, Routing(weights, torch.zeros(0, 2, dtype=torch.int64)), *bases, lora).dtype == torch.bfloat16
    assert weights.grad is not None
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("run", [moe_dense, moe_lora])
def test_what_does_not_fit_is_refused(run, implementation):
    x = randn(5, D)
    routing, lora, bases = make_routing(x), make_lora(), make_bases(run)
    fewer, other, scalar = make_lora(num_experts=E - 1), make_bases(run, hidden=F + 1), torch.ones(())
    stray = replace(routing, experts_TK=routing.experts_TK + E)
    cases = [
        ((randn(7, D), routing, *bases, lora), "for 7 tokens both are"),
        ((x, replace(routing, weights_TK=routing.weights_TK[:, :1]), *bases, lora), "the routing's weights and experts have the shapes"),
        ((x, stray, *bases, lora), f"which lies outside 0..{E - 1}"),
        ((randn(5, D + 1), routing, *bases, lora), "do not fit: they are"),
        ((x[0], routing, *bases, lora), "do not fit: they are"),
        ((x, routing, *bases[:-1], other[-1], lora), "do not fit: they are"),
        ((x, routing, bases[0][0], *bases[1:], lora), "do not fit: they are"),
        ((scalar, routing, *bases, lora), "do not fit: they are"),
        *(((x, routing, *bases[:n], scalar, *bases[n + 1 :], lora), "do not fit: they are") for n in range(len(bases))),
        ((x, routing, *bases, replace(lora, w1=replace(lora.w1, a=scalar))), r"the LoRA factors a and b of w1 have the shapes \[\], "),
        ((x, routing, *bases, replace(fewer, w1=lora.w1)), f"the LoRA factors a and b of w3 have the shapes \\[{E - 1}, "),
        ((x.long(), routing, *bases, lora), "x must be a floating-point tensor, not torch.int64"),
    ]
    with backend.use(implementation):
        for arguments, message in cases:
            with pytest.raises(ValueError, match=message):
                run(*arguments)


@pytest.mark.parametrize("run", [moe_dense, moe_lora])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_output_dtype_zero_tokens_and_equal_bits_in_a_repeat(run, dtype):
    lora = make_lora(dtype=torch.float32)
    bases = make_bases(run, dtype)
    repeats = []
    for _ in range(3):
        x = randn(40, D, dtype=dtype).requires_grad_()
        y = run(x, make_routing(x, top_k=3), *bases, lora)
        y.float().square().sum().backward()
        repeats.append((y, x.grad))
    assert y.dtype == dtype
    for y, grad in repeats[1:]:
        assert torch.equal(y, repeats[0][0])
        assert torch.equal(grad, repeats[0][1])
    empty = torch.zeros(0, D, dtype=dtype)
    assert run(empty, make_routing(empty), *bases, lora).shape == (0, D)


@pytest.mark.parametrize("run", [moe_dense, moe_lora])
def test_autocast_runs_forward_and_backward(run):
    lora, bases = make_lora(dtype=torch.float32), make_bases(run, torch.float32)
    results = []
    for enabled in (False, True):
        x = randn(T, D, dtype=torch.float32).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = run(x, make_routing(x), *bases, lora)
        y.float().sum().backward()
        results.append((y.detach().float(), x.grad))
    for exact, rounded in zip(*results, strict=True):
        assert (exact - rounded).norm() < 0.03 * exact.norm()
