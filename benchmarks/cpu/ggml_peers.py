"""llama.cpp and ik_llama.cpp, for `benchmarks.cpu`: the graph that they build for a Mixtral layer, on the weights in their formats.

llama.cpp is what the package llama-cpp-python brings, or the folder in MOE_LLAMA_CPP. ik_llama.cpp has no package: MOE_IK_LLAMA names the
folder with the shared libraries of a build (libggml.so). MOE_BENCH_ALL=1 times every format at every T.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cpu.contender import BEST, Contender, Missing
from benchmarks.cpu.ggml import F32, I32, SILU, Library
from benchmarks.cpu.problem import THREADS, D, E, F, K, Problem, Weights

TYPES = {"Q4_0": 2, "Q4_K": 12, "IQ4_NL": 20, "MXFP4": 39, "Q4_0_R8": 202, "Q4_K_R4": 212, "IQ4_NL_R4": 220, "MXFP4_R8": 353}


@cache
def library(kind: str) -> Library:
    variable = "MOE_LLAMA_CPP" if kind == "llama.cpp" else "MOE_IK_LLAMA"
    if variable in os.environ:
        folder = Path(os.environ[variable])
    elif kind == "llama.cpp" and (package := find_spec("llama_cpp")) and package.origin:
        folder = Path(package.origin).parent / "lib"
    else:
        raise Missing("llama-cpp-python is not installed" if kind == "llama.cpp" else "MOE_IK_LLAMA names no build of ik_llama.cpp")
    try:
        return Library(kind, folder, THREADS)
    except OSError as error:
        raise Missing(f"{kind} cannot be loaded: {error}") from None


class Matrices:
    """Gate, up [F, D] and down [D, F] of all experts in one format, as ggml tensors; repacked where that is asked for."""

    def __init__(self, lib: Library, kind: int, repack: bool, weights: Weights) -> None:
        context = lib.context(self)
        shapes = [(D, F), (D, F), (F, D)]
        self.gate, self.up, self.down = [lib.ggml_new_tensor_3d(context, kind, *shape, E) for shape in shapes]
        lib.allocate(self, context, lib.repack_buffer_type() if repack else lib.ggml_backend_cpu_buffer_type())
        gate, up = weights.gate_up.chunk(2, dim=1)
        for name, tensor, stack in (("gate", self.gate, gate), ("up", self.up, up), ("down", self.down, weights.down)):
            lib.set(tensor, quantised(lib, kind, name, stack))


def quantised(lib: Library, kind: int, name: str, stack: Tensor) -> Tensor:
    """The bytes of `stack` [E, out, in] in the ggml type `kind`, kept in the folder MOE_BENCH_CACHE: some types take a minute."""
    if "MOE_BENCH_CACHE" not in os.environ:
        return lib.quantize(stack, kind)
    path = Path(os.environ["MOE_BENCH_CACHE"]) / f"{lib.kind}-{kind}-{name}-{'x'.join(map(str, stack.shape))}.pt"
    if not path.exists():
        torch.save(lib.quantize(stack, kind), path)
    made: Tensor = torch.load(path, mmap=True)
    return made


@dataclass(eq=False)
class Block:
    """A graph on T tokens, with its inputs and its result [T, D]."""

    lib: Library
    matrices: Matrices
    problem: Problem

    def __post_init__(self) -> None:
        lib, tokens = self.lib, self.problem.tokens
        inputs, context = lib.context(self), lib.context(self)
        shapes = ((F32, (D, 1, tokens)), (F32, (1, K, tokens)), (I32, (K, tokens, 1)))
        x, gates, experts = [lib.ggml_new_tensor_3d(inputs, kind, *shape) for kind, shape in shapes]
        memory = lib.ggml_backend_cpu_buffer_type()
        lib.allocate(self, inputs, memory)
        lib.set(x, self.problem.x)
        lib.set(gates, self.problem.routing.weights_TK)
        lib.set(experts, self.problem.routing.experts_TK.int())
        layer = _ik_layer if lib.kind == "ik_llama.cpp" else _layer
        self.y = layer(lib, context, self.matrices, x, gates, experts, tokens)
        lib.ggml_set_output(self.y)
        self.graph = lib.ggml_new_graph(context)
        lib.ggml_build_forward_expand(self.graph, self.y)
        self.allocator = lib.ggml_gallocr_new(memory)
        if not lib.ggml_gallocr_alloc_graph(self.allocator, self.graph):
            raise MemoryError("ggml has not allocated its graph")

    def __call__(self) -> "Block":
        if self.lib.ggml_backend_graph_compute(self.lib.backend, self.graph):
            raise RuntimeError("ggml has not computed its graph")
        return self

    def __del__(self) -> None:
        if hasattr(self, "allocator"):
            self.lib.ggml_gallocr_free(self.allocator)

    def result(self) -> Tensor:
        y = torch.empty_like(self.problem.x)
        self.lib.ggml_backend_tensor_get(self.y, y.data_ptr(), 0, y.nbytes)
        return y


def _layer(lib: Library, context: int, w: Matrices, x: int, gates: int, experts: int, tokens: int) -> int:
    """As llama.cpp's `build_moe_ffn`: the slots are added as views of one tensor."""
    gate = lib.ggml_mul_mat_id(context, w.gate, x, experts)
    h = lib.ggml_swiglu_split(context, gate, lib.ggml_mul_mat_id(context, w.up, x, experts))
    y = lib.ggml_mul(context, lib.ggml_mul_mat_id(context, w.down, h, experts), gates)
    slots: list[int] = [lib.ggml_view_2d(context, y, D, tokens, 4 * D * K, 4 * D * k) for k in range(K)]
    total = slots[0]
    for slot in slots[1:]:
        total = lib.ggml_add(context, total, slot)
    return total


def _ik_layer(lib: Library, context: int, w: Matrices, x: int, gates: int, experts: int, tokens: int) -> int:
    """As ik_llama.cpp with its fused operators: gate, up and SwiGLU are one, and so is the weighted sum."""
    h = lib.ggml_moe_up_gate(context, w.up, w.gate, x, experts, SILU)
    y: int = lib.ggml_mul_multi_add(context, lib.ggml_mul_mat_id(context, w.down, h, experts), gates)
    return y


def ggml(kind: str, form: str, repack: bool, weights: Weights) -> Callable[[Problem], Callable[[], Any]]:
    lib = library(kind)
    return partial(Block, lib, Matrices(lib, TYPES[form], repack, weights))


def contender(kind: str, form: str, tokens: tuple[int, int], repack: bool = False) -> Contender:
    name = f"{kind} {form}{' repacked' if repack else ''}"
    return Contender(name, partial(ggml, kind, form, repack), kind=BEST, tokens=tokens, result=Block.result)


FEW, MANY, NEVER = (1, 16), (17, 1 << 30), (0, 0)  # for how many tokens a format was among its library's fastest on some machine
CONTENDERS = [
    contender("llama.cpp", "Q4_K", MANY),
    contender("llama.cpp", "Q4_K", FEW, repack=True),
    contender("llama.cpp", "Q4_0", NEVER),
    contender("llama.cpp", "Q4_0", NEVER, repack=True),
    contender("llama.cpp", "IQ4_NL", NEVER, repack=True),
    contender("llama.cpp", "MXFP4", NEVER, repack=True),
    contender("ik_llama.cpp", "IQ4_NL_R4", FEW),
    contender("ik_llama.cpp", "Q4_0_R8", FEW),
    contender("ik_llama.cpp", "Q4_K_R4", NEVER),
    contender("ik_llama.cpp", "MXFP4_R8", (1, 128)),
    contender("ik_llama.cpp", "Q4_0", MANY),
    contender("ik_llama.cpp", "IQ4_NL", MANY),
    contender("ik_llama.cpp", "Q4_K", NEVER),
]
