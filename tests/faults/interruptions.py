"""Interrupts commands that write, anywhere, and runs them again: `python -m tests.faults.interruptions --points 50 --seed 0`.

A point is a place in the command's uninterrupted run, drawn by the seed: just before its n-th file operation in the folder of its output
(so between a write and its rename), or some time after it (so within a native writer, or between two saves). A full disk is a tmpfs of a
drawn number of pages or of files, in a mount namespace of the case's own. After each interruption and again after the same command was
called once more, `Case` looks at everything that the command promises.

Each run is a fork of this process, which has done every command once: importing and first calls take ten times as long as a run.
"""

import argparse
import gc
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import model.merge
import model.mixture_tensors
from model.output import check_manifest
from tests.faults.commands import COMMANDS, make_inputs
from tests.faults.interrupting import (
    FULL,
    ROOMY,
    SIGNALS,
    Point,
    Trace,
    disks_can_be_made,
    draw_points,
    interrupt,
    own_disk,
    resize_disk,
)
from tests.forked import in_child, watch_steps

KINDS = (*SIGNALS, FULL)
ENDS = {  # exit status, and the sentence
    "SIGKILL": (-9, None),
    "SIGTERM": (143, "terminated"),
    "SIGINT": (130, "interrupted"),
    FULL: (2, "no space left on the disk: .+"),
}
# Keys of a run.json or a log that say what this call took: a resumed one judges and times the rest alone.
TIMED = re.compile("^command$|finished|second|runtime|peak_bytes|^programs$")


class Bench:
    """The inputs of the commands and their uninterrupted runs, in a folder; this process has run each of them once."""

    def __init__(self, folder: Path, commands: list[str]) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        torch.set_num_threads(1)
        tqdm.monitor_interval = 0  # a thread that a fork would lack
        for room in (model.merge, model.mixture_tensors):
            room.SHARD_BYTES = 20_000  # several shards
        self.inputs, self.work, self.expected, self.said = (folder / name for name in ("inputs", "work", "expected", "said"))
        tempfile.tempdir = str(folder / "tmp")
        folder.chmod(0o711)  # the sandbox's user reads what lies in tmp
        for new in (self.expected, Path(tempfile.tempdir)):
            new.mkdir()
        with (folder / "warming").open("w") as file, redirect_stdout(file), redirect_stderr(file):
            make_inputs(self.inputs)
            for name in commands:
                assert COMMANDS[name].run(self.inputs, folder / "warm" / name) == 0, f"{name}: see {file.name}"
        gc.collect()
        gc.freeze()  # or each fork copies all pages when it collects
        self.full_disks = disks_can_be_made()
        self.before = contents(self.inputs)
        self.traces = {name: self._trace(name) for name in commands}

    def _trace(self, name: str) -> Trace:
        """Runs a command to the end, on a disk of its own where there can be one, and keeps its output and when it did what."""
        facts = self.said.with_name("trace")

        def run() -> int:
            if self.full_disks:
                own_disk(self.work)
            times: list[float] = []
            use: list[tuple[int, int]] = []

            def note() -> None:
                disk = os.statvfs(self.work)
                use.append((disk.f_blocks - disk.f_bfree, disk.f_files - disk.f_ffree))
                times.append(time.perf_counter() - begin)

            self.prepare()
            begin = time.perf_counter()
            watch_steps(self.work, note)
            status = COMMANDS[name].run(self.inputs, self.work / "out")
            note()
            pages, files = zip(*use, strict=True)
            facts.write_text(json.dumps([times, (pages[0], max(pages)), (files[0], max(files))]))
            shutil.copytree(self.work / "out", self.expected / name)
            return status

        self.work.mkdir()
        assert in_child(run, self.said) == 0, self.said.read_text()
        shutil.rmtree(self.work)
        return Trace(*json.loads(facts.read_text()))

    def prepare(self) -> None:
        """What was there before: another command's output."""
        shutil.copytree(self.inputs / "cpp", self.work / "earlier")

    def check(self, name: str, kind: str, point: Point) -> list[str]:
        """What went wrong at a point: nothing, if all is well."""
        problems = self.said.with_name("problems")
        for folder in (self.work, Path(tempfile.gettempdir())):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        problems.unlink(missing_ok=True)

        def case() -> None:
            if kind == FULL:
                own_disk(self.work)
            problems.write_text(json.dumps(Case(self, name, kind, point).problems()))

        if in_child(case, self.said.with_name("case")) or not problems.exists():
            return [self.said.with_name("case").read_text()]
        return json.loads(problems.read_text())


class Case:
    """One interruption of one command, and what is called afterwards."""

    def __init__(self, bench: Bench, name: str, kind: str, point: Point) -> None:
        self.bench, self.name, self.kind, self.point = bench, name, kind, point
        self.work, self.out, self.command = bench.work, bench.work / "out", COMMANDS[name]

    def problems(self) -> list[str]:
        self.bench.prepare()
        before = contents(self.work)
        if self.kind == FULL:
            resize_disk(self.work, self.point.disk)
        found = self._after_interruption(self._run(self._interrupted))
        if self.kind == FULL:
            resize_disk(self.work, ROOMY)
        found += self._after_rerun()
        after = contents(self.work)
        found += [f"what was there before has changed: {path}" for path in before if after.get(path) != before[path]]
        found += ["an input has changed"] if contents(self.bench.inputs) != self.bench.before else []
        return found

    def _run(self, act: Callable[[], int]) -> int:
        return in_child(act, self.bench.said)

    def _interrupted(self) -> int:
        if self.kind != FULL:
            interrupt(SIGNALS[self.kind], self.point, self.work)
        return self._whole()

    def _whole(self, *more: str) -> int:
        return self.command.run(self.bench.inputs, self.out, *more)

    def _after_interruption(self, status: int) -> list[str]:
        """Status and sentence, no half an output, and after what can be caught nothing but the folder that the next run goes on from."""
        expected, sentence = ENDS[self.kind]
        if status == 0 or self._came_early(status):  # it was done before the signal came, or found room
            return self._leftovers()
        found = []
        if status != expected or (sentence and not re.search(rf"python -m {self.name}: {sentence}$", self._said(), re.MULTILINE)):
            found.append(f"status {status}: {self._said()[:500]} ... {self._said()[-2500:]}")
        before = self._said().partition(f"python -m {self.name}: ")[0]  # after it the interpreter takes objects apart
        if "Traceback" in before or "Exception ignored" in before:
            found.append(f"a traceback: {self._said()[-3000:]}")
        if self.out.exists():  # it was about to clean up
            return found + self._differences()
        return found + (self._leftovers(".out.unfinished") if self.kind != "SIGKILL" else [])

    def _came_early(self, status: int) -> bool:
        """Whether the signal ended the process before the command began: 143 to a shell, or Python's own traceback, from elsewhere."""
        if self.kind == "SIGINT":
            began = "in run_command" in self._said() or self.out.exists() or self.out.with_name(f".{self.out.name}.unfinished").exists()
            return status == 1 and self._said().endswith("KeyboardInterrupt") and not began
        return self.kind == "SIGTERM" and status == -SIGNALS[self.kind] and not self._said()

    def _after_rerun(self) -> list[str]:
        """The same command again, with `--resume` if it asks for that, ends with the uninterrupted run's files and nothing else."""
        status = self._run(self._whole)
        if status == 2 and "add --resume to go on" in self._said():
            status = self._run(lambda: self._whole("--resume"))
        is_there = status == 2 and f"the output {self.out} exists" in self._said()  # interrupted after its last rename
        if status and not is_there:
            return [f"the second run ended with {status}: {self._said()[-3000:]}"]
        return self._differences() + self._leftovers()

    def _said(self) -> str:
        return self.bench.said.read_text(errors="replace").replace("\r", "\n").strip()

    def _differences(self) -> list[str]:
        try:
            check_manifest(self.out)
        except (OSError, ValueError) as error:
            return [f"the output is not whole: {error}"]
        expected, found = contents(self.bench.expected / self.name), contents(self.out)
        different = [path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)]
        return [f"differs from the uninterrupted run's: {path}" for path in different]

    def _leftovers(self, *allowed: str) -> list[str]:
        names = {path.name for path in self.work.iterdir()} - {"out", "earlier", *allowed}
        if self.kind != "SIGKILL":  # which leaves what the sandbox had there to the system
            names |= {f"{path.name} (among the system's temporary files)" for path in Path(tempfile.gettempdir()).iterdir()}
        return [f"left: {name}" for name in sorted(names)]


def contents(folder: Path) -> dict[str, Any]:
    """What is in every file below `folder`: of `run.json` and the log without times, of the manifest nothing, and none of TensorBoard's."""
    return {
        str(path.relative_to(folder)): _timeless(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parts[-2] != "tensorboard"
    }


def _timeless(path: Path) -> Any:
    if path.name == "manifest.json":
        return None
    if path.name == "run.json":
        return _without_times(json.loads(path.read_text()))
    if path.name == "log.jsonl":  # transformers' last entry is on the steps since a resume
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        return [_without_times(entry) for entry in entries if "train_runtime" not in entry]
    return path.read_bytes()


def _without_times(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_times(of_key) for key, of_key in value.items() if not TIMED.search(key)}


def interrupt_all(folder: Path, commands: list[str], kinds: Sequence[str], points: int, seed: int) -> int:
    """Prints a table, and each point at which something went wrong; returns how many there were."""
    bench, failed = Bench(folder, commands), 0
    print("| command | interrupted by | points | passed |\n|---|---|---:|---:|", flush=True)
    for name in commands:
        for kind in kinds:
            if kind == FULL and not bench.full_disks:
                print(f"| {name} | {kind} | 0: mounts are refused here | |")
                continue
            wrong = 0
            for point in draw_points(bench.traces[name], kind, points, random.Random(f"{seed} {name} {kind}")):
                if problems := bench.check(name, kind, point):
                    wrong += 1
                    print(f"{name}, {kind}, {point}: ", *problems, sep="\n    ", file=sys.stderr, flush=True)
            failed += wrong
            print(f"| {name} | {kind} | {points} | {points - wrong} |", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.interruptions", description=__doc__)
    parser.add_argument("--points", type=int, default=50, help="of each command and kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=tuple(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return 1 if interrupt_all(Path(folder), args.commands, args.kinds, args.points, args.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
