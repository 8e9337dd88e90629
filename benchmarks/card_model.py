"""A model of how long a kernel takes on a card, from its cubin and from what it moves. A model: nothing here was measured on the card.

A launch has parts that run side by side: DRAM, the latency of loads, tensor cores, and the busiest of the other pipes and of issuing
instructions. Each alone would take a known time. Together they take a p-norm, (sum of t^p)^(1/p): the longest if it stands alone,
more where two are about as long, since they overlap imperfectly. p is 4, but 1.5 between the tensor cores and the other pipes where an
SM holds only one program, whose warps decode and multiply in turn between barriers; both are assumed. The launches of an operation
follow one another, each with its own cost of launching.

Dynamic instruction counts are the loops' bodies times their iterations, and the rest of the code once a warp. Iterations are
the work to be done (multiply-adds on tensor cores, or NF4 weights looked up) over what one iteration does, so unrolling does not matter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moe_kernels import cards
from moe_kernels.cubin import CubinFacts
from moe_kernels.sass import RATES

WARP = 32
OVERLAP, OVERLAP_ALONE = 4.0, 1.5  # p, and p inside an SM that holds one program


@dataclass(frozen=True)
class Card:
    """What the model knows of a card. Rates are for one SM and clock."""

    name: str
    arch: int  # of the cubins that it runs
    sms: int
    clock: float  # Hz
    dram: float  # bytes/s, nominal
    dram_share: float  # of it that a streaming kernel reaches
    tensor: int  # bf16 multiply-adds with fp32 sums
    tensor_share: float  # of it that the best matrix product reaches
    gemm: float  # FLOP/s of cuBLAS in bf16 at this model's sizes
    latency: float  # s from a load to its value out of DRAM
    launch: float  # s from the end of a kernel to the work of the next
    host_launch: float  # s that eager PyTorch needs for one operation
    warps: int  # an SM holds at most
    programs: int  # an SM holds at most
    shared: int  # bytes of shared memory of an SM
    registers: int = 65536

    def sm_seconds(self, amount: float, rate: float) -> float:
        """Time for `amount` on all SMs together at `rate` a clock and SM."""
        return amount / (rate * self.sms * self.clock)


def _with_kernels(card: cards.Card, sms: int, clock: float, tensor: int, tensor_share: float, latency: float, *limits: int) -> Card:
    return Card(
        card.name, card.arch, sms, clock, card.dram, card.dram_share, tensor, tensor_share, card.gemm, latency, card.launch,
        card.host_launch, *limits,
    )  # fmt: skip


# A10G: clocks, SMs and limits from NVIDIA's data sheet and "CUDA C++ Programming Guide, Compute Capabilities"; half-rate tensor cores
# follow from measured 69.5 TFLOPS at 10240 cubed (zzc0721/torch-performance-test-data, issue 126).
# Assumed, not measured: 94 % of the tensor rate, 450 ns of latency.
A10G = _with_kernels(cards.A10G, 80, 1.71e9, 256, 0.94, 450e-9, 48, 16, 100 << 10)
# H200: to check the model against a card that is at hand. Tensor: 989 TFLOPS at 1.83 GHz; the share is assumed.
H200 = _with_kernels(cards.H200, 132, 1.83e9, 2048, 0.8, 650e-9, 64, 32, 228 << 10)
CARDS = {card.name.lower(): card for card in (A10G, H200)}


@dataclass(frozen=True)
class Work:
    """What a launch has to do, padding of tiles included."""

    programs: float  # that have something to do
    bytes: float  # to and from DRAM
    fma: float = 0  # multiply-adds on tensor cores
    weights: float = 0  # NF4 weights looked up
    trips: float = 1  # of a loop that does neither


@dataclass(frozen=True)
class Time:
    """Seconds of a launch by part; `seconds` is all of it."""

    parts: dict[str, float]  # "dram", "latency", and what the SMs do
    launch: float
    exponent: float = OVERLAP  # among what the SMs do

    @property
    def seconds(self) -> float:
        outside = [self.parts.get(name, 0.0) for name in ("dram", "latency")]
        inside = [part for name, part in self.parts.items() if name not in ("dram", "latency")]
        return self.launch + norm([*outside, norm(inside, self.exponent)], OVERLAP)

    @property
    def bound(self) -> str:
        """The longest part, or the launch."""
        return max({**self.parts, "launch": self.launch}.items(), key=lambda item: item[1])[0]


def norm(parts: Sequence[float], exponent: float) -> float:
    return sum(part**exponent for part in parts) ** (1 / exponent) if any(parts) else 0.0


def resident_programs(facts: CubinFacts, num_warps: int, card: Card) -> int:
    """Programs that an SM holds at a time. Registers come in units of 8 a thread, shared memory costs 1 KB more a program."""
    registers = math.ceil(max(facts.registers, 1) / 8) * 8 * WARP * num_warps
    return max(1, min(card.programs, card.warps // num_warps, card.registers // registers, card.shared // (facts.shared + 1024)))


def predict(facts: CubinFacts, num_warps: int, num_stages: int, work: Work, card: Card) -> Time:
    """The time of one launch."""
    resident = resident_programs(facts, num_warps, card)
    warps = work.programs * num_warps
    counts, moved, fma, waits = _dynamic_counts(facts, warps, work)
    # The fullest SM sets the time: 81 equal programs on 80 SMs take as long as 160.
    tail = math.ceil(work.programs / card.sms) * card.sms / work.programs if work.programs > 0 else 1.0
    rates = RATES[card.arch]
    pipes = {kind: card.sm_seconds(counts[kind] * WARP, rates[kind]) for kind in rates if kind not in ("memory", "fp32", "half", "imad")}
    pipes["fma"] = sum(card.sm_seconds(counts[kind] * WARP, rates[kind]) for kind in ("fp32", "half", "imad"))  # one pipe
    pipes["memory"] = card.sm_seconds(moved * WARP, rates["memory"])
    pipes["issue"] = card.sm_seconds(sum(counts.values()), 4)
    busiest = max(pipes, key=pipes.__getitem__)

    # A warp's iteration takes at least the latency of its loads, unless they were asked for (num_stages - 1) iterations before.
    steps = 1 + waits / warps / max(1, num_stages - 1) if warps else 0.0
    rounds = math.ceil(work.programs / (card.sms * resident))
    parts = {
        "dram": work.bytes / (card.dram * card.dram_share),
        "tensor": tail * card.sm_seconds(fma, card.tensor * card.tensor_share),
        busiest: tail * pipes[busiest],
        "latency": rounds * steps * card.latency,
    }
    return Time(parts, card.launch, OVERLAP if resident > 1 else OVERLAP_ALONE)


def _dynamic_counts(facts: CubinFacts, warps: float, work: Work) -> tuple[dict[str, float], float, float, float]:
    """(instructions by class, bytes that a lane moves, multiply-adds, iterations that wait for loads), of all warps together."""
    per_warp = facts.outside.counts
    counts = {kind: warps * number for kind, number in per_warp.items()}
    moved, fma = warps * facts.outside.bytes_moved, warps * facts.outside.fma
    if work.fma:
        main = [loop for loop in facts.loops if loop.fma]
        units, left = sum(loop.fma for loop in main), work.fma - fma
    elif work.weights:
        main = [loop for loop in facts.loops if loop.weights]
        units, left = WARP * sum(loop.weights for loop in main), work.weights - WARP * warps * facts.outside.weights
    else:  # the longest loop is taken for the one that goes through the data
        main = sorted(facts.loops, key=len)[-1:]
        units, left = 1, work.trips * warps
    iterations = max(0.0, left) / units if main and units else 0.0
    waits = iterations * sum(any(i.stem in ("LDG", "LDGSTS") for i in loop) for loop in main)
    for loop in facts.loops:
        times = iterations if any(loop is other for other in main) else warps
        for kind, number in loop.counts.items():
            counts[kind] = counts.get(kind, 0.0) + times * number
        moved += times * loop.bytes_moved
        fma += times * loop.fma
    return {**dict.fromkeys([*RATES[86], "tensor", "other"], 0.0), **counts}, moved, fma, waits
