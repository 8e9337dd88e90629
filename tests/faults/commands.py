"""Commands that write, on inputs so small that a run takes a second: a base of 32 channels, two experts, a mixture, preferences."""

import importlib
import json
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

from model import MoEConfig, MoEForCausalLM
from model.adapters import BASE_FACT, base_fingerprint
from model.cli import run_command
from model.languages import LANGUAGES
from train.documents import train_tokenizer

PROGRAMS = {
    "python": "def f{i}(a):\n    return a + {i}\n",
    "java": "class Solution {{\n    static int f{i}(int a) {{\n        return a + {i};\n    }}\n}}\n",
    "javascript": "function f{i}(a) {{\n    return a + {i};\n}}\n",
    "cpp": "int f{i}(int a) {{\n    return a + {i};\n}}\n",
}
SPLITS = {"train": range(12), "valid": range(12, 16), "test": range(16, 18)}
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
TRAINING = ["--max-steps", 4, "--eval-every", 1, "--batch-size", 2, "--eval-limit", 2, "--max-length", 96]


@dataclass(frozen=True)
class Command:
    """A command's program, the flags that name its inputs in a folder, and how the output is named."""

    program: str
    flags: Callable[[Path], list[Any]]
    out: tuple[str, ...] = ("--out",)
    status: Callable[[Any], int] = operator.methodcaller("main")

    def run(self, inputs: Path, out: Path, *more: str) -> int:
        """The exit status of the command in this process."""
        sys.argv = [self.program, *map(str, [*self.flags(inputs), *self.out, out]), *more]
        return self.status(importlib.import_module(self.program))


def _evaluate(module: Any) -> int:
    return run_command(module.main, module.parse())


COMMANDS = {
    "train.expert": Command(
        "train.expert",
        lambda at: ["--lang", "cpp", "--base", at / "base", "--data", at / "data", "--rank", 4, *TRAINING, "--batch-size", 3],
    ),
    "train.gate": Command("train.gate", lambda at: ["--model", at / "mixture", "--data", at / "data", "--share", 0.2, *TRAINING]),
    "train.align": Command("train.align", lambda at: ["--model", at / "cpp", "--data", at / "pairs.jsonl", *TRAINING]),
    "model.compose": Command("model.compose", lambda at: [at / "recipe.yml", "--layout", "dense", "--quantize", "nf4"], out=()),
    "model.merge": Command("model.merge", lambda at: [at / "merge.yml"], out=()),
    "model.edit": Command("model.edit", lambda at: [at / "mixture", "--remove", "java"], out=()),
    "model.export": Command("model.export", lambda at: ["--model", at / "mixture"]),
    "eval.codebleu": Command(
        "eval.codebleu",
        lambda at: ["--model", at / "base", "--data", at / "data", "--lang", "cpp", "--max-new-tokens", 4],
        status=_evaluate,
    ),
    "eval.pass_at_k": Command(
        "eval.pass_at_k",
        lambda at: ["--model", at / "base", "--tasks", "corpus", "--lang", "python", "--limit", 2, "--max-new-tokens", 4],
        status=operator.methodcaller("run"),
    ),
    "eval.routing": Command(
        "eval.routing",
        lambda at: ["--model", at / "mixture", "--data", at / "data", "--limit", 2, "--view", 1, "--max-new-tokens", 4],
        status=_evaluate,
    ),
    "eval.report": Command("eval.report", lambda at: [at / "scored", "--training", at / "trained"], status=_evaluate),
}


def make_inputs(folder: Path) -> None:
    """Writes what the commands read."""
    _write_data(folder / "data")
    tokenizer = train_tokenizer([program.format(i=7) for program in PROGRAMS.values()])
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    shape = {**SHAPE, **ids, "vocab_size": len(tokenizer), "tie_word_embeddings": False}
    MistralForCausalLM(MistralConfig(**shape, sliding_window=None)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for lang in ("python", "cpp"):
        _write_expert(folder / "base", folder / lang)
    MoEForCausalLM(MoEConfig(**shape, num_local_experts=4, expert_names=list(LANGUAGES))).save_pretrained(folder / "mixture")
    AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / "mixture")
    pairs = [{"prompt": f"### C++\nadd {i}\n### Code\n", "chosen": f"return a + {i};", "rejected": f"return {i};"} for i in range(16)]
    _write_rows(folder / "pairs.jsonl", pairs)
    experts = [{"source_model": str(folder / lang), "positive_prompts": [f"write {lang}"]} for lang in ("python", "cpp")]
    _write_yaml(folder / "recipe.yml", {"base_model": str(folder / "base"), "gate_mode": "hidden", "experts": experts})
    models = [{"model": str(folder / lang), "parameters": {"weight": 0.5, "density": 0.5}} for lang in ("python", "cpp")]
    _write_yaml(folder / "merge.yml", {"merge_method": "dare_ties", "base_model": str(folder / "base"), "models": models})
    for name, out in (("eval.codebleu", "scored"), ("train.expert", "trained")):
        assert COMMANDS[name].run(folder, folder / out) == 0, f"{name} failed"


def _write_data(folder: Path) -> None:
    folder.mkdir(parents=True)
    for lang in LANGUAGES:
        for split, numbers in SPLITS.items():
            rows = [{"text": f"add the number {i} to a", "code": PROGRAMS[lang].format(i=i), "family": f"add{i}"} for i in numbers]
            _write_rows(folder / f"{lang}.{split}.jsonl", rows)


def _write_expert(base: Path, folder: Path) -> None:
    """With dropout, whose draws a resumed run has to go on with."""
    projections = ["gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, init_lora_weights=False, target_modules=projections, task_type="CAUSAL_LM")
    get_peft_model(MistralForCausalLM.from_pretrained(base), config).save_pretrained(str(folder))
    (folder / "run.json").write_text(json.dumps({"lang": folder.name, "base": str(base), BASE_FACT: base_fingerprint(base)}))


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_yaml(path: Path, value: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(value))
