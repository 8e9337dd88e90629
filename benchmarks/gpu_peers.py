"""One 4x7B layer of experts as this package runs it, and as its peers do: the functions that `benchmarks.gpu_layer` times.

A peer is its product of rows in expert order with each expert's matrix; sorting, SwiGLU, LoRA and the sum over a token's experts are one
plain-torch function for all peers, so that only products differ. A peer that is not installed or does not run is left out, with the reason.

T tokens, K experts per token, E experts, D model width, F expert hidden width, R LoRA rank, N = T*K pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from moe_kernels.experts import ExpertLoRA, LoRA, moe_dense, moe_lora
from moe_kernels.nf4 import NF4Weight, dequantize_absmax, dequantize_nf4, to_bitsandbytes
from moe_kernels.routing import Routing

OURS = "ours"
Product = Callable[[Tensor, int, "Plan"], Tensor]  # of rows in expert order with matrix 0 (gate and up) or 1 (down) of their experts


@dataclass(eq=False)
class Problem:
    """A layer's inputs. `lora`: a1, b1, a3, b3, a2, b2 in x's dtype, or none."""

    x: Tensor  # [T, D]
    weights: Tensor  # [T, K] fp32
    experts: Tensor  # [T, K]
    dy: Tensor  # [T, D]
    gate_up: NF4Weight  # [E, 2F, D]
    down: NF4Weight  # [E, D, F]
    lora: list[Tensor]
    dense: list[Tensor] = field(default_factory=list)  # the same two weights in x's dtype, for the peers that keep them so

    @property
    def base(self) -> list[NF4Weight]:
        return [self.gate_up, self.down]


@dataclass(frozen=True, eq=False)
class Plan:
    """Rows in expert order, and how many each expert has: on the device, and on the host where a peer asks for it."""

    order: Tensor
    inverse: Tensor
    ends: Tensor  # int32 [E]
    sizes: list[int]

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """(expert, first row, end) of the experts with rows."""
        ends = list(accumulate(self.sizes))
        return [(e, end - size, end) for e, (size, end) in enumerate(zip(self.sizes, ends, strict=True)) if size]


def make_plan(experts: Tensor, num_experts: int, sizes: list[int] | None, on_host: bool) -> Plan:
    """`sizes` given: they are not asked of the device, as in a CUDA graph, whose routing is then fixed."""
    flat = experts.reshape(-1)
    order = flat.argsort(stable=True)
    counts = (flat[:, None] == torch.arange(num_experts, device=flat.device)).sum(0)
    if sizes is None:
        sizes = counts.tolist() if on_host else []
    return Plan(order, order.argsort(), counts.cumsum(0).int(), sizes)


@dataclass(frozen=True)
class Peer:
    name: str
    make: Callable[[Problem], tuple[Product, Callable[..., Tensor]]]  # its product and its LoRA term
    on_host: bool = True  # whether it needs the experts' sizes on the host


def layer(problem: Problem, product: Product, delta: Callable[..., Tensor], plan: Plan) -> Tensor:
    """y [T, D] by way of a peer's product."""
    top_k = problem.experts.shape[1]
    rows = problem.x[plan.order // top_k]
    gate, up = product(rows, 0, plan).chunk(2, dim=1)
    if problem.lora:
        gate, up = gate + delta(rows, *problem.lora[:2], plan), up + delta(rows, *problem.lora[2:4], plan)
    h = silu(gate) * up * problem.weights.reshape(-1)[plan.order][:, None].to(rows.dtype)
    y = product(h, 1, plan)
    if problem.lora:
        y = y + delta(h, *problem.lora[4:], plan)
    return y[plan.inverse].view(-1, top_k, y.shape[1]).sum(1)


class Frozen(torch.autograd.Function):
    """x W^T for a weight that is made anew in forward and backward, and has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, make: Callable[[], Tensor]) -> Tensor:
        ctx.make = make
        return linear(x, make())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.make(), None


class FrozenGrouped(torch.autograd.Function):
    """The same of a stack [E, out, in] by PyTorch's grouped product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: Tensor, make: Callable[[], Tensor]) -> Tensor:
        ctx.make = make
        ctx.save_for_backward(ends)
        return torch._grouped_mm(x, make().transpose(-2, -1), offs=ends)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (ends,) = ctx.saved_tensors
        return torch._grouped_mm(grads[0].contiguous(), ctx.make(), offs=ends), None, None


def looped(of_expert: Callable[[int, Tensor, int], Tensor]) -> Product:
    """One product an expert: `of_expert(which, rows, expert)`."""
    return lambda rows, which, plan: torch.cat([of_expert(which, rows[begin:end], e) for e, begin, end in plan.spans])


def loop_delta(rows: Tensor, a: Tensor, b: Tensor, plan: Plan) -> Tensor:
    return torch.cat([linear(linear(rows[begin:end], a[e]), b[e]) for e, begin, end in plan.spans])


def grouped_delta(rows: Tensor, a: Tensor, b: Tensor, plan: Plan) -> Tensor:
    z = torch._grouped_mm(rows, a.transpose(-2, -1), offs=plan.ends)
    return torch._grouped_mm(z, b.transpose(-2, -1), offs=plan.ends)


def _bnb_loop(problem: Problem) -> tuple[Product, Any]:
    functional = import_module("bitsandbytes.functional")
    states = [[to_bitsandbytes(q.expert(e)) for e in range(q.shape[0])] for q in problem.base]

    def of_expert(which: int, rows: Tensor, e: int) -> Tensor:
        return Frozen.apply(rows, lambda: functional.dequantize_4bit(*states[which][e]))

    return looped(of_expert), loop_delta


def _bnb_4bit(problem: Problem) -> tuple[Product, Any]:
    bnb = import_module("bitsandbytes")
    states = [[to_bitsandbytes(q.expert(e)) for e in range(q.shape[0])] for q in problem.base]

    def of_expert(which: int, rows: Tensor, e: int) -> Tensor:
        packed, state = states[which][e]
        return bnb.matmul_4bit(rows, packed.t(), quant_state=state)

    return looped(of_expert), loop_delta


def _our_dequant_loop(problem: Problem) -> tuple[Product, Any]:
    def of_expert(which: int, rows: Tensor, e: int) -> Tensor:
        return Frozen.apply(rows, lambda: dequantize_nf4(problem.base[which].expert(e)))

    return looped(of_expert), loop_delta


def _dense_loop(problem: Problem) -> tuple[Product, Any]:
    return looped(lambda which, rows, e: linear(rows, problem.dense[which][e])), loop_delta


def _grouped_mm(problem: Problem) -> tuple[Product, Any]:
    dense = problem.dense
    return lambda rows, which, plan: FrozenGrouped.apply(rows, plan.ends, lambda: dense[which]), grouped_delta


def _dequant_grouped_mm(problem: Problem) -> tuple[Product, Any]:
    stacks = problem.base
    return lambda rows, which, plan: FrozenGrouped.apply(rows, plan.ends, lambda: dequantize_nf4(stacks[which])), grouped_delta


def _grouped_nf4_gemm(problem: Problem) -> tuple[Product, Any]:
    qlora = import_module("nf4_qlora")
    stacks = [(q.packed.view(q.shape[0], q.shape[1], -1), dequantize_absmax(q).view(q.shape[0], q.shape[1], -1)) for q in problem.base]

    def product(rows: Tensor, which: int, plan: Plan) -> Tensor:
        sizes, ids = [end - begin for _, begin, end in plan.spans], [e for e, _, _ in plan.spans]
        return qlora.gemm_4bit_grouped_train(rows, *stacks[which], sizes, ids)

    def delta(rows: Tensor, a: Tensor, b: Tensor, plan: Plan) -> Tensor:
        return qlora.lora_delta_grouped(rows, a, b, [end - begin for _, begin, end in plan.spans], [e for e, _, _ in plan.spans])

    return product, delta


PEERS = [
    Peer("bitsandbytes loop", _bnb_loop),
    Peer("bitsandbytes 4-bit GEMM", _bnb_4bit),
    Peer("grouped-nf4-gemm", _grouped_nf4_gemm),
    Peer("loop on our dequantise", _our_dequant_loop),
    Peer("our dequantise + grouped_mm", _dequant_grouped_mm, on_host=False),
    Peer("bf16 grouped_mm", _grouped_mm, on_host=False),
    Peer("bf16 loop", _dense_loop),
]


def run_ours(problem: Problem) -> Tensor:
    parts = [LoRA(a, b, 1.0) for a, b in zip(problem.lora[::2], problem.lora[1::2], strict=True)]
    return moe_dense(problem.x, _routing(problem), problem.gate_up, problem.down, ExpertLoRA(*parts) if parts else None)


def run_ours_shared(problem: Problem) -> Tensor:
    """The lora layout: expert 0's matrices shared by all."""
    parts = [LoRA(a, b, 1.0) for a, b in zip(problem.lora[::2], problem.lora[1::2], strict=True)]
    hidden = problem.down.shape[2]
    first, down = problem.gate_up.expert(0), problem.down.expert(0)
    half = NF4Weight(first.packed, first.absmax, first.nested_absmax, first.nested_offset, (2, hidden, first.shape[1]), first.dtype)
    return moe_lora(problem.x, _routing(problem), half.expert(0), half.expert(1), down, ExpertLoRA(*parts))


def run_peer(problem: Problem, peer: Peer, sizes: list[int] | None) -> Callable[[], Tensor]:
    """A call of the peer's layer; with `sizes` the routing is fixed and nothing is asked of the device."""
    product, delta = peer.make(problem)
    num_experts = problem.gate_up.shape[0]
    return lambda: layer(problem, product, delta, make_plan(problem.experts, num_experts, sizes, peer.on_host))


def _routing(problem: Problem) -> Routing:
    return Routing(problem.weights, problem.experts, None, None, None)  # type: ignore[arg-type]


def eager_router(x: Tensor, gate: Tensor, noise: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy top-k gating as it is written in plain PyTorch: weights, experts, importance, load."""
    clean = linear(x, gate).float()
    std = torch.nn.functional.softplus(linear(x, noise).float())
    noisy = clean + torch.randn_like(clean) * std
    top, experts = noisy.topk(min(top_k + 1, noisy.shape[1]), dim=1)
    weights = top[:, :top_k].softmax(dim=1)
    spread = torch.zeros_like(clean).scatter(1, experts[:, :top_k], weights)
    chosen = noisy > top[:, -1:]
    threshold = torch.where(chosen, top[:, -1:], top[:, top_k - 1 : top_k])
    return weights, experts[:, :top_k], spread.sum(0), torch.special.ndtr((clean - threshold) / std).sum(0)
