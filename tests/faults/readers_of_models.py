"""Readers of weights, configurations, adapters and tokenizers."""

import math
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

from model import MoEForCausalLM
from model.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_FACT, Adapter, base_fingerprint
from model.checkpoint import CONFIG, GENERATION, INDEX, WEIGHTS, Checkpoint
from model.checkpoint_writer import CheckpointWriter
from model.load import load_model
from model.output import MANIFEST, RUN, check_manifest, write_json, write_manifest
from model.sources import read_base_config
from model.tokenizer import read_tokenizer
from tests.faults.reader import SMALL, Reader
from tests.model.conftest import make_tokenizer


def weights(folder: Path) -> Iterator[Reader]:
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


def adapters(folder: Path) -> Iterator[Reader]:
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

    def load(path: Path, adapter: Path | None = None) -> None:
        loaded, _ = load_model(path, adapter=adapter)
        assert all(bool(parameter.isfinite().all()) for parameter in loaded.parameters())
        assert loaded(input_ids=torch.ones(1, 2, dtype=torch.long)).logits.shape == (1, 2, loaded.config.vocab_size)

    whole = _copy(base, "whole")
    make_tokenizer().save_pretrained(whole)
    place = _copy(folder / "adapter", "loaded")
    yield Reader("adapter's config, loaded", place / ADAPTER_CONFIG, partial(load, whole, place), 5)
    yield Reader("base's config, loaded", whole / CONFIG, partial(load, whole), 5)
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
