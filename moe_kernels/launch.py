"""How a Triton kernel is launched: one frozen `Launch` from a shipped table, and one function that every launch goes through.

No kernel is tuned inside a user's run. `choose_launch` is a pure function of (operation, rows, columns, tokens, architecture) and of
the tables in `moe_kernels/tables/`; `python -m moe_kernels.tune` rewrites a table, offline.

Legend: rows and columns of a weight are its out and in features; tokens is the number of rows of x, known on the host (the number of
tokens of an expert is not, and asking the device for it would stall).
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TABLES = Path(__file__).parent / "tables"
ARCHITECTURES = (80, 86, 89, 90)


@dataclass(frozen=True)
class Launch:
    """Launch parameters of one kernel. Which of the blocks a kernel reads, it says itself."""

    block_m: int = 1  # rows of x in a program
    block_n: int = 16  # rows of the output's other side in a program
    block_k: int = 64  # step along the contraction, in values
    split_k: int = 1  # programs that share one contraction
    num_warps: int = 4
    num_stages: int = 1  # of the software pipeline

    @property
    def options(self) -> dict[str, int]:
        """What Triton itself takes."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def choose_launch(op: str, rows: int, columns: int, tokens: int, arch: int) -> Launch:
    """The launch of `op` on weights of `rows` x `columns` for `tokens` tokens on compute capability `arch` (86 is 8.6).

    The nearest table at or below `arch` (the lowest for older cards), its entry of the exact shape if there is one, else the
    general one, its first bucket that holds `tokens`. `ValueError` for an operation that no table has.
    """
    table = read_table(table_for(arch))
    if op not in table:
        raise ValueError(f"no launch table has the operation {op!r}; known: {', '.join(sorted(table))}")
    entries = table[op].get(f"{rows}x{columns}", table[op]["any"])
    return next(launch for most, launch in entries if most is None or tokens <= most)


def fused_tokens(arch: int) -> int:
    """Up to how many tokens NF4 is decoded inside the product on `arch`; for more it is dequantised first."""
    return read_file(table_for(arch))["fused_tokens"]


def decode_tokens(arch: int) -> int:
    """Up to how many tokens the decode kernels run on `arch` (they take at most `moe_kernels.decode.MAX_DECODE_TOKENS`)."""
    return read_file(table_for(arch))["decode_tokens"]


def table_for(arch: int) -> int:
    """The newest table that is not newer than `arch`; for cards older than all, the oldest."""
    return ([known for known in table_architectures() if known <= arch] or table_architectures()[:1])[-1]


@lru_cache
def read_file(arch: int) -> dict[str, Any]:
    """The table of `arch` over the one that its "like" names, operation by operation."""
    table = json.loads((TABLES / f"sm{arch}.json").read_text())
    if "like" not in table:
        return table
    other = read_file(table["like"])
    return {**other, **table, "launches": {**other["launches"], **table["launches"]}}


@lru_cache
def read_table(arch: int) -> dict[str, dict[str, list[tuple[int | None, Launch]]]]:
    """{operation: {"ROWSxCOLUMNS" or "any": [(most tokens or None, launch), ...]}} of the file of `arch`."""
    return {
        op: {
            shape: [(row["tokens"], Launch(**{k: v for k, v in row.items() if k != "tokens"})) for row in rows]
            for shape, rows in of_op.items()
        }
        for op, of_op in read_file(arch)["launches"].items()
    }


@lru_cache
def table_architectures() -> list[int]:
    return sorted(int(path.stem.removeprefix("sm")) for path in TABLES.glob("sm*.json"))


def arch_of(device: torch.device) -> int:
    """The compute capability whose code runs on `device`: the recorder's, else the card's own; 86, the main target, in the interpreter."""
    if _recorder is not None:
        return _recorder.arch
    if device.type != "cuda":
        return 86
    return _capability(device)


@lru_cache
def _capability(device: torch.device) -> int:
    override = os.environ.get("TRITON_OVERRIDE_ARCH")  # Triton compiles for this one, as sm86, instead of the card's own
    if override:
        return int(override.removeprefix("sm"))
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@dataclass(frozen=True, eq=False)
class Call:
    """One launch as it was asked for."""

    kernel: Any  # a triton.JITFunction
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]
    options: dict[str, int]


class Recorder:
    """Takes launches instead of a device: for compiling ahead of time and for models of a card."""

    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.calls: list[Call] = []


_recorder: Recorder | None = None


def recording() -> bool:
    """Whether launches are being recorded instead of run."""
    return _recorder is not None


@contextmanager
def record_launches(arch: int) -> Iterator[list[Call]]:
    """Within the block `launch` runs nothing and appends to the list it gives; tensors may be on the meta device."""
    global _recorder
    before, _recorder = _recorder, Recorder(arch)
    try:
        yield _recorder.calls
    finally:
        _recorder = before


def launch(kernel: Any, grid: Sequence[int], *args: Any, options: dict[str, int], **constants: Any) -> None:
    """Runs `kernel` on `grid` with positional `args` and compile-time `constants`; nothing where the grid is empty."""
    if 0 in grid:
        return
    if _recorder is not None:
        _recorder.calls.append(Call(kernel, tuple(grid), args, constants, options))
        return
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):  # Triton launches on the current device, wherever the tensors are
            kernel[tuple(grid)](*args, **constants, **options)
    else:
        kernel[tuple(grid)](*args, **constants, **options)
