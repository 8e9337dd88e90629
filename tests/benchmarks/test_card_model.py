"""The arithmetic of the model of a card, on kernels small enough to work out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.a10g import bitsandbytes_loop, dequantise_then_gemm, floor, predict_all, show, tables
from benchmarks.a10g import main as a10g_main
from benchmarks.card_model import A10G, Card, Time, Work, predict, resident_programs
from benchmarks.costs import TorchOp, TorchOps, expected
from moe_kernels.cubin import CubinFacts
from moe_kernels.grouping import active_experts
from moe_kernels.sass import Code, Instruction

# Round numbers: 10 SMs at 1 GHz, 100 GB/s of which all is reached, 100 multiply-adds a clock and SM.
TOY = Card("toy", 86, 10, 1e9, 100e9, 1.0, 100, 1.0, 1e12, 1e-6, 5e-6, 5e-6, 48, 16, 100 << 10)


def kernel(*body: str, registers: int = 32, shared: int = 0) -> CubinFacts:
    """One loop of these instructions, after one instruction that is in no loop."""
    code = Code([Instruction("NOP", ""), *(Instruction(opcode, "R0, R1, 0x77777777") for opcode in body)])
    return CubinFacts(registers, 0, 0, shared, code, ((1, len(code)),))


def test_a_memory_bound_kernel_takes_its_bytes_over_the_bandwidth() -> None:
    time = predict(kernel("LDG.E.128"), 4, 4, Work(programs=1000, bytes=1e9, trips=1), TOY)
    assert time.bound == "dram"
    assert time.seconds == pytest.approx(TOY.launch + 1e9 / 100e9, rel=1e-3)


def test_a_tensor_bound_kernel_takes_its_multiply_adds_over_the_rate() -> None:
    """1e12 multiply-adds at 100 x 10 x 1e9 a second are one second; an HMMA of 2048 is one instruction, and issue costs next to nothing."""
    time = predict(kernel("HMMA.16816.F32"), 4, 4, Work(programs=1000, bytes=0, fma=1e12), TOY)
    assert time.bound == "tensor"
    assert time.seconds == pytest.approx(1.0, rel=1e-2)


def test_instructions_follow_from_the_work_and_not_from_unrolling() -> None:
    """8e12 weights, 8 a lookup of one lane, one integer instruction each: 1e12 lanes' instructions at 64 x 10 x 1e9 a second."""
    work = Work(programs=1000, bytes=0, weights=8e12)
    once = predict(kernel("LOP3.LUT"), 4, 4, work, TOY)
    unrolled = predict(kernel(*["LOP3.LUT"] * 4), 4, 4, work, TOY)
    assert once.bound == "integer"
    assert once.parts["integer"] == pytest.approx(1e12 / (64 * 10 * 1e9))
    assert unrolled.parts["integer"] == pytest.approx(once.parts["integer"])


def test_a_loop_that_waits_for_every_load_takes_the_latency_times_its_trips() -> None:
    """One warp in one program: 100 trips and the code around them, 1 µs each; with loads asked for 4 steps before, a fourth of it."""
    work = Work(programs=1, bytes=4, trips=100)
    assert predict(kernel("LDG.E"), 1, 1, work, TOY).parts["latency"] == pytest.approx(101e-6)
    assert predict(kernel("LDG.E"), 1, 5, work, TOY).parts["latency"] == pytest.approx(26e-6)


def test_the_fullest_sm_sets_the_time() -> None:
    """11 equal programs on 10 SMs take as long as 20."""
    times = [predict(kernel("HMMA.16816.F32"), 4, 4, Work(n, 0, fma=1e9 * n), TOY).parts["tensor"] for n in (10, 11, 20)]
    assert times[1] == pytest.approx(times[2])
    assert times[2] == pytest.approx(2 * times[0])


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "programs"),
    [(32, 0, 4, 12), (128, 0, 4, 4), (255, 0, 8, 1), (64, 49 << 10, 4, 2), (64, 60 << 10, 4, 1), (16, 0, 1, 16)],
)
def test_programs_an_sm_holds(registers: int, shared: int, warps: int, programs: int) -> None:
    """48 warps, 64 K registers, 100 KB of shared memory with 1 KB more a program, 16 programs."""
    assert resident_programs(kernel("NOP", registers=registers, shared=shared), warps, A10G) == programs


def test_equal_parts_overlap_imperfectly() -> None:
    """Tensor cores and integers of one program alone take turns for the most part; with DRAM both overlap well."""
    assert Time({"dram": 1.0, "tensor": 1.0}, 0.0, 1.5).seconds == pytest.approx(2**0.25)
    assert Time({"integer": 1.0, "tensor": 1.0}, 0.0, 2.0).seconds == pytest.approx(math.sqrt(2))
    assert Time({"integer": 1.0, "tensor": 1.0}, 0.0).seconds == pytest.approx(2**0.25)


def test_floors_are_those_of_the_formats_arithmetic() -> None:
    """Two experts of 176.16 M weights at 4.127 bits over 600 GB/s; 0.7046 GFLOP a token over 70 TFLOPS; 1.77 GB to dequantise all four."""
    assert floor(1, A10G) == pytest.approx(0.303e-3, rel=2e-3)
    assert floor(2048, A10G) == pytest.approx(20.6e-3, rel=2e-3)
    assert floor(1, A10G, shared=True) == pytest.approx(0.1515e-3, rel=2e-3)
    assert dequantise_then_gemm(2048, A10G) == pytest.approx(26.04e-3, rel=2e-3)


def test_a_loop_over_experts_is_never_faster_than_its_host_nor_than_its_products() -> None:
    """Two experts of 16 operations at 5 µs each on a card without limits; 23.1 ms of cuBLAS at T = 2048, and dequantising, on the A10G."""
    boundless = Card("boundless", 86, 80, 1e12, 1e18, 1.0, 256, 1.0, 1e20, 0.0, 0.0, 5e-6, 48, 16, 100 << 10)
    assert bitsandbytes_loop(1, boundless, "forward") == pytest.approx(2 * 16 * 5e-6)
    assert bitsandbytes_loop(1, replace(boundless, host_launch=1e-5), "forward") == pytest.approx(2 * 16 * 1e-5)
    assert bitsandbytes_loop(2048, A10G, "forward") > dequantise_then_gemm(2048, A10G)
    assert bitsandbytes_loop(2048, A10G, "step") == pytest.approx(2 * bitsandbytes_loop(2048, A10G, "forward"))


def test_expectations_over_uniform_routing() -> None:
    assert active_experts(1, 2, 4) == 2
    assert active_experts(2, 2, 4) == 3
    assert expected(100, 0.3, float) == pytest.approx(30)
    assert 4 * expected(3, 0.5, lambda rows: float(rows > 0)) == pytest.approx(active_experts(3, 2, 4))


def test_pytorchs_own_operations_are_noted() -> None:
    with TorchOps() as noted:
        x = torch.empty(8, 16, dtype=torch.bfloat16, device="meta")
        x.T @ x
        x.view(16, 8).sum(0)
    assert noted.ops == [TorchOp("mm", 2 * (128 + 128 + 256), 2 * 16 * 8 * 16), TorchOp("sum", 2 * (128 + 8), 0.0)]
    assert noted.ops[0].seconds(TOY) == TOY.launch + 2 * 512 / 100e9


def test_every_table_says_that_it_is_a_model() -> None:
    text = show(tables(predict_all([], {}, A10G), A10G), A10G)
    assert text == ""
    rows = [{"operation": "forward", "tokens": 1, "model_ms": 0.3, "launches": 3, "longest": "kernel (dram)"}]
    headings = [line for line in show(rows, A10G).splitlines() if "A10G" in line]
    assert headings and all("MODEL" in heading and "not measured" in heading for heading in headings)


def test_a_mistake_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.a10g.record_all", lambda card: [])
    assert a10g_main(["--json", "/"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("python -m benchmarks.a10g: ")
