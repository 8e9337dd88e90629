"""NF4 inside kernels: packed bytes to levels, 8-bit absmax to scales. The format is described in `moe_kernels/nf4.py`.

Looking a nibble up is two byte permutes (PRMT) for each byte of the value, which pick from the lower and the upper eight levels by
the nibble's three low bits, and a select between them by its high bit (after ggml's `get_int_from_table_16`). An fp16 level
takes 1.75 PRMT and 0.9 other integer instructions a weight, an exact fp32 level 4.25 and 1.4; a tree of selects takes 19. The asm
works on four bytes at a time; the interpreter, which has no asm, uses the tree.
"""

import struct

import triton
import triton.language as tl

from ..nf4_format import NF4
from ._common import INTERPRETED

LEVELS = tl.constexpr(NF4.levels)
BLOCK = tl.constexpr(NF4.block)  # values per absmax
NESTED_BLOCK = tl.constexpr(NF4.nested_block)  # absmax per nested absmax
NESTED_SHIFT = tl.constexpr(NF4.nested_block.bit_length() - 1)


def _lookup_asm(code: str) -> str:
    """PTX from one register of four bytes (the last operand) to their eight levels in the struct format `code` ("e" fp16, "f" fp32).

    Outputs in the order that `pack=4` asks for: the four high nibbles' levels (the even values), then the four low nibbles'.
    """
    size = struct.calcsize(code)
    stored = [struct.pack("<" + code, level) for level in NF4.levels]
    words = [[int.from_bytes(bytes(stored[4 * i + j][byte] for j in range(4)), "little") for i in range(4)] for byte in range(size)]
    outputs = 2 * size  # registers: 8 values of `size` bytes
    lines = [".reg .b32 index, up, side, low, high, zero, b<4>, c<4>, t<8>;"]
    # A PRMT takes one constant, so each needs one of its two table words in a register. Written as a constant, ptxas moves it there
    # before every PRMT, 0.9 instructions a weight; it cannot know that bit 31 of this mask is 0, and so keeps what comes of it.
    lines.append("mov.u32 zero, %lanemask_lt;")
    lines.append("shr.u32 zero, zero, 31;")
    for byte, (t0, _, t2, _) in enumerate(words):
        lines.append(f"xor.b32 t{2 * byte}, zero, {t0:#x};")
        lines.append(f"xor.b32 t{2 * byte + 1}, zero, {t2:#x};")

    def half(even: list[int], odd: list[int], signs: int) -> None:
        """The nibbles in the low 16 bits of `index`, in memory order low, high, low, high; `signs` picks the bytes of their high bits."""
        lines.append(f"prmt.b32 side, ${outputs}, up, {signs:#x};")  # a byte of ones where the nibble is 8 or more
        for byte, (_, t1, _, t3) in enumerate(words):
            lines.append(f"prmt.b32 low, t{2 * byte}, {t1:#x}, index;")
            lines.append(f"prmt.b32 high, t{2 * byte + 1}, {t3:#x}, index;")
            lines.append(f"lop3.b32 b{byte}, side, high, low, 0xca;")
        if size == 2:
            lines.append(f"prmt.b32 ${even[0]}, b0, b1, 0x7351;")
            lines.append(f"prmt.b32 ${odd[0]}, b0, b1, 0x6240;")
        else:
            for pair in (0, 2):
                lines.append(f"prmt.b32 c{pair}, b{pair}, b{pair + 1}, 0x5140;")
                lines.append(f"prmt.b32 c{pair + 1}, b{pair}, b{pair + 1}, 0x7362;")
            for value, (register, selector) in enumerate([(0, 0x5410), (0, 0x7632), (1, 0x5410), (1, 0x7632)]):
                target = (odd, even)[value % 2][value // 2]
                lines.append(f"prmt.b32 ${target}, c{register}, c{register + 2}, {selector:#x};")

    each = outputs // 4  # registers of the two even (or odd) values of half an input
    lines.append(f"and.b32 index, ${outputs}, 0x77777777;")
    lines.append(f"shl.b32 up, ${outputs}, 4;")  # brings the low nibbles' high bits where the high nibbles' are
    half(list(range(each)), list(range(outputs // 2, outputs // 2 + each)), 0x9D8C)
    lines.append("shr.u32 index, index, 16;")
    half(list(range(each, 2 * each)), list(range(outputs // 2 + each, outputs)), 0xBFAE)
    return "{ " + "\n".join(lines) + " }"


_ASM_FP16 = tl.constexpr(_lookup_asm("e"))
_ASM_FP32 = tl.constexpr(_lookup_asm("f"))
_OUT_FP16 = tl.constexpr("=&r,=&r,=&r,=&r,r")
_OUT_FP32 = tl.constexpr("=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r")


@triton.jit
def _select_level(nibble):
    """The interpreter's lookup: fp32 levels of `nibble` by selects."""
    level = tl.full(nibble.shape, 0.0, tl.float32)
    for i in tl.static_range(16):
        level = tl.where(nibble == i, LEVELS[i], level)
    return level


@triton.jit
def decode_levels(packed, EXACT: tl.constexpr):
    """(even, odd) values' levels of `packed` bytes: fp32 if EXACT, else rounded to fp16 (relative error at most 2**-11)."""
    if INTERPRETED:
        even, odd = _select_level(packed >> 4), _select_level(packed & 15)
        if not EXACT:
            even, odd = even.to(tl.float16), odd.to(tl.float16)
    elif EXACT:
        even, odd = tl.inline_asm_elementwise(_ASM_FP32, _OUT_FP32, [packed], dtype=(tl.float32, tl.float32), is_pure=True, pack=4)
    else:
        even, odd = tl.inline_asm_elementwise(_ASM_FP16, _OUT_FP16, [packed], dtype=(tl.float16, tl.float16), is_pure=True, pack=4)
    return even, odd


@triton.jit
def load_absmax(absmax_ptr, nested_ptr, map_ptr, nested_offset, block, first_block, mask):
    """fp32 absmax of the blocks `block` (int64 or int32, counted from the weight's first), 0 where `mask` is False.

    Two roundings, as in bitsandbytes: the product, then the sum, kept apart so that they do not become one FMA.
    """
    code = tl.load(absmax_ptr + block, mask=mask, other=0)
    # A shift: a signed division has to mind negative numbers, four instructions.
    dynamic, nested = tl.load(map_ptr + code), tl.load(nested_ptr + ((block + first_block) >> NESTED_SHIFT), mask=mask, other=0.0)
    if INTERPRETED:
        product = dynamic * nested
    else:  # ptxas fuses a product and a sum that do not say .rn, whatever stands between them
        product = tl.inline_asm_elementwise("mul.rn.f32 $0, $1, $2;", "=f,f,f", [dynamic, nested], dtype=tl.float32, is_pure=True, pack=1)
    return product + nested_offset
