"""NF4 made piece by piece, against bitsandbytes on the whole weight: every bit."""

import pytest
import torch
from bitsandbytes import functional as bnb

from moe_kernels import backend
from moe_kernels.nf4 import quantize_nf4
from moe_kernels.nf4_pieces import quantize_nf4_pieces

BACKENDS = ["reference", *([] if backend.extension_problem() else ["cpp"])]


@pytest.fixture(params=BACKENDS, autouse=True)
def _backend(request):
    with backend.use(request.param):
        yield


def check(weight, sizes):
    """Cuts `weight` into pieces of `sizes` values, the last taking the rest."""
    flat, pieces = weight.reshape(-1), []
    for size in sizes:
        pieces.append(flat[:size])
        flat = flat[size:]
    found = quantize_nf4_pieces(iter([*pieces, flat]), tuple(weight.shape), weight.dtype)
    packed, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    expected = (packed, state.absmax, state.state2.absmax, state.offset)
    actual = (found.packed, found.absmax, found.nested_absmax, torch.tensor(found.nested_offset))
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    whole = quantize_nf4(weight).state_dict("w")
    assert all(torch.equal(tensor, whole[key]) for key, tensor in found.state_dict("w").items() if not weight.isnan().any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((4, 96, 64), [32 * 64] * 11),  # experts' matrices: groups of 256 absmax reach over several
        ((3, 10, 24), [240, 240]),  # matrices that are not whole blocks
        ((5, 7), [1, 1, 20]),  # no whole block at all
        ((2, 129), [128]),
        ((300, 65), [7, 64, 0, 6000, 64]),
    ],
)
def test_bytes_are_those_of_the_whole_weight(shape, sizes, dtype):
    check((torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.02).to(dtype), sizes)


@pytest.mark.parametrize("value", [0.0, 1e-40, float("inf"), float("nan")])
def test_special_values(value):
    weight = torch.randn(257, generator=torch.Generator().manual_seed(2))
    weight[3] = weight[-1] = value
    check(weight, [64, 70])
    check(torch.full((129,), value), [64])


def test_offset_is_the_mean_of_one_thread():
    """So many absmax that threads would share the sum."""
    weight = torch.randn(40_000, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = quantize_nf4_pieces(weight.split(9_000), tuple(weight.shape), weight.dtype)
        assert torch.get_num_threads() == 4
        torch.set_num_threads(1)
        state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")[1]
    finally:
        torch.set_num_threads(threads)
    assert found.nested_offset == state.offset.item() and torch.equal(found.absmax, state.absmax)


def test_pieces_that_do_not_fill_the_shape_are_refused():
    half = torch.ones(32, 64)
    for pieces, message in (([half], "hold 2048 values"), ([half] * 3, "does not fit"), ([half, half.bfloat16()], "does not fit")):
        with pytest.raises(ValueError, match=message):
            quantize_nf4_pieces(iter(pieces), (64, 64), torch.float32)
