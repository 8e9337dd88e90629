"""The C++ operator that writes NF4, against bitsandbytes on the CPU: every bit, also on and beside its decision thresholds."""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
import torch
from bitsandbytes import functional as bnb

from moe_kernels import backend
from moe_kernels.nf4 import quantize_nf4
from moe_kernels.nf4_format import NF4, dynamic_map

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(1,), (2,), (63,), (64,), (65,), (127, 1), (5, 7), (2, 3, 5, 7), (300, 64), (4, 96, 65), (257, 64), (1031, 333)]
missing = backend.extension_problem() or (
    "" if hasattr(torch.ops.moe_kernels, "quantize_absmax") else "the extension is older than quantize_absmax"
)
pytestmark = pytest.mark.skipif(bool(missing), reason=missing or "built")


def check_against_bitsandbytes(w):
    """Every bit; what is not finite is refused, where bitsandbytes spreads it over the whole weight."""
    with backend.use("cpp"):
        if not w.isfinite().all():
            with pytest.raises(ValueError, match=r"is (nan|inf|-inf)$"):
                quantize_nf4(w)
            return
        q = quantize_nf4(w)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    packed, state = bnb.quantize_4bit(w, blocksize=64, compress_statistics=True, quant_type="nf4")
    torch.set_num_threads(threads)
    expected = (packed, state.absmax, state.state2.absmax, state.offset)
    actual = (q.packed, q.absmax, q.nested_absmax, torch.tensor(q.nested_offset))
    for ours, theirs, name in zip(actual, expected, ["packed", "absmax", "nested_absmax", "nested_offset"], strict=True):
        assert ours.dtype == theirs.dtype, name
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=name)
    assert (q.shape, q.dtype) == (tuple(w.shape), w.dtype)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, dtype):
    check_against_bitsandbytes(draw(*shape).mul(0.02).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 70, 128])  # the first block, the second, the last that is not whole
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -0.0, 6e4, 1e-44, -1e-39])
def test_one_special_value(value, place, dtype):
    w = draw(131).to(dtype)
    w[place] = value
    check_against_bitsandbytes(w)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 63, 64, 100, 64 * 300 + 1])
@pytest.mark.parametrize("value", [0.0, -0.0, float("nan"), float("inf"), float("-inf"), -0.02, 1e-44, 1e-40, 5e-39, 1e-38, 1.2e-38, 3e38])
def test_one_value_everywhere(value, count, dtype):
    check_against_bitsandbytes(torch.full((count,), value).to(dtype))


@pytest.mark.parametrize("scale", [1e-45, 1e-42, 1e-39, 1e-38, 1e-37, 1e-20, 1e20, 1e37])
def test_extreme_magnitudes(scale):
    w = draw(300, 65) * scale
    w[::3] = 0
    check_against_bitsandbytes(w)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_value(dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    check_against_bitsandbytes(every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))])
    check_against_bitsandbytes(every)
    for absmax in (1.0, 0.7, 3e-5):  # and those of a usual size, divided by the same number
        within = every[every.abs() <= absmax]
        within = torch.cat([within, within.new_zeros(-len(within) % 63)]).view(-1, 63)
        check_against_bitsandbytes(torch.nn.functional.pad(within, (1, 0), value=absmax))


def beside(values, steps):
    """fp32 `values`, and the `steps` next ones on either side of each."""
    near = [values]
    for _ in range(steps):
        near = [near[0].nextafter(torch.tensor(-4e38)), *near, near[-1].nextafter(torch.tensor(4e38))]
    return torch.stack(near, dim=1).view(-1)


@pytest.mark.parametrize("absmax", [1.0, 0.02, 0.7, 3.3, 1e-38, 2e-39, 1e30])
def test_values_on_and_beside_the_thresholds_of_the_levels(absmax):
    levels = torch.tensor(NF4.levels)
    values = beside((levels[1:] + levels[:-1]) / 2 * absmax, 3)  # 105
    for size in (63, 21):  # whole blocks, multiplied by 1/absmax, and last blocks that are not, divided by absmax
        for part in torch.cat([values, -values]).split(size):
            check_against_bitsandbytes(torch.cat([torch.tensor([absmax]), part]))


def test_absmax_on_and_beside_the_thresholds_of_the_dynamic_map():
    """One value a block. Each group of absmax reaches from 1 to 3 and their mean is 2, so it is absmax - 2 that is looked up."""
    middles = (dynamic_map()[1:] + dynamic_map()[:-1]) / 2
    points = torch.arange(65536) * 2 / 65535 - 1  # bitsandbytes looks up the nearest of these
    first = torch.searchsorted(points, middles)  # where the code changes
    edges = torch.cat([(first.double() + shift) / 32767.5 - 1 for shift in (-1.5, -0.5, 0.5)]).float()
    near = beside(2 + edges, 3)
    absmax = torch.cat([near, 4 - near]).clamp(1, 3)
    absmax = torch.cat([torch.cat([torch.tensor([1.0, 3.0]), part]) for part in absmax.split(254)])
    w = torch.zeros(len(absmax), 64)
    w[:, 7] = absmax
    assert quantize_nf4(w).nested_offset == 2
    check_against_bitsandbytes(w)
    for shift in (0.1, 0.2, 0.3):  # subtractions and products that round
        check_against_bitsandbytes(w * 0.3 + shift)


def test_offset_is_the_mean_that_torch_takes_on_one_thread():
    """So many absmax that torch's threads share the sum, and bitsandbytes' last bit depends on their number."""
    check_against_bitsandbytes(draw(40_000, 64))


def test_other_threads_keep_their_number_of_threads():
    """A thread takes the process's number when it first asks: it must not meet one that holds for the mean alone."""
    absmax, threads, seen = torch.rand(1 << 20), torch.get_num_threads(), []
    torch.set_num_threads(2)
    with ThreadPoolExecutor(1) as pool:
        quantising = pool.submit(lambda: [torch.ops.moe_kernels.quantize_absmax(absmax, dynamic_map()) for _ in range(40)])
        while not quantising.done():
            asking = Thread(target=lambda: seen.append(torch.get_num_threads()))
            asking.start()
            asking.join()
    torch.set_num_threads(threads)
    assert set(seen) == {2}


@pytest.mark.parametrize("change", [lambda w: w.t(), lambda w: w[:, ::3], lambda w: w[:1, :1].expand(9, 31)])
def test_a_weight_need_not_be_contiguous(change):
    check_against_bitsandbytes(change(draw(65, 130)))
    with pytest.raises(ValueError, match="must be contiguous"):
        torch.ops.moe_kernels.quantize_nf4_blocks(change(draw(65, 130)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_nothing(dtype):
    w, threads = draw(1031, 333).to(dtype), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            packed, absmax = torch.ops.moe_kernels.quantize_nf4_blocks(w)
            results.append((packed, *torch.ops.moe_kernels.quantize_absmax(absmax, dynamic_map())))
            torch.ops.moe_kernels.quantize_absmax(draw(40_000).abs(), dynamic_map())
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 96, 64)])
def test_opcheck(shape, dtype):
    w = draw(*shape).to(dtype)
    torch.library.opcheck(torch.ops.moe_kernels.quantize_nf4_blocks.default, (w,))
    for offset in (None, 0.25):
        absmax = torch.ops.moe_kernels.quantize_nf4_blocks(w)[1]
        torch.library.opcheck(torch.ops.moe_kernels.quantize_absmax.default, (absmax, dynamic_map(), offset))


def test_bitsandbytes_is_not_needed(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "bitsandbytes"]:
        monkeypatch.setitem(sys.modules, name, None)
    with backend.use("cpp"):
        assert quantize_nf4(torch.full((64,), -0.5)).packed.tolist() == [[0]] * 32
    with backend.use("reference"), pytest.raises(ImportError):
        quantize_nf4(torch.ones(64))


@pytest.mark.parametrize("w", [torch.zeros(0, 64), torch.zeros(64, dtype=torch.float64), torch.zeros(64, dtype=torch.int8)])
def test_unfit_weights_are_refused(w):
    with backend.use("cpp"), pytest.raises(ValueError, match=r"no values|is made from"):
        quantize_nf4(w)
    with pytest.raises((ValueError, NotImplementedError), match=r"no values|not implemented for"):
        torch.ops.moe_kernels.quantize_nf4_blocks(w)
    with pytest.raises(ValueError, match="the dynamic map has 256 entries, not 9"):
        torch.ops.moe_kernels.quantize_absmax(torch.zeros(64), dynamic_map()[:9])
    with pytest.raises(ValueError, match="absmax must be float32"):
        torch.ops.moe_kernels.quantize_absmax(torch.zeros(64, dtype=torch.float64), dynamic_map())
