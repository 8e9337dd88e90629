"""What the C++ kernels are to reach, by number of tokens: shares of a peer's time, and of what the machine can do."""

from dataclasses import dataclass

from benchmarks.cpu.contender import BEST, BNB, DENSE, EXACT, EXACT_BF16, INT8
from benchmarks.cpu.probe import FMA, READ, VNNI
from benchmarks.cpu.problem import D, F

TOKENS = (1, 16, 128, 512)
IS_FULL_SIZE = (D, F) == (4096, 14336)  # the layer that the targets are for

# Median time of ours at most this share of the fastest of these peers.
TIMES: dict[tuple[str, str], tuple[float, ...]] = {
    (INT8, BEST): (0.7, 0.45, 0.5, 0.5),
    (EXACT, BEST): (0.95, 0.95, 1.1, 1.2),
    (EXACT_BF16, BEST): (0.95, 0.95, 1.1, 1.2),
    (EXACT, DENSE): (0.18, 0.18, 0.65, 0.95),
    (EXACT, BNB): (1 / 50, 1 / 28, 1 / 5, 1 / 2),
}

# At least this share of the machine's best.
SHARES: dict[tuple[str, str], dict[int, float]] = {
    (INT8, READ): {1: 0.9},
    (EXACT, READ): {1: 0.75},
    (EXACT_BF16, READ): {1: 0.75},
    (INT8, VNNI): {128: 0.45, 512: 0.55},
    (EXACT, FMA): {512: 0.7},
}
STEP = 1 / 2.5  # of bitsandbytes' time for forward and backward


@dataclass(frozen=True)
class Verdict:
    """A measured figure, or None where it could not be measured, beside its target; `least` where it has to be reached, not kept under."""

    what: str
    found: float | None
    target: float | None
    least: bool = False

    @property
    def possible(self) -> bool:
        """No share of what the machine can do is above it, but for the spread of two measurements."""
        return not self.least or self.found is None or self.found <= 1.1

    @property
    def met(self) -> bool | None:
        if self.found is None or self.target is None:
            return None
        return self.possible and self.found >= self.target if self.least else self.found <= self.target

    def __str__(self) -> str:
        if not self.possible:
            return f"  {self.what:78}{self.found:6.3f}  (more than the machine can do: the measurement is wrong)"
        found = "     -" if self.found is None else f"{self.found:6.3f}"
        if self.target is None:
            return f"  {self.what:78}{found}"
        verdict = "-" if self.met is None else "met" if self.met else "not met"
        return f"  {self.what:78}{found}  (target {'>=' if self.least else '<='} {self.target:.3f}: {verdict})"


def judge(
    tokens: int, medians: dict[str, float], kinds: dict[str, str], peaks: dict[str, float | None], amounts: dict[str, float]
) -> list[Verdict]:
    """The figures of one T from median seconds by name, the kind of each name, the machine's best rates, and what a call takes of each."""
    verdicts = []
    for (mine, kind), targets in TIMES.items():
        peers = {name: medians[name] for name in medians if kinds.get(name) == kind}
        best = min(peers, key=lambda name: peers[name], default=None)
        found = medians[mine] / peers[best] if best and mine in medians else None
        target = targets[TOKENS.index(tokens)] if tokens in TOKENS and IS_FULL_SIZE else None
        verdicts.append(Verdict(f"{mine} / {kind}{f' ({best})' if best else ''}", found, target))
    for (mine, kind), shares in SHARES.items():
        if (kind == READ) != (tokens == 1):  # what limits a call: memory for one token, arithmetic for many
            continue
        peak = peaks[kind]
        found = amounts[kind] / medians[mine] / peak if peak and mine in medians else None
        verdicts.append(Verdict(f"{mine}, share of {kind}", found, shares.get(tokens) if IS_FULL_SIZE else None, least=True))
    return verdicts
