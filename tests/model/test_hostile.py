"""Checkpoints that somebody made to do harm: one sentence each, nothing run, nothing fetched, nothing of a claimed size allocated."""

import json
import os
import resource
import shutil
import socket
import struct
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model import MoEForCausalLM
from model.adapters import Adapter
from model.checkpoint import INDEX, WEIGHTS, Checkpoint
from model.checkpoint_writer import CheckpointWriter
from model.compose import compose
from model.load import load_model
from model.strict_json import read_json
from moe_kernels.nf4_format import FACTS_KEY

GIB = 1 << 30


@pytest.fixture(autouse=True)
def nothing_else_happens(monkeypatch):
    """No connection is tried, and no more memory is taken than a tiny model needs."""
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a connection was tried"))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + GIB, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def folder(mixtral, tmp_path):
    return shutil.copytree(mixtral, tmp_path / "hostile")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def header(entries: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


FILES = {
    "empty": b"",
    "shorter than a length": b"\0\0\0",
    "a length of 2**63": header({}, length=1 << 63),
    "a length beyond the limit": header({}, length=100_000_001),
    "a length beyond the file": header({}, length=1000),
    "no JSON": header(b"not json at all"),
    "an array": header([]),
    "the same name twice": header(json.dumps({"a": entry(0, 4, [1]), "b": entry(4, 8, [1])}).replace("b", "a").encode(), bytes(8)),
    "truncated data": header({"a": entry(0, 400, [100])}, bytes(10)),
    "bytes after the data": header({"a": entry(0, 4, [1])}, bytes(8)),
    "tensors on each other": header({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
    "a hole": header({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)),
    "a shape of more bytes": header({"a": entry(0, 4, [2])}, bytes(4)),
    "a negative size": header({"a": entry(0, 4, [-1])}, bytes(4)),
    "a product beyond 64 bits": header({"a": entry(0, 4, [1 << 62, 1 << 62])}, bytes(4)),
    "offsets backwards": header({"a": entry(4, 0, [1])}, bytes(4)),
    "an unknown dtype": header({"a": entry(0, 4, [1], "F33")}, bytes(4)),
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("kind", FILES)
def test_damaged_weights(folder, kind):
    (folder / WEIGHTS).write_bytes(FILES[kind])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        MoEForCausalLM.from_pretrained(folder)


def test_a_bit_that_flips_in_a_header_is_an_error_or_another_name(tmp_path):
    path = tmp_path / WEIGHTS
    save_file({"a": torch.arange(4.0), "b": torch.arange(3.0)}, path)
    whole = path.read_bytes()
    for bit in range(8 * len(whole) - 8 * 28):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            checkpoint = Checkpoint(tmp_path)
            assert sum(checkpoint.tensor(name).nbytes for name in checkpoint) <= 28
        except ValueError as error:
            assert str(path) in str(error)


@pytest.fixture
def sharded(tmp_path):
    with CheckpointWriter(tmp_path, shard_bytes=100) as writer:
        for name in "abc":
            writer.add(name, torch.full((5, 5), float(ord(name))))
    return tmp_path


ONE, TWO, THREE = (f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))
INDICES = [
    ({"a": f"../{ONE}", "b": TWO, "c": THREE}, ValueError, "in the same folder"),
    ({"a": f"/{ONE}", "b": TWO, "c": THREE}, ValueError, "in the same folder"),
    ({"a": "https://example.org/a.safetensors", "b": TWO, "c": THREE}, ValueError, "in the same folder"),
    ({"a": "", "b": TWO, "c": THREE}, ValueError, "in the same folder"),
    ({"a": ".safetensors\0", "b": TWO, "c": THREE}, ValueError, "in the same folder"),
    ({"a": "a.bin", "b": TWO, "c": THREE}, ValueError, "in the same folder"),
    ({"a": "gone.safetensors", "b": TWO, "c": THREE}, FileNotFoundError, r"gone\.safetensors is missing"),
    ({"a": ONE, "b": TWO}, ValueError, f"shards that .* does not list: {THREE}"),
    ({"a": ONE, "b": TWO, "c": THREE, "d": THREE}, ValueError, "wrong about d"),
    ({"a": ONE, "d": TWO, "c": THREE}, ValueError, "wrong about b, d"),
    ({"a": TWO, "b": ONE, "c": THREE}, ValueError, "wrong about a, b"),
    ({"a": [ONE]}, ValueError, "no weight_map"),
    ([ONE], ValueError, "no weight_map"),
    ({}, ValueError, "no weight_map"),
]


@pytest.mark.parametrize(("weight_map", "error", "message"), INDICES, ids=range(len(INDICES)))
def test_an_index_and_its_shards_hold_the_same(sharded, weight_map, error, message):
    (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(error, match=message):
        Checkpoint(sharded)


def test_a_tensor_is_in_one_shard(sharded):
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, sharded / TWO)
    with pytest.raises(ValueError, match="a is in two shards"):
        Checkpoint(sharded)


def test_one_file_and_an_index_are_one_too_many(sharded):
    shutil.copy(sharded / ONE, sharded / WEIGHTS)
    with pytest.raises(ValueError, match="has both"):
        Checkpoint(sharded)


def test_a_shard_may_be_a_link_as_in_the_hubs_cache_but_not_a_device(sharded, tmp_path):
    (tmp_path / "blobs").mkdir()
    (sharded / ONE).rename(tmp_path / "blobs" / "0123")
    (sharded / ONE).symlink_to(tmp_path / "blobs" / "0123")
    assert Checkpoint(sharded).tensor("a")[0, 0] == ord("a")
    (sharded / ONE).unlink()
    (sharded / ONE).symlink_to("/dev/zero")
    with pytest.raises(FileNotFoundError, match="is missing"):
        Checkpoint(sharded)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', "[" * 100_000, "9" * 10_000, "nul", "\ud800", ""])
def test_json_that_is_not_one_object(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"x\.json is not JSON"):
        read_json(tmp_path / "x.json")


def test_json_of_any_size_is_not_read(tmp_path):
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="has 1099511627776 bytes"):
        read_json(tmp_path / "x.json")


CONFIGS = [
    ({"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, "names code"),
    ({"auto_map": {"AutoConfig": "someone/else--evil.Evil"}}, "names code"),
    ({"_attn_implementation": "someone/kernel"}, "names a path or an address"),
    ({"_attn_implementation_internal": "someone/kernel@main:attention"}, "names a path or an address"),
    ({"attn_implementation": {"": "someone/kernel"}}, "names a path or an address"),
    ({"_name_or_path": "https://example.org/model"}, "names a path or an address"),
    ({"hidden_act": "https://example.org/act.py"}, "names a path or an address|hidden_act is"),  # whoever reads it first
    ({"quantization_config": {"path": "../../secret"}}, "names a path or an address"),
    ({"rope_parameters": {"C:\\secret": 1}}, "names a path or an address"),
    ({"num_hidden_layers": 10**12}, "num_hidden_layers = 1000000000000"),
    ({"num_hidden_layers": -1}, "num_hidden_layers = -1"),
    ({"num_local_experts": 10**12}, "num_local_experts = "),
    ({"num_local_experts": 0}, "num_local_experts = 0"),
    ({"hidden_size": 10**30}, "hidden_size = "),
    ({"hidden_size": -64}, "hidden_size = -64"),
    ({"hidden_size": "64"}, "hidden_size = '64'"),
    ({"hidden_size": 64.5}, "hidden_size = 64.5"),
    ({"hidden_size": True}, "hidden_size = True"),
    ({"vocab_size": 10**18}, "vocab_size = "),
    ({"head_dim": 10**13}, "head_dim = "),
    ({"num_attention_heads": 0}, "num_attention_heads = 0"),
    ({"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": None}, "no multiple of its 3 attention heads"),
    ({"num_key_value_heads": 3}, "no multiple of its 3 key-value heads"),
    ({"max_position_embeddings": 10**15}, "max_position_embeddings = "),
    ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
    ({"pad_token_id": 999}, "pad_token_id = 999"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
    ({"initializer_range": float("inf")}, "initializer_range = inf"),
    ({"rope_parameters": {"rope_type": "evil", "rope_theta": 1e4}}, "rope_type = 'evil'"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "rope_theta = 'x'"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": -1}}, "rope_theta = -1"),
    ({"rope_parameters": "x"}, "rope_parameters"),
    *(({"rope_parameters": {"rope_type": kind, "rope_theta": 1e4}}, f"rope_type = '{kind}'") for kind in ("linear", "llama3", "longrope")),
    ({"sliding_window": -5}, "sliding_window = -5"),
    ({"layer_types": ["sliding_attention", "full_attention"]}, "has layer_types sliding_attention"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"dtype": "load"}, "dtype = 'load'"),
    ({"dtype": "float8_e4m3fn"}, "dtype = 'float8_e4m3fn'"),
    ({"dtype": ["float32"]}, "dtype = "),
    ({"torch_dtype": "os.system"}, r"torch_dtype = 'os\.system'"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"model_type": "evil"}, "is a 'evil' model"),
    ({"model_type": None}, "is a None model"),
    ({"expert_names": 5}, "cannot be read"),
]


@pytest.mark.parametrize(("changes", "message"), CONFIGS, ids=range(len(CONFIGS)))
def test_a_config_is_data_of_a_possible_size(folder, changes, message):
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Evil: pass\n")
    edit(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        MoEForCausalLM.from_pretrained(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(("changes", "message"), CONFIGS[:9], ids=range(9))
def test_a_config_that_transformers_reads_first_is_checked_too(nf4_folder, changes, message):
    (nf4_folder / "evil.py").write_text(f"open({str(nf4_folder / 'ran')!r}, 'w')\nclass Evil: pass\n")
    edit(nf4_folder / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(nf4_folder)
    assert not (nf4_folder / "ran").exists()


def test_names_of_experts_are_labels(folder):
    edit(folder / "config.json", expert_names=["a/b", "c", "d", "e"], _name_or_path="someone/model")
    assert MoEForCausalLM.from_pretrained(folder).config.expert_names[0] == "a/b"


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.complex64, torch.bool])
def test_weights_are_floats(folder, dtype):
    state = load_file(folder / WEIGHTS)
    state["model.norm.weight"] = torch.ones(64, dtype=dtype)
    save_file(state, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"mistyped model\.norm\.weight"):
        MoEForCausalLM.from_pretrained(folder)


def test_a_tensor_under_two_names(folder):
    state = load_file(folder / WEIGHTS)
    name = "model.layers.0.block_sparse_moe.gate.weight"
    save_file({**state, name.replace("block_sparse_moe", "mlp"): state[name].clone()}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"unexpected model\.layers\.0\.(mlp|block_sparse_moe)\.gate\.weight"):
        MoEForCausalLM.from_pretrained(folder)


NAME = "model.layers.1.mlp.experts.down_proj"
FACTS = [
    ({"blocksize": 128}, "blocks of 128"),
    ({"nested_blocksize": 0}, "blocks of 64 and 0"),
    ({"blocksize": None}, "blocks of None"),
    ({"quant_type": "fp4"}, "is 'fp4'"),
    ({"nested_dtype": "float16"}, "absmax in 'float16'"),
    ({"dtype": "load"}, "dtype 'load'"),
    ({"dtype": {"a": 1}}, "dtype {'a': 1}"),
    ({"shape": [4, 64, -128]}, "positive whole numbers"),
    ({"shape": [4, 64, 128.0]}, "positive whole numbers"),
    ({"shape": 5}, "positive whole numbers"),
    ({"shape": [1 << 40, 1 << 40]}, "needs .* entries of packed"),
    ({"shape": [4, 128, 64]}, r"misshaped .*down_proj \[4, 128, 64\] instead of \[4, 64, 128\]"),
    ({"nested_offset": float("nan")}, "nested_offset nan"),
    ({"nested_offset": float("inf")}, "nested_offset inf"),
    ({"nested_offset": -1.0}, r"nested_offset -1\.0"),
    ({"nested_offset": "0"}, "nested_offset '0'"),
    ("[1]", "holds a list"),
    ("{", "is not JSON"),
    ("x" * 5000, "at most 4096 bytes"),
]


@pytest.fixture(scope="module")
def nf4(mixtral, tmp_path_factory):
    path = tmp_path_factory.mktemp("nf4")
    MoEForCausalLM.from_pretrained(mixtral, quantization="nf4").save_pretrained(path)
    return path


@pytest.fixture
def nf4_folder(nf4, tmp_path):
    return shutil.copytree(nf4, tmp_path / "hostile")


@pytest.mark.parametrize(("changes", "message"), FACTS, ids=range(len(FACTS)))
def test_facts_of_nf4(nf4_folder, changes, message):
    state = load_file(nf4_folder / WEIGHTS)
    key = f"{NAME}.{FACTS_KEY}"
    text = changes if isinstance(changes, str) else json.dumps({**json.loads(bytes(state[key].tolist())), **changes})
    state[key] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    save_file(state, nf4_folder / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        MoEForCausalLM.from_pretrained(nf4_folder)


TENSORS = [
    ("", lambda t: t[1:], "needs 16384 entries of packed, not 16383"),
    ("", lambda t: t.to(torch.int8), "packed is int8"),
    (".absmax", lambda t: t[:-1], "entries of absmax"),
    (".absmax", lambda t: t.float(), "absmax is float32"),
    (".nested_absmax", lambda t: t.repeat(2), "entries of nested_absmax"),
    (".nested_absmax", lambda t: t * float("nan"), "infinite or not numbers"),
    (".nested_absmax", lambda t: t * float("inf"), "infinite or not numbers"),
    (".nested_absmax", lambda t: -t, "negative, infinite or not numbers"),
    (".quant_map", lambda t: t.flip(0), "is not the table of NF4"),
    (".nested_quant_map", lambda t: t[:-1], "is not the table of NF4"),
    (f".{FACTS_KEY}", lambda t: t.float(), "it must be at most"),
]


@pytest.mark.parametrize(("key", "change", "message"), TENSORS, ids=range(len(TENSORS)))
def test_tensors_of_nf4(nf4_folder, key, change, message):
    state = load_file(nf4_folder / WEIGHTS)
    state[NAME + key] = change(state[NAME + key]).contiguous()
    save_file(state, nf4_folder / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        MoEForCausalLM.from_pretrained(nf4_folder)


def test_code_of_a_tokenizer_is_never_run(base, folder):
    for path in base.glob("tokenizer*"):
        shutil.copy(path, folder)
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Evil: pass\n")
    auto_map = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    edit(folder / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="Evil")
    try:
        load_model(folder)
    except ValueError as error:
        assert "no tokenizer that can be read" in str(error)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("name", ["https://example.org/base", "../base", "someone/base", "/nowhere", "a\0b"])
def test_the_base_of_an_adapter_is_not_fetched(make_adapter, tmp_path, name):
    adapter = make_adapter(tmp_path / "adapter")
    edit(adapter / "adapter_config.json", base_model_name_or_path=name)
    with pytest.raises(FileNotFoundError, match="is neither a folder nor a model in the local hub cache"):
        load_model(adapter)


@pytest.mark.parametrize("field", ["_attn_implementation", "attn_implementation"])
def test_a_base_that_names_a_kernel_is_not_composed(base, adapters, make_recipe, tmp_path, field):
    hostile = tmp_path / "hostile"
    shutil.copytree(base, hostile)
    edit(hostile / "config.json", **{field: "someone/kernel"})
    recipe = make_recipe([hostile, base], base=hostile)
    with pytest.raises(ValueError, match="names a path or an address"):
        compose(Namespace(config=str(recipe), out=str(tmp_path / "out"), layout="dense", quantize="none", seed=0))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_alpha": float("nan")}, "lora_alpha = nan; it must be a number, at most 16777216"),
        ({"lora_alpha": "evil"}, "lora_alpha = 'evil'"),
        ({"lora_alpha": None}, "lora_alpha = None"),
        ({"alpha_pattern": {"up_proj": "1"}}, "alpha_pattern = .*'1'"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern = .* names of modules"),
        ({"rank_pattern": {"(.*)*x": 4}}, "rank_pattern = .* names of modules"),
        ({"target_modules": ["("]}, r"target_modules = \['\('\]; it must be a list of names, or a pattern"),
        ({"target_modules": []}, "target_modules = "),
        ({"lora_dropout": "x"}, "lora_dropout = 'x'"),
        ({"r": 8.0}, "r = 8.0; it must be a whole number"),
        ({"init_lora_weights": "pissa_niter_4"}, "the base's own weights are what they were"),
        ({"init_lora_weights": "lora_ga"}, "the base's own weights are what they were"),
    ],
    ids=str,
)
def test_settings_of_an_adapter_are_checked(make_adapter, tmp_path, changes, message):
    folder = make_adapter(tmp_path / "adapter")
    edit(folder / "adapter_config.json", **changes)
    with pytest.raises(ValueError, match=message):
        Adapter(folder)
