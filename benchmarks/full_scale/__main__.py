"""Composes, loads and runs a 4x7B of random weights on this machine's CPU, in both layouts: `python -m benchmarks.full_scale`.

It writes a base in Mistral-7B's shape and four adapters (15 GB), composes each layout in NF4, loads it, generates, and prints peak memory,
checkpoint size, load time, tokens a second, and their share of the floor: the bytes that a token reads at the bandwidth that this machine
was measured to have. Composing and loading are processes of their own. What it wrote is removed at the end, also after an interruption.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu.layer import hardware
from benchmarks.cpu.probe import READ, Probe
from benchmarks.cpu.targets import Verdict
from benchmarks.cpu.timing import measure
from benchmarks.full_scale.ingredients import EXPERTS, RANK, base_config, bytes_written, write_adapters, write_base
from benchmarks.full_scale.load import Loaded
from benchmarks.full_scale.watch import run_watched
from model.budget import room_of
from model.cli import make_parser, run_command
from model.configuration_moe import EXPERT_LAYOUTS, MoEConfig
from model.footprint import step_bytes, weight_bytes

COMPOSE_GB, LOAD_TIMES = 4 * 1.073741824, 1.1  # most that composing takes; most that loading takes of the checkpoint's size
DISK_GB = {"dense": 13.2, "lora": 4.3}
_MARGIN = 1e9  # bytes: Python with torch and transformers, and files of no weight


def mixture_config(layers: int, scale: int, layout: str) -> MoEConfig:
    """What compose makes of the base and the adapters."""
    shape = base_config(layers, scale).to_dict() | {"model_type": MoEConfig.model_type, "num_local_experts": EXPERTS}
    lora = {"expert_layout": layout, "lora_rank": RANK if layout == "lora" else 0}
    return MoEConfig.from_dict({**shape, **lora, "num_experts_per_tok": 2, "quantization": "nf4"})


def check_room(folder: Path, layers: int, scale: int) -> None:
    """`ValueError` if the disk or the memory is too small."""
    largest = max(sum(weight_bytes(mixture_config(layers, scale, layout)).values()) for layout in EXPERT_LAYOUTS)
    disk, memory = bytes_written(base_config(layers, scale)) + largest + _MARGIN, LOAD_TIMES * largest + _MARGIN
    free, available = shutil.disk_usage(folder).free, _available()
    if free < disk:
        raise ValueError(f"{folder} has {free / 1e9:.1f} GB free, but {disk / 1e9:.1f} GB are needed: name another --dir or fewer --layers")
    if available < memory:
        raise ValueError(f"{available / 1e9:.1f} GB of memory are available, but {memory / 1e9:.1f} GB are needed: try fewer --layers")


def _available() -> float:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return min(float(lines["MemAvailable"].split()[0]) * 1024, room_of("cpu").bytes)


def run_layout(folder: Path, recipe: Path, config: MoEConfig, tokens: int) -> dict[str, Any]:
    """Composes a layout, loads it and removes it; its figures."""
    out = folder / config.expert_layout
    flags = ["--layout", config.expert_layout, "--quantize", "nf4"]
    composed = run_watched([sys.executable, "-m", "model.compose", str(recipe), str(out), *flags])
    disk = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    ran = run_watched([sys.executable, "-m", "benchmarks.full_scale.load", str(out), str(tokens)])
    loaded = Loaded(**json.loads(ran.output.splitlines()[-1]))
    shutil.rmtree(out)
    bandwidth = read_bandwidth()
    read = step_bytes(config, loaded.prompt_tokens + tokens // 2, 1)
    return {
        "layout": config.expert_layout,
        "disk_bytes": disk,
        "compose": {"seconds": composed.seconds, "peak_resident": composed.resident, "peak_anonymous": composed.anonymous},
        "load": {**asdict(loaded), "peak_resident": ran.resident, "peak_anonymous": ran.anonymous},
        "tokens_per_second": 1 / loaded.token_seconds,
        "bytes_per_token": read,
        "read_bandwidth": bandwidth,
        "share_of_floor": read / bandwidth / loaded.token_seconds if bandwidth else None,
    }


def read_bandwidth() -> float | None:
    """Bytes/s that this machine reads memory at now; None where the probe cannot be compiled."""
    try:
        probe = Probe(torch.get_num_threads())
    except (OSError, RuntimeError):
        return None
    medians = measure({name: run for name, run in probe.runs.items() if name.startswith(READ)}, seconds=2).medians
    return probe.best(medians, READ)


def verdicts(row: dict[str, Any], full: bool) -> list[Verdict]:
    """The figures beside their targets; sizes on disk have one only for the `full` shape."""
    name, load = row["layout"], row["load"]
    return [
        Verdict(f"{name}: peak memory of composing, mapped files included, GB", row["compose"]["peak_resident"] / 1e9, COMPOSE_GB),
        Verdict(f"{name}: anonymous memory of composing, GB", row["compose"]["peak_anonymous"] / 1e9, None),
        Verdict(f"{name}: seconds of composing", row["compose"]["seconds"], None),
        Verdict(f"{name}: checkpoint, GB", row["disk_bytes"] / 1e9, DISK_GB[name] if full else None),
        Verdict(f"{name}: peak memory of loading and generating / checkpoint", load["peak_resident"] / row["disk_bytes"], LOAD_TIMES),
        Verdict(f"{name}: of which Python took before loading, GB", load["before"] / 1e9, None),
        Verdict(f"{name}: peak anonymous memory of loading and generating, GB", load["peak_anonymous"] / 1e9, None),
        Verdict(f"{name}: seconds of loading", load["load_seconds"], None),
        Verdict(f"{name}: tokens a second", row["tokens_per_second"], None),
        Verdict(f"{name}: share of the floor of memory's bandwidth", row["share_of_floor"], None),
    ]


def full_scale(args: argparse.Namespace) -> None:
    """The command: prints the figures of both layouts, and writes them to `args.json`."""
    if args.layers < 1 or args.scale not in (1, 2, 4, 8, 16, 32) or args.tokens < 1:
        raise ValueError("--layers and --tokens must be at least 1, and --scale a power of two up to 32")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was written is removed
    check_room(args.dir, args.layers, args.scale)
    rows = []
    with tempfile.TemporaryDirectory(prefix="full-scale-", dir=args.dir) as name:
        folder, base = Path(name), base_config(args.layers, args.scale)
        write_base(folder / "base", base, args.seed)
        recipe = write_adapters(folder, base, folder / "base", args.seed)
        for layout in EXPERT_LAYOUTS:
            rows.append(run_layout(folder, recipe, mixture_config(args.layers, args.scale, layout), args.tokens))
            print("\n".join(map(str, verdicts(rows[-1], full=(args.layers, args.scale) == (32, 1)))), flush=True)
    if args.json:
        shape = {"layers": args.layers, "scale": args.scale, "experts": EXPERTS, "rank": RANK}
        report = {"kind": "measured", "hardware": hardware(), "shape": shape, "threads": torch.get_num_threads(), "layouts": rows}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def main() -> int:
    parser = make_parser("benchmarks.full_scale", __doc__ or "")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where a folder for the files is made")
    parser.add_argument("--layers", type=int, default=32, help="decoder layers")
    parser.add_argument("--scale", type=int, default=1, help="divides the widths, heads and vocabulary")
    parser.add_argument("--tokens", type=int, default=16, help="tokens to generate, of whose times the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return run_command(full_scale, parser)


if __name__ == "__main__":
    raise SystemExit(main())
