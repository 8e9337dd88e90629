"""Clocks for `benchmarks.gpu_layer`: CUDA events, interleaved rounds, what the card can do at best, and what it is."""

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import triton

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def ceilings(small: bool = False) -> tuple[float, float]:
    """(bytes/s of a copy, read and written; FLOP/s of an 8192-cubed bf16 product), measured."""
    size = 256 if small else 8192
    source = torch.randint(0, 100, (1 << (16 if small else 30),), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    runs = {"copy": lambda: target.copy_(source), "gemm": lambda: a @ b}
    times = measure(runs, lambda: None, seconds=0.5, queued=set(runs))
    copy, gemm = (statistics.median(times[name]) for name in runs)
    return 2 * source.nbytes / copy, 2 * size**3 / gemm


def measure(runs: dict[str, Callable[[], Any]], flush: Callable[[], None], seconds: float, queued: set[str]) -> dict[str, list[float]]:
    """Seconds of each run in each round. Those in `queued` are timed behind the flush, the others from an idle device."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for name in order:  # twice to warm up
        for _ in range(2):
            runs[name]()
    end = time.monotonic() + seconds
    while len(times[order[0]]) < 7 or (time.monotonic() < end and len(times[order[0]]) < 50):
        for name in order:
            times[name].append(_timed(runs[name], flush, name in queued))
        order = order[1:] + order[:1]
    return times


def _timed(run: Callable[[], Any], flush: Callable[[], None], queued: bool) -> float:
    flush()
    if not CUDA:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if not queued:
        torch.cuda.synchronize()
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) * 1e-3


def captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """The replay of a CUDA graph of `run`; where that fails, what comes after is as if it had not been tried."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    before = torch.cuda.current_stream()
    before.wait_stream(side)
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    try:
        with torch.cuda.graph(graph, pool=pool):
            run()
    except Exception:  # raised again: only what torch left is put back
        torch.cuda.set_stream(before)
        _clear_failed_capture(pool)
        raise
    return graph.replay


def _clear_failed_capture(pool: Any) -> None:
    """What torch leaves undone where the end of a capture raises, so that neither memory can be given back nor noise drawn any more.

    The allocator still counts the capture as under way, then `empty_cache` fails. So does the random generator, until a capture succeeds.
    """
    with suppress(RuntimeError):  # the allocator's, where the capture did end
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.ones((), device=DEVICE)


def hardware() -> dict[str, Any]:
    """The card, its clocks as found (nothing is set), and the versions."""
    facts: dict[str, Any] = {"torch": torch.__version__, "triton": triton.__version__, "python": sys.version.split()[0], "device": DEVICE}
    if CUDA:
        card = torch.cuda.get_device_properties(0)
        facts |= {
            "name": card.name,
            "sms": card.multi_processor_count,
            "capability": f"{card.major}.{card.minor}",
            "memory": card.total_memory,
        }
    if shutil.which("nvidia-smi"):
        wanted = "clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu,driver_version"
        asked = subprocess.run(["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader", "-i", "0"], capture_output=True, text=True)
        facts |= dict(zip(wanted.split(","), (part.strip() for part in asked.stdout.split(",")), strict=False))
    return facts
