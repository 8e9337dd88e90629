"""Small programs in four languages, a base and a mixture that know nothing, and evaluation runs made of hand-written samples."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from eval.runs import CODEBLEU
from model import MoEForCausalLM
from model.configuration_moe import MoEConfig
from model.output import output_folder, write_run
from model.prompt import set_format
from train.documents import train_tokenizer

PROGRAMS = {
    "python": "def total(values):\n    result = 0\n    for value in values:\n        result += value\n    return result\n",
    "java": "static int total(int[] values) {\n    int result = 0;\n    for (int value : values) {\n        result += value;\n    }\n"
    "    return result;\n}\n",
    "javascript": "function total(values) {\n    let result = 0;\n    for (const value of values) {\n        result += value;\n    }\n"
    "    return result;\n}\n",
    "cpp": "int total(vector<int> values) {\n    int result = 0;\n    for (int value : values) {\n        result += value;\n    }\n"
    "    return result;\n}\n",
}

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1}
WriteRun = Callable[..., Path]


@pytest.fixture
def programs() -> dict[str, str]:
    return PROGRAMS


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test rows in all languages: 6 of known problems, 4 of new ones, no two programs alike."""
    folder = tmp_path_factory.mktemp("data")
    for lang, program in PROGRAMS.items():
        rows = [
            {
                "id": f"{lang}-{i}",
                "text": f"add up values and take {i}",
                "code": program.replace("total", f"total{i}"),
                "family": f"f{i // 2}",
                "kind": "wording" if i < 6 else "family",
            }
            for i in range(10)
        ]
        (folder / f"{lang}.test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer([*PROGRAMS.values(), "### Python\nadd up values and take 0123456789\n### Code\n"])


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    MistralForCausalLM(MistralConfig(**_shape(tokenizer), sliding_window=None)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_folder(mixture_folder: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixture with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "mixture"
    shutil.copytree(mixture_folder, folder)
    own = copy.deepcopy(tokenizer)
    set_format(own, "instruct")
    own.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def mixture_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    torch.manual_seed(1)
    model = MoEForCausalLM(MoEConfig(**_shape(tokenizer), num_local_experts=4, num_experts_per_tok=2, expert_names=list(PROGRAMS)))
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.mlp.gate.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _shape(tokenizer: Any) -> dict[str, Any]:
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {**SHAPE, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 512, "tie_word_embeddings": False}


@pytest.fixture(scope="session")
def write_codebleu_run() -> WriteRun:
    """write(folder, name, role, {lang: {kind: [score of each point]}}, **facts) -> RUN; every second point is of the same problem."""

    def write(target: Path, name: str, role: str, scores: dict[str, dict[str, list[float]]], **facts: Any) -> Path:
        samples, figures = [], {}
        for lang, kinds in scores.items():
            figures[lang] = {kind: {**_figures(values)} for kind, values in kinds.items()}
            for kind, values in kinds.items():
                samples += [_sample(lang, kind, index, score, name) for index, score in enumerate(values)]
        settings = {"split": "test", "limit": 50, "max_new_tokens": 100, "model": "a", "adapter": None, "data": {}, "prompt_template": "t"}
        with output_folder(target / name) as folder:
            (folder / "samples.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples))
            write_run(folder, seed=0, figures=figures, program=CODEBLEU, name=name, role=role, **{**settings, **facts})
        return target / name

    return write


def _figures(values: list[float]) -> dict[str, Any]:
    mean = sum(values) / len(values)
    parts = {"ngram": mean, "weighted_ngram": mean, "syntax": mean, "dataflow": None}
    metrics = {"chrf": {"value": mean, "low": min(values), "high": max(values), "n": len(values)}}
    scores = {"codebleu": mean, "codebleu_corpus": mean, "codebleu_library": mean}
    return {"n": len(values), "empty": 0, **scores, "parts": parts, "metrics": metrics}


def _sample(lang: str, kind: str, index: int, score: float, name: str) -> dict[str, Any]:
    row = {"id": f"{lang}/{kind}/{index}", "lang": lang, "kind": kind, "group": f"g{index // 2}", "text": f"text\u2028{index}"}
    return {**row, "reference": f"reference {index}", "prediction": f"<{name}> & {index}", "codebleu": score, "codebleu_library": score}
