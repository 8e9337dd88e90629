"""A model of one 4x7B layer on a card, from the cubins of the launches themselves: `python -m benchmarks.a10g`.

Every figure it prints is modelled, none is measured: `benchmarks/card_model.py` says how, `benchmarks/costs.py` what each launch has to do,
and under which routing. Beside it stand the floor (weights through DRAM once, or the multiply-adds at the tensor cores' full rate) and two
peers, modelled as well: all experts dequantised to bf16 and multiplied by cuBLAS, and a Python loop over experts on bitsandbytes.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from tqdm import tqdm

from benchmarks.card_model import CARDS, Card, Time, predict, resident_programs
from benchmarks.costs import NF4_BITS, TorchOps, work_of
from moe_kernels import shipped
from moe_kernels.aot import Build, build_of, examine_all
from moe_kernels.cubin import CubinFacts
from moe_kernels.grouping import active_experts
from moe_kernels.launch import Call, record_launches
from moe_kernels.shipped import Case, D, E, F, K

TOKENS = (1, 2, 4, 8, 16, 64, 128, 256, 512, 1024, 2048, 4096)
MATRICES = 3 * D * F  # weights of one expert
LOOP_OPS = {"forward": 16, "step": 44}  # PyTorch operations an expert in the loop over bitsandbytes' layers; estimated, not traced
# In the tables, and in moe_kernels.shipped. A step is a forward that keeps what its backward needs, and the backward; LoRA of rank 16.
OPERATIONS = {
    "forward": "dense_inference",
    "training step": "dense_lora_training",
    "forward, lora layout": "lora_inference",
    "training step, lora layout": "lora_training",
    "router": "router_inference",
    "router with noise": "router_noisy",
    "router step": "router_training",
}


@dataclass(frozen=True)
class Recorded:
    """What one operation at one size runs: launches of this package, and operations of PyTorch's."""

    name: str
    tokens: int
    calls: list[Call]
    torch_ops: TorchOps


@dataclass(frozen=True)
class Prediction:
    """Modelled time of one operation."""

    name: str
    tokens: int
    seconds: float
    launches: int
    longest: str  # kernel that takes most of it, and what bounds that


def record_all(card: Card) -> list[Recorded]:
    """Every operation at every size, on the code of `card`."""
    recorded = []
    for name, operation in OPERATIONS.items():
        for tokens in TOKENS:
            recorded.append(record_one(name, tokens, shipped.OPERATIONS[operation], card))
    return recorded


def record_one(name: str, tokens: int, operation: Callable[[Case], None], card: Card) -> Recorded:
    with record_launches(card.arch):
        operation(Case(tokens))  # what is made once in a process, such as tables, is no part of a call
    ops = TorchOps()
    with record_launches(card.arch) as calls, ops:
        operation(Case(tokens))
    return Recorded(name, tokens, list(calls), ops)


def predict_all(recorded: Sequence[Recorded], facts: dict[Build, CubinFacts], card: Card) -> list[Prediction]:
    """The sum over each operation's launches and PyTorch operations."""
    predictions = []
    for item in recorded:
        times: list[tuple[float, str]] = []
        for call in item.calls:
            time = predict_call(call, facts[build_of(call, card.arch)], card)
            times.append((time.seconds, f"{call.kernel.__name__} ({time.bound})"))
        times += [(op.seconds(card), f"torch {op.name}") for op in item.torch_ops.ops]
        predictions.append(Prediction(item.name, item.tokens, sum(seconds for seconds, _ in times), len(times), max(times)[1]))
    return predictions


def predict_call(call: Call, facts: CubinFacts, card: Card) -> Time:
    warps, stages = call.options["num_warps"], call.options.get("num_stages", 1)
    return predict(facts, warps, stages, work_of(call, resident_programs(facts, warps, card), card), card)


def floor(tokens: int, card: Card, passes: int = 1, shared: bool = False) -> float:
    """No program can be faster: the chosen experts' bytes at nominal bandwidth, or the multiply-adds at the full tensor rate.

    `shared`: in the lora layout all experts are one, which a token meets once.
    """
    experts, pairs = (1.0, tokens) if shared else (active_experts(tokens, K, E), tokens * K)
    return passes * max(experts * MATRICES * NF4_BITS / 8 / card.dram, card.sm_seconds(pairs * MATRICES, card.tensor))


def dequantise_then_gemm(tokens: int, card: Card, passes: int = 1, shared: bool = False) -> float:
    """All weights read in 4 bits and written in 16 (2.95 ms on the A10G), then cuBLAS; activations and launches are free."""
    experts, pairs = (1, tokens) if shared else (E, tokens * K)
    return passes * (experts * MATRICES * (NF4_BITS / 8 + 2) / card.dram + 2 * pairs * MATRICES / card.gemm)


def bitsandbytes_loop(tokens: int, card: Card, kind: str = "step") -> float:
    """A loop over the chosen experts: dequantise, cuBLAS, activations through DRAM; or the host's time for its operations. LoRA is free."""
    passes, rows, active = 2 if kind == "step" else 1, tokens * K, active_experts(tokens, K, E)
    activations = rows * 2 * (9 * D + 9 * F)  # gather, silu, product, weighting and index_add, each read and written
    moved = active * MATRICES * (NF4_BITS / 8 + 2) + activations
    device = passes * (moved / (card.dram * card.dram_share) + 2 * rows * MATRICES / card.gemm)
    return max(device, active * LOOP_OPS[kind] * card.host_launch)


def tables(predictions: Sequence[Prediction], card: Card) -> list[dict[str, Any]]:
    """One row for each prediction, with the peers beside it; milliseconds."""
    rows = []
    for item in predictions:
        row: dict[str, Any] = {"operation": item.name, "tokens": item.tokens, "model_ms": item.seconds * 1e3, "launches": item.launches}
        if not item.name.startswith("router"):
            kind = "step" if "step" in item.name else "forward"
            shared = "lora layout" in item.name
            passes, pairs = 2 if kind == "step" else 1, item.tokens * (1 if shared else K)
            row |= {
                "floor_ms": floor(item.tokens, card, passes, shared) * 1e3,
                "dequantise_gemm_ms": dequantise_then_gemm(item.tokens, card, passes, shared) * 1e3,
                "bnb_loop_ms": bitsandbytes_loop(item.tokens, card, kind) * 1e3,
                "times_faster_than_loop": bitsandbytes_loop(item.tokens, card, kind) / item.seconds,
                "model_tflops": 2e-12 * passes * pairs * MATRICES / item.seconds,
            }
        rows.append(row | {"longest": item.longest})
    return rows


def show(rows: Sequence[dict[str, Any]], card: Card) -> str:
    """The tables as text."""
    lines = []
    for name in dict.fromkeys(row["operation"] for row in rows):
        mine = [row for row in rows if row["operation"] == name]
        lines += [f"\nMODEL of the {card.name}, not measured: {name}, one 4x7B layer, bf16, uniform routing"]
        columns = list(mine[0])[1:]
        lines.append("  ".join(column.rjust(max(9, len(column))) for column in columns))
        for row in mine:
            lines.append("  ".join(_cell(row[column]).rjust(max(9, len(column))) for column in columns))
    return "\n".join(lines)


# What the kernels are to reach on the A10G: (operation, tokens, what of its row, how it compares with the aim, the aim).
AIMS = (
    ("forward", 1, "model_ms", "<=", 0.38),
    ("forward", 16, "model_ms", "<=", 0.80),
    ("forward", 256, "model_tflops", ">=", 40.0),
    ("forward", 1024, "model_tflops", ">=", 50.0),
    *(
        (kind, tokens, "model_ms", "<=", aim)
        for kind in ("router", "router with noise")
        for tokens, aim in ((1, 0.012), (16, 0.012), (2048, 0.060))
    ),
    ("training step", 512, "times_faster_than_loop", ">=", 2.0),
    ("training step", 2048, "times_faster_than_loop", ">=", 1.25),
)


def show_aims(rows: Sequence[dict[str, Any]], card: Card) -> str:
    """Each aim beside the model's figure."""
    lines = [f"\nMODEL of the {card.name}, not measured: the aims"]
    for operation, tokens, what, sign, aim in AIMS:
        for row in rows:
            if (row["operation"], row["tokens"]) == (operation, tokens):
                met = row[what] <= aim if sign == "<=" else row[what] >= aim
                lines.append(
                    f"{operation}, T = {tokens}: {what} {row[what]:.3f}, aim {sign} {aim:g}: {'met' if met else 'NOT met'} in the model"
                )
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.a10g", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--card", choices=sorted(CARDS), default="a10g", help="whose model (default a10g)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="compilers at a time (default 0: one a core)")
    args = parser.parse_args(argv)
    card = CARDS[args.card]
    try:
        recorded = record_all(card)
        builds = {build_of(call, card.arch) for item in recorded for call in item.calls}
        facts = dict(tqdm(examine_all(builds, args.jobs or None), desc="Compiling", unit="kernel", total=len(builds)))
        rows = tables(predict_all(recorded, facts, card), card)
        print(show(rows, card))
        if card.name == "A10G":
            print(show_aims(rows, card))
        if args.json:
            figures = {"kind": "model, not measured", "card": asdict(card), "triton": triton.__version__, "rows": rows}
            args.json.write_text(json.dumps(figures, indent=1) + "\n")
    except (ValueError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
