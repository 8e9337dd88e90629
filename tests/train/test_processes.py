"""The four training commands in two processes, as torchrun starts them: the numbers of one process, and the end of all when one ends."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from model import MoEConfig, MoEForCausalLM, cli
from model.languages import LANGUAGES
from train import trainer
from train.batches import ProcessBatches

SHAPE = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
STEPS, CUT = 9, 6
SAME = ("batch_size", "device", "parameters", "active_parameters", "trainable_parameters")
LINEAR = ["--importance", 0, "--load", 0, "--z-loss", 0, "--noise", "none"]  # of a gate's losses what is a mean over tokens


# What `accelerate launch --use_fsdp --fsdp_version 2 --fsdp_cpu_ram_efficient_loading false` sets.
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
FSDP2 |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}


def launch(*commands: tuple[str, list, dict | None], **settings: str) -> subprocess.CompletedProcess:
    """Two processes that run the commands in turn, with these settings in their environment."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    plan = json.dumps([(module, list(map(str, arguments)), harm) for module, arguments, harm in commands])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), **settings}
    command = [sys.executable, *torchrun, str(Path(__file__).with_name("launched.py")), plan]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def expert(base: Path, data: Path, *more: object) -> list[object]:
    """37 rows in batches of 3: in the last step of each epoch the second process gets none."""
    flags = ["--lang", "cpp", "--base", base, "--data", data, "--limit", 37, "--batch-size", 3, "--eval-limit", 5]
    return [*flags, "--max-steps", STEPS, "--eval-every", 3, "--rank", 4, "--max-length", 128, "--learning-rate", 1e-2, *more]


@pytest.fixture(scope="module")
def commands(tiny_base, tiny_data, tmp_path_factory) -> dict[str, tuple[str, list]]:
    """Of each command the module, and its flags but for `--out`."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    torch.manual_seed(1)
    config = MoEConfig(vocab_size=len(tokenizer), num_local_experts=4, expert_names=list(LANGUAGES), **SHAPE)
    MoEForCausalLM(config).save_pretrained(folder / "mixture")
    tokenizer.save_pretrained(folder / "mixture")
    pairs = [
        {"prompt": f"### C++\nadd {i}\n### Code\n", "chosen": f"return a + {i};", "rejected": f"return {i} - a, a;"} for i in range(20)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    gate = ["--model", folder / "mixture", "--data", tiny_data, "--share", 0.2, "--eval-limit", 3, "--learning-rate", 0.05]
    gate += ["--noise", "linear", "--label-loss", 1, "--z-loss", 1e-3, "--batch-size", 3, "--max-steps", 8, "--eval-every", 4]
    align = ["--model", tiny_base, "--data", folder / "pairs.jsonl", "--max-steps", 5, "--eval-every", 2, "--batch-size", 4]
    base = ["--data", tiny_data, "--limit", 7, "--max-steps", 3, "--batch-size", 3, "--eval-limit", 2, "--eval-every", 3]
    return {
        "expert": ("train.expert", expert(tiny_base, tiny_data, "--dropout", 0)),
        "gate": ("train.gate", gate),
        "align": ("train.align", [*align, "--learning-rate", 5e-3, "--max-length", 64]),
        "base": ("train.base", base),
    }


@pytest.fixture(scope="module")
def two(commands, tiny_base, tiny_data, tmp_path_factory) -> Path:
    """The outputs of two processes: those of `commands`, and of an expert with dropout."""
    folder = tmp_path_factory.mktemp("two")
    runs = [(module, [*flags, "--out", folder / name], None) for name, (module, flags) in commands.items()]
    runs.append(("train.gate", [*commands["gate"][1], *LINEAR, "--out", folder / "linear gate"], None))
    done = launch(*runs, ("train.expert", expert(tiny_base, tiny_data, "--out", folder / "dropout"), None))
    assert done.returncode == 0, done.stderr
    for name in (*commands, "linear gate", "dropout"):
        assert sum(line.endswith(str(folder / name)) for line in done.stdout.splitlines()) == 1, "one process speaks"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*commands, "linear gate", "dropout"])
    return folder


@pytest.fixture(scope="module")
def sharded(commands, tmp_path_factory) -> Path:
    """The outputs of two processes over which FSDP2 spreads what is no NF4."""
    folder = tmp_path_factory.mktemp("sharded")
    done = launch(*((module, [*flags, "--out", folder / name], None) for name, (module, flags) in commands.items()), **FSDP2)
    assert done.returncode == 0, done.stderr
    assert "Excluding from FSDP2 sharding" in done.stderr, "FSDP2 was at work"
    return folder


def run(monkeypatch, module: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
    assert importlib.import_module(module).main() == 0


def count_trained_tokens(monkeypatch) -> list[int]:
    """Collects the tokens of each batch that is trained on from here on, by its attention mask."""
    found: list[int] = []
    training_step = trainer.Trainer.training_step

    def counted(self, model, inputs, *args, **kwargs):
        found.append(int(inputs["attention_mask"].sum()))
        return training_step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer.Trainer, "training_step", counted)
    return found


def log(folder: Path, left_out: tuple[str, ...] = ()) -> list[dict]:
    """The entries of the log without what depends on the clock, the number of batches, or where a run was resumed."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    left_out += ("second", "runtime", "flos", "epoch", "train_loss")
    return [{name: value for name, value in entry.items() if not any(word in name for word in left_out)} for entry in entries]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def assert_same(one: Path, many: Path, rtol: float, left_out: tuple[str, ...] = ()) -> None:
    assert len(log(one)) == len(log(many))
    for expected, found in zip(log(one, left_out), log(many, left_out), strict=True):
        assert found == pytest.approx(expected, rel=rtol, abs=1e-5), expected["step"]
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(many)[name], tensor, rtol=rtol, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["expert", "gate", "align", "base"])
def test_two_processes_are_one_that_accumulates_twice(commands, two, sharded, tmp_path, monkeypatch, name):
    """Every loss, norm, rate and evaluation of the log, and the weights; for the gate that is with its noise and its losses.

    And the tokens that the batches' masks count; a row that only keeps the second process busy is none of them.
    """
    module, flags = commands[name]
    tokens = count_trained_tokens(monkeypatch)
    run(monkeypatch, module, *flags, "--accumulation", 2, "--out", tmp_path / name)
    assert_same(tmp_path / name, two / name, rtol=1e-5)
    assert_same(tmp_path / name, sharded / name, rtol=1e-5)
    one, both = (json.loads((folder / name / "run.json").read_text())["figures"] for folder in (tmp_path, two))
    assert one["tokens"] == both["tokens"] == sum(tokens)
    assert {key: one[key] for key in SAME} == {key: both[key] for key in SAME}
    assert (one["processes"], both["processes"]) == (1, 2)


@pytest.mark.parametrize("name", ["expert", "linear gate", "align", "base"])
def test_two_processes_are_one_with_twice_the_batch(commands, two, tmp_path, monkeypatch, name):
    """The losses that are means over tokens or pairs; the gate's importance, load and z are of each micro-batch."""
    module, flags = (commands["gate"][0], [*commands["gate"][1], *LINEAR]) if name == "linear gate" else commands[name]
    size = flags[flags.index("--batch-size") + 1]
    run(monkeypatch, module, *flags, "--batch-size", 2 * size, "--out", tmp_path / "one")
    assert_same(tmp_path / "one", two / name, rtol=1e-4, left_out=("importance_loss", "load_loss", "z_loss"))


def test_a_killed_process_ends_all_and_the_run_goes_on_bit_equal(two, tiny_base, tiny_data, tmp_path):
    """With dropout, which each process draws for itself; then a loss that is not finite in one process, which all stop for."""
    flags = expert(tiny_base, tiny_data, "--out", tmp_path / "out")
    killed = launch(("train.expert", flags, {"rank": 1, "step": CUT, "how": "kill"}))
    assert killed.returncode == 1
    assert "Signal 9 (SIGKILL) received" in killed.stderr and "rank      : 1" in killed.stderr
    assert not (tmp_path / "out").exists()

    poisoned = expert(tiny_base, tiny_data, "--out", tmp_path / "poisoned", "--eval-every", STEPS)
    done = launch(("train.expert", [*flags, "--resume"], None), ("train.expert", poisoned, {"rank": 1, "step": 1, "how": "nan"}))
    if "don't know how to restore data location" in done.stderr:
        pytest.skip("this version of transformers resumes several processes on CPUs by asking torch for the place cpu:0")
    for name, tensor in weights(two / "dropout").items():
        assert torch.equal(weights(tmp_path / "out")[name], tensor), name
    assert log(tmp_path / "out") == log(two / "dropout")
    assert done.returncode == 1 and done.stderr.count("the loss is nan at step 2; the step was not applied") == 1
    assert "exitcode  : 2" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_mistake_is_said_once(tiny_base, tiny_data, tmp_path):
    done = launch(("train.expert", [*expert(tiny_base, tiny_data, "--out", tmp_path / "out"), "--batch-size", 0], None))
    assert done.returncode == 1 and "exitcode  : 2" in done.stderr
    assert done.stderr.count("python -m train.expert: --batch-size must be at least 1, not 0") == 1
    assert not list(tmp_path.iterdir())


def test_a_mistake_that_the_first_process_does_not_make_is_said_after_a_while(monkeypatch, capsys):
    """Also one in the flags, which argparse finds."""
    waited = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(cli.time, "sleep", lambda seconds: waited.append((seconds, capsys.readouterr().err)))
    parser = cli.make_parser("train.test", "")
    with pytest.raises(SystemExit, match="2"):
        cli.run_command(print, parser, ["--no-such-flag"])
    assert waited == [(cli.GRACE, "")] and "--no-such-flag" in capsys.readouterr().err


@pytest.mark.parametrize(("rows", "size", "processes"), [(12, 3, 2), (13, 3, 2), (10, 3, 2), (1, 4, 3), (25, 4, 3)])
def test_every_row_is_in_one_batch_and_all_processes_have_equally_many(rows, size, processes):
    """The batches of the processes, dealt out in turn, are those of one process."""
    one = list(ProcessBatches(range(rows), size, 0, 1, blank=-1))
    dealt = [list(ProcessBatches(range(rows), size, process, processes, blank=-1)) for process in range(processes)]
    assert {len(of_one) for of_one in dealt} == {len(ProcessBatches(range(rows), size, 0, processes, blank=-1))}
    in_turn = [batch for turn in zip(*dealt, strict=True) for batch in turn]
    assert in_turn[: len(one)] == one and all(batch == [-1] for batch in in_turn[len(one) :])
    assert sorted(row for batch in one for row in batch) == list(range(rows))
