"""Clocks for `benchmarks.cpu`: interleaved rounds, and how busy other processes kept the machine meanwhile."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHORT = 0.1  # seconds: a run that takes less is warmed up before it is timed, and timed three times in a row
PAUSE = 0.02  # seconds between runs, for the threads that the run before left spinning to go to sleep
QUIET = 0.08  # share of the machine that others may have in a round that counts


@dataclass
class Times:
    """Seconds of each run by name, in rounds; `foreign` is the others' share of the machine in each round."""

    rounds: list[dict[str, list[float]]] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)

    @property
    def counted(self) -> list[dict[str, list[float]]]:
        """The quiet rounds, or all if fewer than three were quiet."""
        quiet = [times for times, share in zip(self.rounds, self.foreign, strict=True) if share <= QUIET]
        return quiet if len(quiet) >= 3 else self.rounds

    def of(self, name: str) -> list[float]:
        return [seconds for times in self.counted for seconds in times[name]]

    @property
    def medians(self) -> dict[str, float]:
        return {name: statistics.median(self.of(name)) for name in self.rounds[0]}


def measure(runs: dict[str, Callable[[], Any]], seconds: float, least: int = 5, most: int = 40) -> Times:
    """Each run once a round, in an order that turns; `least` to `most` rounds in about `seconds`."""
    first = {}
    for name, run in runs.items():
        run()
        first[name] = _seconds(run)
    times = Times()
    order = list(runs)
    end = time.monotonic() + seconds
    while len(times.rounds) < least or (time.monotonic() < end and len(times.rounds) < most):
        busy, own = _busy(), time.process_time()
        begin = time.monotonic()
        times.rounds.append({name: _visit(runs[name], first[name] < SHORT) for name in order})
        available = (time.monotonic() - begin) * (os.cpu_count() or 1)
        times.foreign.append(max(0.0, (_busy() - busy) - (time.process_time() - own)) / available)
        order = order[1:] + order[:1]
    return times


def _visit(run: Callable[[], Any], short: bool) -> list[float]:
    time.sleep(PAUSE)
    if not short:
        return [_seconds(run)]
    run()
    return [_seconds(run) for _ in range(3)]


def _seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _busy() -> float:
    """Seconds that all processors were busy since they were started; 0 where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, soft, *_ = (int(part) for part in stat.read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")
