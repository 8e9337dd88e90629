"""The plan of a training run against what a run takes: bytes of its tensors, and the peak of a process of its own."""

import json
import math
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, MistralConfig, MistralForCausalLM, TrainingArguments

import train.plan
from model import MoEConfig, MoEForCausalLM
from model.budget import room_of
from model.languages import LANGUAGES
from moe_kernels import backend
from moe_kernels.cards import CARDS
from moe_kernels.nf4_format import nf4_bytes
from train import gate, lora
from train.data.prompts import collate_packed
from train.plan import plan_training
from train.plan_data import XLCOST_ROWS, Rows, batch_shapes, plan_rows, rows_of
from train.plan_models import whole
from train.preference import PreferenceLoss, planned_preference_loss
from train.settings import add_training_flags
from train.trained_parts import TRAINED, planned_mixture

SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8192}
MISTRAL_7B = MistralConfig(num_hidden_layers=32, vocab_size=32000)
MEASURE = Path(__file__).with_name("measure_peak.py")


def flags(*argv: object, gpu: str = "cpu", **others: object) -> Namespace:
    parser = ArgumentParser()
    add_training_flags(parser, learning_rate=1e-4, batch_size=4, epochs=1, max_length=1024)
    lora.add_lora_flags(parser)
    args = parser.parse_args(list(map(str, argv)))
    vars(args).update({"seed": 0, "base": "base", "train": "gate", "gpu": gpu, **others})
    return args


def plan_expert(config, args, rows=None, packing=False):
    make = partial(lora.planned_expert, factors=lora.lora_config(args))
    return plan_training(config, args, make, rows, step=partial(lora.planned_expert_loss, packing=packing))


def plan_gate(config, args, rows=None):
    return plan_training(config, args, partial(planned_mixture, parts=TRAINED[args.train]), rows)


def test_weights_trained_parameters_and_optimizer_of_mistral_7b():
    """By hand: 6.98e9 linear weights in NF4, two tables in fp32, 3 R (D + F) factors a layer, two fp32 moments of each."""
    parts = plan_expert(MISTRAL_7B, flags(gpu="a10g")).budget.parts
    assert parts["quantised weights"] == 32 * (2 * nf4_bytes(4096**2) + 2 * nf4_bytes(4096 * 1024) + 3 * nf4_bytes(4096 * 14336))
    assert parts["other weights"] == pytest.approx(4 * (2 * 32000 * 4096 + 65 * 4096), abs=4096)  # and rotary frequencies
    trained = 32 * 3 * 16 * (4096 + 14336)
    assert (parts["trained parameters"], parts["optimizer"]) == (4 * trained, 8 * trained)
    assert plan_expert(MISTRAL_7B, flags(gpu="a10g", target="all")).budget.parts["optimizer"] == 8 * (trained + 32 * 4 * 16 * 4096)


def test_two_traced_depths_say_what_all_layers_take():
    config = MistralConfig(**SHAPE, num_hidden_layers=7)
    deep = plan_expert(config, flags("--batch-size", 2, "--max-length", 64)).budget.parts
    four, three = (plan_expert(MistralConfig(**SHAPE, num_hidden_layers=n), flags("--batch-size", 2, "--max-length", 64)) for n in (4, 3))
    for part in deep:
        step = four.budget.parts[part] - three.budget.parts[part]
        assert deep[part] == pytest.approx(four.budget.parts[part] + 3 * step, abs=1)


def test_checkpointing_accumulation_and_length_change_what_they_should():
    config = MistralConfig(**SHAPE, num_hidden_layers=4)
    off = plan_expert(config, flags("--checkpointing", "off")).budget.parts
    on = plan_expert(config, flags("--checkpointing", "on")).budget.parts
    assert on["activations"] < 0.5 * off["activations"] and on["optimizer"] == off["optimizer"]
    assert plan_expert(config, flags("--accumulation", 4)).budget.parts["gradients"] == off["trained parameters"] > off["gradients"]
    half, eighth = (plan_expert(config, flags("--max-length", length)).budget.parts["logits and loss"] for length in (512, 128))
    assert half == off["logits and loss"] == 4 * eighth  # no more than a chunk at a time


def test_time_grows_with_the_rows_and_falls_with_the_card():
    rows, config = Rows(1000, 400, 1024, ""), MistralConfig(num_hidden_layers=2, vocab_size=8192)
    t4, h100 = (plan_expert(config, flags(gpu=gpu), rows).step_seconds for gpu in ("t4", "h100"))
    plan = plan_expert(config, flags(gpu="a10g"), rows)
    assert t4 > plan.step_seconds > h100
    flops = 3 * 2 * 4 * 400 * 2 * 218e6  # forward, recomputed forward and dX of two layers; the factors' gradients are small
    assert flops / CARDS["a10g"].gemm < plan.step_seconds < 3 * flops / CARDS["a10g"].gemm
    assert plan.steps == 250 and plan.run_seconds > 250 * plan.step_seconds


def test_rows_are_counted_or_known(tiny_data):
    args = flags(gpu="a10g", data=str(tiny_data), level="program")
    counted = plan_rows(args, LANGUAGES, None)
    assert counted.count == 4 * 40 and counted.mean <= counted.longest < 100
    known = plan_rows(flags(gpu="a10g", data="xlcost", level="program"), ["cpp"], None)
    assert known.count == XLCOST_ROWS["program"]["cpp"] and "download" in known.note
    assert plan_rows(flags("--limit", 7, gpu="a10g", data="auto", level="snippet"), LANGUAGES, None).count == 28


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="there are no train rows to plan with: of a file"):
        rows_of([], "of a file")


def test_packed_batches_are_those_of_the_run(tmp_path):
    """The greatest of an epoch's, as the trainer's own loader makes them."""
    rows = [{"input_ids": [5] * length, "labels": [5] * length} for length in [*range(2, 60, 3), *range(3, 30, 2)]]
    args = flags("--batch-size", 6, "--max-length", 64, "--accumulation", 2, packing=True)
    settings = TrainingArguments(str(tmp_path), per_device_train_batch_size=6, gradient_accumulation_steps=2, seed=0, use_cpu=True)
    packed = partial(collate_packed, pad_token_id=0, max_length=64)
    options = {"neftune_alpha": 0.0, "loraplus_ratio": 1.0, "packing": True, "data_collator": packed}
    trainer = lora.ExpertTrainer(model=torch.nn.Linear(1, 1), args=settings, train_dataset=rows, **options)
    shapes = sorted((tuple(batch["input_ids"].shape) for batch in trainer.get_train_dataloader()), key=math.prod)
    assert batch_shapes(args, rows_of([len(row["input_ids"]) for row in rows], ""), 1) == (shapes[-1], shapes[len(shapes) // 2])
    args.packing = False
    assert batch_shapes(args, Rows(9, 20, 50, ""), 2) == ((12, 50), (12, 20))
    assert batch_shapes(args, Rows(5, 20, 50, ""), 2) == ((10, 50), (10, 20)), "there are no more rows than that"


@pytest.mark.parametrize("extension", [True, False])
def test_the_command_plans_a_gate(extension, monkeypatch, capsys, tiny_data, tmp_path):
    """Also where the C++ extension is not built: as what is planned has no values, no reference may look at them."""
    if not extension:
        monkeypatch.setattr(backend, "_chosen", "reference")
    for card in ("a10g", "cpu"):
        argv = ["--model", "tinyllama-1.1b-x4", "--data", str(tiny_data), "--out", str(tmp_path / "out"), "--plan", "--gpu", card]
        monkeypatch.setattr(sys, "argv", ["train.gate", *argv, "--train", "gate+lora", "--batch-size", "1"])
        assert gate.main() == 0
        printed = capsys.readouterr().out
        assert all(part in printed for part in ("quantised weights", "optimizer", "logits and loss", "a step (modelled)", "the run"))
    assert not (tmp_path / "out").exists()


LENGTH = 384
JOBS = {
    "expert": ("expert", []),
    "expert, checkpointed": ("expert", ["--checkpointing", "on"]),
    "expert, packed": ("expert", ["--packing", "--batch-size", 8]),
    "gate": ("gate", []),
    "gate and factors": ("gate", ["--train", "gate+lora"]),
    "align": ("align", ["--batch-size", 2]),
    "base": ("base", ["--batch-size", 2]),
}
JOBS_OF_TWO = {"base, short": ("base", ["--batch-size", 1, "--max-length", 16])}


def run_jobs(folder: Path, tiny_base: Path, names: list[str], launcher: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
    """Of a process that trains one after the other: freed blocks are given back at once, or the heap's holes would count as in use."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    jobs = []
    for name in names:
        kind, given = (JOBS | JOBS_OF_TWO)[name]
        model, warm_up = folder / "base", tiny_base
        if kind == "gate":
            layout = "lora" if given else "dense"
            model = make_mixture(folder / layout, tiny_base, layout)
            warm_up = make_mixture(folder / f"small {layout}", tiny_base, layout, hidden_size=64, vocab_size=512)
        jobs.append({"kind": kind, "folder": str(model), "warm_up": str(warm_up), "flags": given})
    command = [sys.executable, *launcher, str(MEASURE), json.dumps(jobs)]
    lines = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return dict(zip(names, [json.loads(line) for line in lines if line.startswith("{")], strict=False))


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_base) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_base(folder / "base", tiny_base)
    return folder


@pytest.fixture(scope="module")
def measured(models, tiny_base) -> dict[str, dict[str, float]]:
    if not Path("/proc/self/status").exists():
        pytest.skip("reads a process's memory from /proc")
    return run_jobs(models, tiny_base, [*JOBS, *JOBS_OF_TWO])


def plan_job(name: str, models: Path):
    kind, given = (JOBS | JOBS_OF_TWO)[name]
    args = flags("--batch-size", 4, "--max-length", LENGTH, *(flag for flag in given if flag not in ("--packing", "--train", "gate+lora")))
    if kind == "gate":
        args.train = "gate+lora" if given else "gate"
        return plan_gate(MoEConfig.from_pretrained(models / ("lora" if given else "dense")), args)
    config = AutoConfig.from_pretrained(models / "base")
    if kind == "base":
        return plan_training(config, args, whole)
    if kind == "align":
        make = partial(lora.planned_expert, factors=lora.factor_config(args))
        return plan_training(config, args, make, step=partial(planned_preference_loss, loss=PreferenceLoss(0.1)), sequences=2)
    args.packing = "--packing" in given
    rows = rows_of([3 * LENGTH // 8] * args.batch_size, "") if args.packing else None
    return plan_expert(config, args, rows, args.packing)


@pytest.mark.parametrize("name", JOBS)
def test_the_peak_of_a_step(measured, models, name):
    assert planned_bytes(plan_job(name, models)) == pytest.approx(measured[name]["peak"], rel=0.1)


def test_several_processes_copy_their_gradients(models, measured, tiny_base, monkeypatch):
    """What two processes take more than one, each: of a batch so small that weights, moments and gradients are nearly all."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    name = "base, short"
    more = run_jobs(models, tiny_base, [name], torchrun)[name]["peak"] - measured[name]["peak"]
    assert "DDP's buckets" not in plan_job(name, models).budget.parts
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(train.plan, "processes", lambda: Namespace(num_processes=2))
    budget = plan_job(name, models).budget
    assert budget.parts["DDP's buckets"] == pytest.approx(more, rel=0.25) and more > 0.15 * measured[name]["peak"]
    assert budget.room.bytes == room_of("cpu").bytes / 2, "they share the machine"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_the_peak_of_an_expert_on_a_card(models, measured, checkpointing):
    """PyTorch's allocator does not see the paged optimizer, nor the CUDA context."""
    name = "expert, checkpointed" if checkpointing == "on" else "expert"
    args = flags("--batch-size", 4, "--max-length", LENGTH, "--checkpointing", checkpointing, gpu="auto")
    plan = plan_expert(AutoConfig.from_pretrained(models / "base"), args)
    assert planned_bytes(plan) - plan.budget.parts["optimizer"] == pytest.approx(measured[name]["allocated"], rel=0.1)


def planned_bytes(plan) -> float:
    return plan.budget.total - plan.budget.parts["runtime"]


def make_base(folder: Path, tiny_base: Path) -> Path:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SHAPE, num_hidden_layers=4)).to(torch.bfloat16)  # fp32 would stay mapped from the file
    model.save_pretrained(folder)
    return copy_tokenizer(tiny_base, folder)


def make_mixture(folder: Path, tiny_base: Path, layout: str, **changes: int) -> Path:
    torch.manual_seed(0)
    lora = {"expert_layout": layout, "lora_rank": 16 if layout == "lora" else 0}
    config = MoEConfig(**{**SHAPE, **changes}, num_hidden_layers=4, num_local_experts=4, num_experts_per_tok=2, **lora)
    MoEForCausalLM(config).save_pretrained(folder)
    MoEForCausalLM.from_pretrained(folder, quantize="nf4").save_pretrained(folder)
    return copy_tokenizer(tiny_base, folder)


def copy_tokenizer(tiny_base: Path, folder: Path) -> Path:
    for file in tiny_base.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
