"""What the interpreter of Triton 3.7 does not do as a card does, in one place."""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def cast(x, DTYPE: tl.constexpr):
    """fp32 `x` rounded to nearest even in DTYPE; the interpreter would truncate to bf16."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
        rounded = tl.where(x == x, rounded, 0x7FC0)  # a NaN's bits must not be carried into an infinity
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def dot(a, b, acc):
    """acc + a b with fp32 sums; the interpreter multiplies the bits of bf16, so it is given fp32 (the products are the same)."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")
