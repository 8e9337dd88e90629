"""A base of a few thousand parameters and a data folder of a few rows, for the training commands."""

import json
from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from model.languages import LANGUAGES
from train.documents import train_tokenizer

PROGRAMS = {
    "python": "def f{i}(a):\n    return a + {i}\n",
    "java": "class Solution {{\n    static int f{i}(int a) {{\n        return a + {i};\n    }}\n}}\n",
    "javascript": "function f{i}(a) {{\n    return a + {i};\n}}\n",
    "cpp": "int f{i}(int a) {{\n    return a + {i};\n}}\n",
}


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for lang in LANGUAGES:
        for split, numbers in {"train": range(40), "valid": range(40, 48), "test": range(48, 56)}.items():
            rows = [{"text": f"add the number {i} to a", "code": PROGRAMS[lang].format(i=i), "family": f"add{i}"} for i in numbers]
            (folder / f"{lang}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer([program.format(i=7) for program in PROGRAMS.values()])
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        sliding_window=None,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
