"""NF4 weights against bitsandbytes' own functions: bytes, values, stored keys."""

import subprocess
import sys

import pytest
import torch
from bitsandbytes import functional as bnb

from moe_kernels import backend
from moe_kernels.nf4 import NF4Weight, dequantize_absmax, dequantize_nf4, quantize_nf4, quantize_nf4_parts
from moe_kernels.nf4_format import NF4, dynamic_map

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(64, 128), (4, 96, 64), (3, 128, 192), (5, 7), (1,), (63,), (64,), (65,), (96, 48), (300, 64), (2, 3, 5, 7)]


ISAS = [] if backend.extension_problem() else [f"cpp {isa}" for isa in backend.cpu_isas()]


@pytest.fixture(params=[*(name for name in backend.NAMES if name != "cpp"), *(ISAS or ["cpp"])])
def implementation(request, monkeypatch):
    name, *isa = request.param.split()
    if name == "cpp" and backend.extension_problem():
        pytest.skip(backend.extension_problem())
    if isa:
        monkeypatch.setenv("MOE_KERNELS_ISA", isa[0])
    with backend.use(name):
        yield name


def bnb_quantize(w):
    return bnb.quantize_4bit(w, blocksize=64, compress_statistics=True, quant_type="nf4")


def bnb_dequantize(packed, state):
    # As one row: bitsandbytes' AVX-512 code takes the wrong absmax where blocks straddle the rows of a matrix. Of even length: for an
    # odd one it compiles its fallback, which takes a minute.
    shape, state.shape = state.shape, torch.Size([2 * packed.numel()])
    return bnb.dequantize_4bit(packed, state).reshape(-1)[: shape.numel()].view(shape)


def special_weights(dtype):
    """Names and weights on which a careless rounding, clamp or offset shows."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(40, 512, generator=generator)
    outlier = normal.clone()
    outlier[3, 5] = 6e4
    some_zero = normal.clone()
    some_zero[::3] = 0
    tiny = torch.finfo(dtype).tiny
    levels = torch.tensor(NF4.levels)
    cases = {
        "zeros": torch.zeros(8, 64),
        "some zero blocks": some_zero,
        "denormal": normal * tiny * 0.1,
        "outlier": outlier,
        "constant": torch.full((8, 64), -0.02),
        "levels and midpoints": torch.cat([levels, (levels[1:] + levels[:-1]) / 2]).repeat(64),
        "spread": normal * torch.logspace(-6, 3, 40)[:, None],
    }
    return {name: w.to(dtype) for name, w in cases.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_and_values_are_those_of_bitsandbytes(shape, dtype, implementation):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(0.02).to(dtype)
    check_against_bitsandbytes(w)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", special_weights(torch.float32))
def test_special_values_are_those_of_bitsandbytes(name, dtype, implementation):
    check_against_bitsandbytes(special_weights(dtype)[name])


def check_against_bitsandbytes(w):
    q = quantize_nf4(w)
    packed, state = bnb_quantize(w)
    assert torch.equal(q.packed, packed)
    assert torch.equal(q.absmax, state.absmax)
    assert torch.equal(q.nested_absmax, state.state2.absmax)
    assert q.nested_offset == state.offset.item()
    assert (q.shape, q.dtype) == (tuple(w.shape), w.dtype)
    for dtype in DTYPES:
        state.shape, state.dtype = w.shape, dtype
        expected = bnb_dequantize(packed, state)
        actual = dequantize_nf4(q, dtype)
        assert actual.dtype == dtype
        bits = torch.int32 if dtype == torch.float32 else torch.int16
        differ = actual.view(bits) != expected.view(bits)
        # On a CPU with AVX512-BF16 bitsandbytes rounds by an instruction that flushes denormals; nothing else may differ.
        flushed = (expected == 0) & (actual.abs() < torch.finfo(dtype).tiny) & (dtype == torch.bfloat16)
        assert not (differ & ~flushed).any(), "the bits differ, or the sign of a zero"


def test_pieces_quantise_like_the_whole(monkeypatch):
    w = torch.randn(3, 65, 129, generator=torch.Generator().manual_seed(0))
    whole = quantize_nf4(w)
    monkeypatch.setattr("moe_kernels.nf4._CHUNK", 64 * 7)
    pieces = quantize_nf4(w)
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, pieces.tensors()[name]), name


@pytest.mark.parametrize("cuts", [[], [64], [1, 2, 70, 71], [7, 6400, 6401], [12675]])
def test_parts_quantise_like_the_whole(cuts, implementation):
    w = torch.randn(3, 65, 65, generator=torch.Generator().manual_seed(0))
    whole = quantize_nf4(w)
    parts = quantize_nf4_parts(iter(w.view(-1).tensor_split(cuts)), tuple(w.shape))
    assert (parts.shape, parts.dtype, parts.nested_offset) == (whole.shape, whole.dtype, whole.nested_offset)
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, parts.tensors()[name]), name


def test_parts_that_are_not_the_weight_are_refused():
    w = torch.randn(128)
    with pytest.raises(ValueError, match=r"the parts have 128 values; a weight of shape \(3, 64\) has 192"):
        quantize_nf4_parts([w], (3, 64))
    with pytest.raises(ValueError, match=r"a part of float32 ends at value 128; the weight of shape \(1, 64\) is float32"):
        quantize_nf4_parts([w], (1, 64))
    with pytest.raises(ValueError, match=r"a part of bfloat16 ends at value 256; the weight of shape \(4, 64\) is float32"):
        quantize_nf4_parts([w, w.bfloat16()], (4, 64))


def test_a_weight_can_take_the_offset_of_another(implementation):
    """Quantised with the offset of a stack, an expert's absmax are as near as 8 bits allow, and its blocks' bytes are its own."""
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    own, other = quantize_nf4(w), quantize_nf4(w, nested_offset=1.5)
    assert other.nested_offset == 1.5 and torch.equal(own.packed, other.packed) and not torch.equal(own.absmax, other.absmax)
    exact = w.view(-1, 64).abs().amax(1)
    assert (dequantize_absmax(other) - exact).abs().max() < 0.02 * exact.max()


def test_state_dict_is_that_of_linear4bit():
    import bitsandbytes.nn

    layer = bitsandbytes.nn.Linear4bit(128, 96, bias=False, quant_type="nf4", compress_statistics=True, compute_dtype=torch.bfloat16)
    layer.weight.data = torch.randn(96, 128, dtype=torch.bfloat16)
    w = layer.weight.data.clone()
    expected = layer.to("cpu").state_dict()
    actual = quantize_nf4(w).state_dict("weight")
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor), key
        assert actual[key].dtype == tensor.dtype, key
    again = NF4Weight.from_state_dict(expected, "weight")
    assert torch.equal(dequantize_nf4(again), dequantize_nf4(quantize_nf4(w)))


def test_state_survives_safetensors_and_bitsandbytes_reads_it(tmp_path):
    from safetensors.torch import load_file, save_file

    q = quantize_nf4(torch.randn(2, 64, 96, dtype=torch.float16))
    save_file(q.state_dict("a"), tmp_path / "w.safetensors")
    state = load_file(tmp_path / "w.safetensors")
    assert torch.equal(dequantize_nf4(NF4Weight.from_state_dict(state, "a")), dequantize_nf4(q))
    theirs = bnb.QuantState.from_dict({key.removeprefix("a."): t for key, t in state.items() if key != "a"}, torch.device("cpu"))
    assert torch.equal(bnb_dequantize(state["a"], theirs), dequantize_nf4(q))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("w"), "not stored as NF4"),
        (lambda s: s.pop("w.quant_state.bitsandbytes__nf4"), "not stored as NF4"),
        (lambda s: s.pop("w.nested_absmax"), "without nested absmax"),
        (lambda s: s.update({"w": s["w"][:-1]}), "needs 2048 entries of packed, not 2047"),
        (lambda s: s.update({"w.quant_map": s["w.quant_map"] * 2}), "quant_map is not the table"),
        (lambda s: s.update({"w.nested_quant_map": s["w.nested_quant_map"].flip(0)}), "nested_quant_map is not the table"),
    ],
)
def test_another_format_is_refused(change, message):
    state = quantize_nf4(torch.randn(64, 64)).state_dict("w")
    change(state)
    with pytest.raises(ValueError, match=message):
        NF4Weight.from_state_dict(state, "w")


def test_another_block_size_is_refused():
    packed, state = bnb.quantize_4bit(torch.randn(64, 128), blocksize=128, compress_statistics=True, quant_type="nf4")
    stored = {"w": packed} | {f"w.{key}": value for key, value in state.as_dict(packed=True).items()}
    with pytest.raises(ValueError, match="blocks of 128 and 256"):
        NF4Weight.from_state_dict(stored, "w")


@pytest.mark.parametrize("w", [torch.zeros(0, 64), torch.zeros(64, dtype=torch.float64), torch.zeros(64, dtype=torch.int8)])
def test_unfit_weights_are_refused(w):
    with pytest.raises(ValueError):
        quantize_nf4(w)


@pytest.mark.parametrize("shape", [(4, 64, 96), (3, 128, 128), (5, 1, 64), (3, 33, 128)])  # groups of 256 straddle in all but the second
def test_expert_view_is_the_slice_and_copies_nothing(shape, implementation):
    q = quantize_nf4(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    whole = dequantize_nf4(q)
    for e in range(shape[0]):
        view = q.expert(e)
        assert torch.equal(dequantize_nf4(view), whole[e])
        for name, tensor in view.tensors().items():
            assert tensor.untyped_storage().data_ptr() == q.tensors()[name].untyped_storage().data_ptr(), name


def test_expert_view_limits():
    with pytest.raises(ValueError, match="5x7 values is not a whole number of NF4 blocks"):
        quantize_nf4(torch.randn(2, 5, 7)).expert(0)
    stack = quantize_nf4(torch.randn(2, 3, 64))
    with pytest.raises(ValueError, match=r"expert 2 is outside 0\.\.1"):
        stack.expert(2)
    with pytest.raises(ValueError, match="save the stack itself"):
        stack.expert(1).state_dict("w")


def test_tensors_move_and_come_back():
    q = quantize_nf4(torch.randn(64, 64))
    module = torch.nn.Module()
    for name, tensor in q.tensors().items():
        module.register_buffer(name, tensor)
    again = q.with_tensors(dict(module.named_buffers()))
    assert torch.equal(dequantize_nf4(again), dequantize_nf4(q))
    assert q.to("meta").device.type == "meta"
    assert q.nbytes == 64 * 32 + 64 + 4


def test_dynamic_map_is_that_of_bitsandbytes():
    assert torch.equal(dynamic_map(), bnb.create_dynamic_map(signed=True))
    assert torch.equal(torch.tensor(NF4.levels), bnb.get_4bit_type("nf4", device="cpu"))


def test_reading_needs_no_bitsandbytes():
    code = """
import sys
sys.modules["bitsandbytes"] = None
import torch
from moe_kernels.nf4 import NF4Weight, dequantize_nf4
q = NF4Weight(torch.zeros(32, 1, dtype=torch.uint8), torch.full((1,), 255, dtype=torch.uint8), torch.ones(1), 0.5, (64,), torch.float32)
assert torch.equal(dequantize_nf4(q), torch.full((64,), -1.5))
assert not any(name.startswith(("bitsandbytes.", "transformers")) for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_quantising_without_what_it_needs_names_both_remedies(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with backend.use("reference"), pytest.raises(ModuleNotFoundError, match=r"C\+\+ extension .*, or pip install bitsandbytes"):
        quantize_nf4(torch.randn(64, 64))
