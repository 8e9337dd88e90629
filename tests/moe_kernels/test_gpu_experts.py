"""Both expert layouts on a GPU against dequantise-and-matmul in fp64 or fp32: inference, training forward and all gradients."""

import pytest
import torch

from moe_kernels import backend
from tests.moe_kernels.layers import BF16, DEVICE, FP16, FP32, GPU, ROUTINGS, Batch, Layer, call_layer, check, results

pytestmark = GPU

# Mistral's shape: what the tables are made for.
REAL = (4096, 14336)
REAL_LAYERS = [
    Layer("dense", 4, 2, *REAL, 0, True, BF16),
    Layer("dense", 4, 2, *REAL, 16, True, BF16),
    Layer("lora", 4, 2, *REAL, 16, True, BF16),
    Layer("lora", 4, 2, *REAL, 64, True, FP16),
    Layer("dense", 4, 2, *REAL, 0, True, FP16),
    Layer("dense", 4, 2, *REAL, 16, True, FP32),
    Layer("dense", 4, 2, *REAL, 0, False, BF16),
]
# Both sides of every bound: decode to 4, buckets to 16, 64, 160, dequantised above 1024.
REAL_TOKENS = {BF16: (1, 2, 3, 4, 5, 16, 17, 64, 65, 160, 161, 512, 1024, 1025, 2048, 4096), FP16: (1, 4, 17, 100, 1025), FP32: (1, 5, 65)}
REAL_CASES = [
    *((layer, tokens, "uniform") for layer in REAL_LAYERS if layer.nf4 for tokens in REAL_TOKENS[layer.dtype]),
    *((layer, tokens, "uniform") for layer in REAL_LAYERS if not layer.nf4 for tokens in (1, 17, 256, 1024)),
    *((layer, tokens, routing) for layer in REAL_LAYERS[:3] for tokens in (1, 4, 33, 300, 2048) for routing in ROUTINGS[1:]),
]
# Small layers: every E, K, rank, base and dtype, odd ones among them. Widths of no whole blocks take the workspace.
SMALL_LAYERS = [
    Layer("dense", 4, 2, 256, 512, 0, True, BF16),
    Layer("dense", 4, 2, 256, 512, 16, True, FP16),
    Layer("dense", 4, 2, 256, 512, 8, True, FP32),
    Layer("dense", 8, 2, 512, 256, 64, True, BF16),
    Layer("dense", 1, 1, 128, 192, 4, True, BF16),
    Layer("dense", 3, 3, 192, 320, 0, True, FP16),
    Layer("dense", 16, 4, 128, 128, 0, True, BF16),
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
SMALL_TOKENS = (1, 2, 3, 4, 5, 8, 15, 16, 17, 33, 64, 65, 128, 161, 300, 1025)
SMALL_CASES = [
    (layer, tokens, routing)
    for layer in SMALL_LAYERS
    for tokens in SMALL_TOKENS
    for routing in ROUTINGS
    if routing != "one" or tokens in (1, 17, 300)
]


def name(value: object) -> str:
    return str(value)


@pytest.fixture
def freed():
    """The next process on the card, or the next case, finds its memory free."""
    yield
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


@pytest.mark.parametrize(("layer", "tokens", "routing"), REAL_CASES, ids=name)
def test_layers_of_mistrals_shape(layer, tokens, routing, freed):
    check(layer, Batch.of(layer, tokens, routing))


@pytest.mark.parametrize(("layer", "tokens", "routing"), SMALL_CASES, ids=name)
def test_small_layers(layer, tokens, routing):
    check(layer, Batch.of(layer, tokens, routing, seed=7))


NF4_BF16 = [layer for layer in SMALL_LAYERS if layer.dtype == BF16 and layer.nf4 and layer.experts == 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tokens", [3, 40, 1100])
@pytest.mark.parametrize("layer", NF4_BF16, ids=name)
def test_a_nan_stays_with_its_token(layer, tokens, value):
    batch = Batch.of(layer, tokens)
    batch.x[2, 7] = value
    with backend.use("triton"):
        y = results(layer, batch, BF16, grads=False)[0]
        trained, dx, *_ = results(layer, batch, BF16, grads=True)
    for result in (y, trained, dx):
        assert result[2].isnan().any()
        assert result[torch.arange(tokens, device=DEVICE) != 2].isfinite().all()


@pytest.mark.parametrize("tokens", [1, 50, 1100])
@pytest.mark.parametrize("layer", SMALL_LAYERS[-6:], ids=name)
def test_experts_without_tokens_get_exact_zeros(layer, tokens):
    batch = Batch.of(layer, tokens, "one")
    with backend.use("triton"):
        _, _, _, *stacks = results(layer, batch, layer.dtype, grads=True)
    idle = layer.experts - layer.top_k
    for grad in stacks:
        if len(grad) == layer.experts and grad.dim() == 3 and idle:
            assert grad[idle:].count_nonzero() and not grad[:idle].count_nonzero()


@pytest.fixture
def poisoned():
    """Memory that nobody wrote reads as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore:Deterministic behavior")
@pytest.mark.parametrize("routing", ["uniform", "one"])
@pytest.mark.parametrize("tokens", [1, 4, 18, 161, 1030])
@pytest.mark.parametrize("layer", NF4_BF16, ids=name)
def test_nothing_is_read_that_was_not_written(layer, tokens, routing, poisoned):
    check(layer, Batch.of(layer, tokens, routing))


@pytest.mark.parametrize("layer", NF4_BF16, ids=name)
def test_no_tokens(layer):
    batch = Batch.of(layer, 1)
    batch = Batch(*(part[:0] for part in (batch.x, batch.weights, batch.experts, batch.dy)))
    with backend.use("triton"):
        y, dx, dweights, *others = results(layer, batch, BF16, grads=True)
    assert len(y) == len(dx) == len(dweights) == 0
    assert not any(grad.count_nonzero() for grad in others)


@pytest.mark.parametrize("tokens", [1, 5, 300, 1500])
@pytest.mark.parametrize("layer", [SMALL_LAYERS[0], SMALL_LAYERS[2], SMALL_LAYERS[11]], ids=name)
def test_a_row_of_x_may_be_strided(layer, tokens):
    batch = Batch.of(layer, tokens)
    wide = torch.cat([batch.x, batch.x], dim=1)[:, : layer.width]
    with backend.use("triton"):
        first = results(layer, batch, layer.dtype, grads=False)[0]
        factors, base = layer.factors(), layer.base()
        assert torch.equal(call_layer(layer, wide, batch.weights, batch.experts, base, factors), first)
