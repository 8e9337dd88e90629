"""The full-size run, on a base of a few thousand parameters: what it writes, measures, refuses and removes."""

import json
import sys
from argparse import Namespace

import pytest

from benchmarks.full_scale import __main__ as full
from benchmarks.full_scale.ingredients import base_config, bytes_written, write_adapters, write_base
from benchmarks.full_scale.load import load_and_generate
from benchmarks.full_scale.watch import Watched, run_watched
from model.checkpoint import Checkpoint
from model.compose import compose
from model.footprint import weight_bytes

SCALE = 32  # of Mistral's widths: D 128, F 448, V 1000


def run(*command) -> Watched:
    """In place of a process of its own: what the command does, here."""
    module, *rest = command[0][2:]
    if module == "model.compose":
        recipe, out, _, layout, _, quantize = rest
        compose(Namespace(config=recipe, out=out, layout=layout, quantize=quantize, seed=0))
        return Watched()
    return Watched(output=json.dumps(vars(load_and_generate(rest[0], int(rest[1])))))


def test_the_parts_make_a_mixture_of_the_planned_size(tmp_path):
    config = base_config(layers=2, scale=SCALE)
    write_base(tmp_path / "base", config, seed=0)
    recipe = write_adapters(tmp_path, config, tmp_path / "base", seed=0)
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert bytes_written(config) == pytest.approx(written, rel=0.02)
    weight = Checkpoint(tmp_path / "base").tensor("model.layers.1.mlp.up_proj.weight").float()
    assert weight.std() == pytest.approx(0.02, rel=0.02)
    for layout in ("dense", "lora"):
        compose(Namespace(config=str(recipe), out=str(tmp_path / layout), layout=layout, quantize="nf4", seed=0))
        stored = sum(Checkpoint(tmp_path / layout).tensor(name).nbytes for name in Checkpoint(tmp_path / layout))
        assert stored == pytest.approx(sum(weight_bytes(full.mixture_config(2, SCALE, layout)).values()), rel=0.05)


def test_the_command_measures_both_layouts_and_removes_what_it_wrote(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(full, "run_watched", run)
    monkeypatch.setattr(full, "read_bandwidth", lambda: 1e9)
    monkeypatch.setattr(
        "sys.argv", ["full", "--dir", str(tmp_path), "--layers", "1", "--scale", "32", "--tokens", "2", "--json", str(tmp_path / "out")]
    )
    assert full.main() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    report = json.loads((tmp_path / "out").read_text())
    assert [row["layout"] for row in report["layouts"]] == ["dense", "lora"]
    for row in report["layouts"]:
        assert row["share_of_floor"] == pytest.approx(row["bytes_per_token"] / 1e9 * row["tokens_per_second"])
    assert "dense: tokens a second" in capsys.readouterr().out


def test_an_interruption_removes_what_was_written(tmp_path, monkeypatch):
    def interrupt(command):
        assert list(tmp_path.rglob("adapter_model.safetensors"))
        raise KeyboardInterrupt

    monkeypatch.setattr(full, "run_watched", interrupt)
    monkeypatch.setattr("sys.argv", ["full", "--dir", str(tmp_path), "--layers", "1", "--scale", "32"])
    assert full.main() == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "--layers and --tokens must be at least 1"),
        ({"tokens": 0}, "--layers and --tokens must be at least 1"),
        ({"scale": 3}, "--scale a power of two"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        full.full_scale(Namespace(**{"dir": tmp_path, "layers": 1, "scale": 32, "tokens": 1, "seed": 0, "json": None, **changes}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("which", "message"), [("disk", "28.8 GB are needed: name another --dir"), ("memory", "15.1 GB are needed")])
def test_too_little_room_for_the_full_size_is_refused(tmp_path, monkeypatch, which, message):
    """14.5 GB of base, 0.45 of adapters, 12.9 of the dense mixture, and one for what has no weight."""
    room = {"disk": 1e12, "memory": 1e12, which: 14e9}
    monkeypatch.setattr(full.shutil, "disk_usage", lambda folder: Namespace(free=room["disk"]))
    monkeypatch.setattr(full, "_available", lambda: room["memory"])
    with pytest.raises(ValueError, match=message):
        full.check_room(tmp_path, layers=32, scale=1)


def test_a_watched_process_tells_mapped_memory_from_its_own(tmp_path):
    (tmp_path / "file").write_bytes(bytes(200 << 20))
    hold = "held = bytearray(b'x') * (300 << 20)"
    look = f"import mmap; file = open({str(tmp_path / 'file')!r}, 'rb'); mapped = mmap.mmap(file.fileno(), 0, prot=1); sum(mapped[::4096])"
    seen = run_watched([sys.executable, "-c", f"import time; {hold}; {look}; time.sleep(0.3); print('done')"])
    assert seen.output == "done\n"
    assert 300 << 20 < seen.anonymous < 400 << 20
    assert 500 << 20 < seen.resident < 620 << 20
    with pytest.raises(ValueError, match="ended with status 3"):
        run_watched([sys.executable, "-c", "raise SystemExit(3)"])
