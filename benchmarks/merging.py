"""How fast `python -m model.merge` is beside `cp`, and how much memory it takes: `python -m benchmarks.merging`.

It writes a base of random weights in Mistral-7B's shape, four models near it and four adapters of it, and in every round copies the base
and makes each merge, in turn, for a shared machine is at times slower than at others. Each merge is a process of its own, whose start (the
same command with `--help`) is taken off its times. Each row is printed as it is measured, and with `--rounds` medians at the end. CPU
seconds tell more than seconds where other work runs beside it. What it wrote is removed at the end. `--layers 2 --scale 1` has the
largest tensors of a 7B, and so its peak memory (8 GB on the disk).
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from tqdm import tqdm
from transformers import AutoTokenizer

from benchmarks.cpu.layer import hardware
from benchmarks.full_scale.ingredients import EXPERTS, base_config, write_adapters, write_base
from benchmarks.full_scale.watch import run_watched
from model.checkpoint import Checkpoint
from model.checkpoint_writer import CheckpointWriter
from model.cli import make_parser, run_command
from model.merging.methods import METHODS
from model.output import sync, write_json
from model.strict_json import read_json

START = "start"
COPY, COPY_SYNCED = "cp", "cp, on the disk"  # a merge's files are on the disk, too, when it ends
_STEP = 0.002  # standard deviation of what a model near the base has more than it
_OWN_TOKENS = 100  # of each model, in the last rows of its embeddings


class Took(NamedTuple):
    seconds: float
    cpu: float
    peak: int = 0  # resident bytes, mapped files included


def write_models(folder: Path, base: Path, seed: int) -> None:
    """Four models near the base."""
    weights, draw = Checkpoint(base), torch.Generator().manual_seed(seed)
    for index in tqdm(range(EXPERTS), desc="Models", unit="model"):
        model = folder / f"model-{index}"
        shutil.copytree(base, model, ignore=shutil.ignore_patterns("*.safetensors*"))
        with CheckpointWriter(model) as writer:
            for name in weights:
                weight = weights.tensor(name)
                writer.add(name, weight + torch.empty_like(weight).normal_(0, _STEP, generator=draw))


def write_tokenizers(folder: Path, base: Path, rows: int) -> None:
    """For each row of the embeddings a token: the last are each model's own, and the base has none there."""
    settings = read_json(base / "tokenizer.json")
    vocabulary = settings["model"]["vocab"]
    vocabulary |= {f"<{row}>": row for row in range(len(vocabulary), rows - _OWN_TOKENS)}
    write_json(base / "tokenizer.json", settings)
    for index in range(EXPERTS):
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens([f"<{index}:{number}>" for number in range(_OWN_TOKENS)])
        tokenizer.save_pretrained(folder / f"model-{index}")


def merges(folder: Path) -> dict[str, dict[str, Any]]:
    """A configuration for each method, with four models and with four adapters (SLERP: two); of models also with one vocabulary for all."""
    configs: dict[str, dict[str, Any]] = {}
    for kind in ("model", "adapter"):
        sources = [str(folder / f"{kind}-{index}") for index in range(EXPERTS)]
        for method, takes in METHODS.items():
            if method == "passthrough":
                continue
            config: dict[str, Any] = {"merge_method": method, "models": [{"model": source} for source in sources]}
            if takes.uses_task_vectors:
                config |= {
                    "base_model": str(folder / "base"),
                    "parameters": {"weight": 1.0, **({"density": 0.5} if takes.sparsify else {})},
                }
            elif method == "slerp":
                config |= {"base_model": sources[0], "models": config["models"][:2], "parameters": {"t": 0.3}}
            else:
                config["parameters"] = {"weight": 1.0}
            configs[f"{method} of {len(config['models'])} {kind}s"] = config
            if kind == "model" and takes.uses_task_vectors:
                configs[f"{method} of {EXPERTS} models, fp32"] = {**config, "dtype": "float32", "out_dtype": "bfloat16"}
            if kind == "model":
                configs[f"{method} of {len(config['models'])} models, union"] = {**config, "tokenizer_source": "union"}
    return configs


def copy(source: Path, target: Path, synced: bool) -> Took:
    before, begin = _cpu_of_children(), time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    for path in target.iterdir() if synced else ():
        sync(path)
    took = Took(time.perf_counter() - begin, _cpu_of_children() - before)
    shutil.rmtree(target)
    return took


def merge(config: Path, out: Path, *flags: str) -> Took:
    before = _cpu_of_children()
    watched = run_watched([sys.executable, "-m", "model.merge", str(config), str(out), *flags])
    shutil.rmtree(out, ignore_errors=True)
    return Took(watched.seconds, _cpu_of_children() - before, watched.resident)


def _cpu_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def run_rounds(runs: dict[str, Callable[[], Took]], rounds: int, size: int) -> dict[str, Took]:
    """The median of each column over the rounds; prints each row at once, so that a run that is killed has told what it measured."""
    found: dict[str, list[Took]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(run())
            for row in table({START: found[START][-1], name: found[name][-1]}, size):
                print_row(row)
    return {name: Took(*(statistics.median(column) for column in zip(*took, strict=True))) for name, took in found.items()}


def table(found: dict[str, Took], size: int) -> list[dict[str, Any]]:
    """A row for each, the start of Python taken off."""
    start, rows = found[START], []
    for name, took in found.items():
        if name == START:
            continue
        seconds, cpu = (took.seconds - start.seconds, took.cpu - start.cpu) if took.peak else (took.seconds, took.cpu)
        speed = size / seconds / 1e9 if seconds > 0 else None
        rows.append({"name": name, "seconds": seconds, "cpu_seconds": cpu, "gb_per_second": speed, "peak_bytes": took.peak})
    return rows


def print_row(row: dict[str, Any]) -> None:
    speed = f"{row['gb_per_second']:7.3f}" if row["gb_per_second"] else "      –"
    print(f"{row['name']:32} {row['seconds']:7.2f} {row['cpu_seconds']:7.2f} {speed} {row['peak_bytes'] / 2**30:9.2f}", flush=True)


def benchmark(args: argparse.Namespace) -> None:
    """The command: prints a table, and writes it to `args.json`."""
    if args.layers < 1 or args.scale not in (1, 2, 4, 8, 16, 32) or args.rounds < 1:
        raise ValueError("--layers and --rounds must be at least 1, and --scale a power of two up to 32")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was written is removed
    with tempfile.TemporaryDirectory(prefix="merging-", dir=args.dir) as name:
        folder, out = Path(name), Path(name) / "out"
        configs = {name: config for name, config in merges(folder).items() if not args.only or name in args.only}
        if unknown := set(args.only) - set(configs):
            raise ValueError(f"--only has {', '.join(sorted(unknown))}; there are {'; '.join(merges(folder))}")
        write_base(folder / "base", base_config(args.layers, args.scale), args.seed)
        write_adapters(folder, base_config(args.layers, args.scale), folder / "base", args.seed)
        write_models(folder, folder / "base", args.seed + 1)
        write_tokenizers(folder, folder / "base", base_config(args.layers, args.scale).vocab_size)
        size = sum(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))
        runs: dict[str, Callable[[], Took]] = {
            START: lambda: merge(folder / "none.yml", out, "--help"),
            COPY: lambda: copy(folder / "base", out, False),
            COPY_SYNCED: lambda: copy(folder / "base", out, True),
        }
        flags = ["--fast-ties"] if args.fast_ties else []
        for index, (title, config) in enumerate(configs.items()):
            path = folder / f"merge-{index}.yml"
            path.write_text(yaml.safe_dump(config))
            runs[title] = lambda path=path: merge(path, out, *flags)  # type: ignore[misc]
        print(f"{size / 1e9:.2f} GB a model\n{'':32} {'s':>7} {'CPU s':>7} {'GB/s':>7} {'peak GiB':>9}", flush=True)
        rows = table(run_rounds(runs, args.rounds, size), size)
    if args.rounds > 1:
        print(f"medians of {args.rounds} rounds")
        for row in rows:
            print_row(row)
    if args.json:
        shape = {"layers": args.layers, "scale": args.scale, "bytes": size, "rounds": args.rounds}
        args.json.write_text(json.dumps({"kind": "measured", "hardware": hardware(), "shape": shape, "rows": rows}, indent=1) + "\n")


def main() -> int:
    parser = make_parser("benchmarks.merging", __doc__ or "")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where a folder for the files is made")
    parser.add_argument("--layers", type=int, default=2, help="decoder layers")
    parser.add_argument("--scale", type=int, default=8, help="divides the widths, heads and vocabulary")
    parser.add_argument("--rounds", type=int, default=1, help="of which medians are taken")
    parser.add_argument("--only", nargs="*", default=[], metavar="MERGE", help="merges to make, as the table names them")
    parser.add_argument("--fast-ties", action="store_true", help="give every merge this flag")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return run_command(benchmark, parser)


if __name__ == "__main__":
    raise SystemExit(main())
