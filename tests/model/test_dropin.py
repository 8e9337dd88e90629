"""`MoEForCausalLM` where users put `MixtralForCausalLM`: generation, attention backends, compiling, Trainer, PEFT, pipelines, devices.

The oracle is transformers' Mixtral on the same checkpoint, or the same model without the feature.
"""

import pytest
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    MixtralConfig,
    MixtralForCausalLM,
    StaticCache,
    TextIteratorStreamer,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.cli.serving.model_manager import ModelManager
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from model import MoEConfig, MoEForCausalLM, MoEModel, NF4ExpertsConfig
from model import serve as model_serve

from .conftest import SHAPE, make_tokenizer

GENERATION = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture
def ours(mixtral) -> MoEForCausalLM:
    return MoEForCausalLM.from_pretrained(mixtral)


@pytest.fixture
def theirs(mixtral) -> MixtralForCausalLM:
    return MixtralForCausalLM.from_pretrained(mixtral)


@pytest.fixture
def padded(ids) -> dict[str, torch.Tensor]:
    """Three prompts of different lengths, padded on the left."""
    mask = torch.ones_like(ids)
    mask[0, :6] = mask[1, :1] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


# generation


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "top_k": 8, "temperature": 1.5},
        {"num_beams": 3},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=["greedy", "sampling", "beam", "static-cache", "prompt-lookup"],
)
def test_generates_what_mixtral_generates(ours, theirs, padded, options):
    batch = {name: tensor[:1] for name, tensor in padded.items()} if "prompt_lookup_num_tokens" in options else padded
    tokens = []
    for model in (ours, theirs):
        torch.manual_seed(11)
        tokens.append(model.generate(**batch, **GENERATION, **options))
    assert torch.equal(*tokens)


def test_quantised_cache_generates_what_mixtral_generates(ours, theirs, ids):
    pytest.importorskip("optimum.quanto")
    options = {"cache_implementation": "quantized", "cache_config": {"backend": "quanto", "nbits": 4, "q_group_size": 16}}
    assert torch.equal(*(model.generate(ids, **GENERATION, **options) for model in (ours, theirs)))


def test_left_padded_prompts_generate_what_single_prompts_do(ours, padded):
    together = ours.generate(**padded, **GENERATION)[:, -8:]
    for row, (prompt, mask) in enumerate(zip(padded["input_ids"], padded["attention_mask"], strict=True)):
        assert torch.equal(ours.generate(prompt[None, mask.bool()], **GENERATION)[0, -8:], together[row])


def test_assistant_changes_no_token(ours, theirs, ids):
    plain = ours.generate(ids[:1], **GENERATION)
    assert torch.equal(ours.generate(ids[:1], assistant_model=theirs, **GENERATION), plain)


def test_streams_its_tokens(ours, ids):
    tokenizer = make_tokenizer()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    tokens = ours.generate(ids[:1], streamer=streamer, **GENERATION)
    assert "".join(streamer) == tokenizer.decode(tokens[0, ids.shape[1] :])


@torch.no_grad()
def test_pieces_of_a_prompt_equal_the_whole(ours, ids):
    cache = None
    pieces = []
    for piece in ids.split([7, 1, 9], dim=1):
        output = ours(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), ours(ids).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_batch_equals_single(ours, ids):
    single = torch.cat([ours(row[None]).logits for row in ids])
    torch.testing.assert_close(ours(ids).logits, single, atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits_are_those_asked_for(ours, ids):
    logits = ours(ids).logits
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    positions = torch.tensor([[0, 5], [16, 2], [7, 7]])
    cases = [(0, logits), (3, logits[:, -3:]), (positions[0], logits[:, [0, 5]]), (mask, logits[mask])]
    cases.append((positions, torch.stack([row[chosen] for row, chosen in zip(logits, positions, strict=True)])))
    for wanted, expected in cases:
        torch.testing.assert_close(ours(ids, logits_to_keep=wanted).logits, expected, atol=1e-6, rtol=0)


# attention


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
def test_every_attention_is_mixtrals(mixtral, theirs, padded, implementation):
    ours = MoEForCausalLM.from_pretrained(mixtral, attn_implementation=implementation)
    logits = [model(**padded).logits[padded["attention_mask"].bool()] for model in (ours, theirs)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)


def test_flash_attention_is_refused_as_mixtral_refuses_it(mixtral):
    errors = []
    for cls in (MoEForCausalLM, MixtralForCausalLM):
        with pytest.raises((ImportError, ValueError)) as caught:
            cls.from_pretrained(mixtral, attn_implementation="flash_attention_2")
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@torch.no_grad()
def test_long_context_and_its_rope_survive(tmp_path):
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 4096}
    shape = {**SHAPE, "hidden_size": 32, "head_dim": 8, "intermediate_size": 64, "max_position_embeddings": 32768}
    config = MixtralConfig(**shape, num_local_experts=4, rope_parameters=rope)
    torch.manual_seed(0)
    theirs = MixtralForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    MoEForCausalLM.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    ours = MoEForCausalLM.from_pretrained(tmp_path / "ours")
    assert ours.config.rope_parameters == config.rope_parameters and ours.config.max_position_embeddings == 32768
    long = torch.randint(3, 64, (1, 6000), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(long, logits_to_keep=64).logits, theirs(long, logits_to_keep=64).logits, atol=1e-5, rtol=0)


# losses


@pytest.mark.parametrize("padding", [False, True])
def test_one_layers_loss_and_gradients_are_mixtrals(tmp_path, ids, padded, padding):
    MixtralForCausalLM(MixtralConfig(**SHAPE | {"num_hidden_layers": 1}, num_local_experts=4, router_aux_loss_coef=0.5)).save_pretrained(
        tmp_path
    )
    labels = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)
    inputs = padded if padding else {"input_ids": ids}  # padding without a mask would tie: its embedding, and so its logits, are zeros
    outputs, gates = [], []
    for cls in (MoEForCausalLM, MixtralForCausalLM):
        model = cls.from_pretrained(tmp_path).train()
        outputs.append(model(**inputs, labels=labels, output_router_logits=True))
        outputs[-1].loss.backward()
        gates.append(model.model.layers[0].mlp.gate.weight.grad)
    for name in ("aux_loss", "loss"):
        torch.testing.assert_close(outputs[0][name], outputs[1][name], atol=1e-6, rtol=0)
    torch.testing.assert_close(*gates, atol=1e-5, rtol=0)


@torch.no_grad()
def test_aux_loss_is_the_mean_of_each_layers(ours, padded):
    output = ours(**padded, output_router_logits=True)
    layers = [load_balancing_loss_func((logits,), 4, 2, padded["attention_mask"]) for logits in output.router_logits]
    torch.testing.assert_close(output.aux_loss, torch.stack(layers).mean(), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_aux_loss_is_added_when_mixtral_adds_it(ours, theirs, ids, training):
    ours.config.router_aux_loss_coef = 0.5
    for model in (ours.train(training), theirs.train(training)):
        output = model(ids, labels=ids)
        assert output.aux_loss is None and output.router_logits is None
        with_logits = model(ids, labels=ids, output_router_logits=True)
        coefficient = 0.5 if model is ours else model.router_aux_loss_coef
        torch.testing.assert_close(with_logits.loss, output.loss + coefficient * with_logits.aux_loss)


@torch.no_grad()
def test_switch_has_its_own_papers_loss(mixtral, ids):
    """E · Σ_e f_e P_e with f the share of tokens whose largest probability is e's (arXiv:2101.03961, eq. 4-6)."""
    output = MoEForCausalLM.from_pretrained(mixtral, router_type="switch")(ids, output_router_logits=True)
    losses = []
    for logits in output.router_logits:
        probability = logits.double().softmax(dim=1)
        share = torch.bincount(probability.argmax(dim=1), minlength=4) / len(probability)
        losses.append(4 * (share * probability.mean(dim=0)).sum())
    torch.testing.assert_close(output.aux_loss.double(), torch.stack(losses).mean(), atol=1e-6, rtol=0)


def test_jitter_is_mixtrals(mixtral, ids):
    losses = []
    for cls in (MoEForCausalLM, MixtralForCausalLM):
        model = cls.from_pretrained(mixtral, router_jitter_noise=0.3).train()
        torch.manual_seed(5)
        losses.append(model(ids, labels=ids).loss)
        assert model.eval()(ids, labels=ids).loss != losses[-1]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)


# compiling and checkpointing


@torch.no_grad()
def test_nf4_compiles_whole(mixtral, padded):
    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**padded).logits, model(**padded).logits, atol=1e-5, rtol=0)


def test_compiled_training_is_not_compiled_anew_at_each_step(noisy, ids):
    noisy.train()
    noisy(ids, labels=ids)  # installs transformers' hooks that record outputs, which cannot be traced
    noisy.set_router_step(0)
    torch._dynamo.reset()
    compiled = torch.compile(noisy, fullgraph=True, backend="aot_eager")
    losses = [compiled(ids, labels=ids).loss for _ in range(2)]
    losses[0].backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        losses.append(compiled(ids, labels=ids).loss)
    noisy.set_router_step(0)
    plain = [noisy(ids, labels=ids).loss for _ in range(3)]
    torch.testing.assert_close(losses, plain)
    assert len({loss.item() for loss in plain}) == 3  # each step has noise of its own


@torch.no_grad()
def test_static_cache_compiles_whole(ours, ids):
    cache = StaticCache(config=ours.config, max_cache_len=32)
    step = torch.compile(ours, fullgraph=True, backend="aot_eager")
    ours(ids, past_key_values=cache)
    logits = step(ids[:, :1], past_key_values=cache).logits
    torch.testing.assert_close(logits[:, 0], ours(torch.cat([ids, ids[:, :1]], dim=1)).logits[:, -1], atol=1e-5, rtol=0)


# training


class Rows(torch.utils.data.Dataset):
    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def arguments(folder, **changes) -> TrainingArguments:
    settings: dict = {
        "per_device_train_batch_size": 3,
        "max_steps": 8,
        "save_steps": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
    }
    return TrainingArguments(
        output_dir=str(folder), report_to="none", use_cpu=True, logging_steps=1, disable_tqdm=True, **settings | changes
    )


def train(mixtral, ids, folder, resume=False, **changes) -> Trainer:
    trainer = Trainer(MoEForCausalLM.from_pretrained(mixtral), arguments(folder, **changes), train_dataset=Rows(ids))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses_of(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_trainer_learns_and_resumes(mixtral, ids, tmp_path):
    whole = train(mixtral, ids, tmp_path / "whole")
    losses = losses_of(whole)
    assert losses[-1] < 0.8 * losses[0]
    train(mixtral, ids, tmp_path / "parts", max_steps=4)
    resumed = train(mixtral, ids, tmp_path / "parts", resume=True)
    assert losses_of(resumed) == losses
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    assert MoEForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-8").config.router_type == "topk"


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_peft_trains_saves_and_loads_an_adapter_on_attention(mixtral, ids, tmp_path, quantize):
    from peft import LoraConfig, PeftModel, get_peft_model

    def load():
        return MoEForCausalLM.from_pretrained(mixtral, quantize=quantize)

    torch.manual_seed(0)
    model = get_peft_model(load(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(5):
        losses.append(model(input_ids=ids, labels=ids).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(trained) == 8 and losses[-1] < losses[0]
    model.save_pretrained(str(tmp_path))
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        again = PeftModel.from_pretrained(load(), str(tmp_path)).eval()
        assert torch.equal(again(input_ids=ids).logits, expected)
        own = load()
        own.load_adapter(str(tmp_path))
        assert torch.equal(own(input_ids=ids).logits, expected)
        if quantize is None:
            torch.testing.assert_close(again.merge_and_unload()(ids).logits, expected, atol=1e-5, rtol=0)
        else:
            with pytest.raises(RuntimeError):  # not a silent loss of the adapter
                again.merge_and_unload()


# loading


def test_quantize_is_the_spelling_of_from_pretrained(mixtral, ids, tmp_path):
    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    assert model.config.quantization == "nf4"
    model.save_pretrained(tmp_path)
    assert MoEForCausalLM.from_pretrained(tmp_path).config.quantization == "nf4"
    assert AutoModelForCausalLM.from_pretrained(tmp_path, quantize="none").config.quantization is None
    with pytest.raises(ValueError, match="quantize is 'int3'; allowed: nf4, none"):
        MoEForCausalLM.from_pretrained(mixtral, quantize="int3")
    with pytest.raises(TypeError, match="unknown arguments: load_in_4bit"):
        MoEForCausalLM.from_pretrained(mixtral, load_in_4bit=True)


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


def test_the_server_of_transformers_finds_the_class(mixtral, tmp_path, monkeypatch):
    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    served = []

    def serve_one_request(arguments):
        assert arguments == ["serve", "--port", "8001"]
        served.append(ModelManager(device="cpu").load_model_and_processor(f"{tmp_path}@main")[0])

    monkeypatch.setattr("model.serve.app", serve_one_request)
    monkeypatch.setattr("sys.argv", ["model.serve", "--port", "8001"])
    monkeypatch.setattr(transformers, "MoEForCausalLM", None, raising=False)  # taken back afterwards
    model_serve.main()
    assert isinstance(served[0], MoEForCausalLM) and served[0].config.quantization == "nf4"


def test_an_activation_that_the_kernels_lack_is_refused():
    with pytest.raises(ValueError, match="hidden_act is 'gelu'; allowed: silu"):
        MoEConfig(hidden_act="gelu")


def test_a_configuration_of_mixtral_makes_a_model(mixtral, ids):
    config = MixtralConfig.from_pretrained(mixtral)
    assert MoEForCausalLM(config).config.router_type == "topk"


def test_a_device_map_that_leaves_out_nf4_is_refused(mixtral):
    devices = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.0"), "cpu")
    devices |= {f"model.layers.1.{name}": "cpu" for name in ("mlp.gate", "input_layernorm", "post_attention_layernorm")}
    with pytest.raises(ValueError, match=r"says nothing of model\.layers\.1"):
        MoEForCausalLM.from_pretrained(mixtral, quantize="nf4", device_map=devices)


@torch.no_grad()
def test_a_mixtral_that_is_quantised_already_stays_so(mixtral, ids, tmp_path):
    stored = AutoModelForCausalLM.from_pretrained(mixtral, quantization_config=NF4ExpertsConfig(llm_int8_skip_modules=["self_attn"]))
    stored.save_pretrained(tmp_path)
    model = MoEForCausalLM.from_pretrained(tmp_path)
    assert model.config.quantization == "nf4" and not hasattr(model.config, "quantization_config")
    assert torch.equal(
        model.model.layers[0].mlp.experts.matrix("down_proj").packed, stored.model.layers[0].mlp.experts.down_proj.weight.packed
    )
