"""The embedded base: its documents, its second loss, and its place in the cache."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM, TrainingArguments

from model.languages import LANGUAGES
from train import base, documents, settings
from train.data.pairs import Pair
from train.trainer import PairTrainer


def pair(lang: str) -> Pair:
    return Pair("add a and b | read a ; read b", "f(a, b)", lang, "1", "", "")


def test_a_document_names_its_language_first(monkeypatch):
    sections = "### add a and b\nread a\nread b\n" * documents.PAGE_SECTIONS
    for kind, expected in {
        "described": '"""Python\nadd a and b | read a ; read b\n"""\nf(a, b)',
        "code": '"""Python\n"""\nf(a, b)',
        "page": "# Python\n" + sections,
    }.items():
        monkeypatch.setattr(documents, "DOCUMENTS", {kind: 1.0})
        assert documents.make_documents([pair("python")], seed=0) == [(expected, 0)]
    monkeypatch.setattr(documents, "DOCUMENTS", {"described": 1.0})
    assert documents.make_documents([pair("cpp")], seed=0) == [
        ("// C++\n// add a and b | read a ; read b\nf(a, b)", list(LANGUAGES).index("cpp"))
    ]


def test_a_page_keeps_to_its_language(monkeypatch):
    """Its other sections are of texts in the same language: texts name their language too."""
    monkeypatch.setattr(documents, "DOCUMENTS", {"page": 1.0})
    rows = [replace(pair(lang), text=f"{lang} program") for lang in LANGUAGES]
    for page, language in documents.make_documents(rows, seed=0):
        lang = list(LANGUAGES)[language]
        assert page == f"# {LANGUAGES[lang].title}\n" + f"### {lang} program\n" * documents.PAGE_SECTIONS


def test_the_header_loss_is_the_mean_cross_entropy_of_the_ffn_inputs(tmp_path):
    """Against a loop over rows, layers and tokens; headers and padding are left out."""
    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
        )
    )
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", remove_unused_columns=False)
    trainer = documents.HeaderTrainer(model=model, args=arguments)
    ids = torch.randint(0, 20, (2, 10))
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[0, 8:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids, "language": torch.tensor([2, 1])}
    model.train()
    trainer._get_num_items_in_batch([inputs], trainer.args.device)  # as before each step
    both = trainer.compute_loss(model, dict(inputs))
    layers = [tensor.detach() for tensor in trainer._inputs]
    model.eval()
    plain = trainer.compute_loss(model, dict(inputs))
    written = [(row, token) for row, end in ((0, 8), (1, 10)) for token in range(documents.HEADER_TOKENS, end)]
    named = [cross_entropy(x[row, token, : len(LANGUAGES)], inputs["language"][row]) for x in layers for row, token in written]
    assert len(layers) == 2 and len(named) == 2 * (2 + 4)
    assert torch.allclose(both - plain, documents.HEADER_WEIGHT * torch.stack(named).mean(), atol=1e-5)


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


def test_other_bases_in_the_cache_are_named_before_training(tmp_path, monkeypatch, capsys):
    """An earlier version's is another base, and its experts' mixture takes no expert of this one."""
    monkeypatch.setattr(base, "user_cache", lambda: tmp_path)
    monkeypatch.setattr(base, "has_card", lambda: False)
    monkeypatch.setattr(base, "train_base", lambda args: tmp_path / "trained")
    base.resolve_base("auto")
    assert capsys.readouterr().err == "the embedded base is trained first: about three minutes on two cores\n"
    for age, name in ((2, "base-old"), (1, "base-newer"), (0, "base-unfinished")):
        (tmp_path / name).mkdir()
        if age:
            (tmp_path / name / base.MANIFEST).write_text("{}")
            os.utime(tmp_path / name / base.MANIFEST, (100 - age, 100 - age))
    assert base.resolve_base("auto")[0] == str(tmp_path / "trained")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "2 bases of other versions or settings can be taken instead" in said
    assert f"the newest with --base {tmp_path / 'base-newer'}: an expert of one base does not fit" in said
    monkeypatch.setattr(base, "_cache_folder", lambda *_: tmp_path / "base-old")
    base.resolve_base("auto")
    assert not capsys.readouterr().err


def test_mistral_7b_is_trained_on_under_the_name_that_it_is_planned_by(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert base.resolve_base("mistral-7b") == (base.MISTRAL, base.MISTRAL)
    assert base.planned_base("mistral-7b", "a10g")[0].hidden_size == 4096
    (tmp_path / "mistral-7b").mkdir()
    assert base.resolve_base("mistral-7b") == ("mistral-7b", "mistral-7b")


def test_of_several_cards_one_process_uses_one(tiny_data, tmp_path, monkeypatch, capsys):
    """As transformers finds the cards; it would wrap the model in nn.DataParallel and take a batch for each."""

    def of_two_cards(**settings):
        arguments = TrainingArguments(**settings)
        arguments._n_gpu = 2
        assert arguments.train_batch_size == 2 * arguments.per_device_train_batch_size
        return arguments

    steps = []
    monkeypatch.setattr(settings, "TrainingArguments", of_two_cards)
    monkeypatch.setattr(torch.nn.DataParallel, "__init__", lambda *_: pytest.fail("a copy of the model for each card"))
    training_step = PairTrainer.training_step
    count = lambda self, model, inputs, items: steps.append(len(inputs["input_ids"])) or training_step(self, model, inputs, items)  # noqa: E731
    monkeypatch.setattr(PairTrainer, "training_step", count)
    flags = ["--data", str(tiny_data), "--max-steps", "1", "--batch-size", "2", "--eval-limit", "2", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["train.base", *flags])
    assert base.main() == 0
    assert "one of 2 cards is used; torchrun --nproc-per-node 2" in capsys.readouterr().out and steps == [2]


def test_a_plan_counts_the_very_documents_and_trains_nothing(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base, "user_cache", lambda: tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.base", "--data", str(tiny_data), "--plan", "--gpu", "t4", "--batch-size", "2"])
    plans = []
    monkeypatch.setattr(base, "show_plan", plans.append)
    assert base.main() == 0
    model = MistralForCausalLM(MistralConfig(vocab_size=documents.VOCABULARY, **base.SHAPE))
    trained = 4 * sum(parameter.numel() for parameter in model.parameters())
    parts = plans[0].budget.parts
    assert (parts["trained parameters"], parts["optimizer"], parts["quantised weights"]) == (trained, 2 * trained, 0)
    assert plans[0].rows.count == 4 * 40 and not list(tmp_path.iterdir())
