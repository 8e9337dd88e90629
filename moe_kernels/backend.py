"""Which implementation of an operator runs: `reference` (plain torch), `cpp` (the extension of `csrc/`, CPU) or `triton` (CUDA).

On a CUDA device that is `triton`. On the CPU the choice is made once, at the first operator that has both: `cpp` if the extension was
built, else `reference`. An operator that has no `cpp` form, or tensors that its kernels do not take, run the reference.
"""

import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from .launch import recording
from .nf4_format import NF4

if TYPE_CHECKING:
    from .nf4 import NF4Weight  # which imports this module

NAMES = ("reference", "cpp", "triton")
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PRECISIONS = ("exact", "int8")  # of products with NF4; the second belongs to the C++ extension
_forced: str | None = None
_chosen: str | None = None


def active(device: str = "cpu") -> str:
    """The implementation in force on a kind of device."""
    if _forced is not None:
        return _forced
    if recording():
        return "triton"
    return _chosen_for(device)


@torch.compiler.assume_constant_result  # Dynamo cannot trace the search for packages, nor sees that its answer is kept
def _chosen_for(device: str) -> str:
    if device == "cuda":
        return "reference" if triton_problem() else "triton"
    global _chosen
    if _chosen is None:
        problem = extension_problem()
        _chosen = "reference" if problem else "cpp"
        if problem:
            logging.getLogger("moe_kernels").warning("moe_kernels: %s; the reference operators run, at a fraction of the speed", problem)
    return _chosen


def runs_triton(x: Tensor) -> bool:
    """Whether an operator on `x` runs its Triton kernels; fp64 has none."""
    return x.dtype in KERNEL_DTYPES and active(x.device.type) == "triton"


def runs_cpp(x: Tensor) -> bool:
    """Whether an operator on `x` runs the C++ extension's kernels."""
    return x.device.type == "cpu" and active("cpu") == "cpp"


def traced(x: Tensor) -> bool:
    """Whether `x` may have no values, in `torch.compile` or as a fake tensor: then only an operator that has a fake may take it."""
    return torch.compiler.is_compiling() or type(x) not in (Tensor, Parameter)


def refuse_tangents(*tensors: object) -> None:
    """`ValueError` if one of `tensors` (what is no tensor is passed over) has a tangent: its derivative would silently be zero."""
    if forward_ad._current_level < 0:  # outside forward mode; unpack_dual takes 1.4 µs to say so
        return
    for tensor in tensors:
        if isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None:
            shape = list(tensor.shape)
            raise ValueError(f"a tensor of shape {shape} has a tangent: there is no forward-mode differentiation here, use reverse mode")


def runs_cpp_directly(x: Tensor) -> bool:
    """Whether C++ can be called without the wrapper of a custom operator: nothing traces `x`."""
    return not traced(x) and runs_cpp(x)


def as_autocast(x: Tensor) -> Tensor:
    """`x` in the dtype that autocast, where it is on, computes products in; it leaves fp64 alone."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(device))


def precision_code(precision: str, x: Tensor, *, training: bool, weights: "Sequence[Tensor | NF4Weight]" = ()) -> int:
    """The number of `precision` in the extension's operators; `ValueError` if it is unknown, or not to be had for `x` and `weights`.

    `exact`: activations as they are. `int8`: quantised in blocks of 64 (`csrc/kernels/int8.h`), for NF4 weights of whole blocks a row.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    if precision != "exact":
        if training:
            raise ValueError(f"precision {precision!r} has no gradients: train in 'exact', or compute under torch.no_grad()")
        if not runs_cpp(x):
            raise ValueError(
                f"precision {precision!r} needs the C++ extension and the CPU; here {active(x.device.type)} runs on {x.device}"
            )
        for weight in weights:
            if isinstance(weight, Tensor) or weight.shape[-1] % NF4.block:
                kind = "dense" if isinstance(weight, Tensor) else "NF4"
                raise ValueError(
                    f"precision {precision!r} needs NF4 weights whose rows are multiples of {NF4.block}, "
                    f"not a {kind} weight of shape {list(weight.shape)}"
                )
    return PRECISIONS.index(precision)


@contextmanager
def use(name: str) -> Iterator[None]:
    """Puts `name` in force within the block (tests and benchmarks compare implementations so)."""
    global _forced
    if name not in NAMES:
        raise ValueError(f"unknown implementation {name!r}; known: {', '.join(NAMES)}")
    problem = {"cpp": extension_problem, "triton": triton_problem}.get(name, str)()
    if problem:
        raise ValueError(problem)
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@lru_cache
def triton_problem() -> str:
    """Why Triton kernels cannot run here, or the empty string: they need a CUDA device, or Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton kernels need a CUDA device, or TRITON_INTERPRET=1 to run slowly on the CPU"
    return ""


@lru_cache
def extension_problem() -> str:
    """Loads the extension's operators into `torch.ops.moe_kernels`; returns why that fails, or the empty string."""
    spec = importlib.util.find_spec("moe_kernels._C")
    if spec is None or spec.origin is None:
        return "the C++ extension is not built (with a C++ compiler and torch in place: pip install --no-build-isolation --no-deps .)"
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:  # as after another torch was installed
        return f"the C++ extension does not load and needs a rebuild ({error})"
    if not hasattr(torch.ops.moe_kernels, "quantize_absmax"):  # the newest of its operators
        return "the C++ extension is older than its sources and needs a rebuild"
    # To be asked again (tests do, after cache_clear) is an error in torch 2.11 without the permission.
    torch.library.register_fake("moe_kernels::dequantize_nf4", _dequantize_nf4_fake, allow_override=True)
    return ""


def cpu_isas() -> list[str]:
    """The instruction sets that the extension can use on this CPU, from the plainest to the one that it takes.

    The environment variable MOE_KERNELS_ISA names the best that it may take; it is read at every call.
    """
    return list(torch.ops.moe_kernels.cpu_isas())


def _dequantize_nf4_fake(packed, absmax, nested_absmax, dynamic_map, nested_offset, shape, dtype, first_block):
    return packed.new_empty(shape, dtype=dtype)
