"""The operators on a CUDA device against bitsandbytes there, and against themselves on the CPU."""

import pytest
import torch
from bitsandbytes import functional as bnb

from moe_kernels.experts import ExpertLoRA, LoRA, moe_dense, moe_lora
from moe_kernels.nf4 import dequantize_nf4, quantize_nf4
from moe_kernels.noise import standard_normal
from moe_kernels.routing import KINDS, route

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(64, 128), (4, 96, 64), (5, 7), (300, 64)])
def test_bytes_and_values_are_those_of_bitsandbytes(shape, dtype):
    w = torch.randn(shape, device="cuda").to(dtype)
    q = quantize_nf4(w)
    packed, state = bnb.quantize_4bit(w, blocksize=64, compress_statistics=True, quant_type="nf4")
    assert torch.equal(q.packed, packed)
    assert torch.equal(q.absmax, state.absmax)
    assert torch.equal(dequantize_nf4(q), bnb.dequantize_4bit(packed, state))
    assert torch.equal(dequantize_nf4(q.to("cpu")), dequantize_nf4(q).cpu())


def test_noise_has_the_bits_of_the_cpu():
    assert torch.equal(standard_normal(77, 4096, 4, "cuda").cpu(), standard_normal(77, 4096, 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", [moe_dense, moe_lora])
def test_a_layer_equals_that_of_the_cpu(run, kind):
    experts, width, hidden = 4, 64, 96
    matrices = [(hidden, width), (hidden, width), (width, hidden)]
    bases = [(experts, 2 * hidden, width), (experts, width, hidden)] if run is moe_dense else matrices
    weights = [quantize_nf4(torch.randn(shape)) for shape in bases]
    factors = [(torch.randn(experts, 3, into), torch.randn(experts, out, 3)) for out, into in matrices]
    x, w_gate, w_noise = torch.randn(33, width), torch.randn(experts, width), torch.randn(experts, width)
    ids = torch.arange(33) // 5
    results = []
    for device in ("cpu", "cuda"):
        x_there = x.to(device, copy=True).requires_grad_()
        gates = w_gate.to(device), w_noise.to(device)
        routing = route(x_there, *gates, kind=kind, top_k=2, noise_seed=3, sequence_ids_T=ids.to(device))
        lora = ExpertLoRA(*(LoRA(a.to(device), b.to(device), 0.5) for a, b in factors))
        y = run(x_there, routing, *(q.to(device) for q in weights), lora)
        y.sum().backward()
        results.append((y.detach().cpu(), x_there.grad.cpu(), routing.load_E.detach().cpu()))
    for cpu, cuda in zip(*results, strict=True):
        assert (cuda - cpu).norm() <= 1e-4 * cpu.norm()
