"""Faults and bad input of 4-bit weights: rows 25 to 30, on every implementation. The format is described in moe_kernels/nf4.py."""

import math
from dataclasses import replace

import pytest
import torch
from bitsandbytes import functional as bnb

from moe_kernels.experts import moe_dense
from moe_kernels.linear import linear_nf4
from moe_kernels.nf4 import NF4Weight, dequantize_absmax, dequantize_nf4, from_bitsandbytes, quantize_nf4
from moe_kernels.nf4_format import NF4, dynamic_map
from moe_kernels.routing import Routing
from tests.faults.backends import IMPLEMENTATIONS, running
from tests.moe_kernels.layers import BF16, FP16, FP32, assert_near, randn

every_implementation = pytest.mark.parametrize("name", IMPLEMENTATIONS)


@every_implementation
@pytest.mark.parametrize("shape", [(1,), (63,), (65,), (3, 7), (5, 97), (2, 3, 65)], ids=str)
def test_25_any_number_of_values(shape, name):
    """A value comes back within half a step of its block, whatever the number of values; an expert of part of a block is refused."""
    w = randn(*shape, seed=1)
    with running(name):
        q = quantize_nf4(w)
        values = dequantize_nf4(q)
        if len(shape) == 3:
            with pytest.raises(ValueError, match="not a whole number of NF4 blocks"):
                q.expert(0)
    step = max(b - a for a, b in zip(NF4.levels, NF4.levels[1:], strict=False))
    assert values.shape == w.shape and (values - w).abs().max() <= (step / 2 + 0.02) * w.abs().max()


@every_implementation
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_26_special_blocks(dtype, name):
    """Zeros come back as zeros, an outlier flattens its own block alone; NaN and infinity are refused with their place."""
    w = randn(8, 64, seed=2, scale=0.02).to(dtype)
    w[1], w[2] = 0, -0.02
    w[3, 5] = 6e4
    with running(name):
        values = dequantize_nf4(quantize_nf4(w)).float()
        zeros = dequantize_nf4(quantize_nf4(torch.zeros(8, 64, dtype=dtype)))
        for poison in (math.nan, math.inf, -math.inf):
            bad = w.clone()
            bad[6, 3] = poison
            with pytest.raises(ValueError, match=r"value 387 of a weight of shape \(8, 64\) is (nan|inf|-inf)"):
                quantize_nf4(bad)
    assert values.isfinite().all() and not zeros.any()
    assert values[3, 5] == w[3, 5].float() or (values[3, 5] / 6e4 - 1).abs() < 0.02
    assert (values[3].abs() > 0).sum() == 1


@every_implementation
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_27_every_code_times_every_scale(dtype, name):
    """All 256 bytes x all 256 codes of the absmax, 131,072 values: bit for bit the formula, each product rounded once."""
    packed = torch.arange(256, dtype=torch.uint8).repeat(256).view(-1, 1)  # eight blocks of 32 bytes for each code
    q = NF4Weight(packed, torch.arange(256, dtype=torch.uint8).repeat_interleave(8), torch.linspace(0.25, 2, 8), 0.75, (256, 512), dtype)
    absmax = dynamic_map().repeat_interleave(8) * q.nested_absmax.repeat_interleave(256) + 0.75
    levels = torch.tensor(NF4.levels)[torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).long()].view(-1, 64)
    expected = (levels * absmax[:, None]).view(256, 512).to(dtype)
    with running(name):
        assert torch.equal(dequantize_nf4(q), expected)
    assert torch.equal(dequantize_absmax(q), absmax)


WRONG = {
    "packed": (lambda q: {"packed": q.packed[:-1]}, "needs 2048 entries of packed, not 2047"),
    "absmax": (lambda q: {"absmax": q.absmax[:-1]}, "needs 64 entries of absmax, not 63"),
    "nested": (lambda q: {"nested_absmax": q.nested_absmax.repeat(2)}, "needs 1 entries of nested_absmax, not 2"),
    "shape": (lambda q: {"shape": (64, 65)}, "needs 2080 entries of packed, not 2048"),
    "no shape": (lambda q: {"shape": ()}, "shape"),
    "negative": (lambda q: {"shape": (-64, -64)}, "shape"),
    "dtype of absmax": (lambda q: {"absmax": q.absmax.float()}, "absmax is float32; NF4 has it in uint8"),
    "dtype of the weight": (lambda q: {"dtype": torch.float64}, "float64"),
    "stride": (lambda q: {"absmax": q.absmax.repeat_interleave(2)[::2]}, "absmax of strides .* are contiguous"),
    "device": (lambda q: {"nested_absmax": q.nested_absmax.to("meta")}, "nested_absmax .* on meta does not fit"),
    "first block": (lambda q: {"first_block": -1}, "first_block"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_28_tables_that_do_not_fit_the_shape_are_refused_where_they_meet(fault):
    q = quantize_nf4(randn(64, 64, seed=3))
    change, message = WRONG[fault]
    with pytest.raises(ValueError, match=message):
        replace(q, **change(q))


def test_28_another_block_size_is_refused():
    packed, state = bnb.quantize_4bit(torch.randn(64, 128), blocksize=128, compress_statistics=True, quant_type="nf4")
    with pytest.raises(ValueError, match="blocks of 64 is read, not nf4 in blocks of 128"):
        from_bitsandbytes(packed, state)


@every_implementation
def test_29_bytes_without_a_description_are_no_weight(name):
    routing = Routing(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int64))
    bytes_ = torch.zeros(2, 128, 64, dtype=torch.uint8)
    with running(name):
        with pytest.raises(ValueError, match=r"a weight of torch\.uint8 on cpu does not fit"):
            moe_dense(torch.ones(2, 64), routing, bytes_, bytes_[:, :64])
        with pytest.raises(ValueError, match="must be an NF4Weight, not a Tensor"):
            linear_nf4(torch.ones(2, 64), bytes_[0])


@every_implementation
def test_30_only_what_is_no_4_bit_weight_has_gradients(name):
    q, x = quantize_nf4(randn(64, 64, seed=4)), randn(3, 64, seed=5).requires_grad_()
    with pytest.raises(ValueError, match="nested_absmax requires a gradient; an NF4 weight has none"):
        replace(q, nested_absmax=q.nested_absmax.clone().requires_grad_())
    with running(name):
        y = linear_nf4(x, q)
        y.sum().backward()
        expected = dequantize_nf4(q).double().sum(0).expand(3, -1)
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in q.tensors().values())
    assert_near("dx", x.grad, expected, (4e-6, 4e-5))
