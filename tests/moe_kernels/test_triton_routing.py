"""The routing kernels against the reference in fp64 (in Triton's interpreter where there is no CUDA device).

T tokens, K experts per token, E experts, D model width.
"""

import math
from itertools import count

import pytest
import torch

from moe_kernels import backend, routing_launch
from moe_kernels.launch import Launch
from moe_kernels.noise import standard_normal
from moe_kernels.routing import KINDS, Routing, importance_loss, load_loss, route
from moe_kernels.routing_reference import route_reference

pytestmark = [
    pytest.mark.skipif(bool(backend.triton_problem()), reason=backend.triton_problem() or "Triton runs"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, of the interpreter, on NaN and infinity
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTH = 40  # 5 of the 16-byte loads of bf16, so that a step over D has lanes left over
# Largest error over the largest magnitude. What stays fp32 has fp32's, whatever the inputs; a gradient is rounded to its input's dtype,
# to the nearest on a device; the interpreter cuts a bf16 off.
FP32_TOLERANCE = 1e-5
BF16_ROUNDING = 2**-8 if torch.cuda.is_available() else 2**-7
TOLERANCE = {torch.float32: FP32_TOLERANCE, torch.float16: 2**-11 + FP32_TOLERANCE, torch.bfloat16: BF16_ROUNDING + FP32_TOLERANCE}
OUTPUTS = ("weights_TK", "logits_TE", "importance_E", "load_E")


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Blocks as large as the interpreter likes them: it runs one program after the other."""
    use_blocks(monkeypatch, 16)


def use_blocks(monkeypatch, block_m, split_k=3):
    launch = Launch(block_m=block_m, block_k=16, split_k=split_k, num_warps=1)
    monkeypatch.setattr(routing_launch, "choose_launch", lambda op, *sizes: launch)


def draw(kind, tokens, num_experts, seed, dtype=torch.float32, masked=True):
    """Arguments of `route_reference` but the top_k. Wnoise is small: at a std of 1e-4 the load amplifies fp32's roundings 10^4 times."""
    generator = torch.Generator().manual_seed(seed)
    x, w_gate, w_noise = (torch.randn(n, WIDTH, generator=generator).to(DEVICE, dtype) for n in (tokens, num_experts, num_experts))
    ids = torch.randint(0, max(1, tokens // 3 + 1), (tokens,), generator=generator).to(DEVICE) if kind == "sequence" else None
    mask = (torch.rand(tokens, generator=generator) < 0.8).to(DEVICE) if masked else None
    noise = (w_noise * 0.1, torch.tensor(seed, device=DEVICE)) if kind == "noisy_topk" else (None, None)
    return [x, w_gate, *noise, ids, mask, kind]


def chosen_k(kind, num_experts, top_k):
    return {"softmax": num_experts, "switch": 1, "sequence": 1}.get(kind, min(top_k, num_experts))


def closest_logits(arguments, top_k):
    """The least distance between neighbours in the order that decides, in fp64; below it a rounding may choose otherwise."""
    x, w_gate, w_noise, seed, ids, mask, kind = arguments
    wide = [None if tensor is None else tensor.double() for tensor in (x, w_gate, w_noise)]
    *_, logits, _, _, saved = route_reference(*wide, seed, ids, mask, kind, top_k)
    deciding = saved[0] if kind == "sequence" else logits
    if kind == "noisy_topk":
        deciding = logits + saved[1] * torch.nn.functional.softplus(saved[0])
    gaps = -deciding.sort(dim=1, descending=True).values[:, : top_k + 1].diff(dim=1)
    return gaps.min().item() if gaps.numel() else math.inf


def draw_without_ties(kind, tokens, num_experts, top_k, dtype, masked=True):
    for seed in count():
        arguments = draw(kind, tokens, num_experts, seed, dtype, masked)
        if closest_logits(arguments, top_k) > 1e-4:
            return arguments
    raise AssertionError


def run(arguments, top_k, cotangents, wide, wanted=(0, 1, 2)):
    """Outputs by name, and the gradients of x, Wg and Wnoise; `wide` is the reference in fp64 with autograd, without the operator."""
    x, w_gate, w_noise, seed, ids, mask, kind = arguments
    leaves = [None if tensor is None else tensor.double() if wide else tensor.clone() for tensor in (x, w_gate, w_noise)]
    for i in wanted:
        if leaves[i] is not None:
            leaves[i].requires_grad_()
    if wide:
        *fields, _ = route_reference(*leaves, seed, ids, mask, kind, top_k)
        routing = Routing(*fields)
    else:
        with backend.use("triton"):
            routing = route(*leaves, kind=kind, top_k=top_k, noise_seed=seed, sequence_ids_T=ids, mask_T=mask)
    total = sum((getattr(routing, name) * cotangent.to(getattr(routing, name).dtype)).sum() for name, cotangent in cotangents.items())
    with backend.use("reference" if wide else "triton"):
        gradients = torch.autograd.grad(total, [leaf for leaf in leaves if leaf is not None and leaf.requires_grad], materialize_grads=True)
    return routing, gradients


def random_cotangents(arguments, top_k, names=OUTPUTS):
    tokens, num_experts = len(arguments[0]), len(arguments[1])
    shapes = {"weights_TK": (tokens, top_k), "logits_TE": (tokens, num_experts), "importance_E": (num_experts,), "load_E": (num_experts,)}
    generator = torch.Generator().manual_seed(99)
    return {name: torch.randn(shapes[name], generator=generator).to(DEVICE) for name in names}


def assert_near(actual, expected, tolerance):
    assert actual.shape == expected.shape
    if not expected.numel():
        return
    error = (actual.double() - expected).abs().max().item()
    assert error <= tolerance * expected.abs().max().item() + 5e-6, (error, expected.abs().max().item())


def assert_all_near(arguments, top_k, names=OUTPUTS, wanted=(0, 1, 2)):
    cotangents = random_cotangents(arguments, top_k, names)
    expected, expected_gradients = run(arguments, top_k, cotangents, wide=True, wanted=wanted)
    actual, actual_gradients = run(arguments, top_k, cotangents, wide=False, wanted=wanted)
    assert torch.equal(actual.experts_TK, expected.experts_TK)
    for name in OUTPUTS:
        assert getattr(actual, name).dtype == torch.float32
        assert_near(getattr(actual, name), getattr(expected, name), FP32_TOLERANCE)
    assert len(actual_gradients) == len(expected_gradients) > 0
    for gradient, wide in zip(actual_gradients, expected_gradients, strict=True):
        assert gradient.dtype == arguments[0].dtype
        assert_near(gradient, wide, TOLERANCE[gradient.dtype])


SIZES = [(1, 1, 17), (2, 1, 33), (3, 2, 17), (4, 2, 70), (5, 4, 2), (8, 3, 17), (64, 8, 5)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("num_experts", "top_k", "tokens"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_all_gradients(kind, num_experts, top_k, tokens, dtype):
    top_k = chosen_k(kind, num_experts, top_k)
    assert_all_near(draw_without_ties(kind, tokens, num_experts, top_k, dtype, masked=tokens > 2), top_k)


@pytest.mark.parametrize("tokens", [1, 2, 17])
@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5])
def test_every_k(top_k, tokens):
    assert_all_near(draw_without_ties("noisy_topk", tokens, 5, top_k, torch.float32), top_k)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("kind", ["noisy_topk", "switch", "sequence"])
def test_gradients_of_one_output_alone(kind, name):
    if kind != "noisy_topk" and name == "load_E":
        pytest.skip("a count of tokens has no gradient")
    top_k = chosen_k(kind, 4, 2)
    assert_all_near(draw_without_ties(kind, 9, 4, top_k, torch.float32), top_k, names=[name])


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2)])
def test_gradients_of_some_inputs_alone(wanted):
    assert_all_near(draw_without_ties("noisy_topk", 9, 4, 2, torch.float32), 2, wanted=wanted)


def test_weights_of_another_dtype_than_x():
    arguments = draw_without_ties("noisy_topk", 9, 4, 2, torch.float32)
    x, w_gate, w_noise, seed, _, _, kind = arguments
    with backend.use("triton"):
        leaves = [x.bfloat16().requires_grad_(), w_gate.clone().requires_grad_(), w_noise.half().requires_grad_()]
        routing = route(*leaves, kind=kind, top_k=2, noise_seed=seed)
        routing.load_E.square().sum().backward()
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    _, experts, _, _, load, _ = route_reference(*wide, seed, None, None, kind, 2)
    load.square().sum().backward()
    assert torch.equal(routing.experts_TK, experts)
    for leaf, expected in zip(leaves, wide, strict=True):
        assert_near(leaf.grad, expected.grad, TOLERANCE[leaf.dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_zero_tokens(kind):
    top_k = chosen_k(kind, 4, 2)
    arguments = draw(kind, 0, 4, 1)
    routing, gradients = run(arguments, top_k, random_cotangents(arguments, top_k), wide=False)
    assert routing.experts_TK.shape == (0, top_k)
    assert routing.importance_E.tolist() == routing.load_E.tolist() == [0.0] * 4
    assert [gradient.abs().sum() for gradient in gradients] == [0.0] * len(gradients)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_poisoned_token_gets_distinct_experts_and_harms_no_other(kind, poison):
    x, w_gate, w_noise, seed, _, _, kind = draw(kind, 11, 5, 3)
    ids = torch.arange(11, device=DEVICE)
    results = {}
    for name, implementation, first in [("clean", "triton", 0.5), ("kernel", "triton", poison), ("reference", "reference", poison)]:
        x[7, 3] = first
        with backend.use(implementation):
            results[name] = route(x, w_gate, w_noise, kind=kind, top_k=2, noise_seed=seed, sequence_ids_T=ids)
    clean, kernel, reference = results.values()
    others = ids != 7
    assert torch.equal(kernel.weights_TK[others], clean.weights_TK[others])
    assert torch.equal(kernel.experts_TK[others], clean.experts_TK[others])
    chosen = kernel.experts_TK[7].tolist()
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(range(5))
    assert kernel.experts_TK[7].equal(reference.experts_TK[7])
    for field in OUTPUTS:
        torch.testing.assert_close(getattr(kernel, field), getattr(reference, field), equal_nan=True)
    assert kernel.weights_TK[7].isnan().any()


@pytest.mark.parametrize("kind", KINDS)
def test_ties_go_to_the_lowest_experts(kind):
    x, w_gate = torch.ones(3, 4, device=DEVICE), torch.ones(6, 4, device=DEVICE)
    w_gate[2:4] = 0.0
    w_gate[3] *= -1.0  # -0.0 ties with 0.0
    with backend.use("triton"):
        routing = route(x, w_gate, kind=kind, top_k=6, sequence_ids_T=torch.zeros(3, dtype=torch.long, device=DEVICE))
    expected = [0, 1, 4, 5, 2, 3][: routing.experts_TK.shape[1]]
    assert routing.experts_TK.tolist() == [expected] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_masked_tokens_add_to_no_sum_whatever_they_hold(kind):
    top_k = chosen_k(kind, 4, 2)
    x, w_gate, w_noise, seed, ids, _, _ = draw_without_ties(kind, 17, 4, top_k, torch.float32)
    mask = torch.arange(17, device=DEVICE) % 3 > 0
    sums = []
    for held in (1.0, math.nan):
        x[0] = held
        with backend.use("triton"):
            routing = route(x, w_gate, w_noise, kind=kind, top_k=top_k, noise_seed=seed, sequence_ids_T=ids, mask_T=mask)
        sums.append(torch.stack((routing.importance_E, routing.load_E)))
    assert torch.equal(*sums)
    weights, experts = routing.weights_TK[mask], routing.experts_TK[mask]
    expected = torch.zeros(len(weights), 4, device=DEVICE).scatter(1, experts, weights).sum(0)
    torch.testing.assert_close(routing.importance_E, expected)


@pytest.mark.parametrize("seed", [0, 1, -1, 1 << 31, (1 << 63) - 1, -(1 << 63)])
@pytest.mark.parametrize("num_experts", [3, 4])
def test_noise_has_the_bits_of_the_reference(seed, num_experts):
    x, w_gate, w_noise, *_ = draw("noisy_topk", 70, num_experts, 0)
    with backend.use("triton"):
        *_, saved = torch.ops.moe_kernels.route(x, w_gate, w_noise, torch.tensor(seed, device=DEVICE), None, None, "noisy_topk", 2)
    assert torch.equal(saved[1].cpu(), standard_normal(seed, 70, num_experts))


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_a_block_changes_no_noise_and_no_choice(kind, monkeypatch):
    top_k = chosen_k(kind, 4, 2)
    x, w_gate, w_noise, seed, ids, mask, _ = draw_without_ties(kind, 21, 4, top_k, torch.bfloat16)
    results = []
    for block_m in (1, 4, 32):
        use_blocks(monkeypatch, block_m)
        with backend.use("triton"):
            results.append(torch.ops.moe_kernels.route(x, w_gate, w_noise, seed, ids, mask, kind, top_k))
    weights, experts, logits, importance, load, saved = results[0]
    for other in results[1:]:
        assert torch.equal(other[1], experts)
        if kind == "noisy_topk":
            assert torch.equal(other[5][1], saved[1])
        for actual, expected in zip(other, (weights, experts, logits, importance, load, saved), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_repeats_are_equal_bit_for_bit(kind):
    top_k = chosen_k(kind, 4, 2)
    arguments = draw(kind, 40, 4, 5, torch.bfloat16)
    first, *others = [run(arguments, top_k, random_cotangents(arguments, top_k), wide=False) for _ in range(2)]
    for routing, gradients in others:
        for field in Routing.__dataclass_fields__:
            assert torch.equal(getattr(routing, field), getattr(first[0], field))
        for gradient, expected in zip(gradients, first[1], strict=True):
            assert torch.equal(gradient, expected)


def test_a_seed_is_the_same_as_a_number_and_as_a_tensor():
    x, w_gate, w_noise, *_ = draw("noisy_topk", 9, 4, 0)
    with backend.use("triton"):
        results = {
            seed: route(x, w_gate, w_noise, kind="noisy_topk", top_k=2, noise_seed=seed)
            for seed in (7, 7 + (1 << 64), -(1 << 63), 1 << 63, torch.tensor(7, device=DEVICE), 8)
        }
    same, wrapped, low, high, tensor, other = (routing.weights_TK for routing in results.values())
    assert torch.equal(same, wrapped)
    assert torch.equal(same, tensor)
    assert torch.equal(low, high)
    assert not torch.equal(same, other)
    assert not torch.equal(same, low)


@pytest.mark.parametrize("seed", [torch.tensor(7.0, device=DEVICE), torch.tensor([7, 8], device=DEVICE), torch.tensor(7, device="meta")])
def test_a_tensor_that_is_no_seed_is_refused(seed):
    x, w_gate, w_noise, *_ = draw("noisy_topk", 9, 4, 0)
    with pytest.raises(ValueError, match="must be one int64 on"):
        route(x, w_gate, w_noise, kind="noisy_topk", top_k=2, noise_seed=seed)


@pytest.mark.parametrize("kind", ["noisy_topk", "sequence"])
def test_strides_change_nothing(kind):
    top_k = chosen_k(kind, 4, 2)
    x, w_gate, w_noise, seed, ids, mask, _ = draw(kind, 17, 4, 0)
    results = []
    for strided in (False, True):
        there = [
            t if t is None or not strided else t.repeat_interleave(2, dim=t.dim() - 1)[..., ::2] for t in (x, w_gate, w_noise, ids, mask)
        ]
        leaves = [t if t is None else t.detach().requires_grad_() for t in there[:3]]
        with backend.use("triton"):
            routing = route(*leaves, kind=kind, top_k=top_k, noise_seed=seed, sequence_ids_T=there[3], mask_T=there[4])
            routing.weights_TK.sum(1).cumsum(0).sum().backward()
        results.append([*vars(routing).values(), leaves[0].grad, leaves[1].grad])
    for dense, strided in zip(*results, strict=True):
        assert torch.equal(dense, strided)


def test_the_noise_is_off_without_a_seed_and_leaves_mixtral():
    x, w_gate, w_noise, *_ = draw_without_ties("topk", 17, 4, 2, torch.float32)
    with backend.use("triton"):
        quiet = route(x, w_gate, w_noise, kind="noisy_topk", top_k=2)
        plain = route(x, w_gate, kind="topk", top_k=2)
    for field in Routing.__dataclass_fields__:
        assert torch.equal(getattr(quiet, field), getattr(plain, field))
    assert quiet.load_E.tolist() == quiet.experts_TK.flatten().bincount(minlength=4).tolist()


@pytest.mark.parametrize("raw", [-100.0, -30.0, -12.0, -3.0, 0.0, 8.0, 19.99, 20.01, 60.0])
def test_std_over_the_whole_range_of_softplus(raw):
    """x·Wnoise is `raw` for all: deep underflow, the digits that log(1 + z) loses, the clamp at 1e-6, torch's switch at 20."""
    x, w_gate, _, seed, _, _, kind = draw_without_ties("noisy_topk", 9, 4, 2, torch.float32)
    x[:, 0] = 1.0
    w_noise = torch.zeros_like(w_gate)
    w_noise[:, 0] = raw
    arguments = [x, w_gate, w_noise, seed, None, None, kind]
    if closest_logits(arguments, 2) < 1e-5:
        pytest.fail("a tie in the oracle: choose another seed")
    cotangents = random_cotangents(arguments, 2)
    expected, wide = run(arguments, 2, cotangents, wide=True)
    actual, gradients = run(arguments, 2, cotangents, wide=False)
    assert torch.equal(actual.experts_TK, expected.experts_TK)
    assert_near(actual.load_E, expected.load_E, 2e-5)
    for gradient, exact in zip(gradients, wide, strict=True):
        assert_near(gradient, exact, 5e-5)


def test_an_underflowed_noise_leaves_finite_gradients():
    x, w_gate, w_noise, *_ = draw("noisy_topk", 23, 4, 0)
    leaves = [x, w_gate.requires_grad_(), (w_noise - 1000 * x.mean(0).sign()).requires_grad_()]
    with backend.use("triton"):
        routing = route(*leaves, kind="noisy_topk", top_k=2, noise_seed=1)
        (load_loss(routing.load_E) + importance_loss(routing.importance_E)).backward()
    assert leaves[1].grad.isfinite().all()
    assert leaves[2].grad.isfinite().all()


def test_more_experts_than_the_kernels_take_run_the_reference():
    x, w_gate = torch.randn(5, 8, device=DEVICE), torch.randn(65, 8, device=DEVICE)
    with backend.use("triton"):
        routing = route(x, w_gate, kind="topk", top_k=3)
    assert torch.equal(routing.experts_TK, (x @ w_gate.T).topk(3).indices)


def test_all_tokens_to_one_expert():
    x, w_gate = torch.ones(33, 8, device=DEVICE), torch.zeros(4, 8, device=DEVICE)
    w_gate[2] = 1.0
    with backend.use("triton"):
        routing = route(x, w_gate, kind="topk", top_k=1)
    assert routing.experts_TK.unique().tolist() == [2]
    assert routing.load_E.tolist() == routing.importance_E.tolist() == [0, 0, 33, 0]


def test_the_arrival_counter_is_zero_again():
    arguments = draw("noisy_topk", 70, 4, 0)
    counters = []
    original = routing_launch._arrival_counter
    routing_launch._arrival_counter = lambda device: counters.append(original(device)) or counters[-1]
    try:
        run(arguments, 2, random_cotangents(arguments, 2), wide=False)
    finally:
        routing_launch._arrival_counter = original
    assert [counter.item() for counter in counters] == [0]


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind, implementation):
    top_k = chosen_k(kind, 4, 2)
    x, w_gate, w_noise, seed, ids, mask, _ = draw(kind, 6, 4, 0)
    arguments = [x, w_gate.requires_grad_(), w_noise, seed, ids, mask, kind, top_k]
    with backend.use(implementation):
        torch.library.opcheck(torch.ops.moe_kernels.route.default, arguments)
        weights, experts, logits, importance, _, saved = torch.ops.moe_kernels.route(
            *[argument.detach() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
        )
        kept = [x, w_gate.detach(), w_noise, seed, ids, mask, experts, logits, saved, kind]
        grads = [torch.randn_like(weights), None, torch.randn_like(importance), None]
        torch.library.opcheck(torch.ops.moe_kernels.route_backward.default, [*grads, *kept, [True, True, w_noise is not None]])


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("kind", KINDS)
def test_compile_of_a_full_graph(kind, implementation):
    top_k = chosen_k(kind, 4, 2)
    x, w_gate, w_noise, seed, ids, mask, _ = draw(kind, 6, 4, 0)

    def losses(x, w_gate):
        routing = route(x, w_gate, w_noise, kind=kind, top_k=top_k, noise_seed=seed, sequence_ids_T=ids, mask_T=mask)
        return routing.weights_TK.square().sum() + importance_loss(routing.importance_E) + load_loss(routing.load_E)

    results = []
    torch._dynamo.reset()
    with backend.use(implementation):
        for function in (losses, torch.compile(losses, fullgraph=True, backend="aot_eager")):
            leaves = x.clone().requires_grad_(), w_gate.clone().requires_grad_()
            loss = function(*leaves)
            results.append((loss, *torch.autograd.grad(loss, leaves)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize(("kind", "name"), [("noisy_topk", "w_noise_ED"), ("sequence", "sequence_ids_T"), ("topk", "mask_T")])
def test_a_tensor_of_another_size_is_refused_before_a_kernel_reads_past_its_end(kind, name):
    x, gate, noise, seed, ids, mask, _ = draw(kind, 7, 4, seed=3)
    given = {"w_noise_ED": noise, "noise_seed": seed, "sequence_ids_T": ids, "mask_T": mask}
    with backend.use("triton"):
        route(x, gate, kind=kind, top_k=1, **given)
        with pytest.raises(ValueError, match=rf"{name} of shape \[\d"):
            route(x, gate, kind=kind, top_k=1, **{**given, name: given[name][:-1]})
