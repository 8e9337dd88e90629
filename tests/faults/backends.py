"""The implementations that run on this machine, memory that nobody wrote, and the layers of these tests.

On a machine with a card Triton's kernels are tested there (`pytest -m gpu`); without one its interpreter runs them here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from moe_kernels import backend
from tests.moe_kernels.layers import BF16, FP32, FP64, Batch, Layer, assert_near, results

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

every_implementation = pytest.mark.parametrize("name", IMPLEMENTATIONS)
# A layer takes the interpreter a second; its own tests in tests/moe_kernels have the layout that is left out here.
every_layer = pytest.mark.parametrize(
    ("layer", "name"), [(layer, name) for layer in LAYERS for name in IMPLEMENTATIONS if (layer, name) != (SHARED, "triton")], ids=str
)


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


def oracle(layer: Layer, batch: Batch) -> list[Tensor]:
    """What `run` should give: the reference in fp64."""
    with backend.use("reference"):
        return results(layer, batch, FP64, grads=True)


def run(layer: Layer, batch: Batch, name: str) -> list[Tensor]:
    """y and all gradients of an implementation."""
    with running(name):
        return results(layer, batch, layer.dtype, grads=True)


def assert_all_near(layer: Layer, mine: list[Tensor], true: list[Tensor]) -> None:
    for number, (actual, expected) in enumerate(zip(mine, true, strict=True)):
        assert_near(f"result {number}", actual, expected, layer.tolerance, typical=1e-3)
