"""The decode kernels: in Triton's interpreter against the formula in fp64, and their lookup's PTX against the levels.

T tokens, K experts per token, E experts, D model width, F expert hidden width.
"""

import math

import pytest
import torch
from torch.nn.functional import silu

from moe_kernels import backend, decode
from moe_kernels.launch import Launch, choose_launch, record_launches
from moe_kernels.nf4 import NF4Weight, dequantize_nf4, quantize_nf4

pytestmark = pytest.mark.skipif(bool(backend.triton_problem()), reason=backend.triton_problem() or "Triton runs")

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
LEVEL_ERROR = 2**-11  # relative, of a level rounded to fp16
# Of the error, in units of the true values' rms: its rms and its largest. In fp32 the rounded levels are all of it.
TOLERANCE = {BF16: (4e-3, 3e-2), FP16: (6e-4, 4e-3), FP32: (4e-4, 2e-3)}
CASES = [  # T, E, K, D, F, dtype
    *((1, 4, 2, 192, 64, BF16), (1, 8, 2, 64, 192, FP16), (1, 4, 2, 64, 576, FP32), (1, 1, 1, 576, 64, BF16), (1, 2, 2, 320, 64, FP16)),
    *((2, 4, 2, 64, 64, BF16), (2, 2, 1, 192, 64, FP16), (2, 8, 3, 64, 64, FP32), (2, 4, 4, 64, 64, BF16)),
    *((3, 4, 2, 64, 192, BF16), (3, 2, 2, 64, 64, FP32), (3, 8, 1, 192, 64, FP16), (3, 1, 1, 64, 64, BF16)),
    *((4, 4, 2, 192, 64, BF16), (4, 8, 3, 64, 64, FP16), (4, 2, 1, 64, 64, FP32), (4, 8, 8, 64, 64, BF16)),
    (1, 2, 1, 1536, 64, BF16),  # a step of 1024 and a half
    (2, 2, 1, 1536, 1536, FP32),
]


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """The interpreter takes as long for an operation however wide it is: as many rows a program as a power of two can, two splits."""

    def widest(op, rows, *_):
        rows = rows // 2 if op == "decode_gate_up" else rows
        return Launch(block_n=rows & -rows, num_warps=rows & -rows, split_k=2)

    if not torch.cuda.is_available():
        monkeypatch.setattr(decode, "choose_launch", widest)


def draw_experts(tokens, num_experts, top_k, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(num_experts, generator=draw)[:top_k] for _ in range(tokens)])


def make_layer(num_experts, width, hidden, seed=0):
    draw = torch.Generator().manual_seed(seed)
    gate_up = torch.randn(num_experts, 2 * hidden, width, generator=draw) * width**-0.5
    return quantize_nf4(gate_up), quantize_nf4(torch.randn(num_experts, width, hidden, generator=draw) * hidden**-0.5)


def make_tokens(tokens, width, top_k, dtype, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, width, generator=draw).to(dtype), torch.rand(tokens, top_k, generator=draw) + 0.1


def oracle(x_TD, weights_TK, experts_TK, gate_up, down):
    """The layer in fp64 on the weights that `dequantize_nf4` gives."""
    w13, w2 = dequantize_nf4(gate_up, FP32).double(), dequantize_nf4(down, FP32).double()
    y_TD = torch.zeros(x_TD.shape, dtype=torch.float64)
    for t, x_D in enumerate(x_TD.double()):
        for weight, e in zip(weights_TK[t].double(), experts_TK[t], strict=True):
            gate, up = (w13[e] @ x_D).chunk(2)
            y_TD[t] += w2[e] @ (silu(gate) * up * weight)
    return y_TD


def check_close(y, true, dtype):
    assert y.dtype == dtype and y.shape == true.shape
    error, scale = y.double() - true, true.square().mean().sqrt()
    rms, largest = TOLERANCE[dtype]
    assert error.square().mean().sqrt() <= rms * scale
    assert error.abs().max() <= largest * scale


@pytest.mark.parametrize("tokens, num_experts, top_k, width, hidden, dtype", CASES)
def test_moe_equals_formula(tokens, num_experts, top_k, width, hidden, dtype):
    gate_up, down = make_layer(num_experts, width, hidden)
    x, weights = make_tokens(tokens, width, top_k, dtype)
    experts = draw_experts(tokens, num_experts, top_k)
    check_close(decode.decode_moe(x, weights, experts, gate_up, down), oracle(x, weights, experts, gate_up, down), dtype)


@pytest.mark.parametrize("experts", [[[3], [3], [3], [3]], [[0, 1], [1, 0], [0, 1]], [[2, 0], [0, 3]], [[1, 3], [3, 2], [2, 1], [0, 3]]])
def test_tokens_that_share_experts(experts):
    experts = torch.tensor(experts)
    gate_up, down = make_layer(4, 64, 64)
    x, weights = make_tokens(*(len(experts), 64), experts.shape[1], FP32)
    check_close(decode.decode_moe(x, weights, experts, gate_up, down), oracle(x, weights, experts, gate_up, down), FP32)


def test_every_value_is_written_and_bits_repeat(monkeypatch):
    gate_up, down = make_layer(4, 64, 64)
    x, weights = make_tokens(3, 64, 2, BF16)
    experts = draw_experts(3, 4, 2)
    first = decode.decode_moe(x, weights, experts, gate_up, down)
    fresh = torch.Tensor.new_empty

    def poisoned(self, *shape, **facts):
        tensor = fresh(self, *shape, **facts)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    again = decode.decode_moe(x, weights, experts, gate_up, down)
    assert again.isfinite().all() and torch.equal(first, again)


def test_an_id_that_is_no_expert_counts_as_the_nearest():
    """On a card nobody waits to look at the ids; here the tables go on behind the stack, so that a read past its end shows."""
    first4 = []
    for q in make_layer(6, 64, 64):
        blocks = len(q.absmax) * 4 // 6
        tables = q.packed[: len(q.packed) * 4 // 6], q.absmax[:blocks], q.nested_absmax[: blocks // 256]
        first4.append(NF4Weight(*tables, q.nested_offset, (4, *q.shape[1:]), q.dtype))
    x, weights = make_tokens(3, 64, 2, BF16)
    experts = torch.tensor([[5, 3], [-1, 1], [1 << 40, 2]])
    y = decode.decode_moe(x, weights, experts, *first4)
    assert y.isfinite().all() and torch.equal(y, decode.decode_moe(x, weights, experts.clamp(0, 3), *first4))


def test_nan_stays_in_its_token():
    gate_up, down = make_layer(2, 64, 64)
    x, weights = make_tokens(4, 64, 2, BF16)
    experts = draw_experts(4, 2, 2)  # all share both experts
    clean = decode.decode_moe(x, weights, experts, gate_up, down)
    x[1, 5] = float("nan")
    weights[2] = float("nan")
    y = decode.decode_moe(x, weights, experts, gate_up, down)
    assert y[1:3].isnan().all()
    assert torch.equal(y[[0, 3]], clean[[0, 3]])


@pytest.mark.parametrize(
    "tokens, rows, columns, dtype",
    [(1, 64, 192, BF16), (1, 128, 2176, FP16), (1, 64, 64, FP32), (2, 192, 64, BF16), (3, 64, 320, FP32), (4, 64, 64, FP16)],
)
@pytest.mark.parametrize("split_k", [1, 2])
def test_linear_equals_product(tokens, rows, columns, dtype, split_k, monkeypatch):
    monkeypatch.setattr(decode, "choose_launch", lambda op, *_: Launch(block_n=64, num_warps=64, split_k=split_k))
    q = quantize_nf4(torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)))
    x = make_tokens(tokens, columns, 1, dtype)[0]
    check_close(decode.decode_linear(x, q), x.double() @ dequantize_nf4(q, FP32).double().T, dtype)


def test_linear_error_is_that_of_the_levels():
    q = quantize_nf4(torch.randn(64, 192))
    x, w = make_tokens(2, 192, 1, FP32)[0], dequantize_nf4(q, FP32).double()
    error = (decode.decode_linear(x, q).double() - x.double() @ w.T).abs()
    bound = x.double().abs() @ w.abs().T
    assert (error <= (LEVEL_ERROR + 1e-6) * bound).all()
    assert (error > 1e-6 * bound).any()  # else the levels were exact and the description wrong


def test_expert_views():
    """An expert of a stack whose nested groups of 256 blocks begin in another expert: 3 x 64 x 192 values are 192 blocks each."""
    stack = quantize_nf4(torch.randn(3, 64, 192) * torch.tensor([0.1, 1, 10])[:, None, None])
    x = make_tokens(1, 192, 1, FP16)[0]
    assert stack.expert(1).first_block and stack.expert(2).first_block
    for e in range(3):
        check_close(decode.decode_linear(x, stack.expert(e)), x.double() @ dequantize_nf4(stack, FP32)[e].double().T, FP16)


def test_stack_that_is_a_view():
    """A stack itself may begin within a nested group; its experts differ in scale, so that a wrong group shows."""
    whole = quantize_nf4(torch.randn(4 * 128, 192) * torch.logspace(-1, 1, 4).repeat_interleave(128)[:, None])
    view = NF4Weight(whole.packed, whole.absmax, whole.nested_absmax, whole.nested_offset, (4, 128, 192), whole.dtype).expert(1)
    gate_up = NF4Weight(view.packed, view.absmax, view.nested_absmax, view.nested_offset, (1, 128, 192), view.dtype, view.first_block)
    down = quantize_nf4(torch.randn(1, 192, 64))
    x, weights = make_tokens(1, 192, 1, FP16)
    experts = torch.zeros(1, 1, dtype=torch.int64)
    assert gate_up.first_block
    check_close(decode.decode_moe(x, weights, experts, gate_up, down), oracle(x, weights, experts, gate_up, down), FP16)


def test_input_of_any_layout():
    q = quantize_nf4(torch.randn(64, 64))
    x = make_tokens(1, 64, 1, BF16)[0]
    shifted = torch.cat([x.new_zeros(1), x[0]])[1:].view(1, 64)  # 2 bytes past a boundary of 16
    strided = torch.stack([x, x], dim=2)[:, :, 0]
    for other in (shifted, strided):
        assert torch.equal(decode.decode_linear(other, q), decode.decode_linear(x, q))


def test_no_tokens():
    gate_up, down = make_layer(2, 64, 64)
    x, weights = make_tokens(0, 64, 2, BF16)
    assert decode.decode_moe(x, weights, torch.zeros(0, 2, dtype=torch.int64), gate_up, down).shape == (0, 64)
    assert decode.decode_linear(x, quantize_nf4(torch.randn(128, 64))).shape == (0, 128)


def test_what_does_not_fit_is_refused():
    def weight(*shape):
        blocks = -(-math.prod(shape) // 64)
        packed, absmax = (torch.empty(size, dtype=torch.uint8, device="meta") for size in (blocks * 32, blocks))
        return NF4Weight(packed, absmax, torch.empty(-(-blocks // 256), device="meta"), 0.0, shape, BF16)

    assert decode.fits_decode(weight(64, 192), 4) and decode.fits_decode(weight(8, 28672, 4096), 1)
    assert not decode.fits_decode(weight(64, 96), 1)
    assert not decode.fits_decode(weight(96, 64), 1)
    assert not decode.fits_decode(weight(64, 64), decode.MAX_DECODE_TOKENS + 1)
    assert not decode.fits_decode(weight(1 << 16, 1 << 16), 1)
    with pytest.raises(ValueError, match="width 128 does not fit"):
        decode.decode_linear(torch.zeros(1, 128), weight(64, 64))
    with pytest.raises(ValueError, match="do not take 5 tokens"):
        decode.decode_linear(torch.zeros(5, 64), weight(64, 64))


def test_shipped_launches(monkeypatch):
    """The table's own blocks, once; and that on a 4x7B layer they cover every row with as many warps as the kernels are told."""
    monkeypatch.setattr(decode, "choose_launch", choose_launch)
    gate_up, down = make_layer(1, 64, 64)
    x, weights = make_tokens(1, 64, 1, BF16)
    experts = torch.zeros(1, 1, dtype=torch.int64)
    check_close(decode.decode_moe(x, weights, experts, gate_up, down), oracle(x, weights, experts, gate_up, down), BF16)

    def meta(shape):
        values = torch.empty(shape, device="meta").numel()
        sizes = {"packed": values // 2, "absmax": values // 64, "nested_absmax": values // 16384}
        dtypes = {"packed": torch.uint8, "absmax": torch.uint8, "nested_absmax": FP32}
        return NF4Weight(
            **{k: torch.empty(n, dtype=dtypes[k], device="meta") for k, n in sizes.items()}, nested_offset=0.0, shape=shape, dtype=BF16
        )

    for tokens in range(1, decode.MAX_DECODE_TOKENS + 1):
        x = torch.empty(tokens, 4096, dtype=BF16, device="meta")
        routed = torch.empty(tokens, 2, device="meta"), torch.empty(tokens, 2, dtype=torch.int64, device="meta")
        with record_launches(86) as calls:
            y = decode.decode_moe(x, *routed, meta((4, 28672, 4096)), meta((4, 4096, 14336)))
        assert y.shape == (tokens, 4096)
        for call in calls:
            if "WARPS" in call.constants:
                rows = call.constants.get("F") or call.constants["OUT"]
                assert call.grid[:2] == (rows / call.constants["BLOCK_N"], min(4, 2 * tokens))
                assert call.constants["WARPS"] == call.options["num_warps"] and call.constants["BLOCK_N"] % call.options["num_warps"] == 0
