import json
import shutil
import warnings

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import MistralForCausalLM

from model import MoEForCausalLM
from model.load import load_model, model_folder
from model.tokenizer import read_tokenizer
from moe_kernels import backend

from .conftest import make_tokenizer


@torch.no_grad()
def test_base_adapter_and_mixture_load_alike(base, adapters, run_compose, ids):
    plain, tokenizer = load_model(base)
    assert torch.equal(plain(ids).logits, MistralForCausalLM.from_pretrained(base)(ids).logits)
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id == 0
    expected = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base), str(adapters[0])).eval()(ids).logits
    for arguments in ((base, adapters[0]), (adapters[0],)):
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # PEFT asks transformers for a name that goes away
            adapted, _ = load_model(*arguments)
        torch.testing.assert_close(adapted(ids).logits, expected, atol=1e-5, rtol=0)
    mixture, _ = load_model(run_compose(adapters, quantize="nf4"))
    assert isinstance(mixture, MoEForCausalLM) and not any(module.training for module in (mixture, plain, adapted))


@torch.no_grad()
def test_in_bf16_the_adapter_is_not_rounded_into_the_base(base, adapters, ids):
    loaded, _ = load_model(base, adapters[0], dtype="bfloat16")
    expected = PeftModel.from_pretrained(MistralForCausalLM.from_pretrained(base, dtype=torch.bfloat16), str(adapters[0])).eval()
    assert isinstance(loaded, PeftModel) and torch.equal(loaded(ids).logits, expected(ids).logits)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_cannot_be_loaded_is_named(base, adapters, run_compose, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    mixture = run_compose(adapters)
    cases = [
        ((tmp_path / "none",), FileNotFoundError, "none is neither a folder nor a model in the local hub cache"),
        ((tmp_path,), FileNotFoundError, r"config\.json is missing"),
        ((other, adapters[0]), ValueError, "was trained on the base 'base', not 'other'"),
        ((mixture, adapters[0]), ValueError, "is a mixture; the adapter .* belongs on its base"),
        ((adapters[0], adapters[1]), ValueError, "is an adapter, so it cannot carry the adapter"),
        ((base, base), FileNotFoundError, r"adapter_config\.json is missing"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            load_model(*arguments)
    with pytest.raises(ValueError, match="dtype is 'int8'; allowed: float32, bfloat16, float16"):
        load_model(base, dtype="int8")


def test_a_model_that_is_not_there_may_be_the_hubs(tmp_path):
    with pytest.raises(FileNotFoundError, match="cache; `hf download nobody/nothing` puts a model of the hub there"):
        model_folder("nobody/nothing")
    with pytest.raises(FileNotFoundError, match=r"cache$"):
        model_folder(tmp_path / "none")  # can be no name there


def test_other_architectures_are_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "t5")
    edit_config(tmp_path / "t5", model_type="t5")
    with pytest.raises(ValueError, match="t5 is a 't5' model, of which transformers has no causal language model"):
        load_model(tmp_path / "t5")


def test_a_base_that_lacks_a_tensor_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    state = load_file(tmp_path / "base" / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has missing keys: model\.norm\.weight"):
        load_model(tmp_path / "base")


def test_a_device_that_is_not_there_is_named(base):
    for device in ("foo", "cuda:99", "meta"):
        with pytest.raises(ValueError, match=f"there is no device '{device}': PyTorch finds the CPU"):
            load_model(base, device=device)


@pytest.mark.parametrize("kind", ["base", "mixture"])
def test_a_folder_that_is_not_whole_is_named_in_one_sentence(base, adapters, run_compose, tmp_path, kind):
    source = base if kind == "base" else run_compose(adapters)
    weights = (source / "model.safetensors").read_bytes()
    cases = [
        ("tokenizer.json", None, ValueError, r"no tokenizer that can be read; its tokenizer files: tokenizer_config\.json"),
        ("tokenizer.json", b'{"version": 1}', ValueError, "no tokenizer that can be read"),
        ("model.safetensors", weights[:-100], ValueError, "is not a whole safetensors file"),
        ("model.safetensors", None, FileNotFoundError, r"has neither model\.safetensors nor"),
        ("model.safetensors.index.json", b'{"weight_map": []}', ValueError, r"has both model\.safetensors and"),
    ]
    for number, (name, content, error, message) in enumerate(cases):
        folder = tmp_path / f"case-{number}"
        shutil.copytree(source, folder)
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
        with pytest.raises(error, match=message) as caught:
            load_model(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_tensors_of_other_shapes_are_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    edit_config(tmp_path / "base", intermediate_size=96)
    with pytest.raises(ValueError, match=r"has wrongly shaped keys: model\.layers\.0\.mlp\.down_proj"):
        load_model(tmp_path / "base")


@pytest.mark.parametrize("kind", ["base", "mixture"])
def test_a_checkpoints_code_is_never_run(base, adapters, run_compose, tmp_path, kind):
    folder = tmp_path / "hostile"
    shutil.copytree(base if kind == "base" else run_compose(adapters), folder)
    edit_config(folder, auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(ValueError, match=r"config\.json names code \(auto_map\)"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()


def test_a_relative_name_is_looked_for_beside_the_recipe(base):
    assert model_folder("base", base.parent) == base.parent / "base"


@pytest.mark.skipif(bool(backend.extension_problem()), reason=backend.extension_problem() or "built")
def test_a_precision_of_4_bit_weights_is_refused_where_there_are_none(mixtral):
    with pytest.raises(ValueError, match=r"precision 'int8' needs NF4 weights.*not a dense weight"):
        MoEForCausalLM.from_pretrained(mixtral, precision="int8")
    assert MoEForCausalLM.from_pretrained(mixtral, precision="int8", quantization="nf4").model.layers[0].mlp.experts.precision == "int8"


def test_a_wrong_config_is_not_called_a_wrong_tokenizer(base, mixtral, tmp_path):
    """transformers reads the config for the tokenizer too."""
    for source in (base, mixtral):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        make_tokenizer().save_pretrained(folder)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": "x"}))
        with pytest.raises(ValueError, match=r"has a config.json that cannot be read: .*rms_norm_eps"):
            load_model(folder, device="cpu")


def test_a_base_that_is_larger_than_its_weights_is_not_built(base, tmp_path):
    """transformers would make up 2^24 rows of embedding and head, 8 GB, and only then say that they do not fit."""
    folder = shutil.copytree(base, tmp_path / "large")
    for changes, said in (
        ({"vocab_size": 1 << 24}, r"large/config\.json describes a model of 2147\d+ values, but its weights have 8\d+"),
        ({"hidden_act": "x"}, "large cannot be loaded: KeyError: 'x'"),
        ({"sliding_window": -1}, "sliding_window = -1; it must be a whole number"),
    ):
        config = json.loads((base / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=said):
            load_model(folder)


@pytest.mark.parametrize(("name", "refused"), [("PanicException", True), ("KeyboardInterrupt", False)])
def test_a_panic_in_rust_is_a_tokenizer_that_cannot_be_read(base, tmp_path, monkeypatch, name, refused):
    """Seed 0's mutations found one: an index out of bounds in `encode_batch`. It is no Exception; neither is Ctrl-C."""
    raised = type(name, (BaseException,), {})

    def panic(*_, **__):
        raise raised("index out of bounds: the len is 1 but the index is 1")

    monkeypatch.setattr("model.tokenizer.AutoTokenizer.from_pretrained", panic)
    with pytest.raises(ValueError if refused else raised, match="index out of bounds"):
        read_tokenizer(tmp_path)
