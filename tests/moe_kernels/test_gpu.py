"""NF4 on a GPU: bytes and values of bitsandbytes, linear layers, offsets past 2**31, and which card's code runs."""

import math
import os
from dataclasses import replace

import pytest
import torch

from moe_kernels import backend
from moe_kernels.experts import ExpertLoRA, LoRA, moe_dense, moe_lora
from moe_kernels.launch import arch_of, record_launches
from moe_kernels.linear import linear_nf4
from moe_kernels.nf4 import dequantize_nf4, dequantize_nf4_reference, quantize_nf4, to_bitsandbytes
from moe_kernels.routing import KINDS, Routing, route
from tests.moe_kernels.layers import BF16, DEVICE, FP16, FP32, GPU, Layer, assert_near, randn, random_nf4

pytestmark = GPU

DTYPES = [BF16, FP16, FP32]
SHAPES = [(64, 128), (4, 96, 64), (5, 7), (300, 64), (1,), (3, 14336), (4, 1024, 4096), (32000, 4096)]


@pytest.fixture
def bnb():
    return pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")


def test_the_code_path_is_that_of_the_card_or_of_the_override():
    """TRITON_OVERRIDE_ARCH=sm86 makes Triton build the A10G's code; the tables and thresholds must be the A10G's too."""
    major, minor = torch.cuda.get_device_capability()
    wanted = os.environ.get("TRITON_OVERRIDE_ARCH", f"sm{major}{minor}")
    assert f"sm{arch_of(torch.device('cuda', 0))}" == wanted


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dequantised_values_have_the_bits_of_the_reference(shape, dtype):
    q = replace(random_nf4(shape, 3), dtype=dtype)
    with backend.use("triton"):
        values = dequantize_nf4(q)
    assert torch.equal(values, dequantize_nf4_reference(q, dtype))
    if math.prod(shape) < 1 << 20:
        assert torch.equal(values.cpu(), dequantize_nf4(q.to("cpu")))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dequantised_values_have_the_bits_of_bitsandbytes(shape, dtype, bnb):
    q = replace(random_nf4(shape, 3), dtype=dtype)
    with backend.use("triton"):
        assert torch.equal(dequantize_nf4(q), bnb.dequantize_4bit(*to_bitsandbytes(q)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number_is_refused(poison, dtype, bnb):
    w = randn(8, 64, seed=1).to(dtype)
    w[6, 3] = poison
    with pytest.raises(ValueError, match=r"value 387 of a weight of shape \(8, 64\) is (nan|inf|-inf)"):
        quantize_nf4(w)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 128), (4, 96, 64), (5, 7), (300, 64)], ids=str)
def test_quantised_bytes_are_those_of_bitsandbytes(shape, dtype, bnb):
    w = randn(*shape, seed=1).to(dtype)
    q = quantize_nf4(w)
    packed, state = bnb.quantize_4bit(w, blocksize=64, compress_statistics=True, quant_type="nf4")
    assert torch.equal(q.packed, packed)
    assert torch.equal(q.absmax, state.absmax)


@pytest.mark.parametrize("shape", [(3, 64, 96), (5, 192, 64), (8, 512, 256)], ids=str)
def test_an_expert_of_a_stack_is_dequantised_where_it_lies(shape):
    q = random_nf4(shape, 4)
    with backend.use("triton"):
        whole = dequantize_nf4(q)
        for e in range(shape[0]):
            assert torch.equal(dequantize_nf4(q.expert(e)), whole[e])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 33, 100, 1100])
@pytest.mark.parametrize("shape", [(4096, 4096), (1024, 4096), (96, 64), (40, 100), (14336, 4096)], ids=str)
def test_linear_nf4(shape, tokens, dtype):
    q = replace(random_nf4(shape, 5), dtype=dtype)
    rms, largest = Layer("dense", 1, 1, shape[1], shape[0], 0, True, dtype).tolerance
    x, dy = randn(tokens, shape[1], seed=6).to(dtype), randn(tokens, shape[0], seed=7).to(dtype)
    leaf = x.clone().requires_grad_()
    with backend.use("triton"):
        y = linear_nf4(leaf, q)
        (dx,) = torch.autograd.grad(y, leaf, dy)
        few = linear_nf4(x, q)  # nothing wants a gradient: the decode kernels take up to four tokens
    w = dequantize_nf4_reference(q, dtype).to(torch.float64)
    assert_near("y", y.detach(), x.double() @ w.T, (rms, largest))
    assert_near("dx", dx, dy.double() @ w, (rms, largest))
    assert_near("y without gradients", few, x.double() @ w.T, (rms, largest))


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("tokens", [1, 4])
def test_a_few_tokens_without_gradients_are_decoded(tokens, dtype):
    """So that the comparisons above are of the decode kernels, and not twice of the grouped product."""
    q, x = replace(random_nf4((1024, 4096), 5), dtype=dtype), randn(tokens, 4096, seed=6).to(dtype)
    kernels = []
    for leaf in (x, x.clone().requires_grad_()):
        with record_launches(arch_of(x.device)) as calls:
            linear_nf4(leaf, q)
        kernels.append([call.kernel.__name__ for call in calls])
    assert "decode_down_kernel" in kernels[0] and "decode_down_kernel" not in kernels[1]


def need_memory(gigabytes):
    free = torch.cuda.mem_get_info()[0] / 1e9 if DEVICE == "cuda" else 0
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of free device memory, {free:.0f} are there")


def test_more_values_than_a_32_bit_index_holds():
    need_memory(20)
    q = random_nf4.__wrapped__((20, 28672, 4096), 8)  # 2.3e9 values; not kept
    with backend.use("triton"):
        whole = dequantize_nf4(q)
        for e in (0, 18, 19):
            assert torch.equal(whole[e], dequantize_nf4_reference(q.expert(e), BF16))


@pytest.mark.parametrize("tokens", [2, 40, 1100])
def test_experts_past_2_to_the_31_bytes(tokens):
    """40 experts of Mistral's shape: the last ones' bytes and absmax lie past every 32-bit offset. They alone are chosen."""
    need_memory(30)
    gate_up, down = random_nf4.__wrapped__((40, 28672, 4096), 9), random_nf4.__wrapped__((40, 4096, 14336), 10)
    assert gate_up.packed.numel() > 1 << 31
    x = randn(tokens, 4096, seed=1).to(BF16)
    experts = torch.tensor([39, 38], device=DEVICE).expand(tokens, 2).contiguous()
    weights = torch.rand(tokens, 2, device=DEVICE)
    with backend.use("triton"):
        y = moe_dense(x, Routing(weights, experts, None, None, None), gate_up, down)
    expected = torch.zeros(tokens, 4096, device=DEVICE)
    for k, e in enumerate((39, 38)):
        w13, w2 = (dequantize_nf4_reference(q.expert(e), BF16).float() for q in (gate_up, down))
        gate, up = (x.float() @ w13.T).chunk(2, dim=1)
        expected += (torch.nn.functional.silu(gate) * up * weights[:, k : k + 1]) @ w2.T
    assert_near("y", y, expected, (1e-2, 6e-2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["dense", "lora"])
def test_a_layer_equals_that_of_the_cpu(layout, kind):
    layer = Layer(layout, 4, 2, 64, 128, 3, True, FP32)
    base, factors = layer.base(), layer.factors()
    inputs = [randn(33, 64, seed=1), randn(4, 64, seed=2), randn(4, 64, seed=3)]
    found = []
    for device in ("cpu", DEVICE):
        x, *gates = (tensor.to(device, copy=True).requires_grad_() for tensor in inputs)
        ids = torch.arange(33, device=device) // 5
        routing = route(x, *gates, kind=kind, top_k=2, noise_seed=3, sequence_ids_T=ids)
        lora = ExpertLoRA(*(LoRA(a.to(device), b.to(device), 0.5) for a, b in zip(factors[::2], factors[1::2], strict=True)))
        run = moe_dense if layout == "dense" else moe_lora
        y = run(x, routing, *(q.to(device) for q in base), lora)
        (dx,) = torch.autograd.grad(y.sum(), x)
        found.append((y.detach().cpu(), dx.cpu(), routing.load_E.detach().cpu()))
    for cpu, cuda in zip(*found, strict=True):
        assert (cuda - cpu).norm() <= 1e-4 * cpu.norm()
