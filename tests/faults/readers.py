"""Every reader of the package with a small valid file that it takes: what `damage.py` and `mutations.py` break.

A reader returns, or raises one of `ERRORS` with the file's name in its text. What it returns is consistent: it checks that itself.
"""

import gzip
import json
import math
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

from eval.html import render
from eval.pass_rates import TASKS, read_counts
from eval.pass_rates import compare as compare_counts
from eval.report import markdown, read_routing
from eval.report_build import build, gather
from eval.runs import ARRAYS, CODEBLEU, LOG, PASS_AT_K, PROGRAMS, ROUTING, SAMPLES, read_inputs, read_training
from eval.study_file import read_study
from eval.tasks import load_tasks
from eval.token_classes import CLASSES
from model import MoEForCausalLM
from model.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_FACT, Adapter, base_fingerprint
from model.checkpoint import CONFIG, GENERATION, INDEX, WEIGHTS, Checkpoint
from model.checkpoint_writer import CheckpointWriter, save_whole
from model.cli import make_parser
from model.config_flags import with_config
from model.gate_data import find_gate_data, read_gate_data
from model.merging.config import read_merge_config
from model.output import MANIFEST, RUN, check_manifest, write_json, write_manifest
from model.recipe import read_recipe
from model.resume import resumable_folder
from model.sources import read_base_config
from model.tokenizer import read_tokenizer
from model.unfinished import FACTS
from tests.model.conftest import SHAPE, make_tokenizer
from train.data.preferences import load_preferences
from train.data.reading import read_rows
from train.lora import add_lora_flags, check_lora_flags
from train.settings import add_training_flags, check_flags

ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
SMALL = {**SHAPE, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}


@dataclass(frozen=True)
class Reader:
    """`read` reads `victim`, which lies in a folder of its own. `share`: of the mutations, in parts of the sum of all."""

    name: str
    victim: Path
    read: Callable[[], Any]
    share: int = 10

    @property
    def valid(self) -> bytes:
        return self.victim.with_name(self.victim.name + ".valid").read_bytes()


def make_readers(folder: Path) -> list[Reader]:
    """All readers, their files under `folder`; each has read its valid file once."""
    readers = [*_weights(folder), *_adapters(folder), *_yaml(folder), *_rows(folder), *_runs(folder)]
    for reader in readers:
        reader.victim.with_name(reader.victim.name + ".valid").write_bytes(reader.victim.read_bytes())
        reader.read()
    return readers


def _weights(folder: Path) -> Iterator[Reader]:
    mixture = folder / "mixture"
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1)).save_pretrained(mixture)
    nf4 = folder / "nf4"
    MoEForCausalLM.from_pretrained(mixture, quantize="nf4").save_pretrained(nf4)
    plain = folder / "plain"
    plain.mkdir()
    with CheckpointWriter(plain) as writer:
        writer.add_group({name: torch.arange(6.0).view(2, 3).to(dtype) for name, dtype in (("a", torch.float32), ("b", torch.bfloat16))})
    sharded = folder / "sharded"
    sharded.mkdir()
    with CheckpointWriter(sharded, shard_bytes=20) as writer:
        for name in "abc":
            writer.add(name, torch.arange(6.0))
    base = folder / "base"
    MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)).save_pretrained(base)
    manifest = folder / "manifest"
    manifest.mkdir()
    (manifest / "a.txt").write_text("a")
    write_manifest(manifest)

    def tensors(path: Path) -> None:
        checkpoint = Checkpoint(path)
        for name in checkpoint:
            tensor = checkpoint.tensor(name)
            assert tuple(tensor.shape) == checkpoint.shape(name)
        assert sum(checkpoint.tensor(name).nbytes for name in checkpoint) <= sum(file.stat().st_size for file in path.iterdir())

    def load(path: Path) -> None:
        model = MoEForCausalLM.from_pretrained(path)
        config, embedding = model.config, model.model.embed_tokens.weight
        assert tuple(embedding.shape) == (config.vocab_size, config.hidden_size)
        assert len(model.model.layers) == config.num_hidden_layers and 1 <= config.num_experts_per_tok <= config.num_local_experts
        for layer in model.model.layers:
            assert layer.mlp.experts.matrix("down_proj").shape == (config.num_local_experts, config.hidden_size, config.intermediate_size)
        assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())

    yield Reader("weights", plain / WEIGHTS, lambda: tensors(plain), 30)
    yield Reader("index", sharded / INDEX, lambda: tensors(sharded), 20)
    yield Reader("mixture's config", _copy(mixture, "config") / CONFIG, lambda: load(folder / "mixture-config"), 6)
    yield Reader("generation config", _copy(mixture, "generation") / GENERATION, lambda: load(folder / "mixture-generation"), 5)
    yield Reader("mixture's weights", mixture / WEIGHTS, lambda: load(mixture), 5)
    yield Reader("NF4 weights", nf4 / WEIGHTS, lambda: load(nf4), 5)
    yield Reader("base's config", base / CONFIG, lambda: read_base_config(base), 10)
    yield Reader("manifest", manifest / MANIFEST, lambda: check_manifest(manifest))


def _copy(folder: Path, name: str) -> Path:
    return Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-{name}")))


def _adapters(folder: Path) -> Iterator[Reader]:
    base = folder / "base"
    model = get_peft_model(MistralForCausalLM.from_pretrained(base), LoraConfig(r=2, lora_alpha=4, target_modules=["up_proj", "down_proj"]))
    model.save_pretrained(str(folder / "adapter"))
    write_json(folder / "adapter" / RUN, {"lang": "cpp", BASE_FACT: base_fingerprint(base)})

    def read(path: Path) -> None:
        adapter, weights = Adapter(path), Checkpoint(base)
        adapter.check_base(base, weights)
        adapter.check_layers_only()
        for module in adapter.modules:
            assert math.isfinite(adapter.scaling(module))
            assert adapter.delta(module).shape == weights.shape(f"{module}.weight") and bool(adapter.delta(module).isfinite().all())
        assert adapter.name and adapter.rank(("up_proj", "down_proj")) > 0

    for name, file in (("adapter's config", ADAPTER_CONFIG), ("adapter's weights", ADAPTER_WEIGHTS), ("adapter's run.json", RUN)):
        place = folder / f"adapter-{file}"
        shutil.copytree(folder / "adapter", place)
        yield Reader(name, place / file, partial(read, place))
    tokenizer = folder / "tokenizer"
    make_tokenizer().save_pretrained(tokenizer)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        place = _copy(tokenizer, file)
        yield Reader(file, place / file, partial(_read_tokenizer, place), 5)


def _read_tokenizer(folder: Path) -> None:
    tokenizer = read_tokenizer(folder)
    ids = tokenizer("a b")["input_ids"]
    assert all(isinstance(token, int) and token >= 0 for token in ids)


def _yaml(folder: Path) -> Iterator[Reader]:
    examples = Path(__file__).parents[2] / "examples"
    parser = make_parser("test", "")
    add_training_flags(parser, learning_rate=1e-4, batch_size=8, epochs=1, max_length=64)
    add_lora_flags(parser)

    def train(file: Path) -> None:
        try:
            with redirect_stderr(StringIO()) as printed:
                args = parser.parse_args(with_config(parser, ["--config", str(file)]))
            check_flags(args)
            check_lora_flags(args)
        except (SystemExit, ValueError) as error:  # of a value that a flag does not take: the flag is named, wherever it came from
            message = printed.getvalue() or str(error)
            raise ValueError(message if "--" not in message else f"{file}: {message}") from error
        assert args.batch_size >= 1 and args.rank >= 1

    def compose(file: Path) -> None:
        recipe = read_recipe(file)
        assert 1 <= recipe.experts_per_token <= len(recipe.experts) and all(isinstance(e.source_model, str) for e in recipe.experts)

    def merge(file: Path) -> None:
        config = read_merge_config(file)
        assert config.models and all(isinstance(model, str) for model in config.models)

    def study(file: Path) -> None:
        read = read_study(file)
        assert read.limit >= 1 and read.baseline in [system.name for system in read.systems]

    files = folder / "yaml"
    files.mkdir()
    flags = {"epochs": 2, "learning-rate": 1e-3, "batch_size": 4, "target": "ffn", "rslora": True, "checkpointing": "on", "rank": 8}
    (files / "train.yml").write_text(yaml.safe_dump(flags))
    for name, read in (("four_languages.yml", compose), ("merge_ties.yml", merge), ("merge_slerp.yml", merge), ("study.yml", study)):
        shutil.copy(examples / name, files)
        yield Reader(f"{read.__name__}'s YAML, {name}", files / name, partial(read, files / name))
    yield Reader("train's YAML", files / "train.yml", lambda: train(files / "train.yml"))


def _rows(folder: Path) -> Iterator[Reader]:
    files = folder / "rows"
    files.mkdir()
    rows = [{"text": f"add {n} to é", "code": f"int f{n}(int a) {{ return a + {n}; }}", "lang": "cpp", "id": f"r{n}"} for n in range(6)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (files / "rows.jsonl").write_bytes(lines)
    (files / "rows.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (files / "rows.json").write_text(json.dumps(rows, indent=1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), files / "rows.parquet")
    (files / "gate.jsonl").write_text("".join(json.dumps({"lang": "cpp", "text": row["code"]}) + "\n" for row in rows))
    pairs = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(4)]
    (files / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    judged = [
        {"task_id": f"t{n % 2}", "prompt": "p", "completion": f"c{n}", "outcome": "passed" if n < 2 else "failed", "lang": "cpp"}
        for n in range(4)
    ]
    (files / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    task = {
        "prompt": "int f(int a) {\n",
        "canonical_solution": "return a; }\n",
        "declaration": "int f(int a) {\n",
        "test": "int main() {}\n",
    }
    (files / "tasks.jsonl").write_text("".join(json.dumps({"task_id": f"CPP/{n}", **task}) + "\n" for n in range(3)))

    def read(file: Path) -> None:
        found, bad = read_rows(file)
        assert bad >= 0 and found and all(isinstance(row[key], str) and row[key].strip() for row in found for key in ("text", "code"))

    def gate() -> None:
        for own in read_gate_data(find_gate_data("gate.jsonl", files), ["cpp"], 4):
            assert own.fitted and own.held and all(isinstance(text, str) for text in own.fitted)

    def preferences(file: Path) -> None:
        found, _ = load_preferences([file], 4, 0)
        assert found and all(isinstance(part, str) for pair in found for part in (pair.prompt, pair.chosen, pair.rejected))

    def tasks() -> None:
        with redirect_stdout(StringIO()):
            found = load_tasks(str(files / "tasks.jsonl"), "cpp")
        assert found and all(isinstance(text, str) for task in found for text in (task.task_id, task.prompt, task.tests, task.program("")))

    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.parquet"):
        yield Reader(name, files / name, partial(read, files / name), 20)
    yield Reader("gate's rows", files / "gate.jsonl", gate)
    yield Reader("preferences", files / "pairs.jsonl", lambda: preferences(files / "pairs.jsonl"))
    yield Reader("judged samples", files / "samples.jsonl", lambda: preferences(files / "samples.jsonl"))
    yield Reader("tasks", files / "tasks.jsonl", tasks)


def _runs(folder: Path) -> Iterator[Reader]:
    runs = folder / "runs"
    scored, routing, passed, training = (runs / name for name in ("scored", "routing", "passed", "training"))
    for run in (scored, routing, passed, training):
        run.mkdir(parents=True)
    write_json(scored / RUN, SCORED)
    (scored / SAMPLES).write_text("".join(json.dumps({**SAMPLE, "id": f"p{n}", "codebleu": n / 4}) + "\n" for n in range(4)))
    write_json(routing / RUN, {"program": ROUTING, "figures": {"cpp": {"own_top1": 0.8}}})
    by_class = [[[0.5, 0.5] for _ in CLASSES]]
    row = {"n": 4, "tokens": 9, "top1": [[0.7, 0.3]], "topk": [[1.0, 1.0]], "own_top1": [0.7], "own_topk": [1.0], "entropy_bits": [0.5]}
    languages = {"cpp": {**row, "by_class": by_class, "nmi_class": [0.1]}}
    write_json(routing / ARRAYS, {"experts": ["cpp", "java"], "classes": CLASSES, "languages": languages, "nmi_language": [0.2]})
    program = {
        "lang": "cpp",
        "id": "p",
        "kind": "family",
        "text": "do it",
        "pieces": ["int", " a;"],
        "choices": [[[0, 60, 1, 40]], [[0, 9, 1, 1]]],
    }
    write_json(routing / PROGRAMS, {"model": "m", "experts": ["cpp", "java"], "max_new_tokens": 9, "programs": [program]})
    write_json(passed / RUN, PASSED)
    (passed / SAMPLES).write_text('{"task_id": "t0", "n": 2, "passed": 1}\n{"task_id": "t1", "n": 2, "passed": 0}\n')
    (passed / TASKS).write_text('{"task_id": "t0", "n": 2, "passed": 1}\n{"task_id": "t1", "n": 2, "passed": 0}\n')
    (training / LOG).write_text('{"step": 10, "loss": 2.5, "seconds": 4}\n{"step": 20, "loss": 1.5}\n{"step": 20, "eval_loss": 1.75}\n')
    write_json(training / RUN, {"figures": {"peak_bytes": 5, "device": "cpu"}})
    facts = folder / ".facts.unfinished"
    (facts / "output").mkdir(parents=True)
    write_json(facts / FACTS, {"recipe": "0" * 8, "--seed": "0"})
    save_whole(facts / "gates.safetensors", {"mlp": torch.zeros(1)})

    def report(of_training: bool = False) -> None:
        inputs = read_inputs([scored, routing, passed])
        logs = [(training, *read_training(training))]
        made = build(inputs, logs, gather(inputs, logs), "title", 0)
        assert "title" in markdown(made, {}, {})
        assert render(made, {}, {}, read_routing(inputs.routing, PROGRAMS))

    def counts() -> None:
        found = read_counts(passed, [Namespace(task_id=name) for name in ("t0", "t1")], PASSED)
        compare_counts(found, [{"task_id": "t0", "n": 2, "passed": 2}], [1], "0")

    def resume() -> None:
        with redirect_stderr(StringIO()), suppress(_Stop), resumable_folder(folder / "facts", {"recipe": "0" * 8, "--seed": "0"}):
            raise _Stop

    yield Reader("run.json of eval.codebleu", scored / RUN, report, 5)
    yield Reader("samples of eval.codebleu", scored / SAMPLES, report, 5)
    yield Reader("run.json of eval.pass_at_k", passed / RUN, report, 5)
    yield Reader("counts of eval.pass_at_k", passed / TASKS, counts, 5)
    yield Reader("arrays of eval.routing", routing / ARRAYS, report, 5)
    yield Reader("programs of eval.routing", routing / PROGRAMS, report, 5)
    yield Reader("log of training", training / LOG, report, 5)
    yield Reader("facts of unfinished work", facts / FACTS, resume, 5)


class _Stop(Exception):
    """Leaves the unfinished work as it is."""


_FIGURES = {
    **{"n": 4, "empty": 0, "codebleu": 0.4, "codebleu_corpus": 0.4, "codebleu_library": 0.5},
    "parts": {"ngram": 0.4, "weighted_ngram": 0.4, "syntax": 0.4, "dataflow": None},
    "metrics": {"chrf": {"value": 0.4, "low": 0.3, "high": 0.5, "n": 4}},
}
SAMPLE = {"lang": "cpp", "kind": "family", "group": "g", "text": "t", "reference": "r", "prediction": "p"}
SCORED = {
    **{"program": CODEBLEU, "name": "base", "role": "base", "model": "m", "max_new_tokens": 9, "prompt_template": "t", "dtype": "float32"},
    **{"quantization": None, "seed": 0, "figures": {"cpp": {"family": _FIGURES}}},
    "cost": {"device": "cpu", "parameters": 9, "peak_bytes": 9, "generation_seconds": 2.0, "tokens_per_second": 4.0, "batch_size": 4},
}
PASSED = {
    **{"program": PASS_AT_K, "name": "m", "model": "m", "tasks": "sets/t.jsonl", "lang": "cpp", "n": 2, "temperature": 0.8, "top_p": 0.95},
    **{
        "max_new_tokens": 9,
        "template": True,
        "timeout": 10.0,
        "memory": 512,
        "limit": None,
        "adapter": None,
        "sandbox": {"isolated": True},
    },
    "cost": {**SCORED["cost"], "dtype": "bfloat16", "quantization": None},
    "judging": {"programs": 4, "seconds": 2.5, "jobs": 2},
    "figures": {
        **{"tasks": 2, "samples": 4, "outcomes": {"passed": 1, "failed": 3, "tool missing": 0, "sandbox error": 0}},
        "pass_at_k": {"1": {"value": 0.25, "low": 0.0, "high": 0.5, "tasks": 2}},
    },
}
