"""Which implementation runs, and the C++ operator as PyTorch wants its operators."""

import logging
from types import SimpleNamespace

import pytest
import torch

from moe_kernels import backend
from moe_kernels.nf4 import dequantize_nf4, quantize_nf4
from moe_kernels.nf4_format import dynamic_map


@pytest.fixture
def undecided(monkeypatch):
    monkeypatch.setattr(backend, "_chosen", None)


def test_without_the_extension_one_line_is_said_once(undecided, monkeypatch, caplog):
    monkeypatch.setattr(backend, "extension_problem", lambda: "the C++ extension is not built")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            dequantize_nf4(quantize_nf4(torch.randn(64)))
    assert backend.active() == "reference"
    assert [record.message for record in caplog.records] == [
        "moe_kernels: the C++ extension is not built; the reference operators run, at a fraction of the speed"
    ]
    with pytest.raises(ValueError, match="not built"), backend.use("cpp"):
        pass


def test_the_extension_is_preferred(undecided, monkeypatch):
    monkeypatch.setattr(backend, "extension_problem", lambda: "")
    assert backend.active() == "cpp"
    with backend.use("reference"):
        assert backend.active() == "reference"
    assert backend.active() == "cpp"


@pytest.mark.filterwarnings("error")  # torch 2.13 traces the search for packages with a warning, where 2.11 fails
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_choice_compiles_before_it_was_made(undecided, device):
    """As in a layer compiled on a card: on a CPU too the choice is made by the search for Triton."""
    backend.triton_problem.cache_clear()
    expected = {"cpu": "reference" if backend.extension_problem() else "cpp", "cuda": "reference" if backend.triton_problem() else "triton"}
    torch._dynamo.reset()
    run = torch.compile(lambda x: x + (backend.active(device) == expected[device]), fullgraph=True, backend="eager")
    assert run(torch.zeros(())) == 1


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"unknown implementation 'cuda'; known: reference, cpp"), backend.use("cuda"):
        pass


needs_extension = pytest.mark.skipif(bool(backend.extension_problem()), reason=backend.extension_problem() or "built")


def arguments_of(q, dtype):
    return (q.packed, q.absmax, q.nested_absmax, dynamic_map(), q.nested_offset, q.shape, dtype, q.first_block)


@needs_extension
@pytest.mark.parametrize("shape", [(3, 5), (64, 128), (2, 96, 64)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_opcheck(shape, dtype):
    torch.library.opcheck(torch.ops.moe_kernels.dequantize_nf4.default, arguments_of(quantize_nf4(torch.randn(shape)), dtype))


@needs_extension
def test_wrong_sizes_are_refused_before_memory_is_read():
    q = quantize_nf4(torch.randn(64, 64))
    good = arguments_of(q, torch.float32)
    bad = [(0, q.packed[:-1]), (1, q.absmax[:-1]), (2, q.nested_absmax[:0]), (3, dynamic_map()[:9]), (5, (65, 64)), (7, 255)]
    for position, value in bad:
        arguments = [*good]
        arguments[position] = value
        with pytest.raises((ValueError, RuntimeError), match="do not have the sizes"):
            torch.ops.moe_kernels.dequantize_nf4(*arguments)
    before_its_memory = [good[0], good[1], good[2][:0], *good[3:7], -256]
    with pytest.raises((ValueError, RuntimeError), match=r"first block .* at least 0, not -256"):
        torch.ops.moe_kernels.dequantize_nf4(*before_its_memory)
    with pytest.raises((ValueError, RuntimeError), match="contiguous"):
        torch.ops.moe_kernels.dequantize_nf4(q.packed.expand(-1, 2)[:, :1].as_strided((2048, 1), (0, 1)), *good[1:])


@needs_extension
def test_threads_change_nothing():
    q, threads = quantize_nf4(torch.randn(513, 1024)), torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(dequantize_nf4(q))
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_file_that_does_not_load_is_a_reason_and_no_crash(monkeypatch, tmp_path):
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"built for another torch")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(origin=str(broken)))
    backend.extension_problem.cache_clear()
    try:
        assert "needs a rebuild" in backend.extension_problem()
    finally:
        backend.extension_problem.cache_clear()
