"""Dequantising NF4 on the CPU: ours (torch reference, C++) and bitsandbytes, on one thread, values checked equal first.

pytest benchmarks/test_nf4.py --benchmark-columns=min,median,iqr,rounds
"""

import pytest
import torch
from bitsandbytes import functional as bnb

from moe_kernels import backend
from moe_kernels.nf4 import dequantize_nf4, quantize_nf4

SHAPES = {"embedded model": (512, 192), "attention of a 7B": (4096, 4096), "FFN of a 7B": (14336, 4096)}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["reference", "cpp", "bitsandbytes"])
def test_dequantize(benchmark, name, shape, dtype):
    w = torch.randn(SHAPES[shape], generator=torch.Generator().manual_seed(0)).to(dtype)
    q = quantize_nf4(w)
    packed, state = bnb.quantize_4bit(w, blocksize=64, compress_statistics=True, quant_type="nf4")
    benchmark.group = f"dequantize_nf4, {shape}, {dtype}"
    if name == "bitsandbytes":
        benchmark(bnb.dequantize_4bit, packed, state)
        return
    if name == "cpp" and backend.extension_problem():
        pytest.skip(backend.extension_problem())
    with backend.use(name):
        assert torch.equal(dequantize_nf4(q), bnb.dequantize_4bit(packed, state))
        benchmark(dequantize_nf4, q)
