import pytest
import torch

from moe_kernels import backend, nf4
from moe_kernels.nf4 import quantize_nf4, quantize_nf4_parts

SHAPE = (3, 128, 320)  # 1920 blocks: seven whole nested groups of 256 and a half
RUNNING = ["reference"] if backend.extension_problem() else ["reference", "cpp"]


def draw(dtype):
    return (torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)


def test_a_nan_is_seen_where_the_absmax_has_lost_it(monkeypatch):
    """As bitsandbytes' kernel on CUDA loses it, by fmaxf."""
    quantize = nf4._quantize_blocks
    monkeypatch.setattr(nf4, "_quantize_blocks", lambda flat: quantize(flat.nan_to_num()))
    weight = torch.ones(4, 64)
    weight[2, 5] = torch.nan
    with backend.use("reference"), pytest.raises(ValueError, match=r"value 133 of a weight of shape \(4, 64\) is nan"):
        quantize_nf4(weight)


@pytest.mark.parametrize("running", RUNNING)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("special", [None, 0.0, -0.0, 1e-39])
def test_parts_have_the_bytes_of_the_whole(special, dtype, running):
    from bitsandbytes.functional import quantize_4bit

    weight = draw(dtype)
    if special is not None:
        weight[1, 7, 64:200] = special
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with backend.use(running):
        whole = quantize_nf4(weight)
        in_parts = quantize_nf4_parts(weight.flatten().split([64, 64 * 700, 64 * 1219]), SHAPE)
    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    torch.set_num_threads(threads)
    theirs = (packed, state.absmax, state.state2.absmax)
    for name, oracle in zip(whole.tensors(), theirs, strict=True):
        torch.testing.assert_close(in_parts.tensors()[name], oracle, rtol=0, atol=0, equal_nan=True, msg=name)
        torch.testing.assert_close(in_parts.tensors()[name], whole.tensors()[name], rtol=0, atol=0, equal_nan=True, msg=name)
    torch.testing.assert_close(torch.tensor(in_parts.nested_offset), state.offset, rtol=0, atol=0, equal_nan=True)
    assert (in_parts.shape, in_parts.dtype) == (SHAPE, dtype)
