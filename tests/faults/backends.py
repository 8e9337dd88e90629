"""The implementations that run on this machine, memory that nobody wrote, and the layers of these tests.

On a machine with a card Triton's kernels are tested there (`pytest -m gpu`); without one its interpreter runs them here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from moe_kernels import backend
from tests.moe_kernels.layers import BF16, FP32, Batch, Layer, results

EXTENSION = not backend.extension_problem()
INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1" and not backend.triton_problem()
ISAS = backend.cpu_isas() if EXTENSION else []
IMPLEMENTATIONS = ["reference", *(f"cpp-{isa}" for isa in ISAS), *(["triton"] if INTERPRETER else [])]

# Small enough for the interpreter, and with everything: both layouts, NF4, LoRA, K < E.
DENSE = Layer("dense", 4, 2, 64, 64, 3, True, FP32)
SHARED = Layer("lora", 4, 2, 64, 64, 3, True, FP32)
FULL = Layer("dense", 4, 2, 40, 24, 0, False, FP32)  # a dense base, which has gradients
DECODED = Layer("dense", 4, 2, 64, 64, 0, True, BF16)  # what Triton's decode kernels take, up to four tokens and without gradients
LAYERS = (DENSE, SHARED, FULL)


@contextmanager
def running(name: str) -> Iterator[None]:
    """`name` of IMPLEMENTATIONS in force, with its instruction set."""
    kind, _, isa = name.partition("-")
    with backend.use(kind), pytest.MonkeyPatch.context() as environment:
        if isa:
            environment.setenv("MOE_KERNELS_ISA", isa)
            assert torch.ops.moe_kernels.cpu_isa() == isa
        yield


@contextmanager
def poisoned(layer: Layer) -> Iterator[None]:
    """Memory that nobody wrote reads as NaN, and the scratch memory of the C++ threads holds the NaN of an earlier batch."""
    bad = Batch.of(layer, 24)
    bad.x.fill_(float("nan"))
    if backend.active() == "cpp":
        results(layer, bad, layer.dtype, grads=True)
    torch.use_deterministic_algorithms(True)  # fills what `empty` returns
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)
