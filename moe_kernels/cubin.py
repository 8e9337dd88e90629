"""What a compiled kernel (a cubin) says of itself: registers, spills, shared memory, machine code.

Read with `cuobjdump` and `nvdisasm`, which ship inside Triton, so this needs no GPU.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .sass import Code, parse_sass


@dataclass(frozen=True)
class CubinFacts:
    """What the checks and the model of a card read. Sizes are in bytes; shared memory is that of a block, the launch's included."""

    registers: int  # of a thread
    stack: int  # of a thread; where spilled registers go
    local: int  # of a thread
    shared: int
    code: Code
    spans: tuple[tuple[int, int], ...]  # of every loop: indices of its first instruction and past its last

    @property
    def spills(self) -> int:
        """Bytes of local memory a thread keeps, or the number of instructions that touch it where the header says 0."""
        return self.stack + self.local or sum(i.stem in ("STL", "LDL") for i in self.code)

    @property
    def _innermost(self) -> list[tuple[int, int]]:
        return [(a, b) for a, b in self.spans if not any((c, d) != (a, b) and a <= c and d <= b for c, d in self.spans)]

    @cached_property
    def loops(self) -> list[Code]:
        """Bodies of the innermost loops, in order."""
        return [Code(self.code[a:b]) for a, b in self._innermost]

    @cached_property
    def outside(self) -> Code:
        """The code that is in no innermost loop."""
        inside = {at for a, b in self._innermost for at in range(a, b)}
        return Code(i for at, i in enumerate(self.code) if at not in inside)

    def lookup_loops(self) -> list[Code]:
        """The innermost loops that look NF4 weights up; all of the code where none does so in a loop."""
        return [loop for loop in self.loops if loop.weights] or ([self.code] if self.code.weights else [])

    @property
    def integers_per_weight(self) -> float:
        """Instructions on the ALU for a weight in the loops that look weights up; 0 for a kernel that looks up none."""
        loops = self.lookup_loops()
        weights = sum(loop.weights for loop in loops)
        return sum(loop.counts["integer"] for loop in loops) / weights if weights else 0.0


def read_cubin(cubin: bytes, launch_shared: int = 0) -> CubinFacts:
    """Facts of the one kernel in `cubin`; `launch_shared` is the shared memory that Triton asks for at launch (`metadata.shared`)."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage = _run(knobs.nvidia.cuobjdump.path, "-res-usage", str(path))
        listing = _run(knobs.nvidia.nvdisasm.path, "-c", str(path))
    found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    if len(found) != 1:
        raise ValueError(f"a cubin with {len(found)} kernels; one is expected")
    registers, stack, shared, local = map(int, found[0])
    code, spans = parse_sass(listing)
    return CubinFacts(registers, stack, local, shared + launch_shared, code, spans)


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
