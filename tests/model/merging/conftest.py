"""The command on a base and three models near it, beside mergekit 0.1.5 where that is installed."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoTokenizer, MistralForCausalLM

from model.checkpoint import Checkpoint
from model.merge import main
from model.merging import sparsify

HALVES = [{"layer_range": [0, 1]}, {"layer_range": [1, 2]}]


def entry(model: Path | str, **parameters) -> dict:
    return {"model": str(model), **({"parameters": parameters} if parameters else {})}


def make_config(method: str, folders: list[Path], **extra) -> dict:
    base, a, b, c = folders
    if method == "slerp":
        t = [{"filter": "self_attn", "value": [0, 0.5, 0.3]}, {"filter": "mlp", "value": [1, 0.2]}, {"value": 0.4}]
        return {"merge_method": method, "base_model": str(base), "models": [entry(a)], "parameters": {"t": t}, **extra}
    named = {} if method == "linear" else {"base_model": str(base)}
    models = [
        entry(a, weight=1.0, density=0.5),
        entry(b, weight=[0.1, 0.5, -0.3], density=0.7),
        entry(c, weight=[{"filter": "mlp", "value": [0.1, 0.35]}, {"value": 0.3}], density=[0.2, 0.8]),
    ]
    return {"merge_method": method, **named, "models": models, **extra}


def run_mergekit(config: dict, folder: Path) -> Checkpoint:
    pytest.importorskip("mergekit")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    run_merge(
        MergeConfiguration.model_validate(config), str(folder), options=MergeOptions(quiet=True, lora_merge_cache=str(folder / "lora"))
    )
    return Checkpoint(folder)


def check_equal(found: Path, expected: Checkpoint) -> None:
    ours = Checkpoint(found)
    assert set(ours) == set(expected)
    for name in expected:
        assert ours.tensor(name).dtype == expected.tensor(name).dtype, name
        assert torch.equal(ours.tensor(name), expected.tensor(name)), name


@pytest.fixture(scope="session")
def models(base) -> dict[str, list[Path]]:
    """A base and three models near it, in each dtype."""
    generator = torch.Generator().manual_seed(0)
    folders: dict[str, list[Path]] = {"float32": [], "bfloat16": [], "float64": []}
    for index in range(4):
        tensors = {name: Checkpoint(base).tensor(name) for name in Checkpoint(base)}
        if index:
            tensors = {name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}
        for dtype, made in folders.items():
            made.append(base.parent / f"{dtype}-{index}")
            shutil.copytree(base, made[-1])
            save_file({name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}, made[-1] / "model.safetensors")
    return folders


@pytest.fixture(scope="session")
def with_more_tokens(base) -> list[Path]:
    """Two models whose tokenizers have added tokens, one of them in common."""
    folders = []
    for index, tokens in enumerate([["<|start|>", "<|end|>"], ["<|end|>", "<tool>"]]):
        folders.append(base.parent / f"more-{index}")
        torch.manual_seed(index)
        model = MistralForCausalLM.from_pretrained(base)
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens(tokens, special_tokens=True)
        model.resize_token_embeddings(len(tokenizer) + index, mean_resizing=False)
        model.save_pretrained(folders[-1])
        tokenizer.save_pretrained(folders[-1])
    return folders


@pytest.fixture
def merge(tmp_path, monkeypatch):
    """Runs the command on a configuration; the output's folder, or the exit status if that is not 0."""

    def run(config: dict | Path, *flags: str, out: str = "out") -> Path:
        path = config
        if isinstance(config, dict):
            path = tmp_path / "merge.yml"
            path.write_text(yaml.safe_dump(config))
        monkeypatch.setattr("sys.argv", ["merge", str(path), str(tmp_path / out), *flags])
        return tmp_path / out if (status := main()) == 0 else status

    return run


@pytest.fixture
def same_masks(monkeypatch):
    """Random masks that are ours and mergekit's alike."""

    def fixed(probability, *_, **__):
        return torch.rand(probability.shape, generator=torch.Generator().manual_seed(3)) < probability

    monkeypatch.setattr(sparsify, "bernoulli", fixed)
    monkeypatch.setattr(torch, "bernoulli", lambda probability: fixed(probability).to(probability.dtype))
