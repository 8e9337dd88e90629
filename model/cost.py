"""What a run took: memory, precision, and parameters in all and for one token. K experts per token, E experts."""

import ctypes
import gc
import resource
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .quantization import MatrixModule
from .routers import MoERouter

CLEAR = Path("/proc/self/clear_refs")  # of Linux; 5 makes the process's greatest resident size what it holds now


def reset_peak() -> bool:
    """Makes `peak_bytes` that of what comes from now on; False where the system does not let a process do so."""
    gc.collect()  # or a model that nobody uses any more counts
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps freed blocks: 190 of 400 MB
        trim(0)
    if torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def model_cost(model: Any) -> dict[str, Any]:
    """`device`, `parameters`, `active_parameters`, and `peak_bytes`: of the process so far, or on CUDA of what torch allocated."""
    cuda = model.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(model.device) if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "device": torch.cuda.get_device_name(model.device) if cuda else model.device.type,
        "parameters": int(model.num_parameters()),
        "active_parameters": active_parameters(model),
        "peak_bytes": peak,
    }


def precision_facts(model: Any) -> dict[str, Any]:
    """The dtype that the model computes in, and "nf4" if its matrices are kept in that, by us or by bitsandbytes."""
    kept = model.config.quantization_config.bnb_4bit_quant_type if getattr(model, "is_loaded_in_4bit", False) else None
    return {"dtype": str(model.dtype).removeprefix("torch."), "quantization": getattr(model.config, "quantization", None) or kept}


def active_parameters(model: Any) -> int:
    """The parameters that one token meets: all, less the experts it does not go to. Values in NF4 count as one each, embeddings count.

    Experts are stacks [E, ...], shared ones included; the other mixtures of transformers count whole unless they stack theirs likewise.
    """
    experts = getattr(model.config, "num_local_experts", 0) or 0
    shared = getattr(model.config, "num_shared_experts", 0) or 0
    idle = experts - _chosen(model)
    stacks = [
        shape for module in model.modules() for shape in _shapes(module) if len(shape) == 3 and shape[0] in (experts, experts + shared)
    ]
    return int(model.num_parameters()) - sum(idle * torch.Size(shape[1:]).numel() for shape in stacks)


def _chosen(model: Any) -> int:
    """K: of our router by its kind, else as the configuration says."""
    kind = next((module.kind for module in model.modules() if isinstance(module, MoERouter)), "topk")
    if kind in ("switch", "sequence"):
        return 1
    return int(getattr(model.config, "num_local_experts" if kind == "softmax" else "num_experts_per_tok", 0) or 0)


def _shapes(module: nn.Module) -> Iterable[Sequence[int]]:
    """Of a module's own parameters and matrices in NF4."""
    yield from (parameter.shape for parameter in module.parameters(recurse=False))
    if isinstance(module, MatrixModule):
        yield from module.quantized_matrices().values()
