"""The NF4 linear layer against bitsandbytes' and against a dense one."""

import bitsandbytes as bnb
import pytest
import torch

from moe_kernels import backend
from moe_kernels.linear import linear_nf4
from moe_kernels.nf4 import dequantize_nf4, quantize_nf4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 128), (2, 7, 128), (0, 128)])
def test_equals_linear4bit(shape, dtype):
    torch.manual_seed(0)
    w, bias = torch.randn(96, 128, dtype=dtype), torch.randn(96, dtype=dtype)
    x, y = (torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(2))
    y.data = x.data.clone()
    q = quantize_nf4(w)
    packed, state = bnb.functional.quantize_4bit(w, compress_statistics=True, quant_type="nf4")
    with backend.use("reference"):
        ours = linear_nf4(x, q, bias)
    theirs = torch.nn.functional.linear(y, bnb.functional.dequantize_4bit(packed, state)) + bias
    assert torch.equal(ours, theirs)
    dy = torch.randn_like(ours)
    ours.backward(dy)
    theirs.backward(dy)
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(linear_nf4(x, q, bias), theirs, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)


def test_gradients():
    q = quantize_nf4(torch.randn(16, 64))
    x = torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, bias: linear_nf4(x, q, bias), [x, bias])


def test_the_graph_keeps_no_dequantised_weight():
    q = quantize_nf4(torch.randn(256, 256))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes) or tensor, lambda tensor: tensor):
        y = linear_nf4(torch.randn(2, 256, requires_grad=True), q)
    assert sum(kept) <= q.nbytes
    y.sum().backward()


def test_the_weight_is_rounded_to_its_own_dtype_first():
    q = quantize_nf4(torch.randn(32, 64, dtype=torch.bfloat16))
    x = torch.eye(64)
    assert torch.equal(linear_nf4(x, q), dequantize_nf4(q).float().T)


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (torch.randn(2, 32), None, r"x of shape \[2, 32\] do not fit an NF4 weight of shape \[32, 64\]"),
        (torch.randn(()), None, r"x of shape \[\] do not fit"),
        (torch.randn(2, 64), torch.randn(64), r"x of shape \[2, 64\] and a bias of shape \[64\] do not fit"),
    ],
)
def test_shapes_must_fit(x, bias, message):
    with pytest.raises(ValueError, match=message):
        linear_nf4(x, quantize_nf4(torch.randn(32, 64)), bias)


def test_a_dense_weight_is_refused():
    with pytest.raises(ValueError, match="must be an NF4Weight, not a Tensor"):
        linear_nf4(torch.randn(2, 64), torch.randn(32, 64))
