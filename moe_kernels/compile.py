"""Builds every shipped kernel ahead of time: `python -m moe_kernels.compile`.

What the tables in `moe_kernels/tables/` can launch on a 4x7B model goes into Triton's cache (`TRITON_CACHE_DIR`, by default
~/.triton/cache), so that the first token and the first training step do not wait for a compiler. Needs no GPU: a machine image can be
built on any Linux machine with the same Triton.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from .aot import Build, build_of, examine_all
from .cubin import CubinFacts
from .launch import ARCHITECTURES
from .shipped import shipped_calls

SHARED_LIMIT = {
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
}  # bytes a block; CUDA C++ Programming Guide, compute capabilities


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m moe_kernels.compile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arch", type=int, nargs="+", metavar="CC", help="compute capabilities, as 86 for 8.6 (default: that of the card, else 86)"
    )
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="compilers at a time (default 0: one a core)")
    return parser


def run(args: argparse.Namespace) -> None:
    """`ValueError` for a user's mistake."""
    wanted = args.arch or [_present_arch()]
    if unknown := [arch for arch in wanted if arch not in ARCHITECTURES]:
        raise ValueError(f"no kernels for compute capability {unknown[0]}; known: {', '.join(map(str, ARCHITECTURES))}")
    if args.jobs < 0:
        raise ValueError(f"--jobs {args.jobs} is below 0")
    begin = time.monotonic()
    builds = list(dict.fromkeys(build_of(call, arch) for arch in wanted for calls in shipped_calls(arch).values() for call in calls))
    built = list(tqdm(examine_all(builds, args.jobs or None), desc="Compiling", unit="kernel", total=len(builds)))
    print(format_table(built))
    print(f"{len(built)} kernels in {time.monotonic() - begin:.0f} s")


def _present_arch() -> int:
    import torch

    if not torch.cuda.is_available():
        return 86
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def format_table(built: Sequence[tuple[Build, CubinFacts]]) -> str:
    """One line a kernel, in order of architecture and name."""
    header = ("arch", "kernel", "regs", "spills B", "shared B", "int/weight", "configuration")
    rows = [
        (f"sm_{build.arch}", build.kernel, str(facts.registers), str(facts.spills), str(facts.shared), _ratio(facts), build.configuration)
        for build, facts in sorted(built, key=lambda pair: (pair[0].arch, pair[0].kernel, pair[0].configuration))
    ]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (header, *rows))


def _ratio(facts: CubinFacts) -> str:
    return f"{facts.integers_per_weight:.2f}" if facts.integers_per_weight else "-"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        run(args)
    except (ValueError, ImportError, PermissionError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
