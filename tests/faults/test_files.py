"""Rows 31 to 40, and 45 as far as files go: checkpoints, configurations and data through the public API, each fault by its number.

The batteries behind them stand in tests/model/test_hostile.py, test_checkpoint.py, test_saving.py and test_resume.py, and in this folder.
"""

import errno
import json
import os
import shutil
import struct
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM, modeling_utils

from model import MoEForCausalLM
from model.check import check_folder
from model.check import main as check_main
from model.checkpoint import CONFIG, INDEX, WEIGHTS
from model.compose import compose
from model.load import load_model
from model.merge import main as merge_main
from moe_kernels.nf4_format import FACTS_KEY
from tests.faults.reader import SMALL
from tests.model.conftest import make_tokenizer
from train.data import load_pairs
from train.data.pairs import Pair
from train.data.prompts import encode_pairs
from train.data.reading import read_well_formed


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1)).save_pretrained(folder / "mixture")
    MoEForCausalLM.from_pretrained(folder / "mixture", quantize="nf4").save_pretrained(folder / "nf4")
    MoEForCausalLM.from_pretrained(folder / "mixture").save_pretrained(folder / "sharded", max_shard_size="20KB")
    MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)).save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    return folder


@pytest.fixture
def copy(folders, tmp_path):
    return lambda name: Path(shutil.copytree(folders / name, tmp_path / name))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensor(folder: Path, name: str, value: float) -> None:
    state = load_file(folder / WEIGHTS)
    state[name].view(-1)[-1] = value
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def compose_of(folder: Path, out: Path, quantize: str = "none") -> None:
    expert = {"source_model": str(folder), "positive_prompts": ["a"]}
    recipe = {"base_model": str(folder), "gate_mode": "random", "experts": [expert, expert]}
    (out.parent / "recipe.yml").write_text(yaml.safe_dump(recipe))
    compose(Namespace(config=str(out.parent / "recipe.yml"), out=str(out), layout="dense", quantize=quantize, seed=0))


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: b"", lambda d: struct.pack("<Q", 1 << 63) + d[8:], lambda d: d + b"x"])
def test_31_damaged_weights(copy, damage):
    folder = copy("mixture")
    (folder / WEIGHTS).write_bytes(damage((folder / WEIGHTS).read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        MoEForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("shape", [[1 << 62, 1 << 62], [-1], [0, 4]])
def test_32_shapes_that_no_memory_has(copy, shape):
    folder = copy("mixture")
    data = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"]["shape"] = shape
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        MoEForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "gone.safetensors", None])
def test_33_index_and_shards_disagree(copy, name):
    folder = copy("sharded")
    index = json.loads((folder / INDEX).read_text())
    tensor = next(iter(index["weight_map"]))
    if name:
        index["weight_map"][tensor] = name
    else:
        del index["weight_map"][tensor]
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises((ValueError, FileNotFoundError), match=r"index\.json|gone\.safetensors"):
        MoEForCausalLM.from_pretrained(folder)


def test_34_all_misfits_are_listed(copy):
    folder = copy("mixture")
    state = load_file(folder / WEIGHTS)
    del state["model.norm.weight"]
    state |= {"model.extra.weight": torch.ones(1), "lm_head.weight": torch.ones(2, 2)}
    save_file(state, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"missing model\.norm\.weight; unexpected model\.extra\.weight; misshaped lm_head\.weight"):
        MoEForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin"])
def test_35_a_pickle_is_no_checkpoint(copy, name):
    folder = copy("mixture")
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / name)
    with pytest.raises((ValueError, FileNotFoundError), match="safetensors"):
        MoEForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "changes",
    [
        *({"num_experts_per_tok": 3}, {"num_local_experts": 0}, {"hidden_size": -1}, {"num_hidden_layers": 10**12}, {"vocab_size": "64"}),
        *({"auto_map": {"AutoConfig": "a.B"}}, {"_attn_implementation": "someone/kernel"}, {"hidden_act": "../x"}),
    ],
    ids=str,
)
def test_36_a_config_is_data_of_a_possible_size(copy, changes):
    folder = copy("mixture")
    edit(folder / CONFIG, **changes)
    with pytest.raises(ValueError, match=r"config\.json"):
        MoEForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_37_values_that_are_no_numbers_are_named_by_whoever_reads_them(copy, tmp_path, capsys, value):
    mixture, base = copy("mixture"), copy("base")
    change_tensor(mixture, "model.norm.weight", value)
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensor(base, name, value)
    for options in ({}, {"quantize": "nf4"}, {"dtype": "bfloat16"}):
        with pytest.raises(ValueError, match=r"model\.safetensors has values that are infinite or not numbers"):
            MoEForCausalLM.from_pretrained(mixture, **options)
    with pytest.raises(ValueError, match=f"{name} in .*infinite or not numbers"):
        load_model(base)
    for quantize in ("none", "nf4"):
        with pytest.raises(ValueError, match=f"{name} in .*infinite or not numbers"):
            compose_of(base, tmp_path / "out", quantize)
    merge = {"merge_method": "linear", "models": [{"model": str(base), "parameters": {"weight": 1.0}}], "dtype": "float32"}
    (tmp_path / "merge.yml").write_text(yaml.safe_dump(merge))
    assert run(merge_main, str(tmp_path / "merge.yml"), str(tmp_path / "out")) == 2
    assert f"{name} in {base}" in capsys.readouterr().err and not (tmp_path / "out").exists()


def run(main, *argv: str) -> int:
    """The exit status of a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test", *argv])
        return main()


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_38_a_save_that_fails_leaves_what_was_there(copy, monkeypatch, fault):
    """A kill at every step of a save stands in tests/model/test_saving.py, of composing and merging in test_resume.py."""
    folder = copy("nf4")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = MoEForCausalLM.from_pretrained(folder, num_experts_per_tok=2)

    def fail(*_: object, **__: object) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(modeling_utils, "safe_save_file", fail)
    with pytest.raises(OSError, match=os.strerror(fault)):
        model.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    MoEForCausalLM.from_pretrained(folder)


def test_39_a_file_that_was_edited_after_it_was_written(folders, tmp_path, copy, capsys):
    folder = copy("nf4")
    assert "as manifest.json says" in check_folder(folder)
    state = load_file(folder / WEIGHTS)
    packed = state["model.layers.0.self_attn.v_proj.weight"].view(-1)
    packed[-1] ^= 1  # any byte is two valid codes, and the header still holds
    save_file(state, folder / WEIGHTS)
    MoEForCausalLM.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"model\.safetensors differs from what manifest\.json says of it"):
        check_folder(folder)
    assert run(check_main, str(folder)) == 2 and "differs from what manifest.json says" in capsys.readouterr().err
    (folder / "manifest.json").write_text('{"files": {}}')
    with pytest.raises(ValueError, match=r"manifest\.json does not list model\.safetensors"):
        check_folder(folder)
    assert run(check_main, str(folders / "base")) == 0
    assert "no manifest.json, so nothing says what was written" in capsys.readouterr().out


def test_40_a_checkpoint_of_another_shape_or_format(copy):
    folder = copy("mixture")
    edit(folder / CONFIG, num_local_experts=4)
    with pytest.raises(ValueError, match=r"does not fit the model: (missing|misshaped)"):
        MoEForCausalLM.from_pretrained(folder)
    folder = copy("nf4")
    state = load_file(folder / WEIGHTS)
    key = next(key for key in state if key.endswith(FACTS_KEY))
    facts = {**json.loads(bytes(state[key].tolist())), "blocksize": 128}
    save_file({**state, key: torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match="blocks of 128"):
        MoEForCausalLM.from_pretrained(folder)


def test_45_rows_that_nothing_can_be_learned_from(tmp_path):
    rows = [{"text": f"add {n}", "code": f"int f{n}() {{ return {n}; }}", "lang": "cpp", "id": "same", "split": "train"} for n in range(5)]
    good = "".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"rows\.jsonl is empty"):
        read_well_formed(path)
    path.write_bytes(good + b'{"text": "\xff", "code": "x"}\n')
    with pytest.warns(UserWarning, match=r"rows\.jsonl:7: .*utf-8.*; row dropped"):
        loaded = load_pairs(path, "cpp", "train")
    assert (len(loaded.rows), loaded.dropped["malformed row"], loaded.dropped["exact duplicate"]) == (5, 1, 1)
    assert len({pair.id for pair in loaded.rows}) == 1  # an id is a label: rows are told apart by what they say
    tokenizer = make_tokenizer()
    pairs = [Pair("t", code, "cpp", "i", "g", "") for code in ("", "x", "x" * 500)]
    examples, dropped = encode_pairs(pairs, tokenizer, 64)
    assert len(examples) == 2 and sum(dropped.values()) == 1
    assert all(any(label != -100 for label in row["labels"]) for row in examples)  # EOS at least: no loss is divided by nothing
