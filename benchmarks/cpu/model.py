"""Tokens a second of a whole mixture on a CPU beside transformers' Mixtral on the same weights: `pytest benchmarks/cpu -s -k model`.

Prefill of 256 tokens, and decode of 32 tokens after them with a KV cache; batch 1. The tokens are given, so that all models do the same
work. As in `benchmarks.cpu.layer` the models take turns, and medians over the quiet rounds are reported. What the peers are:
`benchmarks.cpu.model_peers`. S positions, V vocabulary.
"""

import gc
import statistics
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.cpu.layer import first_line, give_back_memory
from benchmarks.cpu.model_peers import CONTENDERS, OURS, PEERS, active_parameters, ours
from benchmarks.cpu.problem import THREADS
from benchmarks.cpu.timing import Times, measure
from model.modeling_moe import MoEForCausalLM

PROMPT, DECODED = 256, 32  # tokens
SLOW, FEW = 0.4, 4  # a model whose token takes more seconds than SLOW decodes FEW tokens


class Runner:
    """One model with its prompt read: `prefill` and `decode` are what is timed, `logits` [S, V] what is checked."""

    def __init__(self, model: Any, ids: Tensor) -> None:
        self.model, self.prompt, self.rest = model, ids[:, :PROMPT], ids[:, PROMPT:]
        with torch.no_grad():
            read = model(self.prompt, use_cache=True)
        self.logits, self.cache = read.logits[0].float(), read.past_key_values
        begin = time.perf_counter()
        self.decode(1)
        self.decoded = FEW if time.perf_counter() - begin > SLOW else DECODED

    def prefill(self) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(self.prompt, use_cache=True, logits_to_keep=1).logits
        return logits

    def decode(self, tokens: int) -> None:
        with torch.no_grad():
            for position in range(tokens):
                self.model(self.rest[:, position : position + 1], past_key_values=self.cache, use_cache=True)
        self.cache.crop(PROMPT - self.cache.get_seq_length())


def run_model(title: str, mixture: MoEForCausalLM, seconds: float) -> list[dict[str, Any]]:
    """Measures a mixture, some `seconds` for the rounds of prefill and again of decode, and prints the table that it returns."""
    torch.set_num_threads(THREADS)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, mixture.config.vocab_size, (1, PROMPT + DECODED), generator=draw)
    bases = {dtype: ours(mixture, dtype) for dtype in (torch.float32, torch.bfloat16)}
    runners: dict[str, Runner] = {}
    left_out: dict[str, str] = {}
    for name, (dtype, make) in CONTENDERS.items():
        try:
            runners[name] = Runner(make(bases[dtype]), ids)
        except Exception as error:  # whatever a peer raises
            left_out[name] = first_line(error)
        gc.collect()
        give_back_memory()
    prefill = measure({name: runner.prefill for name, runner in runners.items()}, seconds, least=3)
    decode = measure({name: partial(runner.decode, runner.decoded) for name, runner in runners.items()}, seconds, least=3)
    rows = [row(name, runner, runners[OURS].logits, prefill, decode) for name, runner in runners.items()]
    print(show(f"{title}: {active_parameters(mixture) / 1e6:.1f} M active parameters", rows, prefill, decode, left_out))
    return rows


def row(name: str, runner: Runner, expected: Tensor, prefill: Times, decode: Times) -> dict[str, Any]:
    """Tokens a second, and the cosines [S] of the logits with those of ours in exact fp32."""
    cosines = cosine_similarity(runner.logits, expected, dim=-1)
    return {
        "name": name,
        "prefill": PROMPT / prefill.medians[name],
        "decode": runner.decoded / decode.medians[name],
        "decoded": runner.decoded,
        "cosine_mean": float(cosines.mean()),
        "cosine_least": float(cosines.min()),
    }


def show(title: str, rows: list[dict[str, Any]], prefill: Times, decode: Times, left_out: dict[str, str]) -> str:
    """The table; a ratio is the tokens a second over those of the 4-bit peer of the same dtype."""
    found = {entry["name"]: entry for entry in rows}
    lines = [f"\n{title}; {THREADS} threads"]
    for what, times in ((f"prefill of {PROMPT} tokens", prefill), (f"decode of {DECODED}", decode)):
        others = statistics.median(times.foreign)
        lines.append(f"  {what}: {len(times.counted)} of {len(times.rounds)} rounds, others had {others:.0%} of the machine")
    lines.append(f"  {'':28}{'prefill tok/s':>14}{'/ peer':>9}{'decode tok/s':>14}{'/ peer':>9}   logits' cosine with {OURS}: mean, least")
    for entry in rows:
        peer = found.get(PEERS[entry["name"][-4:]])
        line = f"  {entry['name']:28}"
        for what in ("prefill", "decode"):
            line += f"{entry[what]:14.1f}{f'{entry[what] / peer[what]:.2f}' if peer else '-':>9}"
        few = f"   (of {entry['decoded']} tokens)" if entry["decoded"] < DECODED else ""
        lines.append(f"{line}   {entry['cosine_mean']:.6f}  {entry['cosine_least']:.6f}{few}")
    return "\n".join([*lines, *(f"  left out: {name}: {reason}" for name, reason in left_out.items())])
