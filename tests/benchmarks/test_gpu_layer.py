"""What the benchmarks of a GPU say of their measurements, and what a failed capture leaves behind; no GPU is needed."""

import contextlib
import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import a10g, compare_model, gpu_timing
from benchmarks.gpu_layer import rates
from moe_kernels.nf4_format import NF4

D, F = 8, 16
MATRICES = 3 * D * F


def rates_of(name, operation):
    """Two tokens, two experts each, three experts in all, in one second; the card copies a byte and multiplies a FLOP a second."""
    bench = SimpleNamespace(width=D, hidden=F, copy_rate=1.0, gemm_rate=1.0)
    return rates(bench, SimpleNamespace(experts=torch.tensor([[0, 1], [0, 2]])), operation, name, 1.0)


@pytest.mark.parametrize(("operation", "passes"), [("forward", 1), ("backward", 1), ("step", 2)])
@pytest.mark.parametrize("ending", ["", ", graph"])
def test_rates_are_those_of_what_an_implementation_reads_and_multiplies(ending, operation, passes):
    ours, shared, peer = (rates_of(name + ending, operation) for name in ("ours", "ours, lora layout", "bf16 loop"))
    assert ours["copy_share"] == pytest.approx(passes * 3 * MATRICES * NF4.bits / 8)
    assert shared["copy_share"] == pytest.approx(passes * MATRICES * NF4.bits / 8)
    assert [found["gemm_share"] for found in (ours, shared, peer)] == [2 * passes * rows * MATRICES for rows in (4, 2, 4)]
    assert not {"gbps", "copy_share"} & set(peer)


@pytest.fixture
def model_file(tmp_path, monkeypatch):
    """What `benchmarks.a10g` writes of an H200, with two operations whose times are given."""
    monkeypatch.setattr(a10g, "record_all", lambda card: [])
    operations = [a10g.Prediction(name, 1, 1e-3, 1, "a kernel") for name in ("forward", "router", "router with noise")]
    monkeypatch.setattr(a10g, "predict_all", lambda *arguments: operations)
    assert a10g.main(["--card", "h200", "--json", str(tmp_path / "model.json")]) == 0
    return tmp_path / "model.json"


def layer_file(path, card):
    rows = [{"operation": name, "tokens": 1, "name": "ours", "routing": "uniform", "median_ms": 2.0} for name in ("forward", "router")]
    path.write_text(json.dumps({"hardware": {"name": card}, "rows": rows}))
    return path


def test_the_model_stands_beside_the_measurement_of_the_same_operation(model_file, tmp_path, capsys):
    """The benchmark's router draws noise."""
    capsys.readouterr()
    assert compare_model.main([str(model_file), str(layer_file(tmp_path / "layer.json", "NVIDIA H200"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["forward", "router with noise"]
    assert all("measured/model  2.00" in line for line in lines)


def test_a_model_of_another_card_is_refused(model_file, tmp_path, capsys):
    assert compare_model.main([str(model_file), str(layer_file(tmp_path / "layer.json", "NVIDIA A10G"))]) == 2
    assert "the model is of H200, the measurement of NVIDIA A10G" in capsys.readouterr().err


class FakeCuda:
    """Streams and captures by name. Like torch's, a capture whose end raises leaves its stream current and the allocator recording."""

    def __init__(self, monkeypatch):
        self.current, self.recording, self.failures = "default", set(), 1
        stream = SimpleNamespace(wait_stream=lambda other: None)
        self.streams = {"default": stream, "side": SimpleNamespace(wait_stream=lambda other: None)}
        fakes = {
            "Stream": lambda: self.streams["side"],
            "stream": lambda stream: contextlib.nullcontext(),
            "current_stream": lambda: self.streams[self.current],
            "set_stream": lambda stream: setattr(self, "current", "default" if stream is self.streams["default"] else "other"),
            "current_device": lambda: 0,
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
            "graph_pool_handle": lambda: (0, 7),
            "graph": self.capture,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda device, pool: self.recording.remove(pool), raising=False)

    @contextlib.contextmanager
    def capture(self, graph, pool=(0, 0)):
        if self.recording:
            raise RuntimeError("captures_underway.empty()")
        self.current = "capture"
        self.recording.add(pool)
        yield
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the capture was invalidated")
        self.recording.remove(pool)
        self.current = "default"


def test_after_a_failed_capture_the_next_one_succeeds(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    monkeypatch.setattr(gpu_timing, "DEVICE", "cpu")
    with pytest.raises(RuntimeError, match="invalidated"):
        gpu_timing.captured(lambda: None)
    assert cuda.current == "default" and not cuda.recording
    gpu_timing.captured(lambda: None)
