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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_peers import OURS, Problem
from benchmarks.gpu_runs import GRAPH, OURS_SHARED, RANK, Bench, layer_runs, router_runs
from benchmarks.gpu_timing import CUDA, hardware, measure
from benchmarks.routings import ROUTINGS, from_file
from moe_kernels.nf4_format import NF4
from moe_kernels.shipped import E, K

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
OPERATIONS = ("forward", "step", "router", "router step", "backward")


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
