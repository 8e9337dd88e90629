"""Tunes the launches on the card that is here and writes its table: `python -m moe_kernels.tune [--op OP ...] [--out FILE]`.

Each operation of a 4x7B layer runs with each launch of a short list, at the largest number of tokens of each bucket, with cold caches;
the fastest median is written to the table that `moe_kernels.launch` reads. Launches that do not compile, that spill registers or that need
more shared memory than the card has are dropped before they run. What was measured is kept in FILE.measured, so a run that was stopped goes
on from there; delete that file to measure anew. Operations that are not named keep their launches.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .launch import TABLES, Call, Launch, read_file, read_table, record_launches, table_for
from .tune_cases import TARGETS, Run, Setup, Target

ROUNDS = 9
Table = dict[str, Any]
Examined = Callable[[dict[Launch, list[Call]], int], set[Launch]]


def dump_table(table: Table) -> str:
    """A table as the shipped files are laid out: one launch a line."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in table.items() if key != "launches"]
    operations = []
    for op, shapes in table["launches"].items():
        entries = []
        for shape, rows in shapes.items():
            listed = ",\n".join(f"        {json.dumps(row)}" for row in rows)
            entries.append(f"      {json.dumps(shape)}: [\n{listed}\n      ]")
        operations.append(f"    {json.dumps(op)}: {{\n" + ",\n".join(entries) + "\n    }")
    launches = "{\n" + ",\n".join(operations) + "\n  }" if operations else "{}"
    return "\n".join(["{", *lines, f'  "launches": {launches}', "}"]) + "\n"


def as_row(bound: int | None, at: Launch) -> dict[str, int | None]:
    """A line of the table; what has its default is left out."""
    default = Launch()
    return {"tokens": bound, **{key: value for key, value in asdict(at).items() if value != getattr(default, key)}}


def merged(rows: Sequence[tuple[int | None, Launch]]) -> list[dict[str, int | None]]:
    """Lines for the buckets, neighbours with equal launches as one."""
    kept = [row for row, after in zip(rows, [*rows[1:], None], strict=True) if after is None or after[1] != row[1]]
    return [as_row(bound, at) for bound, at in kept]


@contextmanager
def forced(op: str, at: Launch, arch: int) -> Iterator[None]:
    """Within the block every shape and size of `op` is launched so."""
    table = read_table(table_for(arch))
    before = table.get(op)
    table[op] = {"any": [(None, at)]}
    try:
        yield
    finally:
        if before is None:
            del table[op]
        else:
            table[op] = before


def recorded(target: Target, at: Launch, run: Run, arch: int) -> list[Call]:
    """The launches of `run` with `target`'s operation launched as `at`."""
    with forced(target.op, at, arch), record_launches(arch) as calls:
        run()
    return calls


def fitting(calls: dict[Launch, list[Call]], arch: int) -> set[Launch]:
    """The launches all of whose kernels compile, without spills and within the card's shared memory. Compiling fills Triton's cache."""
    from .aot import build_of, examine
    from .compile import SHARED_LIMIT

    builds = {at: {build_of(call, arch) for call in of_launch} for at, of_launch in calls.items()}
    limit = SHARED_LIMIT.get(arch, min(SHARED_LIMIT.values()))
    good = set()
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        futures = {build: pool.submit(examine, build) for build in set().union(*builds.values())}
        for build, future in futures.items():
            # A launch that Triton refuses fails in many ways, and all of them mean that it is no candidate.
            if future.exception() is None and not future.result().spills and future.result().shared <= limit:
                good.add(build)
    return {at for at, needed in builds.items() if needed <= good}


def time_cold(run: Run) -> float:
    """Median microseconds on the device, timed behind a read of four L2 caches."""
    cache = torch.zeros(torch.cuda.get_device_properties(0).L2_cache_size, dtype=torch.int32, device="cuda")
    times = []
    for round_ in range(ROUNDS + 2):
        cache.sum()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        if round_ >= 2:
            times.append(start.elapsed_time(stop) * 1e3)
    return statistics.median(times)


class Measured:
    """Microseconds by operation, shape, tokens and launch; None for a launch that was dropped. Kept in a file as they come."""

    def __init__(self, path: Path, facts: dict[str, str]) -> None:
        self.path, self.facts = path, facts
        self.times: dict[str, float | None] = {}
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["facts"] != facts:
                raise ValueError(f"{path} was measured elsewhere ({kept['facts']}, here {facts}); delete it to measure anew")
            self.times = kept["times"]

    @staticmethod
    def key(target: Target, tokens: int, at: Launch) -> str:
        return f"{target.op} {target.shape} {tokens} " + " ".join(str(getattr(at, field.name)) for field in fields(Launch))

    def save(self) -> None:
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps({"facts": self.facts, "times": self.times}, indent=0) + "\n")
        partial.replace(self.path)


def best_launch(
    target: Target,
    tokens: int,
    setup: Setup,
    arch: int,
    measured: Measured,
    examine: Examined = fitting,
    clock: Callable[[Run], float] = time_cold,
) -> Launch | None:
    """The fastest candidate, measured now or before; None if none runs."""
    candidates = target.candidates(tokens)
    missing = [at for at in candidates if measured.key(target, tokens, at) not in measured.times]
    if missing:
        run = target.make(setup, tokens)
        runs = examine({at: recorded(target, at, run, arch) for at in missing}, arch)
        for at in missing:
            time = None
            if at in runs:
                with forced(target.op, at, arch):
                    time = clock(run)
            measured.times[measured.key(target, tokens, at)] = time
        measured.save()
    times = {at: measured.times[measured.key(target, tokens, at)] for at in candidates}
    ran = {at: time for at, time in times.items() if time is not None}
    return min(ran, key=lambda at: ran[at]) if ran else None


def tune(targets: Sequence[Target], table: Table, find: Callable[[Target, int], Launch | None]) -> Table:
    """`table` with the found launches of `targets`; a shape whose launches are those of "any" gets no entry of its own."""
    launches = {op: dict(shapes) for op, shapes in table["launches"].items()}
    for target in tqdm(targets, desc="Tuning", unit="operation"):
        found = [(bound, find(target, target.tokens(bound))) for bound in target.bounds]
        rows = [(bound, at) for bound, at in found if at is not None]
        if not rows or rows[-1][0] is not None:
            continue  # what runs nowhere, or not for many tokens, keeps the launches that it has
        entries = launches.setdefault(target.op, {})
        entries[target.shape] = merged(rows)
        if target.shape != "any" and entries[target.shape] == entries.get("any"):
            del entries[target.shape]
    return {**table, "launches": launches}


def start_table(path: Path, arch: int) -> Table:
    """The table to change: the file that is there, or what holds for `arch` now."""
    if path.exists():
        return dict(json.loads(path.read_text()))
    nearest = table_for(arch)
    shipped = TABLES / f"sm{arch}.json"
    if shipped.exists():
        return dict(json.loads(shipped.read_text()))
    return {"like": nearest, **{key: value for key, value in read_file(nearest).items() if key not in ("launches", "like")}, "launches": {}}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m moe_kernels.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ops = sorted({target.op for target in TARGETS})
    parser.add_argument("--op", nargs="+", choices=ops, default=ops, metavar="OP", help=f"of {', '.join(ops)} (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the table (default: that of this card in moe_kernels/tables/)")
    return parser


def run(args: argparse.Namespace) -> None:
    """`ValueError` for a user's mistake."""
    if not torch.cuda.is_available():
        raise ValueError("tuning measures on a CUDA device, and none is there")
    import triton

    major, minor = torch.cuda.get_device_capability()
    arch = 10 * major + minor
    out: Path = args.out or TABLES / f"sm{arch}.json"
    facts = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    measured = Measured(out.with_name(out.name + ".measured"), facts)
    setup = Setup("cuda")
    targets = [target for target in TARGETS if target.op in args.op]
    table = tune(targets, start_table(out, arch), lambda target, tokens: best_launch(target, tokens, setup, arch, measured))
    partial = out.with_name(out.name + ".partial")
    partial.write_text(dump_table(table))
    partial.replace(out)
    print(f"{out}: {len(targets)} entries tuned on {facts['card']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        run(args)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
