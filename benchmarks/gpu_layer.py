"""One 4x7B layer on the card that is here, beside its peers, in one run: `python -m benchmarks.gpu_layer --out FILE`.

Side by side: in every round each implementation runs once, in turn, so that clocks and temperature are the same for all. Cold: before each
run a buffer of four L2 caches is read (read, not written: dirty lines would be written back during the measurement). A plain name is timed
from an idle device and includes what the host takes to launch; `graph` is a CUDA graph of the same calls, routing fixed, timed behind other
work, so it is device time. Reported are median and interquartile range over the rounds. Ratios compare what one run measured; nothing is
asserted.

T tokens, K experts per token, E experts, D model width, F expert hidden width, R LoRA rank.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_peers import OURS, PEERS, Peer, Problem, eager_router, run_ours, run_ours_shared, run_peer
from benchmarks.gpu_timing import CUDA, DEVICE, captured, ceilings, hardware, measure
from benchmarks.routings import ROUTINGS, from_file
from moe_kernels.nf4 import NF4Weight, dequantize_nf4
from moe_kernels.nf4_format import NF4
from moe_kernels.routing import route
from moe_kernels.shipped import D, E, F, K

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
OPERATIONS = ("forward", "step", "router", "router step", "backward")
RANK = 16
OURS_SHARED = "ours, lora layout"
GRAPH = ", graph"


@dataclass
class Bench:
    """Sizes, weights and buffers of a run; `small` is for trying the harness on a CPU."""

    width: int = D
    hidden: int = F
    small: bool = False
    seconds: float = 1.0  # for all rounds of one point
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.small:
            self.width, self.hidden = 128, 256  # an expert is then whole groups of absmax, as bitsandbytes needs it
        self.gate_up = random_nf4(E, 2 * self.hidden, self.width)
        self.down = random_nf4(E, self.width, self.hidden)
        self.dense = [dequantize_nf4(q) for q in (self.gate_up, self.down)]
        l2 = torch.cuda.get_device_properties(0).L2_cache_size if CUDA else 1024
        self.cache = torch.zeros(l2, dtype=torch.int32, device=DEVICE)  # 4 bytes each
        self.copy_rate, self.gemm_rate = ceilings(small=self.small)

    def problem(self, tokens: int, routing: str, with_lora: bool) -> Problem:
        def randn(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, device=DEVICE) * scale).to(torch.bfloat16)

        d, f = self.width, self.hidden
        shapes = [(RANK, d), (f, RANK), (RANK, d), (f, RANK), (RANK, f), (d, RANK)] if with_lora else []
        lora = [randn(E, *shape, scale=shape[1] ** -0.5).requires_grad_() for shape in shapes]
        x = randn(tokens, d).requires_grad_(with_lora)
        weights = torch.rand(tokens, K, device=DEVICE).requires_grad_(with_lora)
        experts = torch.tensor(ROUTINGS[routing](tokens, E, K), device=DEVICE)
        return Problem(x, weights, experts, randn(tokens, d), self.gate_up, self.down, lora, self.dense)

    def flush(self) -> None:
        self.cache.sum()


def random_nf4(experts: int, rows: int, columns: int) -> NF4Weight:
    """Random bytes: every byte is a valid pair of levels. Values have an rms of about 1 / sqrt(columns)."""
    values = experts * rows * columns
    blocks = values // 64
    packed = torch.randint(0, 256, (values // 2, 1), dtype=torch.uint8, device=DEVICE)
    absmax = torch.randint(0, 256, (blocks,), dtype=torch.uint8, device=DEVICE)
    mean = columns**-0.5 / 0.56
    nested = torch.full((-(-blocks // 256),), mean / 2, device=DEVICE)
    return NF4Weight(packed, absmax, nested, mean, (experts, rows, columns), torch.bfloat16)


def as_operation(operation: str, problem: Problem, forward: Callable[[], Tensor]) -> Callable[[], Any]:
    """What of `forward` is timed: itself without gradients, its backward alone, or both."""
    leaves = [problem.x, problem.weights, *problem.lora]
    if operation == "forward":
        return torch.no_grad()(forward)
    if operation == "backward":
        y = forward()
        return lambda: torch.autograd.grad(y, leaves, problem.dy, retain_graph=True)
    return lambda: torch.autograd.grad(forward(), leaves, problem.dy)


def layer_runs(bench: Bench, operation: str, problem: Problem) -> dict[str, Callable[[], Any]]:
    """All implementations of one point that run here; peers whose values are far from ours are left out."""
    runs: dict[str, Callable[[], Any]] = {OURS: as_operation(operation, problem, lambda: run_ours(problem))}
    if operation != "forward":
        runs[OURS_SHARED] = as_operation(operation, problem, lambda: run_ours_shared(problem))
    expected = run_ours(problem).detach().float()
    sizes = problem.experts.flatten().bincount(minlength=E).tolist()
    forwards: dict[str, Callable[[], Tensor]] = {}
    for peer in PEERS:
        _attempt(bench, peer.name, partial(_add_peer, runs, forwards, peer, problem, operation, expected, sizes))
    if CUDA and operation != "backward":
        for name, run in list(runs.items()):
            fixed = as_operation(operation, problem, forwards[name]) if name in forwards else run
            _attempt(bench, name + GRAPH, partial(_add_graph, runs, name, fixed))
    return runs


def _add_peer(
    runs: dict[str, Callable[[], Any]], forwards: dict[str, Callable[[], Tensor]], peer: Peer, problem: Problem, operation: str,
    expected: Tensor, sizes: list[int],
) -> None:  # fmt: skip
    with torch.no_grad():
        found = run_peer(problem, peer, None)().float()
    error = ((found - expected).norm() / expected.norm()).item()
    if not error < 0.03:
        raise ValueError(f"its values differ from ours by {error:.3f} of their norm")
    run = as_operation(operation, problem, run_peer(problem, peer, None))
    run()
    runs[peer.name] = run
    forwards[peer.name] = run_peer(problem, peer, sizes)


def _add_graph(runs: dict[str, Callable[[], Any]], name: str, run: Callable[[], Any]) -> None:
    runs[name + GRAPH] = captured(run)


def router_runs(bench: Bench, operation: str, tokens: int) -> dict[str, Callable[[], Any]]:
    x = torch.randn(tokens, bench.width, device=DEVICE).to(torch.bfloat16)
    gate, noise = (torch.randn(E, bench.width, device=DEVICE).mul_(bench.width**-0.5).to(torch.bfloat16) for _ in range(2))
    seed = torch.tensor(3, device=DEVICE)
    leaves = [x, gate, noise]
    for leaf in leaves:
        leaf.requires_grad_(operation == "router step")

    def ours() -> tuple[Tensor, ...]:
        routing = route(x, gate, noise, kind="noisy_topk", top_k=K, noise_seed=seed)
        return routing.weights_TK, routing.experts_TK, routing.importance_E, routing.load_E

    def with_gradients(router: Callable[[], tuple[Tensor, ...]]) -> Callable[[], Any]:
        def run() -> Any:
            weights, _, importance, load = router()
            return torch.autograd.grad(weights.sum() + importance.square().sum() + load.square().sum(), leaves)

        return run if operation == "router step" else torch.no_grad()(router)

    runs = {OURS: with_gradients(ours), "eager noisy top-k": with_gradients(lambda: eager_router(x, gate, noise, K))}
    if CUDA:
        for name, run in list(runs.items()):
            _attempt(bench, name + GRAPH, partial(_add_graph, runs, name, run))
    return runs


def _attempt(bench: Bench, name: str, add: Callable[[], None]) -> None:
    """A peer that fails is left out, and says why."""
    try:
        add()
    except Exception as error:  # whatever a peer raises
        bench.left_out.setdefault(name, f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")
        if CUDA:
            torch.cuda.synchronize()


def run_point(bench: Bench, operation: str, tokens: int, routing: str) -> list[dict[str, Any]]:
    """Measures one operation at one size, and returns its rows; they are added to the run's."""
    torch.manual_seed(tokens)
    problem = None if operation.startswith("router") else bench.problem(tokens, routing, with_lora=operation != "forward")
    runs = layer_runs(bench, operation, problem) if problem else router_runs(bench, operation, tokens)
    times = measure(runs, bench.flush, bench.seconds, queued={name for name in runs if name.endswith(GRAPH)})
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4)
        row = {"operation": operation, "tokens": tokens, "routing": routing, "name": name, "rounds": len(values)}
        row |= {"median_ms": medians[name] * 1e3, "iqr_ms": (high - low) * 1e3}
        ours = medians.get(OURS + GRAPH if name.endswith(GRAPH) else OURS)
        row |= {"times_ours": medians[name] / ours if ours else None}
        rows.append(row | (rates(bench, problem, operation, name, medians[name]) if problem else {}))
    bench.rows += rows
    if CUDA:
        torch.cuda.empty_cache()
    return rows


def rates(bench: Bench, problem: Problem, operation: str, name: str, seconds: float) -> dict[str, float]:
    """TFLOP/s of the base products, of ours also GB/s of the 4-bit weights that they read; and shares of what the card was measured to do.

    In the lora layout all experts are one, which a token meets once. Peers read their weights in 4 or 16 bits, or both.
    """
    name = name.removesuffix(GRAPH)
    chosen, rows = (1, len(problem.experts)) if name == OURS_SHARED else (len(problem.experts.unique()), problem.experts.numel())
    weights = (2 if operation == "step" else 1) * 3 * bench.width * bench.hidden  # of an expert, in all passes
    flops = 2 * rows * weights / seconds
    found = {"tflops": flops * 1e-12, "gemm_share": flops / bench.gemm_rate}
    if name in (OURS, OURS_SHARED):
        read = chosen * weights * NF4.bits / 8 / seconds
        found |= {"gbps": read * 1e-9, "copy_share": read / bench.copy_rate}
    return found


def points(operations: Sequence[str], tokens: Sequence[int], routings: Sequence[str]) -> list[tuple[str, int, str]]:
    """Uniform routing first, for what is cut off should be the rest; the router makes its own choice."""
    listed = [(operation, count, routing) for routing in routings for operation in operations for count in tokens]
    return [point for point in listed if not (point[0].startswith("router") and point[2] != routings[0])]


def show(rows: Sequence[dict[str, Any]]) -> str:
    """One line for each implementation of a point."""
    first = rows[0]
    lines = [f"\n{first['operation']}, T = {first['tokens']}, {first['routing']}"]
    for row in rows:
        speed = f"  {row['gbps']:7.0f} GB/s" if "gbps" in row else " " * 14
        rate = f"{speed} {row['tflops']:7.1f} TFLOP/s" if "tflops" in row else ""
        ratio = f"{row['times_ours']:6.2f} x ours" if row["times_ours"] else " " * 13
        lines.append(f"  {row['name']:34} {row['median_ms']:9.4f} ms ± {row['iqr_ms']:7.4f}  {ratio}{rate}")
    return "\n".join(lines)


def save(bench: Bench, out: Path, before: dict[str, Any], cut: bool) -> None:
    report = {
        "kind": "measured",
        "hardware": before,
        "hardware_after": hardware(),
        "shape": {"D": bench.width, "F": bench.hidden, "E": E, "K": K, "R": RANK},
        "copy_gbps": bench.copy_rate * 1e-9,
        "gemm_tflops": bench.gemm_rate * 1e-12,
        "cut": cut,
        "left_out": bench.left_out,
        "rows": bench.rows,
    }
    unfinished = out.with_suffix(".partial")
    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    unfinished.replace(out)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_layer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON, written anew after every point")
    parser.add_argument(
        "--operations", nargs="+", choices=OPERATIONS, default=OPERATIONS, metavar="NAME", help=f"of {', '.join(OPERATIONS)}"
    )
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS, metavar="T", help="numbers of tokens (default 1 ... 4096)")
    parser.add_argument(
        "--routings", nargs="+", choices=list(ROUTINGS), default=list(ROUTINGS), metavar="NAME", help="of " + ", ".join(ROUTINGS)
    )
    parser.add_argument("--recorded", type=Path, metavar="FILE", help="a JSON list [T][K] of recorded choices, as one more routing")
    parser.add_argument("--seconds", type=float, default=1.0, help="for the rounds of one point (default 1)")
    parser.add_argument("--budget", type=float, default=3600, metavar="SECONDS", help="no point begins after that (default 3600)")
    parser.add_argument("--small", action="store_true", help="a tiny layer, to try the harness where there is no GPU")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if not CUDA and not args.small:
        print(f"{parser.prog}: no CUDA device is there; --small tries the harness on a CPU", file=sys.stderr)
        return 2
    routings = list(args.routings)
    if args.recorded:
        ROUTINGS["recorded"] = from_file(args.recorded)
        routings.append("recorded")
    end = time.monotonic() + args.budget
    before = hardware()
    bench = Bench(small=args.small, seconds=args.seconds)
    cut = False
    for operation, tokens, routing in points(args.operations, args.tokens, routings):
        cut = time.monotonic() > end
        if cut:
            break
        print(show(run_point(bench, operation, tokens, routing)), flush=True)
        save(bench, args.out, before, cut=True)
    save(bench, args.out, before, cut)
    for name, reason in bench.left_out.items():
        print(f"left out: {name}: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
