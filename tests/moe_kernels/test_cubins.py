"""What compiled kernels say without a GPU: every shipped configuration compiles, and its cubin has what its speed rests on.

Compiling happens in processes without TRITON_INTERPRET, whatever this one runs with, into a cache of its own.
"""

import os
import pickle
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from moe_kernels.aot import Build
from moe_kernels.compile import SHARED_LIMIT
from moe_kernels.compile import main as compile_main
from moe_kernels.cubin import CubinFacts
from moe_kernels.sass import Code, Instruction, parse_sass

ROOT = Path(__file__).parents[2]
MOST_INTEGERS = 4  # ALU instructions a weight; at full bandwidth an A10G has time for 7.5: 64 x 80 x 1.71e9 over 1.16e12 weights a second
# Bytes: Triton 3.6 spills a pair of registers in two shapes of grouped_swiglu for sm_86.
MOST_SPILLED = 0 if Version(version("triton")) >= Version("3.7") else 8
SHIPPED = """
import pickle, sys
from moe_kernels.aot import build_of, examine_all
from moe_kernels.shipped import shipped_calls
arch = int(sys.argv[1])
builds = {build_of(call, arch) for calls in shipped_calls(arch).values() for call in calls}
pickle.dump(list(examine_all(builds)), open(sys.argv[2], "wb"))
"""
MOST_SPILLED_FP32 = 400  # bytes: sums of 64 x 128 and LoRA's in fp32; products that also decoded NF4 spilled 4,000 to 9,300
FP32 = """
import pickle, sys, torch
from moe_kernels.aot import build_of, examine_all
from moe_kernels.shipped import OPERATIONS, Case, record
calls = [call for name in ("dense_lora_training", "lora_training") for call in record(OPERATIONS[name], Case(2048, torch.float32), 86)]
pickle.dump(list(examine_all({build_of(call, 86) for call in calls})), open(sys.argv[1], "wb"))
"""
SEEDS = """
import torch
from moe_kernels.aot import build_of
from moe_kernels.launch import record_launches
from moe_kernels.routing_launch import route_by_kernels
x, gate, seeds = torch.empty(8, 64, device="meta"), torch.empty(4, 64, device="meta"), torch.zeros(2, dtype=torch.int64)
with record_launches(86) as calls:
    for seed in seeds:
        route_by_kernels(x, gate, gate, seed, None, None, "noisy_topk", 2)
print(len({build_of(call, 86) for call in calls if call.kernel.__name__ == "route_kernel"}))
"""
ANY_SIZE = """
from moe_kernels.aot import build_of
from moe_kernels.shipped import OPERATIONS, Case, cases, record
built = {build_of(call, 86) for name, run in OPERATIONS.items() for case in cases(name, 86) for call in record(run, case, 86)}
for name, run in OPERATIONS.items():
    for tokens in (3, 5, 13, 24, 100, 333, 1000, 1500, 4096):
        for call in record(run, Case(tokens), 86):
            if build_of(call, 86) not in built:
                print(name, tokens, call.kernel.__name__)
"""


def run_compiling(cache: Path, *arguments: str) -> str:
    """Python with these arguments, without the interpreter of Triton; its output."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


ARCHITECTURES = [86, *(pytest.param(arch, marks=pytest.mark.slow) for arch in (80, 89, 90))]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Build, CubinFacts]]:
    folder = tmp_path_factory.mktemp("shipped")
    run_compiling(folder / "cache", "-c", SHIPPED, str(request.param), str(folder / "facts"))
    return pickle.loads((folder / "facts").read_bytes())


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, CubinFacts], list[tuple[str, str, str]]]:
    folder = tmp_path_factory.mktemp("small")
    run_compiling(folder / "cache", str(Path(__file__).with_name("small_kernels.py")), str(folder / "facts"))
    return pickle.loads((folder / "facts").read_bytes())


@pytest.fixture
def small(compiled: tuple[dict[str, CubinFacts], list[tuple[str, str, str]]]) -> dict[str, CubinFacts]:
    return compiled[0]


def spills(facts: CubinFacts) -> str:
    return f"{facts.spills} B of spills at {facts.registers} registers" if facts.spills > MOST_SPILLED else ""


def too_much_shared(facts: CubinFacts, arch: int) -> str:
    return f"{facts.shared} B of shared memory" if facts.shared > SHARED_LIMIT[arch] else ""


def without_tensor_cores(facts: CubinFacts) -> str:
    return "" if facts.code.counts["tensor"] else "no tensor-core instruction"


def narrow_loads(facts: CubinFacts) -> str:
    widths = {width for loop in facts.lookup_loops() for width in loop.packed_widths}
    return "" if widths == {16} else f"packed weights are loaded {sorted(widths)} B at a time"


def too_many_integers(facts: CubinFacts) -> str:
    if not facts.integers_per_weight:
        return "no lookup of weights is to be found"
    return f"{facts.integers_per_weight:.2f} integer instructions a weight" if facts.integers_per_weight > MOST_INTEGERS else ""


def looks_up(build: Build) -> bool:
    """Whether the kernel reads packed weights."""
    constants = {build.signature[place[0]][0]: value for place, value in build.constants}
    return constants.get("NF4", "packed_ptr" in dict(build.signature))


def found(problems: list[tuple[Build, str]]) -> str:
    return "\n".join(f"sm_{build.arch} {build.kernel}: {problem}; {build.configuration}" for build, problem in problems if problem)


def test_no_shipped_kernel_spills_or_takes_more_shared_memory_than_a_block_has(shipped: list[tuple[Build, CubinFacts]]) -> None:
    problems = [(build, spills(facts)) for build, facts in shipped]
    problems += [(build, too_much_shared(facts, build.arch)) for build, facts in shipped]
    assert not found(problems), found(problems)


def test_matrix_products_use_tensor_cores(shipped: list[tuple[Build, CubinFacts]]) -> None:
    grouped = [(build, facts) for build, facts in shipped if build.kernel.startswith("grouped_")]
    # Where PyTorch has made the product (D=1: no weight) and there is no LoRA, only the epilogue is left of a kernel.
    products = [
        (b, without_tensor_cores(facts)) for b, facts in grouped if not (" D=1 " in b.configuration and " RANK=0 " in b.configuration)
    ]
    assert {build.kernel for build, _ in products} >= {"grouped_mm", "grouped_swiglu", "grouped_swiglu_backward", "grouped_gram"}
    assert not found(products), found(products)


def test_packed_weights_come_16_bytes_at_a_time(shipped: list[tuple[Build, CubinFacts]]) -> None:
    readers = [(build, narrow_loads(facts)) for build, facts in shipped if looks_up(build)]
    assert {build.kernel for build, _ in readers} >= {"grouped_mm", "decode_gate_up_kernel", "decode_down_kernel", "dequantize"}
    assert not found(readers), found(readers)


def test_decoding_takes_few_integer_instructions_a_weight(shipped: list[tuple[Build, CubinFacts]]) -> None:
    decoders = [(build, too_many_integers(facts)) for build, facts in shipped if build.kernel.startswith("decode_") and looks_up(build)]
    assert {build.kernel for build, _ in decoders} == {"decode_gate_up_kernel", "decode_down_kernel"}
    assert not found(decoders), found(decoders)


def test_fp32_meets_nf4_as_dense_weights(tmp_path: Path) -> None:
    run_compiling(tmp_path / "cache", "-c", FP32, str(tmp_path / "facts"))
    facts = pickle.loads((tmp_path / "facts").read_bytes())
    grouped = [(build, facts) for build, facts in facts if build.kernel.startswith("grouped_")]
    assert {build.kernel for build, _ in grouped} >= {"grouped_mm", "grouped_swiglu", "grouped_swiglu_backward", "grouped_gram"}
    assert not [build.configuration for build, _ in grouped if " NF4=True" in build.configuration]
    problems = [(build, f"{facts.spills} B of spills" if facts.spills > MOST_SPILLED_FP32 else "") for build, facts in grouped]
    problems += [(build, too_much_shared(facts, 86)) for build, facts in grouped]
    assert not found(problems), found(problems)


def test_any_number_of_tokens_finds_its_kernels_built(tmp_path: Path) -> None:
    assert not (missing := run_compiling(tmp_path, "-c", ANY_SIZE)), f"not built by `python -m moe_kernels.compile`:\n{missing}"


def test_a_seed_anywhere_finds_its_kernel_built(tmp_path: Path) -> None:
    """A model's seeds lie in one tensor, 8 bytes apart: every other one is not at a multiple of 16."""
    assert run_compiling(tmp_path, "-c", SEEDS) == "1\n"


def test_the_checks_see_what_they_look_for(small: dict[str, CubinFacts]) -> None:
    assert not spills(small["good product"])
    assert not without_tensor_cores(small["good product"])
    assert "spills" in spills(small["spilling"])
    assert without_tensor_cores(small["no tensor cores"])
    assert not narrow_loads(small["good sum"])
    assert not too_many_integers(small["good sum"])
    assert narrow_loads(small["narrow loads"])
    assert "integer instructions a weight" in too_many_integers(small["too many integers"])
    assert "no lookup" in too_many_integers(small["selects"])
    assert too_much_shared(small["good product"], 86) == ""
    assert too_much_shared(CubinFacts(32, 0, 0, 99 * 1024 + 1, Code(), ()), 86)


def test_what_is_compiled_ahead_is_what_a_launch_looks_for(compiled: tuple[dict[str, CubinFacts], list[tuple[str, str, str]]]) -> None:
    """Triton's own launch path, with a driver that only names its card, comes to the same key in the cache."""
    assert len(compiled[1]) > 8
    assert [(kernel, ahead) for kernel, ahead, _ in compiled[1]] == [(kernel, launched) for kernel, _, launched in compiled[1]]


def test_the_facts_of_a_product_are_those_of_its_source(small: dict[str, CubinFacts]) -> None:
    """64 x 64 x 64 by four warps, and twice 8 KB of bf16 through shared memory at most."""
    assert small["good product"].code.fma * 4 == 64**3
    assert 0 < small["good product"].shared <= 2 * 64 * 64 * 2
    # 2048 bytes a step, by 128 threads: 32 weights each
    assert [loop.weights for loop in small["good sum"].loops if loop.weights] == [32]


LISTING = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
.L_x_1:
        /*0020*/              @!P0 BRA.DIV ~URZ, `(.L_x_3) ;
.L_x_2:
        /*0030*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0040*/               @P0 BRA `(.L_x_1) ;
        /*0050*/              @!P1 EXIT ;
        /*0060*/               @P2 BRA `(.L_x_0) ;
        /*0070*/                   EXIT ;
.L_x_3:
        /*0080*/                   WARPSYNC 0xffffffff ;
        /*0090*/                   BRA `(.L_x_2) ;
.L_x_4:
        /*00a0*/                   BRA `(.L_x_4);
        /*00b0*/                   NOP;
"""


def test_loops_are_backward_branches_and_not_paths_out_of_line() -> None:
    code, spans = parse_sass(LISTING)
    assert [instruction.stem for instruction in code][:4] == ["MOV", "LDG", "BRA", "HMMA"]
    assert len(code) == 11
    assert spans == ((1, 7), (2, 5))
    facts = CubinFacts(0, 0, 0, 0, code, spans)
    assert [[i.stem for i in loop] for loop in facts.loops] == [["BRA", "HMMA", "BRA"]]
    assert len(facts.outside) == len(code) - 3


@pytest.mark.parametrize(
    ("opcode", "kind", "width", "fma"),
    [
        ("LDG.E.128.CONSTANT", "memory", 16, 0),
        ("LDG.E.U8", "memory", 1, 0),
        ("LDGSTS.E.BYPASS.LTC128B.128", "memory", 16, 0),
        ("LDGSTS.E.LTC128B", "memory", 4, 0),
        ("LDSM.16.M88.4", "memory", 16, 0),
        ("LDSM.16.MT88.2", "memory", 8, 0),
        ("HMMA.16816.F32.BF16", "tensor", 0, 2048),
        ("HMMA.1688.F32.TF32", "tensor", 0, 1024),
        ("HGMMA.64x128x16.F32.BF16", "tensor", 0, 64 * 128 * 16 // 4),
        ("IMAD.MOV.U32", "imad", 0, 0),
        ("LOP3.LUT", "integer", 0, 0),
        ("BAR.SYNC.DEFER_BLOCKING", "other", 0, 0),
    ],
)
def test_instructions_are_sorted_by_pipe_width_and_shape(opcode: str, kind: str, width: int, fma: int) -> None:
    instruction = Instruction(opcode, "R0, R1")
    assert (instruction.kind, instruction.width, instruction.fma) == (kind, width, fma)


def test_packed_bytes_are_followed_to_their_loads() -> None:
    lookup = Instruction("LOP3.LUT", "R9, R7, 0x77777777, RZ, 0xc0, !PT")
    wide = Code([Instruction("LDG.E.128", "R4, [R2.64]"), Instruction("IMAD.MOV.U32", "R8, RZ, RZ, R1"), lookup])
    assert wide.packed_widths == {16}
    moved = Code([Instruction("LDG.E.64", "R20, [R2.64]"), Instruction("IMAD.MOV.U32", "R7, RZ, RZ, R21"), lookup])
    assert moved.packed_widths == {8}
    assert Code([Instruction("PRMT", "R7, R3, 0x5410, R4"), lookup]).packed_widths == {0}
    staged = Code([Instruction("LDGSTS.E.BYPASS.128", "[R1], [R2.64]"), Instruction("LDS.128", "R4, [R3]"), lookup])
    assert staged.packed_widths == {16}
    assert Code([Instruction("LDGSTS.E", "[R1], [R2.64]"), Instruction("LDS.128", "R4, [R3]"), lookup]).packed_widths == {4}


def test_a_mistake_on_the_command_line_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert compile_main(["--arch", "75"]) == 2
    assert capsys.readouterr().err == "python -m moe_kernels.compile: no kernels for compute capability 75; known: 80, 86, 89, 90\n"
    assert compile_main(["--jobs", "-1"]) == 2


def test_a_card_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Cubins of another card would never be looked up on it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (12, 0))
    assert compile_main([]) == 2
    assert "no kernels for compute capability 120; known: 80, 86, 89, 90" in capsys.readouterr().err


def test_the_interpreter_cannot_compile() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "moe_kernels.compile", "--arch", "86"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unset TRITON_INTERPRET" in done.stderr
