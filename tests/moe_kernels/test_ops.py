"""The operators as PyTorch wants its operators: schema, fakes, autograd, and nothing for `torch.compile` to break on."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad

from moe_kernels import backend
from moe_kernels.experts import ExpertLoRA, LoRA, moe_dense, moe_lora
from moe_kernels.linear import linear_nf4
from moe_kernels.nf4 import dequantize_nf4, quantize_nf4
from moe_kernels.nf4_format import dynamic_map, dynamic_map_on, level_pairs
from moe_kernels.routing import Routing, importance_loss, load_loss, route
from moe_kernels.weights import flatten

T, E, K, D, F, R = 5, 4, 2, 64, 64, 4
needs_triton = pytest.mark.skipif(bool(backend.triton_problem()), reason=backend.triton_problem() or "Triton runs")
needs_cpp = pytest.mark.skipif(bool(backend.extension_problem()), reason=backend.extension_problem() or "the extension is built")
NAMES = ["reference", pytest.param("cpp", marks=needs_cpp), pytest.param("triton", marks=needs_triton)]


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def base_of(shared, nf4):
    weights = [randn(F, D) / 8, randn(F, D) / 8, randn(D, F) / 8] if shared else [randn(E, 2 * F, D) / 8, randn(E, D, F) / 8]
    return [quantize_nf4(w) if nf4 else w.requires_grad_() for w in weights]


def factors():
    return [randn(E, *shape).requires_grad_() for shape in [(R, D), (F, R), (R, D), (F, R), (R, F), (D, R)]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shared", "nf4", "lora", "save"), [(0, 1, 0, 1), (0, 0, 1, 1), (1, 1, 1, 1), (1, 0, 1, 1), (0, 1, 0, 0)])
def test_opcheck_of_the_experts(name, shared, nf4, lora, save):
    chosen = torch.stack([torch.randperm(E)[:K] for _ in range(T)])
    weights = torch.rand(T, K, requires_grad=True)
    low_rank = factors() if lora else []
    args = randn(T, D).requires_grad_(), weights, chosen, *flatten(base_of(shared, nf4)), low_rank, [0.5, 1.0, 2.0], bool(save), 0
    # Without `save` there is no backward to check.
    tests = ("test_schema", "test_faketensor", *(("test_autograd_registration", "test_aot_dispatch_dynamic") if save else ()))
    with backend.use(name):
        torch.library.opcheck(torch.ops.moe_kernels.experts.default, args, test_utils=tests)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shared", "nf4"), [(0, 1), (0, 0), (1, 1), (1, 0)])
def test_opcheck_of_the_experts_backward(name, shared, nf4):
    chosen, weights = torch.stack([torch.randperm(E)[:K] for _ in range(T)]), torch.rand(T, K)
    x, base, low_rank = randn(T, D), flatten([w if nf4 else w.detach() for w in base_of(shared, nf4)]), [f.detach() for f in factors()]
    with backend.use(name):
        _, *saved = torch.ops.moe_kernels.experts(x, weights, chosen, *base, low_rank, [0.5, 1.0, 2.0], True, 0)
        args = randn(D, T).T.contiguous(), x, weights, chosen, *base, low_rank, [0.5, 1.0, 2.0], saved, not nf4
        torch.library.opcheck(torch.ops.moe_kernels.experts_backward.default, args)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_of_linear_and_dequantize(name):
    q = quantize_nf4(randn(96, 64))
    with backend.use(name):
        torch.library.opcheck(torch.ops.moe_kernels.linear_nf4.default, (randn(2, 3, 64).requires_grad_(), *flatten([q]), True, 0))
        torch.library.opcheck(torch.ops.moe_kernels.linear_nf4_backward.default, (randn(2, 3, 96), *flatten([q])))
        facts = (q.packed, q.absmax, q.nested_absmax, q.nested_offset, 0, list(q.shape), torch.float32)
        torch.library.opcheck(torch.ops.moe_kernels.dequantize.default, facts)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_have_the_dtypes_and_layout_that_the_fakes_promise(name):
    """x and a factor lie transposed in memory; the kernels also take weights in fp32 under x in bf16, the reference does not."""
    chosen = torch.zeros(T, 1, dtype=torch.int64)
    x, weights = randn(D, T).bfloat16().T.requires_grad_(), torch.rand(T, 1).bfloat16().requires_grad_()
    base = [randn(E, 2 * F, D), randn(E, D, F)]
    if name == "reference":
        base = [w.bfloat16() for w in base]
    low_rank = [factor.detach().bfloat16() for factor in factors()]
    low_rank[0] = low_rank[0].transpose(1, 2).contiguous().transpose(1, 2)
    for tensor in (*base, *low_rank):
        tensor.requires_grad_()
    args = x, weights, chosen, *flatten(base), low_rank, [0.5, 1.0, 2.0], True, 0
    with backend.use(name):
        torch.library.opcheck(torch.ops.moe_kernels.experts.default, args)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_decides_the_dtype_of_a_product(name):
    x, q = randn(T, D), quantize_nf4(randn(F, D))
    routing = route(x, randn(E, D), kind="topk", top_k=K)
    with backend.use(name), torch.autocast("cpu", torch.bfloat16):
        assert linear_nf4(x, q).dtype == torch.bfloat16
        assert moe_dense(x, routing, *base_of(False, True)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shared", [False, True])
def test_tensors_without_values_leave_no_trace(name, shared):
    """Memory is planned with fake tensors, before anything has run: the tables of NF4 made then serve real tensors afterwards."""
    base, out, low_rank = base_of(shared, True), quantize_nf4(randn(D, D)), factors()
    lora = ExpertLoRA(*(LoRA(*low_rank[i : i + 2], 0.5) for i in (0, 2, 4)))
    for table in (dynamic_map, dynamic_map_on, level_pairs):
        table.cache_clear()
    with backend.use(name), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        *held, out = (q.with_tensors({key: mode.from_tensor(value) for key, value in q.tensors().items()}) for q in (*base, out))
        x = mode.from_tensor(randn(T, D)).requires_grad_()
        y = (moe_lora if shared else moe_dense)(x, route(x, mode.from_tensor(randn(E, D)), kind="topk", top_k=K), *held, lora)
        (linear_nf4(y, out) @ dequantize_nf4(out)).sum().backward()
        assert type(x.grad) is FakeTensor
        tables = dynamic_map(), dynamic_map_on(torch.device("cpu")), level_pairs(torch.device("cpu"))
    assert {type(table) for table in tables} == {torch.Tensor}


@pytest.mark.parametrize("name", NAMES)
def test_autocast_leaves_fp64_alone_and_casts_a_bias(name):
    q, bias = quantize_nf4(randn(F, D)), randn(F)
    x = randn(T, D).double()
    routing = route(x, randn(E, D), kind="topk", top_k=K)
    with backend.use(name), torch.autocast("cpu", torch.bfloat16):
        assert linear_nf4(x, q).dtype == torch.float64
        assert moe_dense(x, routing, *base_of(False, True)).dtype == torch.float64
        assert linear_nf4(x.float(), q, bias).dtype == torch.nn.functional.linear(x.float(), dequantize_nf4(q), bias).dtype


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_of_integers_is_one_of_booleans(name):
    x, gate, mask = randn(T, D), randn(E, D), torch.arange(T) % 2
    with backend.use(name):
        of_integers, of_booleans = (route(x, gate, kind="topk", top_k=K, mask_T=m).importance_E for m in (mask, mask > 0))
    assert torch.equal(of_integers, of_booleans)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_may_be_stepped_before_the_backward(name):
    gradients = []
    for step in (0, 1):
        seed, gate, noise = torch.tensor(3), randn(E, D).requires_grad_(), randn(E, D).requires_grad_()
        with backend.use(name):
            weights = route(randn(T, D), gate, noise, kind="noisy_topk", top_k=K, noise_seed=seed).weights_TK
            seed.add_(step)
            gradients.append(torch.autograd.grad(weights[:, 0].sum(), [gate, noise]))
    assert all(torch.equal(still, stepped) for still, stepped in zip(*gradients, strict=True))


FORWARD_MODE = {
    "x of linear_nf4": lambda t: linear_nf4(t, quantize_nf4(randn(D, D))),
    "x of moe_dense": lambda t: moe_dense(t, Routing(torch.ones(T, 1), torch.zeros(T, 1, dtype=torch.int64)), *base_of(False, True)),
    "weights of moe_dense": lambda t: moe_dense(
        randn(T, D), Routing(t[:, :1], torch.zeros(T, 1, dtype=torch.int64)), *base_of(False, True)
    ),
    "x of route": lambda t: route(t, randn(E, D), kind="topk", top_k=K).weights_TK,
    "gate of route": lambda t: route(randn(T, D), t, kind="topk", top_k=K).weights_TK,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("of", FORWARD_MODE)
def test_forward_mode_is_refused(name, of):
    """The operators have no rule for it, and PyTorch then takes the derivative for zero."""
    x = randn(T, D)
    with backend.use(name), pytest.raises(ValueError, match="no forward-mode differentiation"):
        torch.func.jvp(FORWARD_MODE[of], (x,), (torch.ones_like(x),))
    with forward_ad.dual_level():
        assert linear_nf4(x, quantize_nf4(randn(D, D))).shape == (T, D), "an input without a tangent has no derivative to lose"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_an_expert_outside_is_refused(name, compiled, shared, monkeypatch):
    monkeypatch.setenv("MOE_KERNELS_CHECK", "1")
    low_rank = factors()
    lora = ExpertLoRA(*(LoRA(*low_rank[i : i + 2], 0.5) for i in (0, 2, 4)))
    base, routing = base_of(shared, True), Routing(torch.ones(T, 1), torch.full((T, 1), E))

    def run(x):
        return (moe_lora if shared else moe_dense)(x, routing, *base, lora)

    torch._dynamo.reset()
    with backend.use(name), pytest.raises(ValueError, match=r"expert 4, which lies outside 0\.\.3"):
        (torch.compile(run, backend="aot_eager") if compiled else run)(randn(T, D))


@needs_triton
def test_a_dense_matrix_cannot_be_trained_beside_one_in_nf4():
    gate_up, down = base_of(False, True)[0], base_of(False, False)[1]
    routing = route(randn(T, D), randn(E, D), kind="topk", top_k=K)
    with backend.use("triton"), pytest.raises(ValueError, match="all dense to be trained"):
        moe_dense(randn(T, D), routing, gate_up, down)


class Layer(torch.nn.Module):
    """Router, experts and a 4-bit linear: what a decoder layer has of this package."""

    def __init__(self, shared):
        super().__init__()
        self.gate, self.noise = torch.nn.Parameter(randn(E, D)), torch.nn.Parameter(randn(D, E).T.contiguous())
        self.base, self.out = base_of(shared, True), quantize_nf4(randn(D, D))
        self.factors = torch.nn.ParameterList(factors())
        self.run = moe_lora if shared else moe_dense

    def forward(self, x, seed):
        routing = route(x, self.gate, self.noise, kind="noisy_topk", top_k=K, noise_seed=seed)
        a1, b1, a3, b3, a2, b2 = self.factors  # torch 2.11 cannot compile a slice of a ParameterList
        lora = ExpertLoRA(LoRA(a1, b1, 0.5), LoRA(a3, b3, 0.5), LoRA(a2, b2, 0.5))
        y = linear_nf4(self.run(x, routing, *self.base, lora), self.out)
        y = y + dequantize_nf4(self.out).sum()
        return y, importance_loss(routing.importance_E) + load_loss(routing.load_E)


@pytest.mark.parametrize("shared", [False, True])
def test_a_layer_compiles_without_a_graph_break(shared):
    layer, x, seed = Layer(shared), randn(T, D), torch.tensor(3)
    results = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        y, loss = run(leaf, seed)
        (y.sum() + loss).backward()
        results.append([y.detach(), leaf.grad, *(parameter.grad.clone() for parameter in layer.parameters())])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)
