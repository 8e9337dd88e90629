"""One Mixtral-shaped MoE block in 4-bit on a CPU, as this package runs it and as its peers do: what `pytest benchmarks/cpu` prints.

Side by side: in every round each implementation runs once, in turn, and so do the probes of what the machine can do, for a shared machine
is at times slower than at others. The weights are larger than any cache, so nothing has to be flushed. A peer's call is checked before it
is timed. Reported are medians and minima over the rounds in which other processes were quiet. Ratios compare what one run measured; no
test asserts on time. A call is checked before it is timed and after, then on other inputs too: what keeps its answer, or changes its
input, leaves the table.

T tokens, K experts per token, E experts, D model width, F expert hidden width.
"""

import ctypes
import json
import os
import platform
import re
import resource
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu import ggml_peers, runtime_peers, torch_peers
from benchmarks.cpu.contender import Contender, Missing
from benchmarks.cpu.probe import BF16, FMA, READ, VNNI, Probe
from benchmarks.cpu.problem import THREADS, D, E, F, K, Problem, Weights, make_problem
from benchmarks.cpu.targets import Verdict, judge
from benchmarks.cpu.timing import Times, measure

CONTENDERS: list[Contender] = [*torch_peers.CONTENDERS, *runtime_peers.CONTENDERS, *ggml_peers.CONTENDERS]
PACKAGES = ("torch", "bitsandbytes", "transformers", "openvino", "onnxruntime", "llama-cpp-python")
UNITS = {READ: (1e-9, "GB/s"), FMA: (1e-9, "GFLOP/s"), BF16: (1e-9, "GFLOP/s"), VNNI: (1e-9, "GOP/s")}


@dataclass
class Bench:
    """Weights, what peers made of them, and the figures of a run."""

    seconds: float = field(default_factory=lambda: float(os.environ.get("MOE_BENCH_SECONDS", "20")))  # for the rounds of one T
    contenders: list[Contender] = field(default_factory=lambda: chosen(os.environ.get("MOE_BENCH_ONLY", "")))
    points: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)  # of `benchmarks.cpu.step`
    left_out: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)  # whose values are too far from the right answer
    made: dict[str, Callable[[Problem], Callable[[], Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.set_num_threads(THREADS)
        self.weights = Weights()

    @cached_property
    def probe(self) -> Probe | None:
        try:
            return Probe(THREADS)
        except Exception as error:  # whatever a build raises
            self.left_out["probe"] = first_line(error)
            return None

    def prepare(self, contender: Contender, problem: Problem) -> tuple[Callable[[], Any], float] | None:
        """A call of the contender that gives the right values, and their error; None with the reason written down if there is none."""
        try:
            if contender.name not in self.made:
                self.made[contender.name] = contender.make(self.weights)
                give_back_memory()
            run = self.made[contender.name](replace(problem, x=problem.x.clone()))  # its own: a call may change its input
            with torch.no_grad():
                error = problem.error(contender.result(run()), contender.weights)
        except Exception as problem_of_peer:  # whatever a peer raises
            self.left_out.setdefault(contender.name, first_line(problem_of_peer))
            return None
        if not error <= contender.bound:
            self.wrong[contender.name] = f"at T = {problem.tokens} its values differ from the right ones by {error:.2g} of their norm"
            return None
        return run, error

    def holds(self, contender: Contender, run: Callable[[], Any], problem: Problem, fresh: Problem) -> bool:
        """Whether `run`, which was timed on `problem`, still gives the right values, and so does the contender on `fresh` inputs."""
        with torch.no_grad():
            error = problem.error(contender.result(run()), contender.weights)
        if not error <= contender.bound:
            self.wrong[contender.name] = f"at T = {problem.tokens} its values differ by {error:.2g} of their norm after it was timed"
            return False
        return self.prepare(contender, fresh) is not None


def chosen(pattern: str) -> list[Contender]:
    """Ours, and the peers whose name the regular expression finds."""
    return [contender for contender in CONTENDERS if contender.name.startswith("ours") or re.search(pattern, contender.name)]


def first_line(error: Exception) -> str:
    text = str(error).splitlines()[0][:200] if str(error) else ""
    return text if isinstance(error, Missing) else f"{type(error).__name__}: {text}"


def run_point(bench: Bench, tokens: int) -> dict[str, Any]:
    """Measures one T; the point is added to the run's."""
    problem = make_problem(bench.weights, tokens)
    wanted = {contender.name: contender for contender in bench.contenders if contender.wanted(tokens)}
    for name in set(bench.made) - set(wanted):
        del bench.made[name]  # of another T; its weights take memory
    runs: dict[str, Callable[[], Any]] = {}
    errors: dict[str, float] = {}
    for name, contender in wanted.items():
        if name not in bench.left_out and (prepared := bench.prepare(contender, problem)):
            runs[name], errors[name] = prepared
    probes = bench.probe.runs if bench.probe else {}
    with torch.no_grad():
        times = measure(runs | probes, bench.seconds)
    fresh = make_problem(bench.weights, tokens, seed=tokens + 1)
    runs = {name: run for name, run in runs.items() if bench.holds(wanted[name], run, problem, fresh)}
    medians = {name: median for name, median in times.medians.items() if name in runs or name in probes}
    peaks = {kind: bench.probe.best(medians, kind) if bench.probe else None for kind in UNITS}
    kinds = {name: wanted[name].kind for name in runs}
    amounts = {READ: problem.nf4_bytes, FMA: float(problem.operations), VNNI: float(problem.operations)}
    rows = [row(times, name) | {"error": errors[name], "measured_as": kinds[name]} for name in runs]
    point = {
        "tokens": tokens,
        "rounds": len(times.rounds),
        "counted": len(times.counted),
        "others": statistics.median(times.foreign),
        "peaks": peaks,
        "rows": rows,
        "probes": [row(times, name) for name in probes],
        "verdicts": judge(tokens, medians, kinds, peaks, amounts),
    }
    bench.points.append(point)
    return point


def give_back_memory() -> None:
    """Returns to the system what the conversions of weights have freed: glibc would keep gigabytes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def row(times: Times, name: str) -> dict[str, Any]:
    found = times.of(name)
    return {"name": name, "median_ms": statistics.median(found) * 1e3, "min_ms": min(found) * 1e3, "runs": len(found)}


def show(point: dict[str, Any]) -> str:
    """One line for each implementation, then the figures that have a target."""
    medians = {found["name"]: found["median_ms"] for found in point["rows"]}
    lines = [
        f"\nT = {point['tokens']}: D {D}, F {F}, E {E}, K {K}, {THREADS} threads; {point['counted']} of {point['rounds']} rounds, "
        f"others had {point['others']:.0%} of the machine"
    ]
    rates = [f"{kind} {peak * UNITS[kind][0]:.1f} {UNITS[kind][1]}" for kind, peak in point["peaks"].items() if peak]
    lines.append(f"  at best: {', '.join(rates) or 'not measured'}")
    lines.append(f"  {'':34}{'median ms':>11}{'min ms':>10}{'exact / it':>12}{'int8 / it':>11}   error against fp32 on the same weights")
    for found in sorted(point["rows"], key=lambda found: found["median_ms"]):
        name = found["name"]
        ratios = [f"{medians[mine] / medians[name]:.3f}" if mine in medians else "-" for mine in (torch_peers.EXACT, torch_peers.INT8)]
        lines.append(f"  {name:34}{found['median_ms']:11.2f}{found['min_ms']:10.2f}{ratios[0]:>12}{ratios[1]:>11}   {found['error']:.1e}")
    return "\n".join([*lines, *map(str, point["verdicts"])])


def hardware() -> dict[str, Any]:
    """The processor and the versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    facts: dict[str, Any] = {"cpu": model[0] if model else platform.processor(), "cores": os.cpu_count(), "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = None
    return facts


def save(bench: Bench, out: Path) -> None:
    report = {
        "kind": "measured",
        "hardware": hardware(),
        "shape": {"D": D, "F": F, "E": E, "K": K},
        "threads": THREADS,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024e-9,  # Linux counts in KiB
        "left_out": bench.left_out | bench.wrong,
        "points": bench.points,
        "steps": bench.steps,
    }
    unfinished = out.with_suffix(".partial")
    unfinished.write_text(json.dumps(report, indent=1, default=as_json) + "\n")
    unfinished.replace(out)


def as_json(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict) | {"met": verdict.met}
