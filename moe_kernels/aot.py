"""Compiling kernels ahead of time, with no GPU: from a recorded launch to the very cubin that the launch would build.

A launch's code depends on more than the kernel: on dtypes, on which pointers and integers are multiples of 16, on which integer
is 1, on the constants and on Triton's options. Triton's own binder decides all of that here too (`triton/runtime/jit.py`, the same
in 3.6 and 3.7), for a target that is named instead of one that is present. So what is built lands in Triton's cache under the key
that a later launch looks for, if that process has the same Triton and the same kernels.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from multiprocessing import get_context
from typing import Any

from .cubin import CubinFacts, read_cubin
from .launch import Call

WARP = 32  # threads


@dataclass(frozen=True)
class Build:
    """Everything that a launch's code depends on. Equal builds are one cubin; another process can make it from this alone."""

    module: str
    kernel: str
    arch: int
    signature: tuple[tuple[str, str], ...]  # parameter and its type, "constexpr" for a constant
    constants: tuple[tuple[tuple[int, ...], Any], ...]  # place of a parameter and its value
    attributes: tuple[tuple[tuple[int, ...], tuple[tuple[str, int], ...]], ...]  # place and what is known of the argument
    options: tuple[tuple[str, int], ...]

    @property
    def configuration(self) -> str:
        """The constants by name and the options, for people; None and what follows from the types are left out."""
        names = [name for name, _ in self.signature]
        constants = [f"{names[place[0]]}={value}" for place, value in self.constants if value is not None and names[place[0]].isupper()]
        dtypes = sorted({kind for _, kind in self.signature if kind in ("*bf16", "*fp16")})
        return " ".join([*(kind.removeprefix("*") for kind in dtypes), *constants, *(f"{k}={v}" for k, v in self.options)])


def build_of(call: Call, arch: int) -> Build:
    """What `call` needs built for compute capability `arch`. `ValueError` where Triton's interpreter is on: that has no code."""
    from triton import JITFunction

    kernel = call.kernel
    if not isinstance(kernel, JITFunction):
        raise ValueError(f"{kernel} is not a compiled kernel: this process runs Triton's interpreter; unset TRITON_INTERPRET")
    keywords = {**call.constants, **call.options}
    bound, specialization, _ = _binder(kernel, arch)(*call.args, **keywords)
    _, signature, constants, attributes = kernel._pack_args(_backend(arch), dict(keywords), bound, specialization, call.options)
    return Build(
        module=kernel.__module__,
        kernel=kernel.__name__,
        arch=arch,
        signature=tuple(signature.items()),
        constants=tuple(constants.items()),
        attributes=tuple((place, tuple(map(tuple, known))) for place, known in attributes.items()),
        options=tuple(sorted(call.options.items())),
    )


@lru_cache
def _backend(arch: int) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    return make_backend(GPUTarget("cuda", arch, WARP))


@lru_cache
def _binder(kernel: Any, arch: int) -> Callable[..., Any]:
    from triton.runtime.jit import create_function_from_signature

    binder: Callable[..., Any] = create_function_from_signature(kernel.signature, kernel.params, _backend(arch))
    return binder


def compile_build(build: Build) -> Any:
    """Triton's compiled kernel of `build` (`.asm["cubin"]`, `.metadata.shared`), out of Triton's cache if it is there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(import_module(build.module), build.kernel)
    attributes = {place: [list(known) for known in all_known] for place, all_known in build.attributes}
    source = ASTSource(kernel, dict(build.signature), dict(build.constants), attributes)
    return triton.compile(source, target=GPUTarget("cuda", build.arch, WARP), options=dict(build.options))


def compile_call(call: Call, arch: int) -> Any:
    """Triton's compiled kernel of a recorded launch for compute capability `arch`."""
    return compile_build(build_of(call, arch))


def examine(build: Build) -> CubinFacts:
    """Compiles `build` and reads its cubin."""
    compiled = compile_build(build)
    return read_cubin(compiled.asm["cubin"], compiled.metadata.shared)


def examine_all(builds: Iterable[Build], jobs: int | None = None) -> Iterator[tuple[Build, CubinFacts]]:
    """Each distinct one of `builds` as it gets ready, made by `jobs` processes (default: one a core).

    `RuntimeError` with its configuration for a kernel that does not compile: a defect of this package, not of its user.
    """
    pending = list(dict.fromkeys(builds))
    workers = max(1, min(jobs or os.cpu_count() or 1, len(pending)))
    # Fresh processes: a fork of one that has run torch's threads can hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(examine, build): build for build in pending}
        try:
            for future in as_completed(futures):
                build = futures[future]
                try:
                    facts = future.result()
                except Exception as error:
                    where = f"{build.kernel} does not compile for sm_{build.arch}: {build.configuration}"
                    raise RuntimeError(where) from error
                yield build, facts
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
