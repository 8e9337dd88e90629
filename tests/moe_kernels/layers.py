"""Layers, routings and the oracle of the tests of kernels: Triton's on a GPU, C++ on the CPU.

NF4 weights are random bytes: every byte is a valid pair of levels, so no quantiser is needed, and 4 x 28672 x 4096 values take no time.
The oracle is the reference on the same bytes: dequantise and multiply, in fp64, or in fp32 where fp64 is slow and the kernels' own
rounding (bf16, fp16) is a thousand times coarser.

T tokens, K experts per token, E experts, D model width, F expert hidden width, R LoRA rank, N = T*K pairs.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from moe_kernels import backend
from moe_kernels.experts import ExpertLoRA, LoRA, moe_dense, moe_lora
from moe_kernels.nf4 import NF4Weight
from moe_kernels.routing import Routing
from moe_kernels.weights import Weight

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
# Of the error: rms over the rms of the true values, and the largest over |true value| + rms. A rounding or two of each dtype; in fp32 it is
# the sums that round, and they grow with the root of their length (`tolerance`).
TOLERANCE = {BF16: (1e-2, 6e-2), FP16: (1.5e-3, 8e-3), FP32: (4e-6, 4e-5)}
SCALINGS = (0.5, 2.0, 1.5)
LEVEL_RMS = 0.56  # of the 16 levels of NF4, all equally likely
MANY = 64  # tokens whose results have their typical size
ROUTINGS = ("uniform", "skewed", "one")


@dataclass(frozen=True)
class Layer:
    """What a layer is, apart from its tokens. `rank` 0 is no LoRA; `dtype` is that of x, of the factors and of the stored weights."""

    layout: str  # "dense" or "lora"
    experts: int
    top_k: int
    width: int
    hidden: int
    rank: int
    nf4: bool
    dtype: torch.dtype

    def __str__(self) -> str:
        kind = "nf4" if self.nf4 else "full"
        shape = f"E{self.experts}-K{self.top_k}-{self.width}x{self.hidden}"
        return f"{self.layout}-{shape}-r{self.rank}-{kind}-{str(self.dtype).removeprefix('torch.')}"

    @property
    def tolerance(self) -> tuple[float, float]:
        rms, largest = TOLERANCE[self.dtype]
        growth = math.sqrt(1 + max(self.width, self.hidden) / 1024) if self.dtype == FP32 else 1.0
        return rms * growth, largest * growth

    def base(self) -> list[Weight]:
        e, d, f = self.experts, self.width, self.hidden
        shapes = [(e, 2 * f, d), (e, d, f)] if self.layout == "dense" else [(f, d), (f, d), (d, f)]
        if self.nf4:
            return [replace(random_nf4(shape, number), dtype=self.dtype) for number, shape in enumerate(shapes)]
        return [randn(*shape, seed=number, scale=shape[-1] ** -0.5).to(self.dtype) for number, shape in enumerate(shapes)]

    def factors(self) -> list[Tensor]:
        """a1, b1, a3, b3, a2, b2, or nothing."""
        e, d, f, r = self.experts, self.width, self.hidden, self.rank
        if not r:
            return []
        shapes = [(r, d), (f, r), (r, d), (f, r), (r, f), (d, r)]
        return [randn(e, *shape, seed=10 + number, scale=0.5 * shape[1] ** -0.5).to(self.dtype) for number, shape in enumerate(shapes)]


def randn(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE) * scale


@lru_cache(maxsize=6)
def random_nf4(shape: tuple[int, ...], seed: int) -> NF4Weight:
    """A weight whose values have an rms of about 1 / sqrt(in), made of random bytes; absmax between 0.5 and 1.5 of their mean."""
    draw = torch.Generator(DEVICE).manual_seed(100 + seed)
    values = math.prod(shape)
    blocks = -(-values // 64)
    mean = shape[-1] ** -0.5 / LEVEL_RMS

    def random_bytes(*size: int) -> Tensor:
        return torch.randint(0, 256, size, dtype=torch.uint8, device=DEVICE, generator=draw)

    nested = torch.full((-(-blocks // 256),), mean / 2, device=DEVICE)
    return NF4Weight(random_bytes(-(-values // 2), 1), random_bytes(blocks), nested, mean, shape, BF16)


def choose(tokens: int, experts: int, top_k: int, routing: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(weights fp32, experts int64) [T, K]. `skewed`: expert e is about 1/(e+1) as likely as expert 0; `one`: all to the last K experts."""
    draw = torch.Generator(DEVICE).manual_seed(200 + seed + tokens)
    score = -torch.rand(tokens, experts, device=DEVICE, generator=draw).log_()  # the K smallest of exponentials: drawn without replacement
    rank = torch.arange(1, experts + 1, device=DEVICE)
    if routing == "skewed":
        score = score * rank
    elif routing == "one":
        score = experts - rank.expand(tokens, -1).float()
    chosen = score.topk(top_k, dim=1, largest=False).indices
    return torch.rand(tokens, top_k, device=DEVICE, generator=draw) + 0.1, chosen


@dataclass(frozen=True, eq=False)
class Batch:
    """What a layer is given."""

    x: Tensor  # [T, D]
    weights: Tensor  # [T, K] fp32
    experts: Tensor  # [T, K]
    dy: Tensor  # [T, D]

    @staticmethod
    def of(layer: Layer, tokens: int, routing: str = "uniform", seed: int = 0) -> "Batch":
        x, dy = (randn(tokens, layer.width, seed=300 + seed + part).to(layer.dtype) for part in (0, 1000))
        return Batch(x, *choose(tokens, layer.experts, layer.top_k, routing, seed), dy)


def call_layer(
    layer: Layer, x: Tensor, weights: Tensor, experts: Tensor, base: list[Weight], factors: list[Tensor], **options: str
) -> Tensor:
    parts = [LoRA(a, b, s) for a, b, s in zip(factors[::2], factors[1::2], SCALINGS, strict=False)]
    routing = Routing(weights, experts)
    lora = [ExpertLoRA(*parts)] if parts else []
    run = moe_dense if layer.layout == "dense" else moe_lora
    return run(x, routing, *base, *lora, **options)  # type: ignore[operator]


def results(layer: Layer, batch: Batch, dtype: torch.dtype, grads: bool) -> list[Tensor]:
    """y, and with `grads` the gradients of x, of the routing's weights, of a dense base and of the factors; all in `dtype`."""

    def leaf(tensor: Tensor, kind: torch.dtype) -> Tensor:
        return tensor.detach().to(kind, copy=True).requires_grad_(grads)

    x, weights = leaf(batch.x, dtype), leaf(batch.weights, torch.promote_types(dtype, FP32))
    base = [weight if isinstance(weight, NF4Weight) else leaf(weight, dtype) for weight in layer.base()]
    factors = [leaf(factor, dtype) for factor in layer.factors()]
    y = call_layer(layer, x, weights, batch.experts, base, factors)
    if not grads:
        return [y]
    leaves = [x, weights, *(weight for weight in base if isinstance(weight, Tensor)), *factors]
    return [y.detach(), *torch.autograd.grad(y, leaves, batch.dy.to(dtype), materialize_grads=True)]


def oracle_dtype(layer: Layer, tokens: int) -> torch.dtype:
    """fp64 for fp32's kernels and for small layers; else only on cards whose fp64 is half as fast as fp32 (A100, H100, H200)."""
    work = tokens * layer.top_k * layer.width * layer.hidden
    fast = DEVICE == "cuda" and torch.cuda.get_device_capability() in ((8, 0), (9, 0))
    return FP64 if layer.dtype == FP32 or work < 1 << 28 or (fast and work < 1 << 36) else FP32


def check(layer: Layer, batch: Batch, name: str = "triton") -> None:
    """Inference, training forward and all gradients of the implementation `name` against the oracle, within the tolerance of the dtype."""
    with backend.use(name):
        inference = results(layer, batch, layer.dtype, grads=False)
        mine = results(layer, batch, layer.dtype, grads=True)
    tokens = len(batch.x)
    with backend.use("reference"):
        true = results(layer, batch, oracle_dtype(layer, tokens), grads=True)
    sizes = typical_sizes(layer, tokens) if tokens < MANY else [0.0] * len(true)
    assert_near("inference", inference[0], true[0], layer.tolerance, sizes[0])
    names = ["y", "dx", "dweights", *(f"gradient {number}" for number in range(len(true)))]
    rms, largest = layer.tolerance
    for result, actual, expected, size in zip(names, mine, true, sizes, strict=False):
        # A weight's gradient from few tokens is an outer product: of its largest values the tails are heavy.
        tail = 4 if result.startswith("gradient") and tokens < MANY else 1
        assert_near(result, actual, expected, (rms, tail * largest), size)


def typical_sizes(layer: Layer, tokens: int) -> list[float]:
    """The rms of each result of `results` on `tokens` tokens, on average over what they might be.

    A gradient of one token and rank 4 is made of four numbers: where their sums happen to cancel, any program's error is large beside
    them.
    """
    sums = [1.0] * 3 + [(tokens / MANY) ** 0.5] * (len(_sizes_of_many(layer)) - 3)
    return [size * factor for size, factor in zip(_sizes_of_many(layer), sums, strict=True)]


@lru_cache
def _sizes_of_many(layer: Layer) -> list[float]:
    with backend.use("reference"):
        return [part.square().mean().sqrt().item() for part in results(layer, Batch.of(layer, MANY), FP32, grads=True)]


def assert_near(name: str, actual: Tensor, expected: Tensor, tolerance: tuple[float, float], typical: float = 0.0) -> None:
    """The error against the true values' rms, or their `typical` rms where that is larger."""
    assert actual.shape == expected.shape
    rms_bound, max_bound = tolerance
    error, size = actual.to(expected.dtype) - expected, expected.square().mean().sqrt().clamp(min=typical)
    rms = (error.square().mean().sqrt() / size).item()
    largest = (error.abs() / (expected.abs() + size)).max().item()
    assert rms <= rms_bound and largest <= max_bound, f"{name}: rms {rms:.2g} of {rms_bound:.2g}, largest {largest:.2g} of {max_bound:.2g}"
