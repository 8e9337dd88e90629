"""What a step of training or decoding owes to the runtime: no wait for the device, CUDA graphs, equal bits, streams, compilation."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moe_kernels.nf4 import NF4Weight
from moe_kernels.routing import importance_loss, load_loss, route
from tests.moe_kernels.layers import BF16, DEVICE, FP16, GPU, Layer, call_layer, randn

pytestmark = GPU

SMALL = [Layer("dense", 4, 2, 512, 1024, 16, True, BF16), Layer("lora", 4, 2, 512, 1024, 16, True, BF16)]
PLAIN = Layer("dense", 4, 2, 512, 1024, 0, True, BF16)
REAL = Layer("dense", 4, 2, 4096, 14336, 16, True, BF16)
TOKENS = [1, 4, 5, 80, 300, 1500]  # decoded, fused and dequantised


@dataclass
class Mixture:
    """A layer with its noisy top-k gate, and one batch in tensors that a CUDA graph may read."""

    layer: Layer
    tokens: int

    def __post_init__(self) -> None:
        width, experts = self.layer.width, self.layer.experts
        self.x = randn(self.tokens, width, seed=1).to(self.layer.dtype)
        self.dy = randn(self.tokens, width, seed=2).to(self.layer.dtype)
        self.seed = torch.tensor(5, device=DEVICE)
        self.gate, self.noise = (randn(experts, width, seed=seed, scale=width**-0.5) for seed in (3, 4))
        self.base, self.factors = self.layer.base(), self.layer.factors()
        for leaf in self.leaves:
            leaf.requires_grad_()

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, self.gate, self.noise, *self.factors]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(y, balance loss)."""
        routing = route(x, self.gate, self.noise, kind="noisy_topk", top_k=self.layer.top_k, noise_seed=self.seed)
        y = call_layer(self.layer, x, routing.weights_TK, routing.experts_TK, self.base, self.factors)
        return y, importance_loss(routing.importance_E) + load_loss(routing.load_E)

    def infer(self) -> Tensor:
        with torch.no_grad():
            routing = route(self.x, self.gate, kind="topk", top_k=self.layer.top_k)
            return call_layer(self.layer, self.x, routing.weights_TK, routing.experts_TK, self.base, self.factors)

    def step(self) -> list[Tensor]:
        """y and all gradients."""
        y, loss = self.forward(self.x)
        return [y.detach(), *torch.autograd.grad([y, loss], self.leaves, [self.dy, torch.ones_like(loss)])]

    def renew(self, seed: int) -> None:
        """Another batch, with another routing and noise, in the same memory."""
        with torch.no_grad():
            self.x.copy_(randn(*self.x.shape, seed=100 + seed))
            self.dy.copy_(randn(*self.dy.shape, seed=200 + seed))
            self.seed.fill_(seed)


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


@pytest.fixture
def waiting_is_an_error():
    """`enter()` from where on any wait for the device raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("layer", [*SMALL, PLAIN], ids=str)
def test_nothing_waits_for_the_device(layer, tokens, waiting_is_an_error):
    mixture = Mixture(layer, tokens)
    optimizer = torch.optim.SGD(mixture.leaves[1:], lr=1e-3)
    for attempt in range(3):
        if attempt == 1:  # compilers and caches have had their turn
            waiting_is_an_error()
        mixture.infer()
        _, _, *grads = mixture.step()
        for leaf, grad in zip(mixture.leaves[1:], grads, strict=True):
            leaf.grad = grad
        optimizer.step()
    torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(mixture.infer()).all()


def capture(run):
    """(graph, its outputs) of `run`, warmed up on the side as PyTorch asks."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph, outputs


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("layer", [*SMALL, PLAIN], ids=str)
def test_a_captured_forward_follows_new_inputs_and_routings(layer, tokens):
    mixture = Mixture(layer, tokens)
    graph, y = capture(mixture.infer)
    for seed in range(4):
        mixture.renew(seed)
        graph.replay()
        assert torch.equal(y, mixture.infer()), f"replay {seed}"


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("layer", [*SMALL, PLAIN], ids=str)
def test_a_captured_training_step_follows_new_inputs_routings_and_noise(layer, tokens):
    mixture = Mixture(layer, tokens)
    graph, outputs = capture(mixture.step)
    for seed in range(4):
        mixture.renew(seed)
        graph.replay()
        assert equal(outputs, mixture.step()), f"replay {seed}"


@pytest.mark.parametrize(
    ("layer", "tokens"), [*((layer, tokens) for layer in SMALL for tokens in TOKENS), (REAL, 300), (REAL, 2048)], ids=str
)
def test_40_training_steps_have_equal_bits(layer, tokens):
    mixture = Mixture(layer, tokens)
    first = copies(mixture.step())
    for repeat in range(40):
        assert equal(first, mixture.step()), f"repeat {repeat}"


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("layer", SMALL, ids=str)
def test_another_stream_gives_the_same_bits(layer, tokens):
    """Alone, and while the first stream works too: nothing that a launch leaves behind may be shared between streams."""
    here, there = Mixture(layer, tokens), Mixture(layer, tokens)
    there.renew(9)
    expected = copies(here.step()), copies(there.step())
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    for _ in range(10):
        with torch.cuda.stream(side):
            second = there.step()
        first = here.step()
        torch.cuda.synchronize()
        assert equal(first, expected[0]) and equal(second, expected[1])


@pytest.mark.parametrize("tokens", [1, 80, 1500])
def test_a_card_that_is_not_the_current_one(tokens):
    if torch.cuda.device_count() < 2:
        pytest.skip("one card is there, two are needed")
    mixture = Mixture(SMALL[0], tokens)
    expected = copies(mixture.step())
    other = torch.device("cuda", 1)
    for name in ("x", "dy", "gate", "noise", "seed"):
        setattr(mixture, name, getattr(mixture, name).detach().to(other))
    mixture.base = [weight.to(other) for weight in mixture.base]
    mixture.factors = [factor.detach().to(other) for factor in mixture.factors]
    for leaf in mixture.leaves:
        leaf.requires_grad_()
    assert torch.cuda.current_device() == 0
    assert equal(expected, [part.to(DEVICE) for part in mixture.step()])


@pytest.mark.parametrize("tokens", [4, 80, 1500])
@pytest.mark.parametrize("layer", SMALL, ids=str)
def test_a_checkpointed_layer_repeats_its_noise(layer, tokens):
    mixture = Mixture(layer, tokens)
    expected = mixture.step()
    y, loss = checkpoint(mixture.forward, mixture.x, use_reentrant=False)
    assert equal(expected, [y.detach(), *torch.autograd.grad([y, loss], mixture.leaves, [mixture.dy, torch.ones_like(loss)])])


@pytest.mark.parametrize("tokens", [4, 80, 1500])
@pytest.mark.parametrize("layer", SMALL, ids=str)
def test_torch_compile_sees_the_whole_layer(layer, tokens):
    mixture = Mixture(layer, tokens)
    expected = mixture.step()
    torch._dynamo.reset()
    y, loss = torch.compile(mixture.forward, fullgraph=True)(mixture.x)
    found = [y.detach(), *torch.autograd.grad([y, loss], mixture.leaves, [mixture.dy, torch.ones_like(loss)])]
    for actual, true in zip(found, expected, strict=True):
        assert (actual.double() - true.double()).norm() <= 5e-3 * true.double().norm()


@pytest.mark.parametrize("tokens", [1, 4, 64])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_few_tokens_never_unpack_the_weights(tokens, dtype):
    """Beyond the 4-bit weights a decoding layer takes under 1 % of what they would be in 16 bits."""
    mixture = Mixture(Layer("dense", 4, 2, 4096, 14336, 0, True, dtype), tokens)
    mixture.infer()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    mixture.infer()
    values = sum(weight.packed.numel() * 2 for weight in mixture.base if isinstance(weight, NF4Weight))
    assert torch.cuda.max_memory_allocated() - before < 0.01 * 2 * values
