"""Routing against a per-token transcription of Shazeer et al. 2017 in plain Python, and its gradients against finite differences."""

import math
from statistics import NormalDist, fmean, pvariance

import pytest
import torch

from moe_kernels import backend
from moe_kernels.noise import standard_normal
from moe_kernels.routing import KINDS, Routing, importance_loss, load_loss, route

needs_cpp = pytest.mark.skipif(bool(backend.extension_problem()), reason=backend.extension_problem() or "built")


@pytest.fixture(autouse=True, params=["reference", pytest.param("cpp", marks=needs_cpp)])
def implementation(request):
    """Every test here runs on each implementation of the CPU."""
    with backend.use(request.param):
        yield request.param


def problem(tokens=23, num_experts=4, width=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, width), (num_experts, width), (num_experts, width)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def kth_excluding(values, k, e):
    """Shazeer et al. 2017: the k-th highest component of `values`, leaving out component `e`."""
    return sorted((value for i, value in enumerate(values) if i != e), reverse=True)[k - 1]


def softmax(values):
    exponentials = [math.exp(value - max(values)) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def shazeer(x, w_gate, w_noise, top_k, seed):
    """Equations 3-5 and 8-10 for one token at a time: experts, weights, P(x, e)."""
    num_experts = len(w_gate)
    noise = standard_normal(seed, len(x), num_experts).tolist()
    rows = []
    for t, token in enumerate(x):
        clean = [float(token @ w) for w in w_gate]
        std = [math.log1p(math.exp(float(token @ w))) for w in w_noise]
        noisy = [clean[e] + noise[t][e] * std[e] for e in range(num_experts)]
        experts = sorted(range(num_experts), key=lambda e: -noisy[e])[:top_k]
        chance = [1.0] * num_experts
        if top_k < num_experts:
            chance = [NormalDist().cdf((clean[e] - kth_excluding(noisy, top_k, e)) / std[e]) for e in range(num_experts)]
        rows.append((experts, softmax([noisy[e] for e in experts]), chance))
    return rows


def total(rows, num_experts):
    importance = [0.0] * num_experts
    load = [0.0] * num_experts
    for experts, weights, chance in rows:
        for e, weight in zip(experts, weights, strict=True):
            importance[e] += weight
        load = [a + b for a, b in zip(load, chance, strict=True)]
    return importance, load


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (2, 1), (3, 2), (4, 1), (4, 2), (4, 3), (4, 4), (8, 2), (64, 8)])
def test_noisy_topk_is_shazeers(num_experts, top_k):
    x, w_gate, w_noise = problem(num_experts=num_experts)
    rows = shazeer(x, w_gate, w_noise, top_k, seed=17)
    routing = route(x, w_gate, w_noise, kind="noisy_topk", top_k=top_k, noise_seed=17)
    importance, load = total(rows, num_experts)
    assert routing.experts_TK.tolist() == [row[0] for row in rows]
    for actual, expected in [
        (routing.weights_TK, [row[1] for row in rows]),
        (routing.logits_TE, (x @ w_gate.T).tolist()),
        (routing.importance_E, importance),
        (routing.load_E, load),
    ]:
        torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_load_estimates_the_number_of_tokens():
    """Drawn anew for one expert with the others' noise fixed, it is chosen P of the time; so the sums over many tokens agree."""
    x, w_gate, w_noise = problem(tokens=20_000, width=4)
    routing = route(x, w_gate * 0.3, w_noise * 0.3, kind="noisy_topk", top_k=2, noise_seed=3)
    counts = routing.experts_TK.flatten().bincount(minlength=4)
    assert (routing.load_E - counts).abs().max() < 4 * math.sqrt(20_000 / 4)
    assert routing.load_E.sum() != counts.sum()  # an estimate, not a count


@pytest.mark.parametrize("kind", ["noisy_topk", "topk"])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_without_noise_it_is_mixtral(kind, top_k):
    x, w_gate, w_noise = problem(tokens=50, dtype=torch.float32)
    routing = route(x, w_gate, w_noise, kind=kind, top_k=top_k)
    probabilities = (x @ w_gate.T).softmax(-1)
    values, experts = probabilities.topk(top_k)
    assert torch.equal(routing.experts_TK, experts)
    torch.testing.assert_close(routing.weights_TK, values / values.sum(-1, keepdim=True))
    assert routing.load_E.tolist() == experts.flatten().bincount(minlength=4).tolist()
    torch.testing.assert_close(routing.importance_E.sum(), torch.tensor(50.0))


def test_softmax_and_switch():
    x, w_gate, _ = problem()
    probabilities = (x @ w_gate.T).softmax(-1)
    dense = route(x, w_gate, kind="softmax", top_k=2)
    assert dense.experts_TK.sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * len(x)
    torch.testing.assert_close(torch.zeros_like(probabilities).scatter(1, dense.experts_TK, dense.weights_TK), probabilities)
    switch = route(x, w_gate, kind="switch", top_k=2)
    torch.testing.assert_close(switch.weights_TK[:, 0], probabilities.max(-1).values)
    assert torch.equal(switch.experts_TK[:, 0], probabilities.argmax(-1))


def test_sequence_makes_one_choice_per_prompt():
    x, w_gate, _ = problem(tokens=10)
    x, w_gate = x.requires_grad_(), w_gate.requires_grad_()
    ids = torch.tensor([2, 0, 0, 2, 5, 2, 0, 5, 5, 7])
    counts = torch.tensor([1, 1, 1, 1, 1, 0, 0, 1, 1, 0], dtype=torch.bool)  # sequence 7 has no vote at all
    routing = route(x, w_gate, kind="sequence", top_k=1, sequence_ids_T=ids, mask_T=counts)
    logits = x @ w_gate.T
    for s in (0, 2, 5):
        chosen = logits[(ids == s) & counts].mean(0).argmax()
        assert (routing.experts_TK[ids == s] == chosen).all()
    assert routing.experts_TK[9] == 0
    assert (routing.weights_TK == 1).all()
    # The straight-through weight of prompt 2 has the gradient of the log-probability of its choice.
    mean = logits[(ids == 2) & counts].mean(0)
    expected = torch.autograd.grad(mean.log_softmax(0)[mean.argmax()], w_gate, retain_graph=True)[0]
    actual = torch.autograd.grad(routing.weights_TK[0, 0], w_gate)[0]
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_gradients_of_weights_importance_and_load(top_k):
    inputs = [tensor.requires_grad_() for tensor in problem(tokens=9, width=5)]

    def outputs(x, w_gate, w_noise):
        routing = route(x, w_gate, w_noise, kind="noisy_topk", top_k=top_k, noise_seed=5)
        losses = importance_loss(routing.importance_E) + load_loss(routing.load_E)
        return routing.weights_TK, routing.importance_E, losses, *([routing.load_E] if top_k < 4 else [])

    assert torch.autograd.gradcheck(outputs, inputs)


@pytest.mark.parametrize("kind", ["topk", "softmax", "switch"])
def test_gradients_of_the_other_kinds(kind):
    x, w_gate, _ = (tensor.requires_grad_() for tensor in problem(tokens=9, width=5))
    assert torch.autograd.gradcheck(lambda x, w: route(x, w, kind=kind, top_k=2).weights_TK, [x, w_gate])


@pytest.mark.parametrize("kind", KINDS)
def test_ties_go_to_the_lowest_experts(kind):
    x, w_gate = torch.ones(3, 4), torch.ones(6, 4)
    routing = route(x, w_gate, kind=kind, top_k=3, sequence_ids_T=torch.zeros(3, dtype=torch.long))
    expected = list(range(routing.experts_TK.shape[1]))
    assert routing.experts_TK.tolist() == [expected] * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_poisoned_token_harms_itself_only(kind, poison):
    x, w_gate, w_noise = problem(dtype=torch.float32)
    arguments = {"kind": kind, "top_k": 2, "noise_seed": 4, "sequence_ids_T": torch.arange(len(x))}
    clean = route(x, w_gate, w_noise, **arguments)
    x[7, 3] = poison
    routing = route(x, w_gate, w_noise, **arguments)
    others = torch.arange(len(x)) != 7
    assert torch.equal(routing.weights_TK[others], clean.weights_TK[others])
    assert torch.equal(routing.experts_TK[others], clean.experts_TK[others])
    chosen = routing.experts_TK[7].tolist()
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(range(4))
    assert routing.weights_TK[7].isnan().any()


def test_masked_tokens_add_to_no_sum():
    x, w_gate, w_noise = problem()
    mask = torch.arange(len(x)) % 3 > 0
    x[0] = math.nan
    for kind in KINDS:
        arguments = {"kind": kind, "top_k": 2, "noise_seed": 4, "sequence_ids_T": torch.arange(len(x))}
        masked = route(x, w_gate, w_noise, mask_T=mask, **arguments)
        weights = masked.weights_TK[mask]
        importance = torch.zeros(len(weights), 4, dtype=weights.dtype).scatter(1, masked.experts_TK[mask], weights).sum(0)
        torch.testing.assert_close(masked.importance_E, importance)
        assert masked.load_E.sum() <= mask.sum() * 4


def test_an_underflowed_noise_leaves_finite_gradients():
    x, w_gate, w_noise = (tensor.requires_grad_() for tensor in problem(dtype=torch.float32))
    routing = route(x, w_gate, w_noise - 1000 * x.detach().mean(0).sign(), kind="noisy_topk", top_k=2, noise_seed=1)
    (load_loss(routing.load_E) + importance_loss(routing.importance_E)).backward()
    assert w_gate.grad.isfinite().all()
    assert w_noise.grad.isfinite().all()


def test_replay_gives_the_same_bits_and_bf16_computes_in_fp32():
    x, w_gate, w_noise = problem(dtype=torch.bfloat16)
    first = route(x, w_gate, w_noise, kind="noisy_topk", top_k=2, noise_seed=8)
    again = route(x, w_gate, w_noise, kind="noisy_topk", top_k=2, noise_seed=8)
    wide = route(x.float(), w_gate.float(), w_noise.float(), kind="noisy_topk", top_k=2, noise_seed=8)
    other = route(x, w_gate, w_noise, kind="noisy_topk", top_k=2, noise_seed=9)
    for field in Routing.__dataclass_fields__:
        assert torch.equal(getattr(first, field), getattr(again, field))
        assert torch.equal(getattr(first, field), getattr(wide, field))
    assert first.weights_TK.dtype == torch.float32
    assert not torch.equal(first.weights_TK, other.weights_TK)


def test_autocast_does_not_coarsen_the_logits():
    x, w_gate, w_noise = problem(dtype=torch.float32)
    expected = route(x, w_gate, w_noise, kind="noisy_topk", top_k=2, noise_seed=8)
    with torch.autocast("cpu", torch.bfloat16):
        actual = route(x, w_gate, w_noise, kind="noisy_topk", top_k=2, noise_seed=8)
    for field in Routing.__dataclass_fields__:
        assert torch.equal(getattr(actual, field), getattr(expected, field))


def test_zero_tokens():
    for kind in KINDS:
        arguments = {"kind": kind, "top_k": 2, "noise_seed": 1, "sequence_ids_T": torch.zeros(0, dtype=torch.long)}
        routing = route(torch.zeros(0, 8), torch.randn(4, 8), torch.randn(4, 8), **arguments)
        assert len(routing.weights_TK) == len(routing.experts_TK) == 0
        assert routing.importance_E.tolist() == routing.load_E.tolist() == [0.0] * 4


def test_squared_coefficient_of_variation():
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    expected = pvariance(values.tolist()) / fmean(values.tolist()) ** 2
    assert importance_loss(values).item() == pytest.approx(expected)
    assert load_loss(values).item() == pytest.approx(expected)
    assert load_loss(torch.tensor([5.0])) == 0
    assert load_loss(torch.zeros(4)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "topk", "top_k": 0}, "top_k must lie in 1..4"),
        ({"kind": "topk", "top_k": 5}, "top_k must lie in 1..4"),
        ({"kind": "best", "top_k": 1}, "unknown router kind 'best'"),
        ({"kind": "noisy_topk", "top_k": 1, "noise_seed": 0}, "needs the noise weights"),
        ({"kind": "sequence", "top_k": 1}, "needs sequence_ids_T"),
    ],
)
def test_misuse_is_a_clear_sentence(arguments, message):
    x, w_gate, _ = problem()
    with pytest.raises(ValueError, match=message):
        route(x, w_gate, **arguments)
