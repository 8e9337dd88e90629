"""Faults and bad input of routing, grouping and the experts: rows 1 to 24, each through the public functions, on every implementation.

T tokens, K experts per token, E experts, D model width, F expert hidden width, R LoRA rank.
"""

import math
import mmap
import os
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from moe_kernels import backend
from moe_kernels.experts import moe_dense
from moe_kernels.grouping import group_tokens
from moe_kernels.launch import choose_launch
from moe_kernels.linear import linear_nf4
from moe_kernels.nf4 import NF4Weight, quantize_nf4
from moe_kernels.routing import KINDS, Routing, importance_loss, load_loss, route, z_loss
from tests.faults.backends import DECODED, DENSE, FULL, IMPLEMENTATIONS, LAYERS, SHARED, poisoned, running
from tests.moe_kernels.layers import BF16, FP16, FP32, FP64, Batch, Layer, assert_near, call_layer, randn, results

every_implementation = pytest.mark.parametrize("name", IMPLEMENTATIONS)
# A layer takes the interpreter a second; its own tests in tests/moe_kernels have the layout that is left out here.
every_layer = pytest.mark.parametrize(
    ("layer", "name"), [(layer, name) for layer in LAYERS for name in IMPLEMENTATIONS if (layer, name) != (SHARED, "triton")], ids=str
)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of Triton's interpreter, on NaN and infinity


def oracle(layer: Layer, batch: Batch) -> list[Tensor]:
    with backend.use("reference"):
        return results(layer, batch, FP64, grads=True)


def run(layer: Layer, batch: Batch, name: str) -> list[Tensor]:
    with running(name):
        return results(layer, batch, layer.dtype, grads=True)


def assert_all_near(layer: Layer, mine: list[Tensor], true: list[Tensor]) -> None:
    for number, (actual, expected) in enumerate(zip(mine, true, strict=True)):
        assert_near(f"result {number}", actual, expected, layer.tolerance, typical=1e-3)


def with_choice(batch: Batch, choice: list[int]) -> Batch:
    """Every token goes to the experts `choice`."""
    return replace(batch, experts=torch.tensor(choice).expand(len(batch.x), -1), weights=batch.weights[:, : len(choice)])


@every_layer
def test_01_no_tokens(layer, name):
    y, dx, dweights, *grads = run(layer, Batch.of(layer, 0), name)
    assert (y.shape, y.dtype, dx.shape, dweights.shape) == ((0, layer.width), layer.dtype, (0, layer.width), (0, layer.top_k))
    assert grads and not any(grad.any() for grad in grads)
    with running(name):
        for kind in KINDS:
            routing = route(
                torch.zeros(0, 8),
                torch.ones(4, 8),
                torch.ones(4, 8),
                kind=kind,
                top_k=2,
                noise_seed=1,
                sequence_ids_T=torch.zeros(0, dtype=torch.int64),
            )
            losses = [importance_loss(routing.importance_E), load_loss(routing.load_E), z_loss(routing.logits_TE)]
            assert torch.stack(losses).isfinite().all()


@every_implementation
def test_02_no_values_in_a_row(name):
    """An expert without hidden units, or a model without width, is a mistake of a configuration: refused, by all alike."""
    routing = Routing(torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.int64), None, None, None)
    for width, hidden in ((8, 0), (0, 8)):
        with running(name), pytest.raises(ValueError, match=r"do not fit: .* above 0"):
            moe_dense(torch.ones(3, width), routing, torch.ones(2, 2 * hidden, width), torch.ones(2, width, hidden))


@every_layer
def test_03_experts_without_tokens_in_memory_that_nobody_wrote(layer, name):
    batch = with_choice(Batch.of(layer, 18), [0, 2])
    with running(name), poisoned(layer):
        mine = results(layer, batch, layer.dtype, grads=True)
    assert_all_near(layer, mine, oracle(layer, batch))
    for grad in mine[3:]:
        assert grad[[0, 2]].any() and not grad[[1, 3]].any()


@every_implementation
@pytest.mark.parametrize(("experts", "top_k", "tokens"), [(4, 1, 20), (4, 4, 9), (1, 1, 5), (4, 2, 1)], ids=str)
@pytest.mark.parametrize("layout", ["dense", "lora"])
def test_04_all_tokens_to_one_expert_every_expert_and_one_token(layout, experts, top_k, tokens, name):
    layer = replace(DENSE if layout == "dense" else SHARED, experts=experts, top_k=top_k)
    batch = Batch.of(layer, tokens, "one")
    assert_all_near(layer, run(layer, batch, name), oracle(layer, batch))


@every_implementation
@pytest.mark.parametrize("layer", [DENSE, SHARED], ids=str)
def test_05_an_expert_twice_for_one_token_counts_twice(layer, name):
    batch = with_choice(Batch.of(layer, 6), [2, 2])
    assert_all_near(layer, run(layer, batch, name), oracle(layer, batch))


@every_implementation
@pytest.mark.parametrize("tokens", [1, 3])
def test_05_twice_where_few_tokens_are_decoded(tokens, name):
    batch = with_choice(Batch.of(DECODED, tokens), [2, 2])
    true = oracle(DECODED, batch)[0]
    with running(name), poisoned(DECODED):
        assert_near("y", results(DECODED, batch, BF16, grads=False)[0], true, DECODED.tolerance)


@every_implementation
@pytest.mark.parametrize("layer", [DENSE, SHARED, DECODED], ids=str)
@pytest.mark.parametrize("stray", [-1, 4, 1 << 40])
def test_06_an_id_that_is_no_expert_is_refused(layer, stray, name):
    batch = Batch.of(layer, 3)
    batch.experts[1, 1] = stray
    with running(name):
        for grads in (False, True):
            with pytest.raises(ValueError, match=rf"expert {stray}, which lies outside 0\.\.3"):
                results(layer, batch, layer.dtype, grads=grads)
        with pytest.raises(ValueError, match=rf"expert {stray}, which lies outside 0\.\.3"):
            group_tokens(batch.experts, 4)
        with pytest.raises(ValueError, match="integers"):
            results(layer, replace(batch, experts=batch.experts.float()), layer.dtype, grads=False)


@every_implementation
@pytest.mark.parametrize("kind", KINDS)
def test_07_nan_router_logits(kind, name):
    """The poisoned token gets distinct experts in range; only its own output is NaN, the others keep their bits."""
    tokens, gate, wnoise = 9, randn(4, FULL.width, seed=2), randn(4, FULL.width, seed=4, scale=0.1)
    x, base, others = randn(tokens, FULL.width, seed=1), FULL.base(), torch.arange(tokens) != 4
    arguments = {"kind": kind, "top_k": 2, "noise_seed": 3, "sequence_ids_T": torch.arange(tokens)}

    def compute(value: float) -> tuple[Routing, Tensor]:
        routed = x.clone()
        routed[4, 7] = value
        routing = route(routed, gate, wnoise, **arguments)
        return routing, moe_dense(x, routing, *base)  # the logits alone are poisoned

    with running(name):
        clean, expected = compute(0.5)
        for poison in (math.nan, math.inf, -math.inf):
            routing, y = compute(poison)
            assert all(len(set(row)) == len(row) and set(row) <= set(range(4)) for row in routing.experts_TK.tolist())
            assert torch.equal(routing.experts_TK[others], clean.experts_TK[others])
            assert y[4].isnan().all()
            assert_near("the other tokens", y[others], expected[others].double(), (1e-6, 1e-5))


@every_implementation
@pytest.mark.parametrize("logits", [[1.0] * 6, [0.0, -0.0] * 3, [2.0, 3.0, 3.0, 2.0, 3.0, 1.0], [math.nan] * 6], ids=str)
def test_08_ties_go_to_the_lowest_expert(logits, name):
    order = torch.tensor(logits).sort(descending=True, stable=True).indices
    with running(name):
        for top_k in (1, 2, 5):
            routing = route(torch.ones(3, 1), torch.tensor(logits)[:, None], kind="topk", top_k=top_k)
            assert torch.equal(routing.experts_TK, order[:top_k].expand(3, -1))


@every_implementation
@pytest.mark.parametrize("size", [1e4, torch.finfo(FP16).max, 1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_09_large_logits_have_finite_weights(kind, size, name):
    gate = torch.tensor([[1.0], [-1.0], [0.999], [0.5]]) * size
    with running(name):
        routing = route(
            torch.tensor([[1.0], [-1.0]]), gate, torch.ones(4, 1), kind=kind, top_k=2, noise_seed=0, sequence_ids_T=torch.arange(2)
        )
    assert routing.weights_TK.isfinite().all() and routing.load_E.isfinite().all()
    assert routing.experts_TK[:, 0].tolist() == [0, 1]
    torch.testing.assert_close(routing.weights_TK.sum(1), torch.ones(2), rtol=0, atol=1e-4)  # switch: without the other experts' share


@every_implementation
@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (3, 2), (7, 5), (64, 6), (65, 3), (1024, 2), (1025, 7)])
def test_10_any_number_of_experts(experts, top_k, name):
    x, gate = randn(5, 12, seed=1), randn(experts, 12, seed=2)
    expected = (x.double() @ gate.double().T).sort(dim=1, descending=True, stable=True)
    with running(name):
        routing = route(x, gate, kind="topk", top_k=top_k)
        grouping = group_tokens(routing.experts_TK, experts)
    assert torch.equal(routing.experts_TK, expected.indices[:, :top_k])
    assert_near("weights", routing.weights_TK, expected.values[:, :top_k].softmax(1), (1e-5, 1e-4))
    pairs = routing.experts_TK.flatten()
    assert torch.equal(grouping.order_N, pairs.argsort(stable=True))
    assert torch.equal(grouping.offsets_E1.diff(), pairs.bincount(minlength=experts))


@every_implementation
def test_11_ids_past_16_bits_and_pairs_past_31(name):
    """No key packs an expert and a place: 70,000 experts are grouped. The kernels count pairs in 32 bits: more is refused."""
    ids = torch.tensor([[69_999, 3], [65_536, 65_535], [3, 0]])
    with running(name):
        assert group_tokens(ids, 70_000).order_N.tolist() == [5, 1, 4, 3, 2, 0]
        if name == "triton":
            with pytest.raises(ValueError, match=r"2147483648 pairs .*less than 2147483648"):
                group_tokens(torch.zeros(1, 1, dtype=torch.int64).expand(1 << 30, 2), 4)


@every_implementation
def test_12_noise(name):
    x, gate, wnoise = randn(9, 16, seed=1), randn(4, 16, seed=2), randn(4, 16, seed=3)
    with running(name):
        clean = route(x, gate, kind="topk", top_k=2)
        evaluated = route(x, gate, wnoise, kind="noisy_topk", top_k=2)
        noisy = route(x, gate, wnoise, kind="noisy_topk", top_k=2, noise_seed=1)
        silent = route(x, gate, wnoise, kind="noisy_topk", top_k=2, noise_seed=1, noise_scale=torch.tensor(0.0))
        underflowed = route(
            torch.cat([x, torch.ones(9, 1)], 1),
            torch.cat([gate, torch.zeros(4, 1)], 1),
            torch.tensor([[0.0] * 16 + [-200.0]] * 4),
            kind="noisy_topk",
            top_k=2,
            noise_seed=1,
        )  # softplus(-200) is 0 in fp32
        for scale in (-1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"noise_scale must be a finite number of at least 0, not {scale}"):
                route(x, gate, wnoise, kind="noisy_topk", top_k=2, noise_seed=1, noise_scale=torch.tensor(scale))
        nan = route(x, gate, wnoise * math.nan, kind="noisy_topk", top_k=2, noise_seed=1)
    assert not torch.equal(noisy.weights_TK, clean.weights_TK)
    for same in (evaluated, silent, underflowed):
        assert torch.equal(same.experts_TK, clean.experts_TK)
        torch.testing.assert_close(same.weights_TK, clean.weights_TK, rtol=1e-6, atol=1e-6)
    assert nan.weights_TK.isnan().all()  # seen, and not a choice that looks sound
    assert nan.experts_TK.min() >= 0 and nan.experts_TK.max() < 4


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
            y = moe_dense(leaf, Routing(torch.ones(2, 1), torch.full((2, 1), expert), None, None, None), *weights)
            found.append((y.detach(), *torch.autograd.grad(y, leaf, dy)))
    assert all(map(torch.equal, *found)) and all(part.any() for part in found[0])


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
    routing = Routing(batch.weights, batch.experts, None, None, None)
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


BATCH_BOUND = (
    1e-6,
    1e-5,
)  # fp32: rms and largest difference of a token alone and in a batch; another number of rows, another order of sums


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


PROGRAM = """
import sys
sys.modules.update(dict.fromkeys({absent!r}))
import torch
from moe_kernels import backend
from moe_kernels.experts import moe_dense
from moe_kernels.nf4 import NF4Weight
from moe_kernels.routing import route
x, base = torch.randn(5, 64), [torch.randn(4, 128, 64), torch.randn(4, 64, 64)]
y = moe_dense(x, route(x, torch.randn(4, 64), kind="topk", top_k=2), *base)
assert y.isfinite().all() and torch.equal(y, y)
print(backend.active())
for name in ("cpp", "triton"):
    try:
        with backend.use(name):
            print(name)
    except ValueError as error:
        print(error)
"""


@lru_cache
def run_without(*absent: str) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(absent=absent)], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.splitlines()


BARE = ("triton", "bitsandbytes", "transformers", "moe_kernels._C")


def test_21_without_triton_a_card_or_the_extension_the_package_runs_and_says_how():
    """An absent module is None in sys.modules, as an import of it then fails."""
    assert run_without(*BARE)[0] == "reference"


def test_22_a_forced_implementation_that_cannot_run_is_an_error_that_says_why():
    _, cpp, triton = run_without(*BARE)
    assert cpp.startswith("the C++ extension is not built") and triton == "the package triton is not installed"


def test_23_a_launch_that_cannot_run_is_no_candidate_and_an_unknown_one_an_error(tmp_path):
    """Nothing is tuned in a user's run. What a card refuses is dropped; where nothing runs the launch stays."""
    from moe_kernels import tune
    from moe_kernels.tune_cases import Setup, Target, every

    target = Target("gram", "any", (None,), lambda setup, tokens: lambda: None, every(block_m=(16, 4096)))
    for examine, best in ((lambda calls, arch: {at for at in calls if at.block_m == 16}, 16), (lambda calls, arch: set(), None)):
        measured = tune.Measured(tmp_path / f"{best}", {})
        found = tune.best_launch(target, 8, Setup("meta"), 86, measured, examine, clock=lambda run: 1.0)
        assert (found and found.block_m) == best
    table = {"launches": {"gram": {"any": [{"tokens": None, "block_m": 16}]}}}
    assert tune.tune([target], table, lambda target, tokens: None) == table
    with pytest.raises(ValueError, match="no launch table has the operation 'gran'"):
        choose_launch("gran", 1, 1, 1, 86)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_24_another_stream_and_the_current_card():
    """Equal bits on a stream of its own; tests/moe_kernels/test_gpu_runtime.py has a card that is not the current one."""
    batch, stream = Batch.of(DENSE, 9), torch.cuda.Stream()
    with backend.use("triton"):
        expected = results(DENSE, batch, FP32, grads=True)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = results(DENSE, batch, FP32, grads=True)
        torch.cuda.current_stream().wait_stream(stream)
    assert all(map(torch.equal, found, expected)) and found[0].device == batch.x.device
