"""What `moe_kernels.tune` runs: for each operation and shape of a 4x7B layer, how to launch it, for which numbers of tokens, and which
launches are worth a try.

T tokens, K experts per token, E experts, D model width, F expert hidden width, R LoRA rank, N = T*K pairs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from .decode import MAX_DECODE_TOKENS
from .grouped import Rows
from .grouping import Grouping, group_tokens_reference
from .launch import Launch
from .nf4 import NF4Weight
from .shipped import D, E, F, K

RANK = 16
MANY = 2048
Run = Callable[[], Any]


@dataclass(frozen=True)
class Target:
    """One entry of a table: an operation on one shape ("any" for the shape that stands for all others)."""

    op: str
    shape: str
    bounds: tuple[int | None, ...]  # most tokens of each bucket; None is no bound
    make: Callable[["Setup", int], Run]
    candidates: Callable[[int], list[Launch]]  # for a number of tokens
    last: int = MANY  # tokens that stand for all above the last bound

    def tokens(self, bound: int | None) -> int:
        """The number of tokens that a bucket is measured at: its largest."""
        return self.last if bound is None else bound


class Setup:
    """Tensors of a 4x7B layer on `device`; NF4 weights are random bytes, which are valid NF4. On the meta device they take no memory."""

    def __init__(self, device: str) -> None:
        self.device = device

    def randn(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=torch.float32).to(dtype)

    def nf4(self, *shape: int) -> NF4Weight:
        values = math.prod(shape)
        packed, absmax = (torch.empty(size, dtype=torch.uint8, device=self.device) for size in (values // 2, values // 64))
        if self.device != "meta":
            packed.random_(0, 256)
            absmax.random_(0, 256)
        nested = torch.full((-(-values // (64 * 256)),), 0.01, device=self.device)
        return NF4Weight(packed[:, None], absmax, nested, 0.02, shape, torch.bfloat16)

    @cached_property
    def gate_up(self) -> NF4Weight:
        return self.nf4(E, 2 * F, D)

    @cached_property
    def down(self) -> NF4Weight:
        return self.nf4(E, D, F)

    @cached_property
    def matrix(self) -> NF4Weight:
        return self.nf4(F, D)

    def experts(self, tokens: int) -> Tensor:
        return torch.rand(tokens, E, device=self.device).topk(K).indices

    def weights(self, tokens: int) -> Tensor:
        return torch.rand(tokens, K, device=self.device)

    def rows(self, tokens: int) -> Rows:
        return Rows(tokens * K, Grouping(*group_tokens_reference(self.experts(tokens), E)), K)

    def factor(self, out: int, into: int) -> Tensor:
        return self.randn(E, out, into)


def _decode(s: Setup, t: int) -> Run:
    from .decode import decode_moe

    x, weights, experts = s.randn(t, D), s.weights(t), s.experts(t)
    return lambda: decode_moe(x, weights, experts, s.gate_up, s.down)


def _decode_linear(s: Setup, t: int) -> Run:
    from .decode import decode_linear

    x = s.randn(t, D)
    return lambda: decode_linear(x, s.matrix)


def _swiglu(s: Setup, t: int) -> Run:
    from .grouped import swiglu

    x, weights, rows = s.randn(t, D), s.weights(t), s.rows(t)
    return lambda: swiglu(x, s.gate_up, None, weights, rows, F, None, None, x)


def _swiglu_base(s: Setup, t: int) -> Run:
    from .grouped import swiglu

    shared, weights, rows = s.randn(t, 2 * F), s.weights(t), s.rows(t)
    low_rank = s.randn(t * K, RANK), s.factor(F, RANK), s.randn(t * K, RANK), s.factor(F, RANK)
    return lambda: swiglu(None, None, shared, weights, rows, F, low_rank, None, shared)


def _swiglu_backward(s: Setup, t: int) -> Run:
    from .grouped import swiglu_backward

    dy, weights, rows, preact = s.randn(t, D), s.weights(t), s.rows(t), s.randn(t * K, 2 * F)
    return lambda: swiglu_backward(dy, s.down, None, weights, rows, preact, None, False)


def _swiglu_backward_base(s: Setup, t: int) -> Run:
    from .grouped import swiglu_backward

    dh, weights, rows, preact = s.randn(t, F), s.weights(t), s.rows(t), s.randn(t * K, 2 * F)
    low_rank = s.randn(t * K, RANK), s.factor(RANK, F)
    return lambda: swiglu_backward(None, None, dh, weights, rows, preact, low_rank, True)


def _linear(op: str, weight: Callable[[Setup], Any], width: int, *, transposed: bool = False, one_matrix: bool = False) -> Any:
    """`grouped.linear` on rows of `width`."""

    def make(s: Setup, t: int) -> Run:
        from .grouped import linear

        rows = Rows(t, None) if one_matrix else s.rows(t)
        x, w = s.randn(rows.count, width), weight(s)
        return lambda: linear(op, x, w, rows, transposed=transposed)

    return make


def _gram(s: Setup, t: int) -> Run:
    from .grouped import gram

    rows, narrow, wide = s.rows(t), s.randn(t * K, RANK), s.randn(t * K, F)

    def run() -> None:
        gram(narrow, wide, rows)
        gram(wide, narrow, rows)

    return run


def _dequantize(s: Setup, t: int) -> Run:
    from .dequant import dequantize

    return lambda: dequantize(s.gate_up, torch.bfloat16)


def _group(s: Setup, pairs: int) -> Run:
    from .grouping import group_tokens

    experts = s.experts(max(1, pairs // K))
    return lambda: group_tokens(experts, E)


def _route(kind: str, backward: bool = False) -> Callable[[Setup, int], Run]:
    def make(s: Setup, t: int) -> Run:
        from .routing_ops import route_backward_op, route_op

        x, gate, noise = s.randn(t, D), s.randn(E, D), s.randn(E, D)
        noisy = (noise, torch.zeros((), dtype=torch.int64, device=s.device)) if kind == "noisy_topk" else (None, None)
        ids = torch.arange(t, device=s.device) // 64 if kind == "sequence" else None
        inputs, top_k = (x, gate, *noisy, ids, None), K if kind == "noisy_topk" else 1
        if not backward:
            return lambda: route_op(*inputs, kind, top_k)
        weights, experts, logits, importance, load, saved = route_op(*inputs, kind, top_k)
        grads = torch.ones_like(weights), None, torch.ones_like(importance), torch.ones_like(load)
        return lambda: route_backward_op(*grads, *inputs, experts, logits, saved, kind, [True, True, True])

    return make


def tiles(
    ms: Sequence[int], ns: Sequence[int], ks: Sequence[int], stages: Sequence[int] = (2, 3, 4), warps: Sequence[int] = (4, 8)
) -> Callable[[int], list[Launch]]:
    """Launches of a matrix product: no taller than the rows of two experts, and 16 to 128 sums a thread."""

    def of(tokens: int) -> list[Launch]:
        tallest = max(ms[0], 2 * tokens * K // E)
        listed = (Launch(m, n, k, 1, w, s) for m, n, k, w, s in product(ms, ns, ks, warps, stages) if m <= tallest)
        return [at for at in listed if 16 <= at.block_m * at.block_n / (32 * at.num_warps) <= 128 or at.block_m == ms[0]]

    return of


def every(**choices: Sequence[int]) -> Callable[[int], list[Launch]]:
    """All combinations."""
    return lambda tokens: [Launch(**dict(zip(choices, values, strict=True))) for values in product(*choices.values())]


FEW = (1, 2, None)
FUSED = (16, 32, 64, 128, 256, 512, None)
SOME = (64, 512, None)
ROUTED = (16, 256, 1024, None)
_ROWS = every(block_n=(2, 4, 8, 16), block_k=(1024,), num_warps=(1, 2, 4, 8))
_SPLIT = every(block_n=(4, 8, 16), block_k=(1024,), split_k=(1, 2, 4, 8), num_warps=(2, 4, 8))
_SHRINK = tiles((16, 32, 64), (16, 32, 64), (64, 128, 256), stages=(2, 3))
_EXPAND = tiles((16, 32, 64), (64, 128), (32,), (1, 2))
_SPLITS = every(block_m=(2, 4, 8), split_k=(1, 4, 8, 16, 32), num_warps=(1, 2, 4))
_PRODUCT = tiles((16, 32, 64, 128), (64, 128), (64, 128))
_EPILOGUE = tiles((16, 32, 64), (64, 128), (64,), stages=(1,))
_TOKEN = every(block_m=(1, 2, 4, 8), num_warps=(1, 2, 4, 8))
_TOKEN_BACK = every(block_m=(1, 2, 4), block_k=(128,), num_warps=(2, 4, 8))

TARGETS = [
    Target("decode_gate_up", "any", FEW, _decode, _ROWS, MAX_DECODE_TOKENS),
    Target("decode_down", "any", FEW, _decode, _SPLIT, MAX_DECODE_TOKENS),
    Target("decode_linear", "any", FEW, _decode_linear, _SPLIT, MAX_DECODE_TOKENS),
    Target("swiglu", "any", FUSED, _swiglu, _PRODUCT),
    Target("grouped", "any", FUSED, _linear("grouped", lambda s: s.down, F), _PRODUCT),
    Target("grouped", f"{2 * F}x{D}", FUSED, _linear("grouped", lambda s: s.gate_up, 2 * F, transposed=True), _PRODUCT),
    Target("linear", "any", FUSED, _linear("linear", lambda s: s.matrix, D, one_matrix=True), _PRODUCT),
    Target("swiglu_backward", "any", FUSED, _swiglu_backward, tiles((32, 64, 128), (64, 128), (64,))),
    Target("swiglu_base", "any", SOME, _swiglu_base, _EPILOGUE),
    Target("swiglu_backward_base", "any", SOME, _swiglu_backward_base, _EPILOGUE),
    Target("lora_shrink", "any", SOME, _linear("lora_shrink", lambda s: s.factor(RANK, D), D), _SHRINK),
    Target("lora_expand", "any", SOME, _linear("lora_expand", lambda s: s.factor(D, RANK), RANK), _EXPAND),
    Target("gram", "any", SOME, _gram, tiles((32, 64, 128), (32, 64, 128), (32, 64), (2, 3))),
    Target("dequantize", "any", (None,), _dequantize, every(block_m=(16, 32, 64, 128), block_n=(1,), block_k=(64,), num_warps=(2, 4, 8))),
    Target("group", "any", SOME, _group, every(block_m=(64, 128, 256, 512, 1024), num_warps=(1, 2, 4, 8))),
    Target("route", "any", ROUTED, _route("noisy_topk"), _TOKEN),
    Target("route_sequence", "any", SOME, _route("sequence"), every(block_m=(2, 4, 8), block_k=(64, 128, 256), num_warps=(2, 4, 8))),
    Target("route_backward", "any", ROUTED, _route("noisy_topk", backward=True), _TOKEN_BACK),
    Target("route_weight", "any", SOME, _route("noisy_topk", backward=True), _SPLITS),
]
