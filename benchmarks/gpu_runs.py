"""What `benchmarks.gpu_layer` times at one point: the layer, its gradients or the router, as this package and its peers run them.

T tokens, K experts per token, E experts, D model width, F expert hidden width, R LoRA rank.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_peers import OURS, PEERS, Peer, Problem, eager_router, run_ours, run_ours_shared, run_peer
from benchmarks.gpu_timing import CUDA, DEVICE, captured, ceilings
from benchmarks.routings import ROUTINGS
from moe_kernels.nf4 import NF4Weight, dequantize_nf4
from moe_kernels.routing import route
from moe_kernels.shipped import D, E, F, K

RANK = 16
OURS_SHARED = "ours, lora layout"
GRAPH = ", graph"


@dataclass
class Bench:
    """Sizes, weights and buffers of a run; `small` is for trying the harness on a CPU."""

    width: int = D
    hidden: int = F
    small: bool = False
    seconds: float = 1.0  # for all rounds of one point
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.small:
            self.width, self.hidden = 128, 256  # an expert is then whole groups of absmax, as bitsandbytes needs it
        self.gate_up = random_nf4(E, 2 * self.hidden, self.width)
        self.down = random_nf4(E, self.width, self.hidden)
        self.dense = [dequantize_nf4(q) for q in (self.gate_up, self.down)]
        l2 = torch.cuda.get_device_properties(0).L2_cache_size if CUDA else 1024
        self.cache = torch.zeros(l2, dtype=torch.int32, device=DEVICE)  # 4 bytes each
        self.copy_rate, self.gemm_rate = ceilings(small=self.small)

    def problem(self, tokens: int, routing: str, with_lora: bool) -> Problem:
        def randn(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, device=DEVICE) * scale).to(torch.bfloat16)

        d, f = self.width, self.hidden
        shapes = [(RANK, d), (f, RANK), (RANK, d), (f, RANK), (RANK, f), (d, RANK)] if with_lora else []
        lora = [randn(E, *shape, scale=shape[1] ** -0.5).requires_grad_() for shape in shapes]
        x = randn(tokens, d).requires_grad_(with_lora)
        weights = torch.rand(tokens, K, device=DEVICE).requires_grad_(with_lora)
        experts = torch.tensor(ROUTINGS[routing](tokens, E, K), device=DEVICE)
        return Problem(x, weights, experts, randn(tokens, d), self.gate_up, self.down, lora, self.dense)

    def flush(self) -> None:
        self.cache.sum()


def random_nf4(experts: int, rows: int, columns: int) -> NF4Weight:
    """Random bytes: every byte is a valid pair of levels. Values have an rms of about 1 / sqrt(columns)."""
    values = experts * rows * columns
    blocks = values // 64
    packed = torch.randint(0, 256, (values // 2, 1), dtype=torch.uint8, device=DEVICE)
    absmax = torch.randint(0, 256, (blocks,), dtype=torch.uint8, device=DEVICE)
    mean = columns**-0.5 / 0.56
    nested = torch.full((-(-blocks // 256),), mean / 2, device=DEVICE)
    return NF4Weight(packed, absmax, nested, mean, (experts, rows, columns), torch.bfloat16)


def as_operation(operation: str, problem: Problem, forward: Callable[[], Tensor]) -> Callable[[], Any]:
    """What of `forward` is timed: itself without gradients, its backward alone, or both."""
    leaves = [problem.x, problem.weights, *problem.lora]
    if operation == "forward":
        return torch.no_grad()(forward)
    if operation == "backward":
        y = forward()
        return lambda: torch.autograd.grad(y, leaves, problem.dy, retain_graph=True)
    return lambda: torch.autograd.grad(forward(), leaves, problem.dy)


def layer_runs(bench: Bench, operation: str, problem: Problem) -> dict[str, Callable[[], Any]]:
    """All implementations of one point that run here; peers whose values are far from ours are left out."""
    runs: dict[str, Callable[[], Any]] = {OURS: as_operation(operation, problem, lambda: run_ours(problem))}
    if operation != "forward":
        runs[OURS_SHARED] = as_operation(operation, problem, lambda: run_ours_shared(problem))
    expected = run_ours(problem).detach().float()
    sizes = problem.experts.flatten().bincount(minlength=E).tolist()
    forwards: dict[str, Callable[[], Tensor]] = {}
    for peer in PEERS:
        _attempt(bench, peer.name, partial(_add_peer, runs, forwards, peer, problem, operation, expected, sizes))
    if CUDA and operation != "backward":
        for name, run in list(runs.items()):
            fixed = as_operation(operation, problem, forwards[name]) if name in forwards else run
            _attempt(bench, name + GRAPH, partial(_add_graph, runs, name, fixed))
    return runs


def _add_peer(
    runs: dict[str, Callable[[], Any]], forwards: dict[str, Callable[[], Tensor]], peer: Peer, problem: Problem, operation: str,
    expected: Tensor, sizes: list[int],
) -> None:  # fmt: skip
    with torch.no_grad():
        found = run_peer(problem, peer, None)().float()
    error = ((found - expected).norm() / expected.norm()).item()
    if not error < 0.03:
        raise ValueError(f"its values differ from ours by {error:.3f} of their norm")
    run = as_operation(operation, problem, run_peer(problem, peer, None))
    run()
    runs[peer.name] = run
    forwards[peer.name] = run_peer(problem, peer, sizes)


def _add_graph(runs: dict[str, Callable[[], Any]], name: str, run: Callable[[], Any]) -> None:
    runs[name + GRAPH] = captured(run)


def router_runs(bench: Bench, operation: str, tokens: int) -> dict[str, Callable[[], Any]]:
    x = torch.randn(tokens, bench.width, device=DEVICE).to(torch.bfloat16)
    gate, noise = (torch.randn(E, bench.width, device=DEVICE).mul_(bench.width**-0.5).to(torch.bfloat16) for _ in range(2))
    seed = torch.tensor(3, device=DEVICE)
    leaves = [x, gate, noise]
    for leaf in leaves:
        leaf.requires_grad_(operation == "router step")

    def ours() -> tuple[Tensor, ...]:
        routing = route(x, gate, noise, kind="noisy_topk", top_k=K, noise_seed=seed)
        return routing.weights_TK, routing.experts_TK, routing.importance_E, routing.load_E

    def with_gradients(router: Callable[[], tuple[Tensor, ...]]) -> Callable[[], Any]:
        def run() -> Any:
            weights, _, importance, load = router()
            return torch.autograd.grad(weights.sum() + importance.square().sum() + load.square().sum(), leaves)

        return run if operation == "router step" else torch.no_grad()(router)

    runs = {OURS: with_gradients(ours), "eager noisy top-k": with_gradients(lambda: eager_router(x, gate, noise, K))}
    if CUDA:
        for name, run in list(runs.items()):
            _attempt(bench, name + GRAPH, partial(_add_graph, runs, name, run))
    return runs


def _attempt(bench: Bench, name: str, add: Callable[[], None]) -> None:
    """A peer that fails is left out, and says why."""
    try:
        add()
    except Exception as error:  # whatever a peer raises
        bench.left_out.setdefault(name, f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")
        if CUDA:
            torch.cuda.synchronize()
