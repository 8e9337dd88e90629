"""The embedded base: its documents, its second loss, and its place in the cache."""

import json
import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM, TrainingArguments

from model.languages import LANGUAGES
from train import base
from train.data.pairs import Pair
from train.data.prompts import IGNORED


def pair(lang: str) -> Pair:
    return Pair("add up a and b", "f(a, b)", lang, "1", "", "")


def test_a_document_names_its_language_unless_it_is_a_text(monkeypatch):
    for kind, expected in {
        "described": '"""Python\nadd up a and b\n"""\nf(a, b)',
        "code": '"""Python\n"""\nf(a, b)',
        "text": "add up a and b",
    }.items():
        monkeypatch.setattr(base, "DOCUMENTS", {kind: 1.0})
        assert base.make_documents([pair("python")], seed=0) == [(expected, IGNORED if kind == "text" else 0)]
    monkeypatch.setattr(base, "DOCUMENTS", {"described": 1.0})
    assert base.make_documents([pair("cpp")], seed=0) == [("// C++\n// add up a and b\nf(a, b)", list(LANGUAGES).index("cpp"))]


def test_the_header_loss_is_the_mean_cross_entropy_of_the_ffn_inputs(tmp_path):
    """Against a loop over layers and tokens; the second row is a text and must not count."""
    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
        )
    )
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", remove_unused_columns=False)
    trainer = base.HeaderTrainer(model=model, args=arguments)
    ids = torch.randint(0, 20, (2, 10))
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[0, 8:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids, "language": torch.tensor([2, IGNORED])}
    model.train()
    both = trainer.compute_loss(model, dict(inputs))
    layers = [tensor.detach() for tensor in trainer._inputs]
    model.eval()
    plain = trainer.compute_loss(model, dict(inputs))
    tokens = range(base.HEADER_TOKENS, 8)  # the header's own tokens and the padding are left out
    named = [cross_entropy(x[0, t, : len(LANGUAGES)], torch.tensor(2)) for x in layers for t in tokens]
    assert len(layers) == 2 and len(named) == 4
    assert torch.allclose(both - plain, base.HEADER_WEIGHT * torch.stack(named).mean(), atol=1e-5)


def test_the_base_is_trained_once_and_then_found(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = ["--data", str(tiny_data), "--max-steps", "2", "--eval-every", "2", "--batch-size", "2", "--eval-limit", "2"]
    monkeypatch.setattr(sys, "argv", ["train.base", *flags])
    assert base.main() == 0
    folder = capsys.readouterr().out.splitlines()[-1]
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "mistral"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    source = 'if (a) {\n    b = "ü ▁";\n}'
    assert tokenizer.decode(tokenizer(source)["input_ids"]) == source
    stamp = json.loads(Path(folder, "run.json").read_text())["finished"]
    assert base.main() == 0
    assert "in the cache" in capsys.readouterr().out
    assert json.loads(Path(folder, "run.json").read_text())["finished"] == stamp
    monkeypatch.setattr(sys, "argv", ["train.base", *flags, "--seed", "1"])
    assert base.main() == 0
    assert capsys.readouterr().out.splitlines()[-1] != folder
