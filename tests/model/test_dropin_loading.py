"""`MoEForCausalLM` where users put `MixtralForCausalLM`: loading, devices, pipelines, serving.

The oracle is transformers' Mixtral on the same checkpoint, or the same model without the feature.
"""

import json
import shutil

import pytest
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    MixtralConfig,
    MixtralForCausalLM,
    pipeline,
)
from transformers.cli.serving import model_manager, server
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import BaseHandler, GenerationState
from transformers.utils.import_utils import is_serve_available

from model import MoEConfig, MoEForCausalLM, MoEModel, NF4ExpertsConfig
from model import serve as model_serve
from model.load import load_model

from .conftest import GENERATION, make_tokenizer

BNB_NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def test_quantize_is_the_spelling_of_from_pretrained(mixtral, ids, tmp_path):
    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    assert model.config.quantization == "nf4"
    model.save_pretrained(tmp_path)
    assert MoEForCausalLM.from_pretrained(tmp_path).config.quantization == "nf4"
    assert AutoModelForCausalLM.from_pretrained(tmp_path, quantize="none").config.quantization is None
    with pytest.raises(ValueError, match="quantize is 'int3'; allowed: nf4, none"):
        MoEForCausalLM.from_pretrained(mixtral, quantize="int3")
    with pytest.raises(ValueError, match=r'does not support load_in_4bit=\'True\' \(quantize="nf4" quantises\)'):
        MoEForCausalLM.from_pretrained(mixtral, load_in_4bit=True)


@pytest.mark.parametrize("keyword", ["subfolder", "variant", "experts_implementation"])
def test_what_is_known_and_not_done_here_is_not_dropped(mixtral, keyword):
    MoEForCausalLM.from_pretrained(mixtral, **{keyword: None})
    with pytest.raises(ValueError, match=f"from_pretrained does not support {keyword}='v2'"):
        MoEForCausalLM.from_pretrained(mixtral, **{keyword: "v2"})


@pytest.mark.parametrize(
    ("keywords", "read"),
    [
        ({"dtype": None}, lambda model: model.dtype),
        ({"torch_dtype": None}, lambda model: model.dtype),
        ({"output_attentions": True}, lambda model: model(torch.tensor([[5]])).attentions is not None),
        ({"num_labels": 3}, lambda model: model.config.num_labels),
        ({"use_cache": False}, lambda model: model.config.use_cache),
        ({"num_experts": 4}, lambda model: model.config.num_local_experts),
    ],
    ids=["dtype", "torch_dtype", "output_attentions", "num_labels", "use_cache", "num_experts"],
)
def test_a_keyword_means_what_it_means_to_mixtral(mixtral, keywords, read):
    ours, theirs = (cls.from_pretrained(mixtral, **keywords) for cls in (MoEForCausalLM, MixtralForCausalLM))
    assert read(ours) == read(theirs)


def test_the_config_may_be_named_by_its_folder(mixtral, tmp_path):
    settings = json.loads((mixtral / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_experts_per_tok": 1}))
    for folder in (tmp_path, str(tmp_path)):
        model = MoEForCausalLM.from_pretrained(mixtral, config=folder)
        assert (model.config.num_experts_per_tok, model.config.router_type) == (1, "topk")


@torch.no_grad()
def test_an_adapters_folder_is_its_base_with_it(mixtral, ids, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = MixtralForCausalLM.from_pretrained(mixtral)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).eval()
    adapted.save_pretrained(str(tmp_path))
    expected = adapted(input_ids=ids).logits
    torch.testing.assert_close(MoEForCausalLM.from_pretrained(tmp_path)(ids).logits, expected, atol=1e-5, rtol=0)


def test_a_variant_is_not_saved_as_it_could_not_be_loaded(ours, tmp_path):
    with pytest.raises(ValueError, match="does not support variant='fp16'"):
        ours.save_pretrained(tmp_path / "out", variant="fp16")
    assert not (tmp_path / "out").exists()


def test_a_model_in_nf4_without_its_matrices_is_refused(mixtral, ids, tmp_path):
    model = MoEForCausalLM(MoEConfig.from_pretrained(mixtral, quantization="nf4"))
    for use in (lambda: model(ids), lambda: model.save_pretrained(tmp_path / "out")):
        with pytest.raises(ValueError, match="has no values of weight: a model in NF4 is made by"):
            use()
    assert not (tmp_path / "out").exists()


def test_mixtrals_attributes_act_as_with_mixtral(ours, theirs, ids):
    for model in (ours, theirs):
        assert (model.num_experts, model.num_experts_per_tok) == (4, 2)
        model.router_aux_loss_coef = 0.7
        output = model(ids, labels=ids, output_router_logits=True)
        torch.testing.assert_close(output.loss, model(ids, labels=ids).loss + 0.7 * output.aux_loss)


def test_a_misspelt_option_is_refused_whatever_its_value(mixtral):
    for value in (0, 0.0, False, None, ""):
        with pytest.raises(TypeError, match="unknown arguments: importance_coeff"):
            MoEForCausalLM.from_pretrained(mixtral, importance_coeff=value)
    MoEForCausalLM.from_pretrained(mixtral, quantization_config=None, load_in_4bit=False, variant=None, ignore_mismatched_sizes=False)


@pytest.fixture
def cached(mixtral, tmp_path):
    """A cache of the hub with one model, acme/mix."""
    folder = tmp_path / "cache" / "models--acme--mix"
    (folder / "refs").mkdir(parents=True)
    for branch, snapshot in (("main", "abc"), ("v1", "def")):
        (folder / "refs" / branch).write_text(snapshot)
        shutil.copytree(mixtral, folder / "snapshots" / snapshot)
    make_tokenizer().save_pretrained(folder / "snapshots" / "abc")
    return tmp_path / "cache"


@pytest.mark.parametrize("cls", [MoEForCausalLM, AutoModelForCausalLM])
def test_the_cache_of_the_hub_may_lie_elsewhere(mixtral, cached, tmp_path, cls):
    with pytest.raises((FileNotFoundError, OSError)):
        cls.from_pretrained("acme/mix", local_files_only=True)
    model = cls.from_pretrained("acme/mix", cache_dir=cached, local_files_only=True)
    assert torch.equal(model.lm_head.weight, MixtralForCausalLM.from_pretrained(mixtral).lm_head.weight)


def test_a_revision_is_the_one_that_is_loaded(cached):
    config = cached / "models--acme--mix" / "snapshots" / "def" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 0.5}))
    for revision, eps in ((None, 1e-5), ("main", 1e-5), ("v1", 0.5)):
        model = MoEForCausalLM.from_pretrained("acme/mix", cache_dir=cached, revision=revision)
        assert model.config.rms_norm_eps == eps
    with pytest.raises(FileNotFoundError):
        MoEForCausalLM.from_pretrained("acme/mix", cache_dir=cached, revision="v2")


def test_a_model_of_the_hub_keeps_its_name(cached, tmp_path, monkeypatch):
    """So an adapter names its base as others know it; the folder of one machine's cache is nowhere else."""
    from peft import LoraConfig, get_peft_model

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cached))
    model = MoEForCausalLM.from_pretrained("acme/mix")
    model.export_mixtral(tmp_path / "exported")
    assert (tmp_path / "exported" / "tokenizer.json").is_file()
    for loaded in (model, load_model("acme/mix", device="cpu")[0]):
        get_peft_model(loaded, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "adapter"))
        assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "acme/mix"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_config_without_a_dtype_leaves_the_checkpoints(mixtral, tmp_path, dtype):
    MixtralForCausalLM.from_pretrained(mixtral, dtype=dtype).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert MoEForCausalLM.from_pretrained(tmp_path).dtype == MixtralForCausalLM.from_pretrained(tmp_path).dtype == dtype


@torch.no_grad()
def test_auto_classes_know_the_model(ours, ids, tmp_path):
    ours.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MoEConfig)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, torch_dtype=torch.float32)
    assert isinstance(model, MoEForCausalLM) and torch.equal(model(ids).logits, ours(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_the_base_model_loads_what_the_whole_model_loads(mixtral, ids, tmp_path, quantize):
    whole = MoEForCausalLM.from_pretrained(mixtral, quantize=quantize)
    whole.save_pretrained(tmp_path)
    for folder in (mixtral, tmp_path):
        base = MoEModel.from_pretrained(folder, quantize=quantize)
        assert torch.equal(base(ids).last_hidden_state, whole.model(ids).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}, torch.device("cpu")])
def test_device_map_of_one_device(mixtral, ids, ours, device_map, quantize):
    model = MoEForCausalLM.from_pretrained(mixtral, device_map=device_map, max_memory={"cpu": "1GiB"}, quantize=quantize)
    expected = MoEForCausalLM.from_pretrained(mixtral, quantize=quantize)
    assert torch.equal(model(ids).logits, expected(ids).logits)


SPLIT = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu", "lm_head": "cpu"}
SPLIT["model.rotary_emb"] = "cpu"


def test_device_map_of_several_devices(mixtral, ids, ours, tmp_path):
    model = MoEForCausalLM.from_pretrained(mixtral, device_map=SPLIT, offload_folder=tmp_path)
    assert model.model.layers[1].mlp.experts.gate_up_proj.device.type == "meta" and list(tmp_path.iterdir())
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, ours(ids).logits, atol=1e-6, rtol=0)
    assert torch.equal(model.generate(ids, **GENERATION), ours.generate(ids, **GENERATION))


def test_device_map_that_cannot_be(mixtral, tmp_path):
    with pytest.raises(ValueError, match="NF4 matrices stay on the device"):
        MoEForCausalLM.from_pretrained(mixtral, device_map=SPLIT, offload_folder=tmp_path, quantize="nf4")
    for absent in ("cuda:99", {"": "cuda:99"}):
        with pytest.raises(ValueError, match="there is no device 'cuda:99': PyTorch finds the CPU"):
            MoEForCausalLM.from_pretrained(mixtral, device_map=absent)
    with pytest.raises(ValueError, match="lm_head"):
        MoEForCausalLM.from_pretrained(mixtral, device_map={"model": "cpu"})


def test_auto_device_map_counts_nf4_as_four_bits(mixtral):
    """A limit that holds the NF4 model, but not half of the fp32 model, leaves all of it in RAM."""
    from model.devices import resolve_device_map

    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    assert set(resolve_device_map(model, "auto", {"cpu": "200KB"}).values()) == {"cpu"}
    dense = MoEForCausalLM.from_pretrained(mixtral)
    assert "disk" in resolve_device_map(dense, "auto", {"cpu": "200KB"}).values()


def test_pipeline_generates_what_generate_does(ours, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    ours.save_pretrained(tmp_path)
    prompt = tokenizer("abc: def", return_tensors="pt")
    options = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False}
    text = pipeline("text-generation", model=str(tmp_path), tokenizer=AutoTokenizer.from_pretrained(tmp_path))("abc: def", **options)
    tokens = ours.generate(**prompt, max_new_tokens=8)[0, prompt.input_ids.shape[1] :]
    assert text[0]["generated_text"] == tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.fixture
def serve(monkeypatch):
    """`model.serve` with these arguments; what it changes in transformers is taken back."""
    monkeypatch.setattr(transformers, "MoEForCausalLM", None, raising=False)
    monkeypatch.setattr(model_manager, "ModelManager", model_manager.ModelManager)
    monkeypatch.setattr(server, "build_server", server.build_server)
    monkeypatch.setattr(BaseHandler, "_build_generation_config", BaseHandler._build_generation_config)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["model.serve", *arguments])
        model_serve.main()

    return run


def test_the_server_of_transformers_finds_the_class(mixtral, tmp_path, monkeypatch, serve):
    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    served = []

    def serve_one_request(arguments):
        assert arguments == ["serve", "--port", "8001"]
        served.append(ModelManager(device="cpu").load_model_and_processor(f"{tmp_path}@main")[0])

    monkeypatch.setattr("model.serve.app", serve_one_request)
    serve("--port", "8001")
    assert isinstance(served[0], MoEForCausalLM) and served[0].config.quantization == "nf4"


@pytest.mark.parametrize("name", ["./nothere/at/all", "nothere", "no/repo@v2"])
def test_the_server_ends_where_its_model_is_not_here(name, serve, capsys):
    """Before the hub is asked, which transformers would do for minutes."""
    with pytest.raises(SystemExit) as left:
        serve(name)
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"python -m model.serve: {name.partition('@')[0]} is neither a folder nor a model in the local hub cache")


@pytest.mark.parametrize(
    ("files", "fault"), [({}, "config.json is missing"), ({"config.json": '{"model_type": "mixtral"}'}, "processing class")]
)
def test_the_server_ends_where_its_model_does_not_load(files, fault, serve, tmp_path, capsys):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as left:
        serve(str(tmp_path))
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.count("\n") == 1
    assert said.startswith("python -m model.serve: ") and str(tmp_path) in said and fault in said


@pytest.mark.skipif(not is_serve_available(), reason="model.serve needs pip install .[serve]")
@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--quantization", "bnb-4bit"], "quantization_config"),
        (["--attn-implementation", "flash_attention_2"], "FlashAttention2"),
        (["--log-level", "foo"], "--log-level is 'foo'; allowed: detail, debug"),
        (["--chat-template-kwargs", "{"], "property name"),
    ],
)
def test_the_server_ends_where_a_flag_means_nothing(flags, fault, mixtral, serve, tmp_path, capsys):
    MoEForCausalLM.from_pretrained(mixtral).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        serve(str(tmp_path), "--device", "cpu", *flags)
    said = capsys.readouterr().err.splitlines()[-1]
    assert left.value.code == 2 and "python -m model.serve: " in said and fault in said


def test_the_server_says_what_it_needs(serve, monkeypatch, capsys):
    monkeypatch.setattr("transformers.cli.serve.is_serve_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        serve()
    assert left.value.code == 2 and capsys.readouterr().err.startswith("python -m model.serve: Missing dependencies")


@pytest.mark.parametrize(
    ("body", "own", "samples"),
    [
        ({}, {}, None),
        ({}, {"do_sample": True, "temperature": 0.7}, True),
        ({"temperature": 0.7}, {}, True),
        ({"top_p": 0.9}, {}, True),
        ({"temperature": 0}, {"do_sample": True}, False),
        ({"temperature": 1e-320}, {}, False),
        ({"generation_config": '{"do_sample": true, "temperature": 0}'}, {}, False),
    ],
)
def test_the_server_samples_where_a_temperature_asks_for_it(body, own, samples, serve, monkeypatch):
    monkeypatch.setattr("model.serve.app", lambda _: None)
    serve()
    config = BaseHandler(None, GenerationState())._build_generation_config(body, GenerationConfig(**own))
    assert config.do_sample is samples and config.top_k == 0


def test_an_activation_that_the_kernels_lack_is_refused():
    with pytest.raises(ValueError, match="hidden_act is 'gelu'; allowed: silu"):
        MoEConfig(hidden_act="gelu")


def test_a_subclass_may_compute_in_its_constructor(mixtral, ids, ours):
    class Scaled(MoEForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            self.scale = float(torch.linspace(0, 1, 3)[1])

    model = Scaled.from_pretrained(mixtral)
    assert model.scale == 0.5 and torch.equal(model(ids).logits, ours(ids).logits)


def test_a_configuration_of_mixtral_makes_a_model(mixtral, ids):
    config = MixtralConfig.from_pretrained(mixtral)
    assert MoEForCausalLM(config).config.router_type == "topk"
    for implementation in ("eager", "sdpa"):
        config = MixtralConfig.from_pretrained(mixtral, attn_implementation=implementation)
        assert MoEForCausalLM(config).config._attn_implementation == implementation


def test_a_device_map_that_leaves_out_nf4_is_refused(mixtral):
    devices = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.0"), "cpu")
    devices |= {f"model.layers.1.{name}": "cpu" for name in ("mlp.gate", "input_layernorm", "post_attention_layernorm")}
    with pytest.raises(ValueError, match=r"says nothing of model\.layers\.1"):
        MoEForCausalLM.from_pretrained(mixtral, quantize="nf4", device_map=devices)


@torch.no_grad()
def test_a_mixtral_that_is_quantised_already_stays_so(mixtral, ids, tmp_path):
    stored = AutoModelForCausalLM.from_pretrained(mixtral, quantization_config=NF4ExpertsConfig())
    stored.save_pretrained(tmp_path)
    model = MoEForCausalLM.from_pretrained(tmp_path)
    assert model.config.quantization == "nf4" and not hasattr(model.config, "quantization_config")
    assert torch.equal(
        model.model.layers[0].mlp.experts.matrix("down_proj").packed, stored.model.layers[0].mlp.experts.down_proj.weight.packed
    )


@torch.no_grad()
def test_plain_experts_beside_quantised_attention_stay_plain(mixtral, ids, tmp_path):
    """As bitsandbytes leaves fused experts."""
    MixtralForCausalLM.from_pretrained(mixtral, quantization_config=BNB_NF4).save_pretrained(tmp_path)
    stored = MixtralForCausalLM.from_pretrained(tmp_path).dequantize()  # on a CPU bitsandbytes rounds what it multiplies to bf16
    model = MoEForCausalLM.from_pretrained(tmp_path)
    assert model.config.quantization is None
    torch.testing.assert_close(model(ids).logits, stored(ids).logits, atol=2e-5, rtol=0)
    assert MoEForCausalLM.from_pretrained(tmp_path, quantize="nf4").config.quantization == "nf4"


def test_plain_attention_beside_quantised_experts_is_asked_about(mixtral, tmp_path):
    config = NF4ExpertsConfig(llm_int8_skip_modules=[".*self_attn"])
    MixtralForCausalLM.from_pretrained(mixtral, quantization_config=config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r'in NF4 beside plain model\.layers.*q_proj.*; quantize="nf4" or "none" makes them alike'):
        MoEForCausalLM.from_pretrained(tmp_path)
    for quantize in ("nf4", "none"):
        MoEForCausalLM.from_pretrained(tmp_path, quantize=quantize)
