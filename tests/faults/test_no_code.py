"""Nothing of the package reads a pickle, and nothing lets a checkpoint's code run."""

import ast
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import MistralConfig, MistralForCausalLM

from model.layerwise import walk_layers
from model.load import load_model
from model.merging.sources import open_sources
from model.tokenizer import read_tokenizer
from tests.faults.reader import SMALL
from tests.model.conftest import make_tokenizer
from train.checkpoints import newest_checkpoint
from train.expert import load_base
from train.plan_data import find_tokenizer
from train.plan_models import base_config

ROOMS = ("moe_kernels", "model", "train", "eval")
PICKLES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
AUTO = {"AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer"}


def nodes() -> Iterator[tuple[str, ast.AST]]:
    for room in ROOMS:
        for path in (Path(__file__).parents[2] / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                yield f"{path}:{getattr(node, 'lineno', 0)}", node


def test_no_module_imports_a_pickler():
    for where, node in nodes():
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not PICKLES & {name.split(".")[0] for name in names}, where


def test_no_call_reads_a_pickle_or_lets_code_run():
    seen = 0
    for where, node in nodes():
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, options = ast.unparse(node.func.value), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if (owner, node.func.attr) == ("torch", "load") and options.get("weights_only") == "True":
            continue  # of a run's own checkpoint
        assert (owner, node.func.attr) not in {("torch", "load"), ("np", "load"), ("numpy", "load"), ("yaml", "load")}, where
        assert node.func.attr not in ("load_dataset", "unsafe_load", "full_load"), where
        assert options.get("trust_remote_code", "False") == "False", where
        if owner in AUTO and node.func.attr == "from_pretrained":
            seen += 1
            assert options.get("trust_remote_code") == "False", f"{where} leaves it to transformers, which would ask on a terminal"
    assert seen >= 5


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A base and an adapter of it, each of whose files names code that leaves a file `ran` behind."""
    folder = tmp_path_factory.mktemp("hostile")
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None))
    model.save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    get_peft_model(model, LoraConfig(r=2, target_modules=["up_proj"])).save_pretrained(str(folder / "adapter"))
    for file in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = folder / "base" / file
        auto = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "evil.Evil") | {
            "AutoTokenizer": ["evil.Evil", "evil.Evil"]
        }
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": auto, "custom_generate": "evil", "model_type": "mistral"}))
    (folder / "base" / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Evil: pass\n")
    (folder / "base" / "custom_generate").mkdir()
    shutil.copy(folder / "base" / "evil.py", folder / "base" / "custom_generate" / "generate.py")
    return folder


LOADERS = {
    "load_model": lambda folder: load_model(folder),
    "train.expert": lambda folder: load_base(str(folder), checkpointing=False),
    "train.plan": lambda folder: base_config(str(folder)),
    "the plan's tokenizer": find_tokenizer,
    "tokenizer": read_tokenizer,
    "merge": lambda folder: open_sources([str(folder)], None, folder.parent),
    "gates": lambda folder: next(walk_layers(folder, {}, ("mlp",))),
    "adapter": lambda folder: load_model(folder, folder.parent / "adapter"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_no_way_to_a_model_runs_its_code_or_asks_whether_to(hostile, monkeypatch, name):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked whether to run the code"))
    try:
        LOADERS[name](hostile / "base")
    except ValueError as error:
        assert str(hostile / "base") in str(error)
    assert not (hostile / "ran").exists()


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "adapter_model.safetensors"])
def test_a_pickle_under_any_name_is_not_read(hostile, tmp_path, name):
    folder = tmp_path / "base"
    shutil.copytree(hostile / "base", folder, ignore=lambda *_: ["model.safetensors", "config.json"])
    MistralConfig(**SMALL).save_pretrained(folder)
    torch.save({"model.norm.weight": Evil(tmp_path / "ran")}, folder / name)
    with pytest.raises((ValueError, FileNotFoundError), match=r"safetensors"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_cannot_be_read_stays(tmp_path, monkeypatch):
    state = tmp_path / "checkpoint-9" / "trainer_state.json"
    state.parent.mkdir()
    state.write_text("{}")

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(PermissionError, match="checkpoint-9"):
            newest_checkpoint(tmp_path)
    assert newest_checkpoint(tmp_path) == state.parent
    state.write_text("{")
    assert newest_checkpoint(tmp_path) is None and not state.parent.exists()


def test_what_a_run_resumes_from_is_found_beside_its_own_output_only(tmp_path):
    """The optimizer's state is a pickle: transformers reads it with `weights_only`, and only out of the run's own hidden folder."""
    (tmp_path / "checkpoint-9").mkdir()
    torch.save({"state": Evil(tmp_path / "ran")}, tmp_path / "checkpoint-9" / "optimizer.pt")
    assert newest_checkpoint(tmp_path) is None  # without trainer_state.json, which is written last
    torch.save({"state": Evil(tmp_path / "ran")}, tmp_path / "optimizer.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "optimizer.pt", weights_only=True)  # as transformers.Trainer does for optimizer, scheduler and RNG
    assert not (tmp_path / "ran").exists()
