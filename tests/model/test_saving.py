"""Saving that is killed, or runs out of disk: the folder loads as what it was or as what it was to become."""

import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, MixtralConfig, Trainer, TrainingArguments

from model import MoEForCausalLM
from model.checkpoint import INDEX, WEIGHTS, Checkpoint
from model.compose import main as compose_main
from model.output import MANIFEST, check_manifest
from model.saving import SAVED, SAVING
from tests.forked import DONE, KILLED, in_child, kill_before_step

from .conftest import SHAPE


def state(folder: Path) -> dict[str, torch.Tensor]:
    return MoEForCausalLM.from_pretrained(folder).state_dict()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)


def kill_everywhere(action: Callable[[], object], folder: Path, check: Callable[[], None], points: int) -> int:
    """Kills `action` before each of its steps in `folder`, then `points` times at random; `check` follows. How often it was killed."""
    killed = 0

    def killed_action() -> None:
        kill_before_step(killed + 1, folder)
        action()

    while (status := in_child(killed_action)) != DONE:
        assert status == KILLED
        killed += 1
        check()
    start = time.monotonic()
    assert in_child(action) == DONE
    duration = time.monotonic() - start
    check()
    return killed + kill_at_random(action, duration, check, points)


def kill_at_random(action: Callable[[], object], duration: float, check: Callable[[], None], points: int) -> int:
    """Kills `action` `points` times within its `duration` in seconds; `check` follows. How often it was not done before."""
    killed, draw = 0, random.Random(0)
    for _ in range(points):
        moment = draw.uniform(0, duration)

        def killed_action(moment: float = moment) -> None:
            signal.setitimer(signal.ITIMER_REAL, moment)
            action()

        killed += in_child(killed_action) == -signal.SIGALRM
        check()
    return killed


@pytest.fixture
def old(mixtral, tmp_path) -> Path:
    """A checkpoint in several shards, among files that are not ours."""
    folder = tmp_path / "old"
    MoEForCausalLM.from_pretrained(mixtral).save_pretrained(folder, max_shard_size="200KB")
    (folder / "optimizer.pt").write_bytes(b"momentum")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "trainer_state.json").write_text("{}")
    assert (folder / INDEX).is_file()
    return folder


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_killed_over_an_older_checkpoint(mixtral, old, tmp_path, quantization):
    model = MoEForCausalLM.from_pretrained(mixtral, quantization=quantization, num_experts_per_tok=1)
    model.lm_head.weight.data = model.lm_head.weight + 1  # not the old one under any quantisation
    before, after, target = state(old), model.state_dict(), tmp_path / "target"
    seen = set()

    def check() -> None:
        loaded = MoEForCausalLM.from_pretrained(target)
        is_old = loaded.config.num_experts_per_tok == 2
        assert equal(loaded.state_dict(), before if is_old else after)
        seen.add(is_old)
        assert (target / "optimizer.pt").read_bytes() == b"momentum" and (target / "checkpoint-5" / "trainer_state.json").is_file()
        shutil.rmtree(target)
        shutil.copytree(old, target)

    shutil.copytree(old, target)
    killed = kill_everywhere(lambda: model.save_pretrained(target), target.parent, check, points=10)
    assert killed > 20 and seen == {True, False}


def test_killed_where_nothing_was(mixtral, tmp_path):
    model = MoEForCausalLM.from_pretrained(mixtral)
    target = tmp_path / "here" / "target"

    def check() -> None:
        if target.exists():
            check_manifest(target)
            assert equal(state(target), model.state_dict())
            shutil.rmtree(target)

    assert kill_everywhere(lambda: model.save_pretrained(target), target.parent, check, points=10) > 15
    model.save_pretrained(target)
    assert [path.name for path in target.parent.iterdir()] == ["target"]  # what was killed has left nothing


def test_composing_that_is_killed(adapters, make_recipe, tmp_path, monkeypatch):
    recipe, target = make_recipe(adapters, gate_mode="uniform_random"), tmp_path / "mixture"
    monkeypatch.setattr("sys.argv", ["compose", str(recipe), str(target), "--quantize", "nf4"])

    def whole() -> dict[str, torch.Tensor]:
        check_manifest(target)
        found = state(target)
        shutil.rmtree(target)
        return found

    assert compose_main() == 0
    expected = whole()

    def check() -> None:
        if target.exists():
            assert equal(whole(), expected)

    def compose() -> None:
        assert compose_main() == 0

    start = time.monotonic()
    compose()
    duration = time.monotonic() - start
    check()
    kill_at_random(compose, duration, check, points=15)
    assert compose_main() == 0 and equal(whole(), expected)


@pytest.mark.parametrize("limit", [0, 1000, 100_000, 350_000])
def test_full_disk_leaves_the_old_checkpoint(mixtral, old, limit):
    """A limit on the size of files stands for the end of the disk: writing stops in the same places."""
    model = MoEForCausalLM.from_pretrained(mixtral)
    names = sorted(path.name for path in old.iterdir())
    before = state(old)

    def save() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises((OSError, SafetensorError), match="File too large"):
            model.save_pretrained(old)

    assert in_child(save) == DONE
    assert sorted(path.name for path in old.iterdir()) == names
    assert equal(state(old), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("layout", ["dense", "lora"])
def test_round_trip_is_bit_equal(adapters, run_compose, tmp_path, layout, quantize, dtype):
    model = MoEForCausalLM.from_pretrained(run_compose(adapters, layout=layout, quantize=quantize, dtype=dtype))
    for target in (tmp_path / "one", tmp_path / "shards"):
        model.save_pretrained(target, **({"max_shard_size": "50KB"} if target.name == "shards" else {}))
        check_manifest(target)
        again = MoEForCausalLM.from_pretrained(target)
        assert equal(again.state_dict(), model.state_dict()) and again.dtype == model.dtype
    assert (tmp_path / "one" / WEIGHTS).is_file() and (tmp_path / "shards" / INDEX).is_file()


def test_tied_embeddings_are_saved_once(tmp_path):
    MoEForCausalLM(MixtralConfig(**SHAPE | {"tie_word_embeddings": True}, num_local_experts=4)).save_pretrained(tmp_path / "plain")
    model = MoEForCausalLM.from_pretrained(tmp_path / "plain", quantization="nf4")
    model.save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in Checkpoint(tmp_path / "tied")
    again = MoEForCausalLM.from_pretrained(tmp_path / "tied")
    assert again.lm_head.weight is again.model.embed_tokens.weight and equal(again.state_dict(), model.state_dict())


def test_weights_of_the_older_checkpoint_go_and_other_files_stay(mixtral, old):
    elsewhere = old.parent / "blob"
    (old / "config.json").rename(elsewhere)
    (old / "config.json").symlink_to(elsewhere)  # as in the hub's cache
    kept = elsewhere.read_text()
    model = MoEForCausalLM.from_pretrained(mixtral)
    model.save_pretrained(old, state_dict={name: value + 1 for name, value in model.state_dict().items()})
    assert sorted(path.name for path in old.iterdir()) == sorted(
        ["checkpoint-5", "config.json", "generation_config.json", MANIFEST, WEIGHTS, "optimizer.pt"]
    )
    assert elsewhere.read_text() == kept and not (old / "config.json").is_symlink()
    assert torch.equal(state(old)["lm_head.weight"], model.lm_head.weight + 1)
    model.save_pretrained(old, max_shard_size="200KB")  # and back
    assert equal(state(old), model.state_dict()) and not (old / WEIGHTS).exists()


@pytest.fixture
def interrupted(mixtral, old, monkeypatch) -> Path:
    """A save with another K that stops right after its commit."""
    model = MoEForCausalLM.from_pretrained(mixtral, num_experts_per_tok=3)
    with monkeypatch.context() as patch:
        patch.setattr("model.saving.finish_save", lambda folder: False)
        model.save_pretrained(old)
    assert (old / SAVED).is_dir() and not (old / SAVING).exists()
    return old


def test_loading_finishes_an_interrupted_save(interrupted):
    assert MoEForCausalLM.from_pretrained(interrupted).config.num_experts_per_tok == 3
    assert not (interrupted / SAVED).exists()
    check_manifest(interrupted)


def test_a_config_read_before_an_interrupted_save_was_finished_is_refused(interrupted):
    with pytest.raises(ValueError, match="had been interrupted and is now finished; load again"):
        AutoModelForCausalLM.from_pretrained(interrupted)
    assert AutoModelForCausalLM.from_pretrained(interrupted).config.num_experts_per_tok == 3


def test_a_pretended_save_moves_nothing(old, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / MANIFEST).write_text('{"files": {}}')
    (old / SAVED).symlink_to(tmp_path / "precious")
    state(old)
    assert (tmp_path / "precious" / MANIFEST).is_file()
    (old / SAVED).unlink()
    (old / SAVED).mkdir()
    (old / SAVED / MANIFEST).write_text('{"files": 5}')
    with pytest.raises(ValueError, match="is no save that was interrupted"):
        state(old)


def test_trainer_saves_into_its_folder(mixtral, tmp_path):
    model = MoEForCausalLM.from_pretrained(mixtral, router_type="noisy_topk")
    rows = [{"input_ids": torch.arange(3, 11), "labels": torch.arange(3, 11)}] * 4
    options = {"output_dir": str(tmp_path), "max_steps": 2, "save_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    trainer = Trainer(model, TrainingArguments(**options), train_dataset=rows)
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "checkpoint-1" / "optimizer.pt").is_file()
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        assert equal(state(folder), model.state_dict())
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
