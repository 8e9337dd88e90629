"""Routing in C++ against the reference: in fp64 for its errors, in the same dtype for what it does with ties, NaN and infinity.

T tokens, K experts per token, E experts, D model width.
"""

import math
from itertools import count, product

import pytest
import torch

from moe_kernels import backend
from moe_kernels.noise import standard_normal
from moe_kernels.routing import KINDS, Routing, importance_loss, load_loss, route
from moe_kernels.routing_reference import route_reference

pytestmark = pytest.mark.skipif(bool(backend.extension_problem()), reason=backend.extension_problem() or "built")

# Largest error over the largest magnitude. What stays fp32 has fp32's, whatever the inputs; a gradient is rounded to its input's dtype.
ERROR = {torch.float32: 1e-5, torch.float64: 1e-13}
ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
OUTPUTS = ("weights_TK", "logits_TE", "importance_E", "load_E")
GRADIENTS = ("x", "Wg", "Wnoise")


def draw(kind, tokens, num_experts, seed=0, dtype=torch.float32, masked=True, width=37):
    """Arguments of `route_reference` but the top_k. Wnoise is small: at a std of 1e-4 the load amplifies fp32's roundings 10^4 times."""
    generator = torch.Generator().manual_seed(seed)
    x, w_gate, w_noise = (torch.randn(n, width, generator=generator).to(dtype) for n in (tokens, num_experts, num_experts))
    ids = torch.randint(0, max(1, tokens // 3 + 1), (tokens,), generator=generator) if kind == "sequence" else None
    mask = torch.rand(tokens, generator=generator) < 0.8 if masked else None
    noise = (w_noise * 0.1, torch.tensor(seed)) if kind == "noisy_topk" else (None, None)
    return [x, w_gate, *noise, ids, mask, kind]


def chosen_k(kind, num_experts, top_k):
    return {"softmax": num_experts, "switch": 1, "sequence": 1}.get(kind, min(top_k, num_experts))


def wide(arguments):
    return [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]


def closest_logits(arguments, top_k):
    """The least distance between neighbours in the order that decides, in fp64; below it a rounding may choose otherwise."""
    *_, logits, _, _, saved = route_reference(*wide(arguments), top_k)
    deciding = saved[0] if arguments[-1] == "sequence" else logits
    if arguments[-1] == "noisy_topk":
        deciding = logits + saved[1] * torch.nn.functional.softplus(saved[0])
    gaps = -deciding.sort(dim=1, descending=True).values[:, : top_k + 1].diff(dim=1)
    return gaps.min().item() if gaps.numel() else math.inf


def draw_without_ties(kind, tokens, num_experts, top_k, **options):
    drawn = (draw(kind, tokens, num_experts, seed, **options) for seed in count())
    return next(arguments for arguments in drawn if closest_logits(arguments, top_k) > 1e-4)


def random_cotangents(arguments, top_k, names=OUTPUTS):
    tokens, num_experts = len(arguments[0]), len(arguments[1])
    shapes = {"weights_TK": (tokens, top_k), "logits_TE": (tokens, num_experts), "importance_E": (num_experts,), "load_E": (num_experts,)}
    generator = torch.Generator().manual_seed(99)
    return {name: torch.randn(shapes[name], generator=generator) for name in names}


def run(name, arguments, top_k, cotangents, wanted=(0, 1, 2)):
    """Outputs by name, and the gradients of x, Wg and Wnoise by name, of an implementation."""
    x, w_gate, w_noise, seed, ids, mask, kind = arguments
    leaves = [None if a is None else a.detach().requires_grad_(i in wanted) for i, a in enumerate((x, w_gate, w_noise))]
    with backend.use(name):
        routing = route(*leaves, kind=kind, top_k=top_k, noise_seed=seed, sequence_ids_T=ids, mask_T=mask)
        total = sum((getattr(routing, name) * c.to(getattr(routing, name).dtype)).sum() for name, c in cotangents.items())
        named = {GRADIENTS[i]: leaf for i, leaf in enumerate(leaves) if leaf is not None and leaf.requires_grad}
        gradients = torch.autograd.grad(total, list(named.values()), materialize_grads=True)
    return routing, dict(zip(named, gradients, strict=True))


def assert_near(actual, expected, tolerance, label):
    assert actual.shape == expected.shape
    if expected.numel():
        error, scale = (actual.double() - expected).abs().max().item(), expected.abs().max().item()
        assert error <= tolerance * (scale + 1), (label, error, scale)


def assert_all_near(arguments, top_k, names=OUTPUTS, wanted=(0, 1, 2)):
    cotangents = random_cotangents(arguments, top_k, names)
    expected, expected_gradients = run("reference", wide(arguments), top_k, cotangents, wanted)
    actual, gradients = run("cpp", arguments, top_k, cotangents, wanted)
    assert torch.equal(actual.experts_TK, expected.experts_TK)
    computed = torch.promote_types(arguments[0].dtype, torch.float32)
    for name in OUTPUTS:
        assert getattr(actual, name).dtype == computed
        assert_near(getattr(actual, name), getattr(expected, name), ERROR[computed], name)
    assert gradients.keys() == expected_gradients.keys() != set()
    for name, gradient in gradients.items():
        assert gradient.dtype == arguments[GRADIENTS.index(name)].dtype
        assert_near(gradient, expected_gradients[name], ROUNDING.get(gradient.dtype, 0) + ERROR[computed], name)


# Tokens in part of a tile of 16, in several, and one; widths below, at and between whole steps of 16 and tasks of 128 columns.
SIZES = [(1, 1, 17), (2, 1, 33), (3, 2, 16), (4, 1, 5), (4, 2, 70), (4, 3, 19), (5, 4, 2), (8, 3, 17), (64, 8, 5), (131, 5, 18)]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(("num_experts", "top_k", "tokens"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_all_gradients(kind, num_experts, top_k, tokens, dtype):
    top_k = chosen_k(kind, num_experts, top_k)
    assert_all_near(draw_without_ties(kind, tokens, num_experts, top_k, dtype=dtype, masked=tokens > 2), top_k)


@pytest.mark.parametrize("width", [1, 15, 16, 17, 128, 129, 300])
@pytest.mark.parametrize("kind", ["noisy_topk", "sequence"])
def test_every_width(kind, width):
    top_k = chosen_k(kind, 4, 2)
    assert_all_near(draw_without_ties(kind, 21, 4, top_k, width=width), top_k)


@pytest.mark.parametrize("tokens", [1, 2, 17])
@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5])
def test_every_k(top_k, tokens):
    assert_all_near(draw_without_ties("noisy_topk", tokens, 5, top_k), top_k)


@pytest.mark.parametrize("names", [("weights_TK",), ("logits_TE",), ("importance_E",), ("load_E",), ("logits_TE", "load_E")])
@pytest.mark.parametrize("kind", ["noisy_topk", "switch", "sequence"])
def test_gradients_of_some_outputs_alone(kind, names):
    if kind != "noisy_topk" and names == ("load_E",):
        pytest.skip("a count of tokens has no gradient")
    top_k = chosen_k(kind, 4, 2)
    assert_all_near(draw_without_ties(kind, 9, 4, top_k), top_k, names=names)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2), (0, 2)])
def test_gradients_of_some_inputs_alone(wanted):
    assert_all_near(draw_without_ties("noisy_topk", 9, 4, 2), 2, wanted=wanted)


@pytest.mark.parametrize("dtypes", list(product(DTYPES[:2], DTYPES[1:], DTYPES[:1])), ids=str)
def test_weights_of_another_dtype_than_x(dtypes):
    arguments = draw_without_ties("noisy_topk", 21, 4, 2)
    arguments[:3] = [a.bfloat16().to(dtype) for a, dtype in zip(arguments[:3], dtypes, strict=True)]  # one value in every dtype
    assert_all_near(arguments, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_tokens(kind):
    top_k = chosen_k(kind, 4, 2)
    arguments = draw(kind, 0, 4, 1)
    routing, gradients = run("cpp", arguments, top_k, random_cotangents(arguments, top_k))
    assert routing.experts_TK.shape == (0, top_k)
    assert routing.importance_E.tolist() == routing.load_E.tolist() == [0.0] * 4
    assert [gradient.abs().sum() for gradient in gradients.values()] == [0.0] * len(gradients)


@pytest.mark.parametrize("names", [OUTPUTS, *((name,) for name in OUTPUTS)], ids=lambda names: "+".join(names))
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_poisoned_token_does_what_it_does_in_the_reference(kind, poison, masked, names):
    """The same experts, and NaN in the same places of all outputs and gradients. D = 8, so that no two infinities make the NaN."""
    if kind != "noisy_topk" and names == ("load_E",):
        pytest.skip("a count of tokens has no gradient")
    top_k = chosen_k(kind, 5, 2)
    arguments = draw_without_ties(kind, 11, 5, top_k, masked=False, width=8)
    arguments[0][7, 3] = poison
    if masked:
        arguments[5] = torch.arange(11) != 7
    cotangents = random_cotangents(arguments, top_k, names)
    expected, expected_gradients = run("reference", arguments, top_k, cotangents)
    actual, gradients = run("cpp", arguments, top_k, cotangents)
    assert torch.equal(actual.experts_TK, expected.experts_TK)
    assert actual.weights_TK[7].isnan().any() or kind == "sequence"
    for name in OUTPUTS:
        torch.testing.assert_close(
            getattr(actual, name), getattr(expected, name), equal_nan=True, msg=lambda text, name=name: f"{name} {text}"
        )
    for name in gradients:
        near = {"rtol": 1e-4, "atol": 1e-5, "equal_nan": True, "msg": lambda text, name=name: f"{name} {text}"}
        torch.testing.assert_close(gradients[name], expected_gradients[name], **near)


@pytest.mark.parametrize(
    "special", [[math.nan] * 6, [1, math.nan, 2, math.nan, -math.inf, math.inf], [-math.inf] * 6, [0.0, -0.0] * 3, [1.0] * 6]
)
@pytest.mark.parametrize("top_k", [1, 2, 4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_special_logits_are_ordered_as_in_the_reference(kind, top_k, special):
    """Logits as they stand: x is 1, D is 1. NaN first, then ties to the lowest expert, -0 as 0."""
    x, w_gate = torch.ones(3, 1), torch.tensor(special).view(6, 1)
    results = {}
    for name in ("reference", "cpp"):
        with backend.use(name):
            results[name] = route(x, w_gate, kind=kind, top_k=top_k, sequence_ids_T=torch.zeros(3, dtype=torch.long))
    assert torch.equal(results["cpp"].experts_TK, results["reference"].experts_TK)
    for name in OUTPUTS:
        torch.testing.assert_close(getattr(results["cpp"], name), getattr(results["reference"], name), equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_tokens_add_to_no_sum_whatever_they_hold(kind):
    top_k = chosen_k(kind, 4, 2)
    arguments = draw_without_ties(kind, 37, 4, top_k)
    arguments[5] = torch.arange(37) % 3 > 0
    sums = []
    for held in (1.0, math.nan):
        arguments[0][0] = held
        routing, _ = run("cpp", arguments, top_k, random_cotangents(arguments, top_k))
        sums.append(torch.stack((routing.importance_E, routing.load_E)))
    assert torch.equal(*sums)
    weights, experts = routing.weights_TK[arguments[5]], routing.experts_TK[arguments[5]]
    torch.testing.assert_close(routing.importance_E, torch.zeros(len(weights), 4).scatter(1, experts, weights).sum(0))


@pytest.mark.parametrize("seed", [0, 1, -1, 1 << 31, (1 << 63) - 1, -(1 << 63)])
@pytest.mark.parametrize(("tokens", "num_experts"), [(7, 3), (70, 4), (700, 64)])
def test_noise_has_the_bits_of_the_reference(seed, tokens, num_experts):
    x, w = torch.zeros(tokens, 2), torch.zeros(num_experts, 2)
    for wanted in (torch.float32, torch.float64):
        *_, saved = torch.ops.moe_kernels.route_cpp(x.to(wanted), w, w, torch.tensor(seed), None, None, "noisy_topk", 2)
        assert torch.equal(saved[1], standard_normal(seed, tokens, num_experts).to(wanted))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_repeats_change_no_bit(kind, dtype):
    """Sizes at which every loop is shared out: 2^17 products are worth a thread, and a tile of 16 tokens has 140,800."""
    top_k, threads = chosen_k(kind, 8, 2), torch.get_num_threads()
    arguments = draw(kind, 203, 8, dtype=dtype, width=1100)
    cotangents, results = random_cotangents(arguments, top_k), []
    for number in (1, 2, 5, 5):
        torch.set_num_threads(number)
        routing, gradients = run("cpp", arguments, top_k, cotangents)
        results.append([*vars(routing).values(), *gradients.values()])
    torch.set_num_threads(threads)
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_routed_alike_whatever_stands_beside_it(kind):
    """Bit for bit: what a cache decodes must be what a prefill chose. The noise of a token depends on its place, so the first are taken."""
    top_k = chosen_k(kind, 4, 2)
    arguments = draw(kind, 40, 4, masked=False)
    if kind == "sequence":
        arguments[4] = torch.arange(40)
    whole = torch.ops.moe_kernels.route_cpp(*arguments, top_k)
    for tokens in (1, 7, 17):
        part = [a[:tokens] if isinstance(a, torch.Tensor) and len(a.shape) and len(a) == 40 else a for a in arguments]
        for actual, expected in zip(torch.ops.moe_kernels.route_cpp(*part, top_k)[:3], whole, strict=False):
            assert torch.equal(actual, expected[:tokens])


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients_the_bits_are_the_same(kind):
    """Then the wrapper of the custom operator is left out."""
    top_k = chosen_k(kind, 4, 2)
    arguments = draw(kind, 21, 4)
    x, w_gate, w_noise, seed, ids, mask, _ = arguments
    traced, _ = run("cpp", arguments, top_k, random_cotangents(arguments, top_k))
    with backend.use("cpp"), torch.no_grad():
        plain = route(x, w_gate, w_noise, kind=kind, top_k=top_k, noise_seed=seed, sequence_ids_T=ids, mask_T=mask)
    for field in Routing.__dataclass_fields__:
        assert torch.equal(getattr(plain, field), getattr(traced, field))


@pytest.mark.parametrize("kind", ["noisy_topk", "sequence"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_change_nothing(kind, dtype):
    top_k = chosen_k(kind, 4, 2)
    arguments = draw(kind, 17, 4, dtype=dtype)
    results = []
    for layout in ("dense", "strided", "transposed"):
        there = [*arguments]
        for i, a in enumerate(there):
            if isinstance(a, torch.Tensor) and a.dim():
                there[i] = {
                    "dense": a,
                    "strided": a.repeat_interleave(2, dim=-1)[..., ::2],
                    "transposed": a.mT.contiguous().mT if a.dim() > 1 else a,
                }[layout]
        cotangents = random_cotangents(arguments, top_k)
        routing, gradients = run("cpp", there, top_k, {name: c.expand(2, *c.shape)[0] for name, c in cotangents.items()})
        results.append([*vars(routing).values(), *gradients.values()])
    for other in results[1:]:
        for dense, strided in zip(results[0], other, strict=True):
            assert torch.equal(dense, strided)


def test_cotangents_that_are_expanded():
    """`.sum()` hands back one number with strides 0."""
    arguments = draw("noisy_topk", 9, 4)
    results = []
    for name in ("cpp", "reference"):
        leaves = [a.detach().requires_grad_() for a in arguments[:3]]
        with backend.use(name):
            routing = route(*leaves, kind="noisy_topk", top_k=2, noise_seed=3)
            (routing.logits_TE.sum() + routing.load_E.sum()).backward()
        results.append([leaf.grad for leaf in leaves])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("raw", [-100.0, -30.0, -12.0, -3.0, 0.0, 8.0, 19.99, 20.01, 60.0])
def test_std_over_the_whole_range_of_softplus(raw):
    """x·Wnoise is `raw` for all: deep underflow, the digits that log(1 + z) loses, the clamp at 1e-6, torch's switch at 20."""
    arguments = draw_without_ties("noisy_topk", 9, 4, 2, masked=False)
    x, w_gate = arguments[:2]
    x[:, 0] = 1.0
    arguments[2] = torch.zeros_like(w_gate)
    arguments[2][:, 0] = raw
    assert closest_logits(arguments, 2) > 1e-5, "a tie in the oracle: choose another seed"
    cotangents = random_cotangents(arguments, 2)
    expected, exact = run("reference", wide(arguments), 2, cotangents)
    actual, gradients = run("cpp", arguments, 2, cotangents)
    assert torch.equal(actual.experts_TK, expected.experts_TK)
    assert_near(actual.load_E, expected.load_E, 2e-5, "load")
    for name, gradient in gradients.items():
        assert_near(gradient, exact[name], 5e-5, name)


def test_an_underflowed_noise_leaves_finite_gradients():
    x, w_gate, w_noise, *_ = draw("noisy_topk", 23, 4)
    leaves = [x, w_gate.requires_grad_(), (w_noise - 1000 * x.mean(0).sign()).requires_grad_()]
    with backend.use("cpp"):
        routing = route(*leaves, kind="noisy_topk", top_k=2, noise_seed=1)
        (load_loss(routing.load_E) + importance_loss(routing.importance_E)).backward()
    assert leaves[1].grad.isfinite().all()
    assert leaves[2].grad.isfinite().all()


def test_all_tokens_to_one_expert():
    w_gate = torch.zeros(4, 8)
    w_gate[2] = 1.0
    with backend.use("cpp"):
        routing = route(torch.ones(33, 8), w_gate, kind="topk", top_k=1)
    assert routing.experts_TK.unique().tolist() == [2]
    assert routing.load_E.tolist() == routing.importance_E.tolist() == [0, 0, 33, 0]


def test_a_backward_on_another_implementation_than_the_forward():
    """`saved` means the same to both, and the choice is not made a second time."""
    arguments = draw_without_ties("noisy_topk", 21, 4, 2)
    *_, kind = arguments
    weights, experts, logits, _, load, saved = route_reference(*arguments, 2)
    cotangents = torch.randn_like(weights), None, None, torch.randn_like(load)
    needs = [True, True, True]
    found = torch.ops.moe_kernels.route_backward_cpp(*cotangents, *arguments[:-1], experts, logits, saved, kind, needs)
    with backend.use("reference"):
        wanted = torch.ops.moe_kernels.route_backward(*cotangents, *arguments[:-1], experts, logits, saved, kind, needs)
    for actual, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({6: "best"}, "unknown router kind 'best'"),
        ({7: 5}, r"top_k must lie in 1\.\.4, not 5"),
        ({7: 0}, r"top_k must lie in 1\.\.4, not 0"),
        ({1: torch.ones(4, 36)}, r"must be \[T, D\] and \[E, D\]"),
        ({2: torch.ones(5, 37)}, "must have one shape"),
        ({3: torch.tensor([1, 2])}, "must be one int64"),
        ({5: torch.ones(8, dtype=torch.bool)}, "one entry for each token"),
        ({4: torch.arange(8), 6: "sequence", 7: 1}, "an id for each token"),
        ({4: torch.arange(9) + 1, 6: "sequence", 7: 1}, r"the sequence id 9 lies outside 0\.\.8"),
        ({4: torch.arange(9) - 1, 6: "sequence", 7: 1}, r"the sequence id -1 lies outside 0\.\.8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_do_not_fit_are_refused_before_memory_is_touched(changed, message):
    arguments = [*draw("noisy_topk", 9, 4), 2]
    for place, value in changed.items():
        arguments[place] = value
    with pytest.raises(ValueError, match=message):
        torch.ops.moe_kernels.route_cpp(*arguments)


def test_a_backward_that_does_not_fit_its_forward_is_refused():
    arguments = draw("noisy_topk", 9, 4)
    weights, experts, logits, _, _, saved = route_reference(*arguments, 2)
    good = [weights, None, None, None, *arguments[:-1], experts, logits, saved, "noisy_topk", [True] * 3]
    for place, value, message in [
        (0, weights[1:], "sizes"),
        (2, weights, "sizes"),
        (12, saved[:1], "sizes"),
        (10, experts + 4, r"outside 0\.\.3"),
    ]:
        with pytest.raises(ValueError, match=message):
            torch.ops.moe_kernels.route_backward_cpp(*good[:place], value, *good[place + 1 :])


@pytest.mark.parametrize("operator", ["route", "route_cpp"])
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind, operator):
    """The custom operator with C++ behind it, and the C++ operator itself, which has no derivative."""
    top_k = chosen_k(kind, 4, 2)
    arguments = [*draw(kind, 6, 4), top_k]
    forward = getattr(torch.ops.moe_kernels, operator)
    backward = torch.ops.moe_kernels.route_backward_cpp if operator == "route_cpp" else torch.ops.moe_kernels.route_backward
    with backend.use("cpp"):
        weights, experts, logits, importance, _, saved = forward(*arguments)
        grads = [torch.randn_like(weights), None, torch.randn_like(importance), None]
        for needs in ([True, True, kind == "noisy_topk"], [True, False, False]):
            torch.library.opcheck(backward.default, [*grads, *arguments[:6], experts, logits, saved, kind, needs])
        if operator == "route":
            arguments[1].requires_grad_()
        torch.library.opcheck(forward.default, arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_compile_of_a_full_graph(kind):
    top_k = chosen_k(kind, 4, 2)
    x, w_gate, w_noise, seed, ids, mask, _ = draw(kind, 6, 4)

    def losses(x, w_gate):
        routing = route(x, w_gate, w_noise, kind=kind, top_k=top_k, noise_seed=seed, sequence_ids_T=ids, mask_T=mask)
        return routing.weights_TK.square().sum() + importance_loss(routing.importance_E) + load_loss(routing.load_E)

    torch._dynamo.reset()
    with backend.use("cpp"):
        compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, w_gate), losses(x, w_gate))  # nothing to differentiate
        results = []
        for function in (losses, compiled):
            leaves = x.clone().requires_grad_(), w_gate.clone().requires_grad_()
            loss = function(*leaves)
            results.append((loss, *torch.autograd.grad(loss, leaves)))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)
