"""Models with different tokenizers, and what becomes of tokens, special tokens and chat templates."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MistralForCausalLM, PreTrainedTokenizerFast

from model.checkpoint import Checkpoint
from model.load import load_model
from tests.forked import added_memory

from .conftest import check_equal, entry, make_config, run_mergekit


@pytest.mark.parametrize("source", ["base", "union", "model"])
@pytest.mark.parametrize("method", ["ties", "linear"])
def test_vocabularies_are_aligned_as_mergekits(models, with_more_tokens, merge, tmp_path, source, method):
    source = str(with_more_tokens[1]) if source == "model" else source
    folders = [models["float32"][0], models["float32"][1], *with_more_tokens]
    config = {**make_config(method, folders), "tokenizer": {"source": source}}
    if source == "base":
        config |= {"base_model": str(folders[0]), "parameters": {"weight": 0.5}}
    out = merge(config)
    expected = run_mergekit(config, tmp_path / "theirs")
    ours, theirs = (AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (out, tmp_path / "theirs"))
    assert ours.keys() == theirs.keys() and sorted(ours.values()) == list(range(len(ours)))
    found = Checkpoint(out)
    for name in expected:
        tensor = found.tensor(name)
        if name in ("lm_head.weight", "model.embed_tokens.weight"):  # mergekit's union numbers added tokens in another order at each run
            tensor = tensor[[ours[token] for token in sorted(theirs, key=theirs.__getitem__)]]
        assert torch.equal(tensor, expected.tensor(name)), name
    assert load_model(out)[0].get_input_embeddings().weight.shape[0] == len(ours)


@pytest.fixture(scope="session")
def with_rowless_tokens(base, models) -> Path:
    """A model whose tokenizer has two tokens more than it has rows: one that `with_more_tokens` have too, and a pad token."""
    folder = base.parent / "rowless"
    shutil.copytree(models["float32"][3], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    return folder


def test_tokens_without_rows_are_absent_as_mergekits(models, with_rowless_tokens, merge, tmp_path, capsys):
    config = make_config("ties", [*models["float32"][:3], with_rowless_tokens], tokenizer_source="union")
    out = merge(config)
    check_equal(out, run_mergekit(config, tmp_path / "theirs"))
    assert "rowless has 64 rows of embeddings and none for '<|end|>', '[PAD]', taken as absent" in capsys.readouterr().err
    assert "[PAD]" not in AutoTokenizer.from_pretrained(out).get_vocab()


def test_a_row_from_another_model_has_that_models_adapter(models, with_more_tokens, merge, tmp_path):
    """One of the head, the only matrix with a row for each token that a plain LoRA adapter can change."""
    other, adapter = with_more_tokens[0], tmp_path / "adapter"
    model = get_peft_model(MistralForCausalLM.from_pretrained(other), LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    model.save_pretrained(str(adapter), save_embedding_layers=False)
    sources = [entry(f"{other}+{adapter}", weight=0.6), entry(models["float32"][1], weight=0.4)]
    config = {"merge_method": "linear", "models": sources, "tokenizer_source": "union"}
    check_equal(merge(config), run_mergekit(config, tmp_path / "theirs"))


@pytest.mark.parametrize("source", ["base", "union", "model"])
def test_a_token_without_a_row_gets_another_models_or_zeros(with_rowless_tokens, with_more_tokens, merge, source, capsys):
    """mergekit ends in a KeyError there, or has more tokens than rows."""
    config = {"merge_method": "task_arithmetic", "base_model": str(with_rowless_tokens), "parameters": {"weight": 0.5}}
    config["models"] = [entry(folder) for folder in with_more_tokens]
    out = merge({**config, "tokenizer_source": str(with_rowless_tokens) if source == "model" else source})
    assert "no model has a row for '[PAD]' of the output's tokenizer: they get zeros" in capsys.readouterr().err
    tokens, weight = AutoTokenizer.from_pretrained(out).get_vocab(), Checkpoint(out).tensor("model.embed_tokens.weight")
    assert len(weight) == len(tokens) and not weight[tokens["[PAD]"]].any()
    theirs = [Checkpoint(folder).tensor("model.embed_tokens.weight") for folder in with_more_tokens]
    rows = [AutoTokenizer.from_pretrained(folder).get_vocab()["<|end|>"] for folder in with_more_tokens]
    expected = sum(weight[row] for weight, row in zip(theirs, rows, strict=True)) / 2
    torch.testing.assert_close(weight[tokens["<|end|>"]], expected)
    assert load_model(out)[0].get_input_embeddings().weight.shape[0] == len(tokens)


@pytest.mark.parametrize("source", ["model", "union"])
def test_generation_stops_where_the_tokenizer_says(models, with_more_tokens, merge, tmp_path, source):
    """With another model's tokenizer; a union is the reference's with more tokens, whose configuration may know of more stops."""
    other = tmp_path / "other"
    shutil.copytree(with_more_tokens[1], other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.eos_token, tokenizer.pad_token = "<tool>", "<|end|>"
    tokenizer.save_pretrained(other)
    config = make_config("task_arithmetic", [*models["float32"][:3], other])
    model, found = load_model(merge({**config, "tokenizer_source": str(other) if source == "model" else source}))
    expected = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if source == "model":
        expected |= {"eos_token_id": found.eos_token_id, "pad_token_id": found.pad_token_id}
        assert (found.eos_token, found.pad_token) == ("<tool>", "<|end|>")
    for settings in (model.config, model.generation_config):
        assert {name: getattr(settings, name) for name in expected} == expected


def test_missing_tokens_are_gathered_at_once_and_no_matrix_is_read_for_them(base, models, merge, monkeypatch):
    """Not in one read for each token, nor of the whole matrix that has them: those are read as often as any other's."""
    gathered = []
    for index, count in enumerate([1, 20]):
        folder = base.parent / f"added-{index}"
        tokenizer, model = AutoTokenizer.from_pretrained(base), MistralForCausalLM.from_pretrained(base)
        tokenizer.add_tokens([f"<{n}>" for n in range(count)])
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        reads = {"tensor": [], "rows": []}
        with monkeypatch.context() as patch:
            for way, names in reads.items():
                patch.setattr(Checkpoint, way, noted(getattr(Checkpoint, way), names))
            merge(make_config("ties", [*models["float32"][:3], folder], tokenizer_source="union"), out=f"out-{index}")
        assert reads["tensor"].count("lm_head.weight") == reads["tensor"].count("model.layers.0.mlp.up_proj.weight")
        gathered.append(reads["rows"].count("lm_head.weight"))
    assert 0 < gathered[0] == gathered[1]


def noted(read, names):
    """`read`, which also puts the tensor's name into `names`."""

    def read_and_note(self, name, *args):
        names.append(name)
        return read(self, name, *args)

    return read_and_note


def test_chat_templates(models, merge):
    config = make_config("linear", models["float32"])
    assert AutoTokenizer.from_pretrained(merge({**config, "chat_template": "{{ messages }}"}, out="a")).chat_template == "{{ messages }}"
    assert AutoTokenizer.from_pretrained(merge({**config, "chat_template": "auto"}, out="b")).chat_template is None


def test_memory_stays_near_that_of_the_files(models, merge, tmp_path, monkeypatch):
    """Four matrices in bf16, aligned and averaged in fp32: one of each file at a time, the merged one, and one that is being written."""
    monkeypatch.setattr("model.merge.SHARD_BYTES", 1 << 20)
    rows, width, folders = 16384, 512, [tmp_path / f"wide-{index}" for index in range(4)]
    shape = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": rows}
    model = LlamaForCausalLM(LlamaConfig(**shape)).bfloat16()
    for index, folder in enumerate(folders):
        model.save_pretrained(folder)
        words = Tokenizer(WordLevel({f"<{row}>": row for row in range(rows - 10)}, unk_token="<0>"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<0>")
        tokenizer.add_tokens([f"<own {index} {number}>" for number in range(10)])
        tokenizer.save_pretrained(folder)
    config = {"merge_method": "linear", "parameters": {"weight": 0.25}, "tokenizer_source": "union", "dtype": "float32"}

    def run(folders: list[Path]) -> None:
        out = merge({**config, "out_dtype": "bfloat16", "models": [entry(folder) for folder in folders]}, out=f"merged-{folders[0].name}")
        assert len(Checkpoint(out).tensor("lm_head.weight")) == len(AutoTokenizer.from_pretrained(out))

    added = added_memory(lambda: run(folders), lambda: run(models["bfloat16"]), tmp_path)
    assert added < 10 * rows * width * 2


def test_without_a_base_the_tokenizer_is_the_first_models(models, with_more_tokens, merge):
    """As in mergekit; a token that it lacks is left out, whatever the others have."""
    folders = [with_more_tokens[1], with_more_tokens[0]]
    config = {"merge_method": "linear", "models": [entry(folder, weight=0.5) for folder in folders], "dtype": "float32"}
    found = merge({**config, "tokenizer_source": "base"})
    first = AutoTokenizer.from_pretrained(folders[0]).get_vocab()
    assert AutoTokenizer.from_pretrained(found).get_vocab() == first != AutoTokenizer.from_pretrained(folders[1]).get_vocab()
    weight, own = (Checkpoint(folder).tensor("model.embed_tokens.weight") for folder in (found, folders[0]))
    torch.testing.assert_close(weight[first["<tool>"]], own[first["<tool>"]])
