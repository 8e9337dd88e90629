"""NF4 inside kernels: the lookup's two forms, and offsets beyond 2**31."""

import re
import struct
from operator import and_, lshift, rshift, xor

import pytest
import torch

from moe_kernels import backend
from moe_kernels.nf4 import dequantize_nf4, from_bitsandbytes, quantize_nf4, to_bitsandbytes
from moe_kernels.nf4_format import NF4, dynamic_map

triton = pytest.importorskip("triton", reason="the package triton is not installed")
import triton.language as tl  # noqa: E402

from moe_kernels.triton import _grouped, _nf4  # noqa: E402

interpreted = pytest.mark.skipif(bool(backend.triton_problem()), reason=backend.triton_problem() or "Triton runs")


def run_ptx(code, word):
    """The output registers of a lookup for one register of packed bytes, after the PTX manual's description of each instruction."""
    count = max(map(int, re.findall(r"\$(\d+)", code)))
    registers = {f"${count}": word, "%lanemask_lt": 0x7FFFFFFF}  # of lane 31
    for line in code.strip("{} \n").split(";"):
        if not line.strip() or line.strip().startswith(".reg"):
            continue
        name, operands = line.strip().split(" ", 1)
        target, *sources = (operand.strip() for operand in operands.split(","))
        a, b, c, d = ([int(s, 0) if s[0].isdigit() else registers[s] for s in sources] + [0, 0, 0])[:4]
        if name == "prmt.b32":
            value, both = 0, (a | b << 32).to_bytes(8, "little")
            for i in range(4):
                chosen = both[c >> 4 * i & 7]
                value |= (chosen if not c >> 4 * i & 8 else 255 * (chosen >> 7)) << 8 * i
        elif name == "lop3.b32":
            value = sum((d >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1) << i for i in range(32))
        else:
            plain = {"mov.u32": lambda a, _: a, "and.b32": and_, "xor.b32": xor, "shr.u32": rshift, "shl.b32": lshift}
            value = plain[name](a, b) & 0xFFFFFFFF
        registers[target] = value
    return [registers[f"${i}"] for i in range(count)]


@pytest.mark.parametrize("code", ["e", "f"])
def test_the_lookup_gives_the_levels_of_all_bytes(code):
    """The interpreter does not run PTX, so this does: high nibbles first, then low ones, in the order of memory."""
    expected = [struct.unpack("<" + code, struct.pack("<" + code, level))[0] for level in NF4.levels]
    assert all(abs(mine - level) <= 2**-11 * abs(level) for mine, level in zip(expected, NF4.levels, strict=True))
    asm = _nf4._lookup_asm(code)
    for first in range(0, 256, 4):
        for step in (1, 7):  # neighbours that are alike, and ones that are not
            four = bytes((first + step * i) % 256 for i in range(4))
            outputs = b"".join(word.to_bytes(4, "little") for word in run_ptx(asm, int.from_bytes(four, "little")))
            expected_now = [expected[byte >> 4] for byte in four] + [expected[byte & 15] for byte in four]
            assert list(struct.unpack("<8" + code, outputs)) == expected_now


@triton.jit
def _one_tile(w_ptr, absmax_ptr, nested_ptr, map_ptr, offset, expert, row0, column, out_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = row0 + tl.arange(0, 16)
    tile = _grouped.load_weight(
        w_ptr, absmax_ptr, nested_ptr, map_ptr, offset, 0, expert, row, column, ROWS, COLUMNS, 64, True, tl.float32, tl.float32
    )
    tl.store(out_ptr + tl.arange(0, 16)[:, None] * 64 + tl.arange(0, 64)[None, :], tile)


@interpreted
def test_offsets_beyond_two_to_the_31():
    """An expert that begins 2.7 billion values into its stack; only the pages that are touched cost memory."""
    experts, rows, columns = 6, 32768, 16384
    values = experts * rows * columns
    packed = torch.empty(values // 2, dtype=torch.uint8)
    absmax, nested = torch.empty(values // 64, dtype=torch.uint8), torch.empty(values // 64 // 256)
    expert, row, column = 5, rows - 16, columns - 64
    w = quantize_nf4(torch.randn(16, 64))
    map_ = dynamic_map()
    for i in range(16):
        flat = (expert * rows + row + i) * columns + column
        assert flat > 2**31
        packed[flat // 2 : flat // 2 + 32] = w.packed.view(-1)[i * 32 : (i + 1) * 32]
        absmax[flat // 64] = w.absmax[i]
        nested[flat // 64 // 256] = w.nested_absmax[0]
    out = torch.empty(16, 64)
    _one_tile[(1,)](packed, absmax, nested, map_, w.nested_offset, expert, row, column, out, rows, columns)
    assert torch.equal(out, dequantize_nf4(w))


@interpreted
def test_a_dtype_that_the_kernel_does_not_make():
    q = quantize_nf4(torch.randn(3, 70))
    with backend.use("triton"):
        assert torch.equal(dequantize_nf4(q, torch.float64), dequantize_nf4(q).double())


@pytest.mark.parametrize("shape", [(64, 128), (3, 64, 64)])
def test_quant_state_there_and_back(shape):
    from bitsandbytes import functional as bnb

    w = torch.randn(shape)
    packed, state = bnb.quantize_4bit(w, blocksize=64, compress_statistics=True, quant_type="nf4")
    q = from_bitsandbytes(packed, state)
    assert torch.equal(dequantize_nf4(q), bnb.dequantize_4bit(packed, state))
    assert torch.equal(bnb.dequantize_4bit(*to_bitsandbytes(quantize_nf4(w))), dequantize_nf4(q))
    as_floats = packed.view(-1).view(torch.float32)  # how FSDP stores the bytes
    assert torch.equal(dequantize_nf4(from_bitsandbytes(as_floats, state)), dequantize_nf4(q))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_type": "fp4", "compress_statistics": True}, "not fp4"),
        ({"quant_type": "nf4", "compress_statistics": True, "blocksize": 128}, "in blocks of 128"),
        ({"quant_type": "nf4", "compress_statistics": False}, "compress_statistics=True"),
    ],
)
def test_other_states_are_refused(settings, message):
    from bitsandbytes import functional as bnb

    with pytest.raises(ValueError, match=message):
        from_bitsandbytes(*bnb.quantize_4bit(torch.randn(64, 128), **{"blocksize": 64} | settings))
