"""ggml's C functions by ctypes, as far as an MoE block takes them: the libraries of llama.cpp or of ik_llama.cpp, whichever a folder holds.

A pointer is an int or None. What is passed to a function by its value is declared in `FUNCTIONS`; a function that only one of the two
libraries has is declared in its `EXTRA`.
"""

import ctypes
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

POINTER = c_void_p
LOG = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
silent = LOG(lambda level, text, data: None)
F32, I32, SILU = 0, 26, 10  # numbers of ggml_type, and of ik_llama.cpp's ggml_unary_op


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (POINTER, [InitParams]),
    "ggml_free": (None, [POINTER]),
    "ggml_row_size": (c_size_t, [c_int, c_int64]),
    "ggml_new_tensor_3d": (POINTER, [POINTER, c_int, c_int64, c_int64, c_int64]),
    "ggml_view_2d": (POINTER, [POINTER, POINTER, c_int64, c_int64, c_size_t, c_size_t]),
    "ggml_mul_mat_id": (POINTER, [POINTER] * 4),
    "ggml_swiglu_split": (POINTER, [POINTER] * 3),
    "ggml_mul": (POINTER, [POINTER] * 3),
    "ggml_add": (POINTER, [POINTER] * 3),
    "ggml_set_output": (None, [POINTER]),
    "ggml_new_graph": (POINTER, [POINTER]),
    "ggml_build_forward_expand": (None, [POINTER, POINTER]),
    "ggml_backend_cpu_init": (POINTER, []),
    "ggml_backend_cpu_set_n_threads": (None, [POINTER, c_int]),
    "ggml_backend_cpu_buffer_type": (POINTER, []),
    "ggml_backend_alloc_ctx_tensors_from_buft": (POINTER, [POINTER, POINTER]),
    "ggml_backend_buffer_free": (None, [POINTER]),
    "ggml_backend_tensor_set": (None, [POINTER, POINTER, c_size_t, c_size_t]),
    "ggml_backend_tensor_get": (None, [POINTER, POINTER, c_size_t, c_size_t]),
    "ggml_backend_graph_compute": (c_int, [POINTER, POINTER]),
    "ggml_gallocr_new": (POINTER, [POINTER]),
    "ggml_gallocr_alloc_graph": (c_bool, [POINTER, POINTER]),
    "ggml_gallocr_free": (None, [POINTER]),
}
QUANTIZE = [c_int, POINTER, POINTER, c_int64, c_int64, c_int64, POINTER]
EXTRA: dict[str, dict[str, tuple[Any, list[Any]]]] = {
    "llama.cpp": {
        "ggml_log_set": (None, [LOG, POINTER]),
        "ggml_quantize_chunk": (c_size_t, QUANTIZE),
        "ggml_backend_cpu_reg": (POINTER, []),
        "ggml_backend_reg_dev_get": (POINTER, [POINTER, c_size_t]),
        "ggml_backend_reg_get_proc_address": (POINTER, [POINTER, c_char_p]),
        "ggml_backend_buft_name": (c_char_p, [POINTER]),
    },
    "ik_llama.cpp": {
        "ggml_quantize_chunk": (c_size_t, [*QUANTIZE, POINTER]),
        "ggml_moe_up_gate": (POINTER, [POINTER] * 5 + [c_int]),
        "ggml_mul_multi_add": (POINTER, [POINTER] * 3),
    },
}


class Library:
    """The functions above as attributes, and what takes several of them."""

    def __init__(self, kind: str, folder: Path, threads: int) -> None:
        names = ["libggml-base", "libggml-cpu"] if kind == "llama.cpp" else ["libggml"]
        libraries = [ctypes.CDLL(str(found), mode=ctypes.RTLD_LOCAL) for name in names for found in sorted(folder.rglob(f"{name}.so"))[:1]]
        if len(libraries) < len(names):
            raise FileNotFoundError(f"{folder} does not hold {' and '.join(names)}")
        for name, (result, arguments) in (FUNCTIONS | EXTRA[kind]).items():
            function = next(getattr(library, name) for library in libraries if hasattr(library, name))
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self.kind = kind
        if kind == "llama.cpp":
            self.ggml_log_set(silent, None)  # it reports every matrix that it repacks
        self.backend = self.ggml_backend_cpu_init()
        self.ggml_backend_cpu_set_n_threads(self.backend, threads)

    def __getattr__(self, name: str) -> Any:  # for mypy: the functions are set by name
        raise AttributeError(name)

    def context(self, owner: Any, size: int = 1 << 20) -> int:
        """A place for tensors' descriptions, which is there as long as `owner` is."""
        made: int = self.ggml_init(InitParams(size, None, True))
        weakref.finalize(owner, self.ggml_free, made)
        return made

    def allocate(self, owner: Any, context: int, buffer_type: int) -> None:
        """Memory for the tensors of `context`, as long as `owner` is there."""
        buffer = self.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if not buffer:
            raise MemoryError("ggml has not allocated its tensors")
        weakref.finalize(owner, self.ggml_backend_buffer_free, buffer)

    def repack_buffer_type(self) -> int:
        """llama.cpp's memory whose matrices are stored for its interleaved kernels."""
        registry = self.ggml_backend_cpu_reg()
        extra = self.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        types = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(extra)(self.ggml_backend_reg_dev_get(registry, 0))
        for found in iter_pointers(types):
            if self.ggml_backend_buft_name(found) == b"CPU_REPACK":
                return found
        raise LookupError("this build of llama.cpp has no CPU_REPACK memory")

    def quantize(self, stack: Tensor, kind: int) -> Tensor:
        """`stack` [E, out, in] in the ggml type `kind`, as bytes."""
        experts, out, width = stack.shape
        made = torch.empty(experts, out, self.ggml_row_size(kind, width), dtype=torch.uint8)
        rows = 1024 if out % 1024 == 0 else out

        def piece(at: tuple[int, int]) -> None:
            e, begin = at
            dense = stack[e, begin : begin + rows].float().contiguous()
            target = made[e, begin : begin + rows]
            more = [None] if self.kind == "ik_llama.cpp" else []
            self.ggml_quantize_chunk(kind, dense.data_ptr(), target.data_ptr(), 0, rows, width, None, *more)

        piece((0, 0))  # alone: the first call makes tables
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(piece, [(e, begin) for e in range(experts) for begin in range(0, out, rows)]))
        return made

    def set(self, tensor: int, value: Tensor) -> None:
        self.ggml_backend_tensor_set(tensor, value.contiguous().data_ptr(), 0, value.nbytes)


def iter_pointers(array: Any) -> Sequence[int]:
    """The pointers of an array that ends with a null pointer."""
    found: list[int] = []
    while array[len(found)]:
        found.append(array[len(found)])
    return found
