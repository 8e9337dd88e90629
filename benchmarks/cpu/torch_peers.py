"""Ours, bitsandbytes and transformers, for `benchmarks.cpu`."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from benchmarks.cpu.contender import BNB, DENSE, EXACT, EXACT_BF16, INFO, INT8, Contender, Missing
from benchmarks.cpu.problem import D, E, F, K, Problem, Weights
from moe_kernels.experts import moe_dense
from moe_kernels.nf4 import to_bitsandbytes

Run = Callable[[], Any]


def by_expert(problem: Problem, product: Callable[[Tensor, int, int], Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """The layer in plain torch by way of `product(rows, which, expert)`, `which` 0 for gate and up, 1 for down."""
    x = problem.x.to(dtype)
    y = torch.zeros_like(problem.x)
    for e, tokens, gates in problem.pairs_of_expert:
        gate, up = product(x[tokens], 0, e).chunk(2, dim=1)
        y = y.index_add(0, tokens, product(silu(gate) * up, 1, e).float() * gates)
    return y


def ours(precision: str, weights: Weights, dtype: torch.dtype = torch.float32) -> Callable[[Problem], Run]:
    gate_up, down = weights.nf4
    return lambda problem: partial(moe_dense, problem.x.to(dtype), problem.routing, gate_up, down, precision=precision)


def bnb_states(weights: Weights) -> list[list[Any]]:
    """(packed, state) of [which][expert], on our bytes: bitsandbytes quantises to the same."""
    return [[to_bitsandbytes(q.expert(e)) for e in range(E)] for q in weights.nf4]


def bitsandbytes(dtype: torch.dtype, weights: Weights) -> Callable[[Problem], Run]:
    """`matmul_4bit` on the plain format, whose states name the dtype that the weights are read as: the whole matrix is, then multiplied."""
    bnb = import_module("bitsandbytes")
    states = bnb_states(weights)
    for _, state in (pair for stack in states for pair in stack):
        state.dtype = dtype

    def product(rows: Tensor, which: int, e: int) -> Tensor:
        packed, state = states[which][e]
        return bnb.matmul_4bit(rows, packed.t(), quant_state=state)

    return lambda problem: partial(by_expert, problem, product, dtype)


def bitsandbytes_packed(weights: Weights) -> Callable[[Problem], Run]:
    """Its fused product in bf16, which `Linear4bit` repacks for in its first evaluation on a CPU with AVX512-BF16."""
    functional = import_module("bitsandbytes.functional")
    if not functional.has_avx512bf16():
        raise Missing("this CPU has no AVX512-BF16")
    convert = functional._convert_weight_packed_for_cpu
    states = [[convert(*pair) for pair in stack] for stack in bnb_states(weights)]

    def product(rows: Tensor, which: int, e: int) -> Tensor:
        packed, state = states[which][e]
        return functional.gemv_4bit(rows, packed, state=state)

    return lambda problem: partial(by_expert, problem, product, torch.bfloat16)


def transformers_block(dtype: torch.dtype, implementation: str, weights: Weights) -> Callable[[Problem], Run]:
    """`MixtralExperts` of transformers' block with dense weights; its router is left out, as everyone's is."""
    mixtral = import_module("transformers.models.mixtral.modeling_mixtral")
    config = import_module("transformers").MixtralConfig(
        hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=K, experts_implementation=implementation
    )
    with torch.device("meta"):
        experts = mixtral.MixtralExperts(config)
    for name in ("gate_up_proj", "down_proj"):
        dense = weights.gate_up if name == "gate_up_proj" else weights.down
        setattr(experts, name, torch.nn.Parameter(_cast(dense, dtype), requires_grad=False))

    def prepare(problem: Problem) -> Run:
        x, gates = problem.x.to(dtype), problem.routing.weights_TK.to(dtype)
        return lambda: experts(x, problem.routing.experts_TK, gates)

    return prepare


_casts: dict[tuple[int, torch.dtype], Tensor] = {}


def _cast(dense: Tensor, dtype: torch.dtype) -> Tensor:
    """`dense` in `dtype`, made once: two implementations of transformers share it."""
    return dense if dense.dtype == dtype else _casts.setdefault((dense.data_ptr(), dtype), dense.to(dtype))


CONTENDERS = [
    Contender(EXACT, partial(ours, "exact"), "nf4", 1e-4),
    Contender(EXACT_BF16, partial(ours, "exact", dtype=torch.bfloat16), "nf4", 0.02, result=Tensor.float),
    Contender(INT8, partial(ours, "int8"), "nf4", 0.03),
    Contender("bitsandbytes fp32", partial(bitsandbytes, torch.float32), "nf4", 5e-3, BNB),
    Contender("bitsandbytes bf16", partial(bitsandbytes, torch.bfloat16), "nf4", 0.02, INFO),
    Contender("bitsandbytes bf16 packed", bitsandbytes_packed, "nf4", 0.02, INFO),
    Contender("transformers fp32 eager", partial(transformers_block, torch.float32, "eager"), "dense", 1e-4, DENSE),
    Contender("transformers fp32 grouped_mm", partial(transformers_block, torch.float32, "grouped_mm"), "dense", 1e-4, DENSE),
    Contender("transformers bf16 eager", partial(transformers_block, torch.bfloat16, "eager"), "dense", 0.02, INFO),
]
