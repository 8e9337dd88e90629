"""Every launch that the shipped tables produce on a 4x7B model, recorded on the meta device: for compiling ahead of time, for the
checks of the cubins, and for the model of a card.

T tokens, K experts per token, E experts, D model width, F expert hidden width, R LoRA rank.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .decode import MAX_DECODE_TOKENS
from .launch import Call, fused_tokens, read_table, record_launches, table_for
from .nf4 import NF4Weight
from .nf4_format import NF4

D, F, E, K = 4096, 14336, 4, 2  # Mistral-7B's layer, four experts, two a token
RANKS = (16, 64)


@dataclass(frozen=True)
class Case:
    """One size and dtype that an operation is recorded for."""

    tokens: int
    dtype: torch.dtype = torch.bfloat16
    rank: int = RANKS[0]

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor without memory."""
        return torch.empty(shape, dtype=dtype or self.dtype, device="meta")

    def nf4(self, *shape: int) -> NF4Weight:
        """An NF4 weight without memory; what was quantised is bf16, as in Mistral's checkpoints."""
        values = math.prod(shape)
        blocks = values // NF4.block
        packed, absmax = self.empty(values // 2, 1, dtype=torch.uint8), self.empty(blocks, dtype=torch.uint8)
        return NF4Weight(packed, absmax, self.empty(-(-blocks // NF4.nested_block), dtype=torch.float32), 0.0, shape, torch.bfloat16)

    def routing(self) -> tuple[Tensor, Tensor]:
        """(weights, experts) [T, K]."""
        return self.empty(self.tokens, K, dtype=torch.float32), self.empty(self.tokens, K, dtype=torch.int64)


def dense_inference(case: Case) -> None:
    from .experts_triton import dense_forward

    dense_forward(case.empty(case.tokens, D), *case.routing(), case.nf4(E, 2 * F, D), case.nf4(E, D, F), None, save=False)


def dense_training(case: Case, with_lora: bool = False) -> None:
    from .experts_triton import dense_backward, dense_forward

    x, (weights, experts), gate_up, down = case.empty(case.tokens, D), case.routing(), case.nf4(E, 2 * F, D), case.nf4(E, D, F)
    lora = _factors(case) if with_lora else None
    y, saved = dense_forward(x, weights, experts, gate_up, down, lora, save=True)
    assert saved is not None
    dense_backward(torch.empty_like(y), x, weights, gate_up, down, lora, saved, base_grads=False)


def dense_lora_inference(case: Case) -> None:
    from .experts_triton import dense_forward

    dense_forward(case.empty(case.tokens, D), *case.routing(), case.nf4(E, 2 * F, D), case.nf4(E, D, F), _factors(case), save=False)


def dense_lora_training(case: Case) -> None:
    dense_training(case, with_lora=True)


def lora_inference(case: Case) -> None:
    from .experts_triton import lora_forward

    lora_forward(case.empty(case.tokens, D), *case.routing(), _shared_base(case), _factors(case), save=False)


def lora_training(case: Case) -> None:
    from .experts_triton import lora_backward, lora_forward

    x, (weights, experts), base, lora = case.empty(case.tokens, D), case.routing(), _shared_base(case), _factors(case)
    y, saved = lora_forward(x, weights, experts, base, lora, save=True)
    assert saved is not None
    lora_backward(torch.empty_like(y), x, weights, base, lora, saved, base_grads=False)


def attention_inference(case: Case, with_backward: bool = False) -> None:
    """The projections in NF4: q and o are of all heads, k and v of a quarter."""
    from .experts_triton import shared_linear

    for width in (D, D // 4):
        weight = case.nf4(width, D)
        y = shared_linear(case.empty(case.tokens, D), weight, exact=with_backward)
        if with_backward:
            shared_linear(torch.empty_like(y), weight, transposed=True)


def attention_training(case: Case) -> None:
    attention_inference(case, with_backward=True)


def router(case: Case) -> None:
    from .routing_launch import route_by_kernels

    route_by_kernels(case.empty(case.tokens, D), case.empty(E, D), None, None, None, None, "topk", K)


def router_noisy(case: Case, with_backward: bool = False, gate_dtype: torch.dtype | None = None) -> None:
    from .routing_launch import route_backward_by_kernels, route_by_kernels

    x, seed = case.empty(case.tokens, D), case.empty(1, dtype=torch.int64)
    gate, noise = case.empty(E, D, dtype=gate_dtype), case.empty(E, D, dtype=gate_dtype)
    weights, experts, logits, importance, load, saved = route_by_kernels(x, gate, noise, seed, None, None, "noisy_topk", K)
    if with_backward:
        grads = torch.empty_like(weights), None, torch.empty_like(importance), torch.empty_like(load)
        route_backward_by_kernels(*grads, x, gate, noise, None, None, experts, logits, saved, "noisy_topk", True, [True, True, True])


def router_training(case: Case) -> None:
    router_noisy(case, with_backward=True)


def router_training_fp32(case: Case) -> None:
    """As in train.gate, where what is trained is in fp32 whatever the model is in."""
    router_noisy(case, with_backward=True, gate_dtype=torch.float32)


def dequantise(case: Case) -> None:
    from .dequant import dequantize

    dequantize(case.nf4(E, 2 * F, D), torch.bfloat16)


def _shared_base(case: Case) -> list[NF4Weight]:
    return [case.nf4(F, D), case.nf4(F, D), case.nf4(D, F)]


def _factors(case: Case) -> Any:
    from .experts_triton import Factors

    up = case.empty(E, case.rank, D), case.empty(E, F, case.rank)
    return Factors(*up, *up, case.empty(E, case.rank, F), case.empty(E, D, case.rank), 1.0, 1.0, 1.0)


# A new operation is one line here.
OPERATIONS: dict[str, Callable[[Case], None]] = {
    "dense_inference": dense_inference,
    "dense_training": dense_training,
    "dense_lora_inference": dense_lora_inference,
    "dense_lora_training": dense_lora_training,
    "lora_inference": lora_inference,
    "lora_training": lora_training,
    "attention_inference": attention_inference,
    "attention_training": attention_training,
    "router_inference": router,
    "router_noisy": router_noisy,
    "router_training": router_training,
    "router_training_fp32": router_training_fp32,
    "dequantise": dequantise,
}


def shipped_tokens(arch: int) -> list[int]:
    """Numbers of tokens that reach every entry of the table of `arch`: the most tokens of each bucket, and more than any."""
    entries = [rows for of_op in read_table(table_for(arch)).values() for rows in of_op.values()]
    bounds = {most for rows in entries for most, _ in rows if most is not None} | {fused_tokens(arch)}
    return sorted({1, 2, 4, 8, 16} | bounds | {2 * max(bounds)})


HALF = ("dense_inference", "lora_inference", "attention_inference", "router_inference")  # also compiled for fp16


def cases(operation: str, arch: int) -> list[Case]:
    """bf16 at every size; decoding in fp16 too; the second rank, where there is one, at the least and the most tokens."""
    tokens = shipped_tokens(arch)
    half = [Case(count, torch.float16) for count in tokens if count <= MAX_DECODE_TOKENS] if operation in HALF else []
    other_rank = [Case(count, rank=RANKS[1]) for count in (tokens[0], tokens[-1])] if "lora" in operation else []
    return [*(Case(count) for count in tokens), *half, *other_rank]


def record(operation: Callable[[Case], None], case: Case, arch: int) -> list[Call]:
    """The launches of one operation, in order."""
    with record_launches(arch) as calls:
        operation(case)
    return calls


def shipped_calls(arch: int) -> dict[str, list[Call]]:
    """By operation, every launch of every case on compute capability `arch`. Launches that need equal code are all there."""
    return {name: [call for case in cases(name, arch) for call in record(operation, case, arch)] for name, operation in OPERATIONS.items()}
