"""`python -m train.align`: what learns in an expert, a mixture and a merge, against which reference, and that runs resume."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from model import MoEConfig, MoEForCausalLM
from model.adapters import BASE_FACT, Adapter, base_fingerprint
from model.checkpoint import Checkpoint
from model.load import load_model
from train import align, policy, trainer
from train.data.preferences import divide, encode_preferences, load_preferences
from train.expert import load_base
from train.preference import collate_preferences, log_probs

KINDS = ("adapter", "mixture", "merge")
WEIGHTS = {"adapter": "adapter_model.safetensors", "mixture": "model.safetensors", "merge": "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"prompt": f"### C++\nadd {i}\n### Code\n", "chosen": f"return a + {i};", "rejected": f"return {i} - a, a;"} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_adapter(base: Path, folder: Path) -> None:
    """An expert with dropout, as train.expert leaves it."""
    torch.manual_seed(2)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.5,
        init_lora_weights=False,
        target_modules=["gate_proj", "up_proj", "down_proj"],
        task_type="CAUSAL_LM",
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    (folder / "run.json").write_text(json.dumps({"lang": "cpp", "base": str(base), BASE_FACT: base_fingerprint(base)}))


def make_mixture(base: Path, folder: Path) -> None:
    """Four experts that share an FFN in NF4, with noise in the gate."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(1)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MoEConfig(vocab_size=len(tokenizer), num_local_experts=4, expert_layout="lora", lora_rank=4, **shape)
    mixture = MoEForCausalLM(config)
    for name, parameter in mixture.named_parameters():
        if "lora_B" in name or "noise_weight" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    mixture.save_pretrained(folder / "dense")
    MoEForCausalLM.from_pretrained(folder / "dense", quantize="nf4").save_pretrained(folder)
    shutil.rmtree(folder / "dense")
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tiny_base, tmp_path_factory) -> dict[str, Path]:
    """The inputs: a merge is a whole model like any other, here the base."""
    folder = tmp_path_factory.mktemp("models")
    make_adapter(tiny_base, folder / "adapter")
    make_mixture(tiny_base, folder / "mixture")
    return {"adapter": folder / "adapter", "mixture": folder / "mixture", "merge": tiny_base}


def run(monkeypatch, *argv: object) -> int:
    monkeypatch.setattr(sys, "argv", ["train.align", *map(str, argv)])
    return align.main()


def arguments(model: Path, pairs: Path, out: Path) -> list[object]:
    flags = ["--model", model, "--data", pairs, "--out", out, "--max-steps", 8, "--eval-every", 3, "--batch-size", 4]
    return [*flags, "--learning-rate", 5e-3, "--max-length", 64]


@pytest.fixture(scope="module")
def aligned(models, pairs, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("aligned")
    for kind in KINDS:
        with pytest.MonkeyPatch.context() as patch:
            assert run(patch, *arguments(models[kind], pairs, folder / kind)) == 0
    return {kind: folder / kind for kind in KINDS}


def weights(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS[kind])


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("kind", "cut"), [("adapter", 2), *((kind, 5) for kind in KINDS)])
def test_an_interrupted_run_ends_bit_equal(models, pairs, aligned, tmp_path, monkeypatch, kind, cut):
    """Cut before the first checkpoint, at step 3, nothing is left to resume; cut after it, the run goes on with the reference it had."""

    class Killed(Exception):
        pass

    def kill(self, args, state, control, **kwargs):
        if state.global_step == cut:
            raise Killed

    flags = arguments(models[kind], pairs, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.ProgressBar, "on_step_end", kill)
        with pytest.raises(Killed):
            run(patch, *flags)
    assert not (tmp_path / "out").exists()
    assert run(monkeypatch, *flags, *(["--resume", "--gpu", "cpu"] if cut > 3 else [])) == 0
    expected, resumed = weights(aligned[kind], kind), weights(tmp_path / "out", kind)
    assert expected.keys() == resumed.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_starts_as_the_reference_and_learns_the_preference(aligned, kind):
    """Dropout and the gate's noise are off: the first step's margin is 0 up to rounding."""
    entries = log(aligned[kind])
    first = next(entry for entry in entries if "rewards/margins" in entry)
    assert first["step"] == 1 and abs(first["rewards/margins"]) < 1e-3
    record = json.loads((aligned[kind] / "run.json").read_text())["figures"]
    assert record["before"]["rewards/margins"] == 0 and record["before"]["rewards/accuracies"] == 0
    assert record["after"]["rewards/margins"] > 0.05 and record["after"]["rewards/accuracies"] == 1
    best = min((entry for entry in entries if "eval_loss" in entry), key=lambda entry: entry["eval_loss"])
    for name, value in record["after"].items():
        assert best[f"eval_{name}"] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    assert list((aligned[kind] / "tensorboard").iterdir())


@pytest.mark.parametrize("kind", [policy.MIXTURE, policy.WHOLE])
def test_all_dropout_of_a_policy_is_off(models, tmp_path, kind):
    """That of attention and the jitter of a mixture's inputs are not modules; without `deterministic` both are seen."""
    model_dir = tmp_path / "model"
    shutil.copytree(models["mixture" if kind == policy.MIXTURE else "merge"], model_dir)
    config = json.loads((model_dir / "config.json").read_text())
    jitter = {"router_jitter_noise": 0.5} if kind == policy.MIXTURE else {}
    (model_dir / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5} | jitter))
    flags = argparse.Namespace(train="lora", checkpointing="off", target="ffn", rank=2, alpha=0)
    model, _, _ = policy.load_policy(model_dir, kind, flags)
    model.train()

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model(torch.arange(32)[None]).logits

    assert not torch.equal(logits(), logits())
    with policy.deterministic(model):
        assert torch.equal(logits(), logits())


def validation(pairs: Path, folder: Path) -> dict[str, torch.Tensor]:
    rows, _ = encode_preferences(divide(load_preferences([pairs], 4, 0)[0], 0.1)[1], AutoTokenizer.from_pretrained(folder), 64)
    return collate_preferences(rows, pad_token_id=2)


def test_an_expert_is_measured_against_itself_and_stays_an_expert(models, pairs, aligned, tiny_base):
    """The reference is the expert before, which is not what its base says: peft computes both."""
    model, _ = load_base(str(tiny_base), checkpointing=False)
    expert = PeftModel.from_pretrained(model, models["adapter"]).eval()
    batch = validation(pairs, models["merge"])
    with torch.no_grad():
        of_expert = log_probs(expert, batch).view(2, -1).mean(1)
        with expert.disable_adapter():
            of_base = log_probs(expert, batch).view(2, -1).mean(1)
    record = json.loads((aligned["adapter"] / "run.json").read_text())
    before = torch.tensor([record["figures"]["before"][f"logps/{side}"] for side in ("chosen", "rejected")])
    assert torch.allclose(before, of_expert, rtol=1e-4) and not torch.allclose(before, of_base, rtol=1e-2)
    given, came_out = (json.loads((folder / "adapter_config.json").read_text()) for folder in (models["adapter"], aligned["adapter"]))
    given["target_modules"], came_out["target_modules"] = sorted(given["target_modules"]), sorted(came_out["target_modules"])
    assert given == came_out
    assert weights(models["adapter"], "adapter").keys() == weights(aligned["adapter"], "adapter").keys()
    adapter = Adapter(aligned["adapter"])
    adapter.check_base(tiny_base, Checkpoint(tiny_base))
    assert adapter.name == "cpp"


def test_a_merge_gets_an_adapter_whose_reference_is_the_merge(pairs, aligned, tiny_base):
    """peft's `disable_adapter` on the result gives the reference, and the loader finds the base by itself."""
    model, _ = load_base(str(tiny_base), checkpointing=False)
    aligned_model = PeftModel.from_pretrained(model, aligned["merge"]).eval()
    batch = validation(pairs, tiny_base)
    figures = json.loads((aligned["merge"] / "run.json").read_text())["figures"]
    with torch.no_grad():
        after = log_probs(aligned_model, batch).view(2, -1).mean(1)
        with aligned_model.disable_adapter():
            before = log_probs(aligned_model, batch).view(2, -1).mean(1)
    for name, found in (("before", before), ("after", after)):
        expected = torch.tensor([figures[name][f"logps/{side}"] for side in ("chosen", "rejected")])
        assert torch.allclose(found, expected, rtol=1e-4), name
    load_model(aligned["merge"])


@pytest.mark.parametrize(("train", "parts"), [("lora", ("lora_",)), ("gate", (".gate.weight",)), ("gate+lora", ("lora_", ".gate.weight"))])
def test_in_a_mixture_what_is_named_learns_and_nothing_else(models, pairs, aligned, tmp_path, monkeypatch, train, parts):
    out = aligned["mixture"]
    if train != "lora":
        out = tmp_path / "out"
        assert run(monkeypatch, *arguments(models["mixture"], pairs, out), "--train", train) == 0
    before, after = weights(models["mixture"], "mixture"), weights(out, "mixture")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert changed == {name for name in before if any(part in name for part in parts)}
    assert json.loads((out / "config.json").read_text())["router_type"] == "noisy_topk"
    assert isinstance(load_model(out)[0], MoEForCausalLM)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_counts_what_learns_and_writes_nothing(models, pairs, tmp_path, monkeypatch, kind):
    """A pair is two sequences; `test_plan.py` has the rest of the bytes."""
    plans = []
    monkeypatch.setattr(align, "show_plan", plans.append)
    assert run(monkeypatch, *arguments(models[kind], pairs, tmp_path / "out"), "--plan", "--gpu", "a10g") == 0
    rank = {"adapter": 4, "merge": 16}
    factors = sum(tensor.numel() for name, tensor in weights(models[kind], kind).items() if "lora_" in name) if kind not in rank else 0
    assert plans[0].budget.parts["trained parameters"] == 4 * (factors or 2 * 3 * rank[kind] * (64 + 128))  # layers, matrices, rank, D + F
    assert plans[0].batch[0] == 8 and plans[0].rows.count == 18 and plans[0].run_seconds > plans[0].steps * plans[0].step_seconds
    assert not list(tmp_path.iterdir())


def test_a_changed_input_is_not_resumed(models, pairs, tmp_path, monkeypatch, capsys):
    model = tmp_path / "expert"
    shutil.copytree(models["adapter"], model)
    flags = arguments(model, pairs, tmp_path / "out")

    def kill(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.ProgressBar, "on_step_end", kill)
        assert run(patch, *flags) == 130
    altered = {name: tensor + 1 for name, tensor in weights(model, "adapter").items()}
    save_file(altered, model / WEIGHTS["adapter"])
    assert run(monkeypatch, *flags, "--resume") == 2
    assert "model_fingerprint differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("adapter", {"--data": "nowhere.jsonl"}, "there is no file nowhere.jsonl"),
        ("adapter", {"--model": "nowhere"}, "nowhere"),
        ("adapter", {"--beta": 0}, "--beta must be above 0, not 0"),
        ("adapter", {"--valid-share": 1}, "--valid-share is a share of the tasks"),
        ("adapter", {"--label-smoothing": 0.5}, "in [0, 0.5), not 0.5"),
        ("adapter", {"--label-smoothing": 0.1, "--loss": "ipo"}, "--label-smoothing belongs to --loss sigmoid"),
        ("adapter", {"--rank": 8}, "--rank says nothing about"),
        ("merge", {"--train": "gate"}, "which is a whole model"),
        ("merge", {"--rank": 0}, "--rank must be at least 1"),
        ("adapter", {"--max-length": 5}, "none of the 18 train pairs fits --max-length 5"),
        ("adapter", {"--resume": None}, "nothing to resume"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(models, pairs, tmp_path, monkeypatch, capsys, kind, change, said):
    flags = dict(zip(*[iter(arguments(models[kind], pairs, tmp_path / "out"))] * 2, strict=True)) | change
    assert run(monkeypatch, *(part for pair in flags.items() for part in pair if part is not None)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("python -m train.align: ") and said in error
    assert not list(tmp_path.iterdir())


def test_columns_that_are_missing_are_named_with_those_that_are_there(models, tmp_path, monkeypatch, capsys):
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"prompt": "a", "accepted": "b", "rejected": "c"}) + "\n")
    assert run(monkeypatch, *arguments(models["adapter"], data, tmp_path / "out")) == 2
    assert "has the columns accepted, prompt, rejected; prompt, chosen, rejected are needed" in capsys.readouterr().err
