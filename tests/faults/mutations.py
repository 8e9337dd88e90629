"""`python -m tests.faults.mutations --count 100000 --seed 0`: seeded mutations of small valid files, for every reader of the package.

A reader must return what is consistent, or raise the typed error that names the file; within 1 s of CPU time and 64 MB of memory, and
without a connection. Mutation number N depends on the seed and N alone: `--start` goes on from a number, or runs a part elsewhere.
Prints a table by reader; exit status 1 if a reader did anything else. What it read then is kept in `--keep`.
"""

import argparse
import faulthandler
import os
import resource
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from huggingface_hub import constants

from tests.faults.mutate import mutated
from tests.faults.reader import ERRORS, Reader
from tests.faults.readers import make_readers

SECONDS, MEGABYTES, HANG = 1.0, 64, 20  # of CPU time; of memory beyond what was in use; seconds of wall time
LONGEST = 10_000  # characters of an error
ADDRESS_SPACE = 1 << 30  # more than was mapped before: what is asked for and not touched


class Hang(BaseException):
    """No Exception, so that no reader catches it."""


@dataclass
class Tally:
    accepted: int = 0
    rejected: int = 0
    seconds: float = 0.0  # the worst, of CPU time
    megabytes: float = 0.0  # likewise
    failures: list[str] = field(default_factory=list)


@contextmanager
def confined() -> Iterator[None]:
    """No connection, no hang, and no more address space than `ADDRESS_SPACE`. The hub is not offline, or nothing would try to reach it."""

    def hang(*_: Any) -> None:
        raise Hang

    def connection(*_: Any, **__: Any) -> None:
        raise Hang("a connection was tried")

    before, limits = (socket.socket, socket.getaddrinfo, constants.HF_HUB_OFFLINE), resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, hang)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE, limits[1]))
    socket.socket, socket.getaddrinfo, constants.HF_HUB_OFFLINE = connection, connection, False  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        socket.socket, socket.getaddrinfo, constants.HF_HUB_OFFLINE = before  # type: ignore[misc]
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, handler)


def attempt(reader: Reader, tally: Tally) -> None:
    """Reads the victim as it now lies there; `tally` gets what happened, and in `failures` what should not have."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = _status_kilobytes("VmRSS"), time.process_time()
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        reader.read()
        failure = ""
        tally.accepted += 1
    except ERRORS as error:
        tally.rejected += 1
        named = reader.victim.name in str(error) or str(reader.victim.parent) in str(error)
        failure = "" if named else f"the error does not name the file: {type(error).__name__}: {error}"
        failure = failure or (f"the error has {len(str(error))} characters" if len(str(error)) > LONGEST else "")
    except (Exception, Hang) as error:
        failure = f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds, megabytes = time.process_time() - start, (_status_kilobytes("VmHWM") - before) / 1024
    tally.seconds, tally.megabytes = max(tally.seconds, seconds), max(tally.megabytes, megabytes)
    if seconds > SECONDS or megabytes > MEGABYTES:
        failure = failure or f"it took {seconds:.1f} s and {megabytes:.0f} MB"
    if failure:
        tally.failures.append(failure)


def _status_kilobytes(name: str) -> int:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))


def mutate_all(readers: list[Reader], seed: int, numbers: range, keep: Path | None = None, log: Any = None) -> dict[str, Tally]:
    """What each reader did with its share of the mutations of these numbers."""
    tallies = {reader.name: Tally() for reader in readers}
    valid = {reader.name: reader.valid for reader in readers}
    others = list(valid.values())
    weights = [reader.share for reader in readers]
    for number in numbers:
        random = Random(f"{seed}/{number}")
        reader = random.choices(readers, weights)[0]
        data = mutated(valid[reader.name], reader.victim.name, random, others)
        reader.victim.write_bytes(data)
        tally, known = tallies[reader.name], len(tallies[reader.name].failures)
        if log:
            log.write(f"{number} {reader.name}\n")
        attempt(reader, tally)
        reader.victim.write_bytes(valid[reader.name])
        if len(tally.failures) > known:
            tally.failures[-1] = f"{reader.name}, mutation {number}: {tally.failures[-1]}"
            if keep:
                (keep / f"{seed}-{number}-{reader.victim.name}").write_bytes(data)
    return tallies


def table(tallies: dict[str, Tally]) -> str:
    lines = [f"{'reader':<36}{'mutations':>10}{'accepted':>10}{'rejected':>10}{'worst s':>9}{'worst MB':>10}{'failed':>8}"]
    for name, t in tallies.items():
        counts = f"{t.accepted + t.rejected:>10}{t.accepted:>10}{t.rejected:>10}"
        lines.append(f"{name:<36}{counts}{t.seconds:>9.3f}{t.megabytes:>10.1f}{len(t.failures):>8}")
    total = Counter({"accepted": sum(t.accepted for t in tallies.values()), "rejected": sum(t.rejected for t in tallies.values())})
    return "\n".join([*lines, f"{'all':<36}{total.total():>10}{total['accepted']:>10}{total['rejected']:>10}"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutations", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="mutations")
    parser.add_argument("--start", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=0, help="of every mutation, with its number")
    parser.add_argument("--keep", type=Path, default=Path("runs/mutations"), help="folder for files that a reader failed on")
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder, (args.keep / "log.txt").open("w", buffering=1) as log:
        readers = make_readers(Path(folder))
        started = time.monotonic()
        with confined():
            tallies = mutate_all(readers, args.seed, range(args.start, args.start + args.count), args.keep, log)
    print(table(tallies))
    print(f"{args.count} mutations in {time.monotonic() - started:.0f} s")
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    for failure in failures[:200]:
        print(failure[:400], file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
