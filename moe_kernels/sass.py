"""Machine code of NVIDIA GPUs (SASS), as `nvdisasm -c` prints it: instructions by execution pipe, loops, and where a value came from.

A loop is a backward branch, from its target to the branch; one that starts behind the kernel's end is an out-of-line path that
returns, not a loop.

Instructions by pipe, after "Kernel Profiling Guide, Pipelines" of Nsight Compute: the ALU does integers (but for multiplication),
logic, byte permutes, comparisons, selections and fast conversions to 16 bits; the FMA pipe does fp32, and its heavy half integer
multiplication (so also the moves and shifts that the compiler writes as IMAD) and fp16 pairs; the XU does transcendentals and the
other conversions.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_CLASSES = {
    "tensor": "HMMA IMMA BMMA HGMMA QGMMA IGMMA",
    "integer": "PRMT LOP3 LOP SHF SHL SHR IADD3 IADD LEA ISETP SEL IMNMX VIMNMX IABS SGXT BMSK PLOP3 P2R R2P MOV VABSDIFF "
    "FSETP FMNMX FSEL FCHK F2FP I2FP CS2R",
    "fp32": "FFMA FMUL FADD FSWZADD",
    "half": "HADD2 HMUL2 HFMA2 HMNMX2 HSETP2",
    "imad": "IMAD IMUL IDP IDP4A",
    "fp64": "DADD DMUL DFMA DSETP DMNMX",
    "xu": "MUFU I2F F2I F2F I2I FRND POPC FLO BREV",
    "shuffle": "SHFL VOTE REDUX MATCH",
    "memory": "LDG STG LDS STS LDSM STSM LDGSTS LDL STL LD ST ATOM ATOMG ATOMS RED UBLKCP UTMALDG UTMASTG",
}
CLASS_OF = {stem: name for name, stems in _CLASSES.items() for stem in stems.split()}
CLASSES = (*_CLASSES, "other")  # other: control, barriers, special registers, the uniform pipe: an issue slot each

# Threads' results per clock and SM, after "CUDA C++ Programming Guide, Arithmetic Instructions" (throughput of native instructions); fp16
# pairs and IMAD on sm_86 and later run on half of the FMA pipe (forums.developer.nvidia.com/t/302018, an NVIDIA engineer).
# Memory is in bytes: 32 banks of 4. Tensor is not here: its rate differs between cards of one capability (see benchmarks/card_model.py).
_COMMON = {"integer": 64, "imad": 64, "xu": 16, "shuffle": 32, "memory": 128}
RATES = {
    80: {**_COMMON, "fp32": 64, "half": 128, "fp64": 32},
    86: {**_COMMON, "fp32": 128, "half": 64, "fp64": 2},
    89: {**_COMMON, "fp32": 128, "half": 64, "fp64": 2},
    90: {**_COMMON, "fp32": 128, "half": 128, "fp64": 64},
}

LOOKUP_MASK = "0x77777777"  # `_nf4.decode_levels` masks four bytes of packed weights, and nothing else, with it
WEIGHTS_PER_LOOKUP = 8
_REGISTER = re.compile(r"\bR(\d+)\b")
_SHAPES = {"16832": 16 * 8 * 32, "16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4, "884": 8 * 8 * 4}
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


def _registers(operands: str) -> list[int]:
    return [int(number) for number in _REGISTER.findall(operands)]


class Instruction(NamedTuple):
    """One machine instruction: `LDG.E.128`, its operands as text, and whether a predicate guards it."""

    opcode: str
    operands: str
    predicated: bool = False

    @property
    def stem(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def kind(self) -> str:
        return CLASS_OF.get(self.stem, "other")

    @property
    def width(self) -> int:
        """Bytes that one thread moves; 0 for an instruction that is none of memory's."""
        if self.kind != "memory":
            return 0
        parts = self.opcode.split(".")
        if "M88" in parts or "MT88" in parts:  # 8x8 matrices of 16 bits: 4 bytes of each for a thread
            return 4 * int(parts[-1]) if parts[-1].isdigit() else 4
        return next((_WIDTHS[part] for part in parts if part in _WIDTHS), 4)

    @property
    def looks_up(self) -> bool:
        """Whether it begins the lookup of `WEIGHTS_PER_LOOKUP` NF4 weights."""
        return self.stem == "LOP3" and LOOKUP_MASK in self.operands

    @property
    def written(self) -> range:
        """Registers that it writes, as far as `Code.packed_widths` needs them: those of loads, and of a copy."""
        first = _REGISTER.match(self.operands)
        if not first or self.stem in ("LDGSTS", "STG", "STS", "STL", "BRA", "RED"):
            return range(0)
        return range(int(first[1]), int(first[1]) + max(1, self.width // 4))

    @property
    def fma(self) -> int:
        """Multiply-adds that one warp's tensor instruction does; 0 for another. A warpgroup's product is shared by its four warps."""
        if self.kind != "tensor":
            return 0
        for part in self.opcode.split(".")[1:]:
            if part in _SHAPES:
                return _SHAPES[part]
            if shape := re.fullmatch(r"(\d+)x(\d+)x(\d+)", part):
                m, n, k = map(int, shape.groups())
                return m * n * k // 4
        raise ValueError(f"the shape of the tensor instruction {self.opcode} is not known")


class Code(tuple[Instruction, ...]):
    """A run of instructions and its sums, each for one warp that runs it once."""

    @property
    def counts(self) -> Counter[str]:
        """Instructions by class."""
        return Counter(instruction.kind for instruction in self)

    @property
    def fma(self) -> int:
        """Multiply-adds on tensor cores."""
        return sum(instruction.fma for instruction in self)

    @property
    def weights(self) -> int:
        """NF4 weights that one thread looks up."""
        return WEIGHTS_PER_LOOKUP * sum(i.looks_up for i in self)

    @property
    def bytes_moved(self) -> int:
        """Bytes that one thread loads and stores, shared memory included."""
        return sum(instruction.width for instruction in self)

    @property
    def packed_widths(self) -> set[int]:
        """Bytes a thread of the loads that bring packed weights from global memory; 0 stands for bytes put together from several loads.

        Found by following the looked-up register back to its load. Where that reads shared memory, the copies into it
        (LDGSTS) count: all widths but those that bring too little to be the weights (an absmax is 1 byte for 64 of them).
        """
        widths = set()
        for at, instruction in enumerate(self):
            if instruction.looks_up:
                source = self._source(at, _registers(instruction.operands)[1])
                widths.add(source.width if source and source.kind == "memory" else 0)
                if source and source.stem in ("LDS", "LDSM"):
                    widths.discard(source.width)
                    copied = Counter[int]()
                    for copy in self:
                        if copy.stem == "LDGSTS":
                            copied[copy.width] += copy.width
                    widths |= {width for width, total in copied.items() if width == 16 or total >= self.weights // 2} or {0}
        return widths

    def _source(self, at: int, register: int) -> Instruction | None:
        """The instruction that last wrote `register` before place `at` of this loop, moves followed."""
        for back in range(1, len(self)):
            instruction = self[(at - back) % len(self)]
            if register in instruction.written:
                moved = _registers(instruction.operands)[1:] if "MOV" in instruction.opcode else []
                if len(moved) != 1:
                    return instruction
                register = moved[0]
        return None


_LINE = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+ )?\s*([A-Z][A-Z0-9_]*(?:\.\w+)*)\s*([^;]*);")
_LABEL = re.compile(r"(\.L_\w+):")
_TARGET = re.compile(r"`\((\.L_\w+)\)")


def parse_sass(listing: str) -> tuple[Code, tuple[tuple[int, int], ...]]:
    """The instructions of `nvdisasm -c`, without padding, and the spans of the loops."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif (found := _LINE.match(line)) and found[2] != "NOP":  # padding
            instructions.append(Instruction(found[2], found[3].strip(), bool(found[1])))
    return Code(instructions), _loop_spans(instructions, labels)


def _loop_spans(instructions: Sequence[Instruction], labels: dict[str, int]) -> tuple[tuple[int, int], ...]:
    ends: dict[int, int] = {}
    for at, instruction in enumerate(instructions):
        target = _TARGET.search(instruction.operands) if instruction.stem == "BRA" else None
        begin = labels.get(target[1], at) if target else at
        if begin < at and not any(i.opcode == "EXIT" and not i.predicated for i in instructions[begin:at]):
            ends[begin] = at + 1  # branches to one head make one loop, up to the last of them
    return tuple(sorted(ends.items()))
