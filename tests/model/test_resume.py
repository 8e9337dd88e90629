"""Composing and merging that are killed anywhere go on and end with the same bytes, and composing never holds the mixture
in memory."""

import random
import resource
import shutil
import signal
import time
from argparse import Namespace
from pathlib import Path

import pytest
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from model import checkpoint_writer
from model.compose import compose
from model.merge import merge_models
from model.output import check_manifest
from model.resume import resumable_folder
from model.unfinished import unfinished
from moe_kernels.nf4 import quantize_nf4_parts
from tests.forked import KILLED, added_memory, in_child, kill_before_step


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr("model.mixture_tensors.SHARD_BYTES", 30_000)
    monkeypatch.setattr("model.merge.SHARD_BYTES", 100_000)


def arguments(recipe, out, **changes) -> Namespace:
    return Namespace(**{"config": str(recipe), "out": str(out), "layout": "dense", "quantize": "nf4", "seed": 0, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but run.json, which has the time, and the manifest, which has run.json's hash."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name not in ("run.json", "manifest.json")}


@pytest.fixture
def run_merge(base, adapters, tmp_path):
    """Merges with random masks."""
    path = tmp_path / "merge.yml"
    parameters = {"weight": 1, "density": 0.5}
    models = [{"model": str(adapter)} for adapter in adapters]
    path.write_text(yaml.safe_dump({"merge_method": "dare_ties", "base_model": str(base), "models": models, "parameters": parameters}))

    def run(out: Path, **changes) -> None:
        flags = {"seed": 0, "fast_ties": False, "inspect": False, "density": None, **changes}
        merge_models(Namespace(config=str(path), out=str(out), **flags))

    return run


@pytest.fixture
def run_compose_nf4(adapters, make_recipe):
    recipe = make_recipe(adapters[:2])
    return lambda out, **changes: compose(arguments(recipe, out, **changes))


@pytest.mark.parametrize(("command", "shards", "steps"), [("run_compose_nf4", 5, 31), ("run_merge", 4, 27)])
def test_killed_at_any_step_it_goes_on_to_the_same_bytes(command, shards, steps, request, tmp_path):
    run, unbroken = request.getfixturevalue(command), tmp_path / "unbroken"
    run(unbroken)
    assert len(list(unbroken.glob("*.safetensors"))) >= shards
    out, number = tmp_path / "out", 1

    def killed_run():
        kill_before_step(number, tmp_path)
        run(out)

    while in_child(killed_run) == KILLED:
        if not out.exists():  # the last steps remove what was needed to go on
            run(out)
            assert not unfinished(out).exists()
        check_manifest(out)
        assert contents(out) == contents(unbroken)
        shutil.rmtree(out)
        number += 1
    assert number >= steps


def kill_within_shard(number: int) -> None:
    """Kills this process at the first bytes of its `number`th safetensors file, which lie under a name of safetensors' own."""
    save_file, left = checkpoint_writer.save_file, number

    def save(*args, **kwargs):
        nonlocal left
        left -= 1
        if not left:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        save_file(*args, **kwargs)

    checkpoint_writer.save_file = save


@pytest.mark.parametrize("command", ["run_compose_nf4", "run_merge"])
def test_killed_within_a_shard_it_goes_on_to_the_same_bytes(command, request, tmp_path):
    run, out = request.getfixturevalue(command), tmp_path / "out"

    def killed_run():
        kill_within_shard(2)
        run(out)

    assert in_child(killed_run) == -signal.SIGXFSZ
    assert any(path.name.startswith(".") for path in (unfinished(out) / "output").iterdir())
    run(out)
    run(tmp_path / "unbroken")
    assert contents(out) == contents(tmp_path / "unbroken")


@pytest.mark.parametrize(("command", "changes", "start"), [("run_compose_nf4", {"layout": "lora"}, 8), ("run_merge", {}, 5)])
def test_killed_again_and_again_it_gets_through(command, changes, start, request, tmp_path):
    run, out, number = request.getfixturevalue(command), tmp_path / "out", start

    def killed_run():
        kill_before_step(number, tmp_path)
        run(out, **changes)

    while in_child(killed_run) == KILLED and not out.exists():
        number += 1
    run(tmp_path / "unbroken", **changes)
    assert contents(out) == contents(tmp_path / "unbroken")


def test_killed_at_any_time_a_merge_goes_on_to_the_same_bytes(run_merge, tmp_path):
    """Between two steps too: at random times of a run's length."""
    begin = time.perf_counter()
    run_merge(tmp_path / "unbroken")
    length, draw, killed = time.perf_counter() - begin, random.Random(0), 0
    for _ in range(12):
        out, moment = tmp_path / "out", draw.uniform(0.1, 0.9) * length

        def killed_run(out=out, moment=moment):
            signal.setitimer(signal.ITIMER_REAL, moment)
            run_merge(out)

        killed += in_child(killed_run) == -signal.SIGALRM
        if not out.exists():
            run_merge(out)
        assert contents(out) == contents(tmp_path / "unbroken")
        shutil.rmtree(out)
    assert killed


class Stopped(Exception):
    """Not a mistake of the user's."""


@pytest.fixture
def interrupted(adapters, make_recipe, tmp_path, monkeypatch):
    """A recipe and an output that is half done."""
    recipe, out, whole = make_recipe(adapters[:2]), tmp_path / "out", []

    def stop(*args):
        if len(whole) == 3:
            raise Stopped
        whole.append(1)
        return quantize_nf4_parts(*args)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("model.mixture_tensors.quantize_nf4_parts", stop)
        compose(arguments(recipe, out))
    return recipe, out


def test_what_is_finished_is_not_done_again(interrupted, monkeypatch):
    recipe, out = interrupted
    made = [file.name for file in (unfinished(out) / "output").glob("*.safetensors")]
    inodes = {(unfinished(out) / "output" / name).stat().st_ino for name in made}
    monkeypatch.setattr("model.compose.make_gates", None)  # the gates were finished
    compose(arguments(recipe, out))
    assert made and inodes <= {file.stat().st_ino for file in out.iterdir()}


@pytest.mark.parametrize("change", [{"quantize": "none"}, {"seed": 1}, {"layout": "lora"}])
def test_another_command_is_refused_and_spoils_nothing(interrupted, tmp_path, change):
    recipe, out = interrupted
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=rf"\(.*--{next(iter(change))} .*\); run that command again to finish it, or remove"):
        compose(arguments(recipe, out, **change))
    recipe.write_text(recipe.read_text().replace("is good", "is fine"))
    with pytest.raises(ValueError, match=r"\(recipe differs\)"):
        compose(arguments(recipe, out))
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_another_merge_is_refused(run_merge, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("model.merge.write_config", stop_at_once)
        run_merge(out)
    for change in ({"seed": 1}, {"fast_ties": True}):
        with pytest.raises(ValueError, match=rf"\(--{next(iter(change)).replace('_', '-')} was .* and is .*\); run that command again"):
            run_merge(out, **change)
    run_merge(out)


def stop_at_once(*_):
    raise Stopped


def test_two_at_a_time_are_refused(tmp_path):
    with (
        resumable_folder(tmp_path / "out", {}),
        pytest.raises(ValueError, match="another process is at work in"),
        resumable_folder(tmp_path / "out", {}),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_before_anything_is_finished_leaves_nothing(tmp_path):
    with pytest.raises(Stopped), resumable_folder(tmp_path / "out", {}) as (output, _):
        (output / "config.json").write_text("{}")
        raise Stopped
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_memory_stays_far_below_the_mixture(make_recipe, base, tmp_path, monkeypatch, quantize):
    """The most that composing adds to this process, mapped files included, against the experts' matrices in bf16."""
    monkeypatch.setattr("model.mixture_tensors.SHARD_BYTES", 1 << 20)
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 4, "vocab_size": 64}
    large = tmp_path / "large"
    LlamaForCausalLM(LlamaConfig(**shape)).bfloat16().save_pretrained(large)
    for file in base.glob("tokenizer*"):
        shutil.copy(file, large)
    small = make_recipe([base] * 4).rename(tmp_path / "small.yml")
    recipe = make_recipe([large] * 4, base=large)

    added = added_memory(
        lambda: compose(arguments(recipe, tmp_path / "out", quantize=quantize)),
        lambda: compose(arguments(small, tmp_path / "small", quantize=quantize)),
        tmp_path,
    )
    assert added < 4 * 16 * 3 * 512 * 2048 * 2 / 3
