"""What each recorded launch has to do, for `benchmarks.card_model`: programs, bytes through DRAM, multiply-adds, NF4 weights looked up.

Routing is uniform and independent: a token picks each expert with probability K/E, so an expert's rows follow a binomial, and the numbers
of tiles and of experts read are expectations over it.

T tokens, K experts per token, E experts, N = T*K pairs, D model width, F expert hidden width, R LoRA rank.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.card_model import Card, Work
from moe_kernels.grouping import active_experts
from moe_kernels.launch import Call
from moe_kernels.nf4_format import NF4

NF4_BITS = NF4.bits
_WEIGHT = {"w_ptr", "packed_ptr", "absmax_ptr", "nested_ptr", "map_ptr"}
_MATMULS = {"mm", "addmm", "bmm", "_grouped_mm"}
_FREE = {"zeros", "empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "_reshape_alias"}


def expected(tokens: int, chance: float, value: Callable[[int], float]) -> float:
    """The expectation of `value`(rows) where rows is binomial: `tokens` draws of probability `chance`."""
    if chance >= 1:
        return value(tokens)
    log = math.log
    weights = [
        math.exp(
            math.lgamma(tokens + 1) - math.lgamma(n + 1) - math.lgamma(tokens - n + 1) + n * log(chance) + (tokens - n) * log(1 - chance)
        )
        for n in range(tokens + 1)
    ]
    return sum(weight * value(n) for n, weight in enumerate(weights))


def arguments(call: Call) -> dict[str, Any]:
    """All parameters of the launch by name."""
    return {**dict(zip(call.kernel.arg_names, call.args, strict=False)), **call.constants}


def work_of(call: Call, resident: int, card: Card) -> Work:
    """The work of one launch on a card whose SMs hold `resident` of its programs each."""
    name, values = call.kernel.__name__, arguments(call)
    if name.startswith("grouped_gram"):
        return _gram(call, values)
    if name.startswith("grouped_"):
        return _grouped(values, name, resident * card.sms)
    if name in ("decode_gate_up_kernel", "decode_down_kernel"):
        return _decode(call, values)
    return Work(math.prod(call.grid), _bytes(values), trips=_TRIPS.get(name, lambda _: 1.0)(values))


_TRIPS: dict[str, Callable[[dict[str, Any]], float]] = {
    "route_kernel": lambda v: math.ceil(v["D"] / (v["LANES"] * v["VECTOR"])) * math.ceil(v["E"] / v["BLOCK_E"]),
}


def _bytes(values: dict[str, Any], leave_out: set[str] = frozenset()) -> float:  # type: ignore[assignment]
    """Each tensor once."""
    return float(sum(value.nbytes for name, value in values.items() if isinstance(value, Tensor) and name not in leave_out))


def _grouped(v: dict[str, Any], name: str, at_once: int) -> Work:
    """A product of all pairs with their experts' matrices; `at_once` programs run together and share their reads through the L2."""
    grouped = v["offsets_ptr"] is not None
    experts, top_k, rows = (v["E"], v["TOP_K"], v["rows"]) if grouped else (1, 1, v["rows"])
    tokens, chance = rows // top_k, top_k / experts
    tiles = experts * expected(tokens, chance, lambda n: math.ceil(n / v["BLOCK_M"]))
    active = experts * expected(tokens, chance, lambda n: float(n > 0))
    if name == "grouped_swiglu":
        width, depth, side = 2 * v["F"], v["D"], v["x_ptr"]
    elif name == "grouped_swiglu_backward":
        width, depth, side = v["F"], v["D"], v["dy_ptr"]
    else:
        width, depth, side = (v["COLUMNS"], v["ROWS"], v["x_ptr"]) if v["TRANSPOSED"] else (v["ROWS"], v["COLUMNS"], v["x_ptr"])
    if v["w_ptr"] is None:
        depth = 0
    columns = math.ceil(width / v["BLOCK_N"])
    programs = tiles * columns
    others = _bytes(v, _WEIGHT | {"x_ptr", "dy_ptr"})
    low_rank = v["BLOCK_R"] if v["RANK"] else 0
    fma = programs * v["BLOCK_M"] * v["BLOCK_N"] * (depth + low_rank)
    if not depth:
        return Work(programs, others, fma)
    # The programs that run together are a rectangle of GROUP row tiles and as many column tiles as fit: each side is read once for it.
    waves = max(1.0, programs / at_once)
    high = min(v["GROUP"], tiles)
    wide = min(columns, at_once / high)
    experts_at_once = max(1.0, min(active, high * active / tiles))
    element = side.element_size()
    bits = NF4_BITS if v["NF4"] else 8 * v["w_ptr"].element_size()
    x = max(min(rows, tokens) * depth * element, min(programs, waves * high) * v["BLOCK_M"] * depth * element)
    w = max(active * width * depth, min(programs, waves * wide * experts_at_once) * v["BLOCK_N"] * depth) * bits / 8
    return Work(programs, x + w + others, fma)


def _gram(call: Call, v: dict[str, Any]) -> Work:
    """An outer product over each expert's rows, in steps of BLOCK_K rows."""
    experts = call.grid[2]
    rows = v["a_ptr"].shape[0] * (v["TOP_K"] if v["a_order_ptr"] is not None else 1)
    tokens = rows // v["TOP_K"]
    steps = experts * expected(tokens, v["TOP_K"] / experts, lambda n: math.ceil(n / v["BLOCK_K"]))
    return Work(math.prod(call.grid), _bytes(v), steps * v["BLOCK_K"] * call.grid[0] * call.grid[1] * v["BLOCK_M"] * v["BLOCK_N"])


def _decode(call: Call, v: dict[str, Any]) -> Work:
    """Every chosen expert's matrix once."""
    columns, rows = (v["D"], 2 * v["F"]) if "D" in v else (v["IN"], v["OUT"])
    routed = v.get("ROUTED", True)
    packed = v["packed_ptr"].numel() * 2
    experts = packed // (rows * columns)
    active = active_experts(v["num_tokens"], v["TOP_K"], experts) if routed else 1.0
    weights = active * rows * columns
    programs = math.prod(call.grid) / call.grid[1] * active
    return Work(programs, weights * NF4_BITS / 8 + _bytes(v, _WEIGHT), weights=weights)


@dataclass(frozen=True)
class TorchOp:
    """An operation of PyTorch's own that ran between the launches: its bytes, and FLOPs if it is a product."""

    name: str
    bytes: float
    flops: float

    def seconds(self, card: Card) -> float:
        """A product runs at cuBLAS' rate, all else at DRAM's."""
        return card.launch + max(self.bytes / (card.dram * card.dram_share), self.flops / card.gemm)


@dataclass
class TorchOps(TorchDispatchMode):
    """Notes PyTorch's operations on meta tensors while it is on.

    Views and allocations cost nothing; the operators of this package are their launches. `zeros` is left out too: the kernels ask for one
    once in a process.
    """

    ops: list[TorchOp] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and name not in _FREE and not func.is_view:
            tensors = [*_tensors(args), *_tensors(out)]
            flops = 0.0
            if name in _MATMULS:
                left, right = _tensors(args)[1:3] if name == "addmm" else _tensors(args)[:2]
                flops = 2.0 * left.numel() * right.shape[-1]
            self.ops.append(TorchOp(name, float(sum(tensor.nbytes for tensor in tensors)), flops))
        return out


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [tensor for branch in tree for tensor in _tensors(branch)] if isinstance(tree, tuple | list) else []
