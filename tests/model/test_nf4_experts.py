"""transformers' own mixtures in NF4, against bitsandbytes and against the same models with bitsandbytes' dequantised weights."""

import weakref
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cosine_similarity
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GptOssConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    OlmoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from model import NF4ExpertsConfig, nf4_experts, use_moe_kernels
from model.experts_interface import STACKS, moe_kernels_forward
from moe_kernels.nf4 import dequantize_nf4, quantize_nf4

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
CONFIGS = {
    "mixtral": MixtralConfig(**SHAPE, intermediate_size=128, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SHAPE, moe_intermediate_size=64, num_experts=8, num_experts_per_tok=2, head_dim=16),
    "olmoe": OlmoeConfig(**SHAPE, intermediate_size=64, num_experts=8, num_experts_per_tok=2),
}
EXPERTS_ONLY = NF4ExpertsConfig(llm_int8_skip_modules=[".*self_attn"])


@pytest.fixture(scope="module", params=CONFIGS)
def checkpoint(request, tmp_path_factory) -> Path:
    """A mixture of transformers at its own initialisation, as transformers saves it: with the experts' matrices apart."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[request.param]).save_pretrained(folder)
    return folder


def load(folder: Path, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def stacks_of(model):
    return {(i, name): getattr(layer.mlp.experts, name) for i, layer in enumerate(model.model.layers) for name in STACKS}


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_are_bitsandbytes_bytes(checkpoint, dtype):
    plain, quantized = load(checkpoint, dtype=dtype), load(checkpoint, dtype=dtype, quantization_config=NF4ExpertsConfig())
    for key, stack in stacks_of(quantized).items():
        packed, state = bnb.functional.quantize_4bit(stacks_of(plain)[key].data, quant_type="nf4", compress_statistics=True)
        assert torch.equal(stack.weight.packed, packed) and torch.equal(stack.weight.absmax, state.absmax)
        assert torch.equal(stack.weight.nested_absmax, state.state2.absmax) and stack.weight.nested_offset == state.offset.item()
        assert stack.dtype == dtype and stack.shape == state.shape and not stack.requires_grad


def test_experts_take_4_13_bits_and_only_linear_layers_and_experts_are_quantised(checkpoint):
    plain, quantized = load(checkpoint), load(checkpoint, quantization_config=NF4ExpertsConfig())
    values, stacks = sum(stack.numel() for stack in stacks_of(plain).values()), stacks_of(quantized).values()
    assert sum(stack.weight.nbytes for stack in stacks) * 8 / values == pytest.approx(4 + 8 / 64 + 32 / (64 * 256))
    linears = {name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)}
    in_nf4 = {name for name, module in quantized.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    assert in_nf4 == {name for name in linears if "self_attn" in name} and "lm_head" in linears
    assert torch.equal(quantized.model.layers[0].mlp.gate.weight, plain.model.layers[0].mlp.gate.weight)
    rest = sum(parameter.numel() * parameter.element_size() for parameter in quantized.parameters() if parameter.dim() < 3)
    assert quantized.get_memory_footprint(return_buffers=False) == pytest.approx(rest + sum(stack.weight.nbytes for stack in stacks))
    assert quantized.num_parameters() == plain.num_parameters()


def test_bitsandbytes_alone_leaves_experts_as_they_are(checkpoint):
    """The gap that this fills; if transformers fills it one day, this is where we hear of it."""
    model = load(checkpoint, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    assert all(stack.dtype == torch.bfloat16 and type(stack) is torch.nn.Parameter for stack in stacks_of(model).values())


def test_logits_are_those_of_the_dequantised_experts(checkpoint, ids):
    plain, quantized = load(checkpoint), load(checkpoint, quantization_config=EXPERTS_ONLY)
    unquantised, ours = logits(plain, ids), logits(quantized, ids)
    for stack in stacks_of(plain).values():
        stack.data = bnb.functional.dequantize_4bit(*bnb.functional.quantize_4bit(stack.data, quant_type="nf4", compress_statistics=True))
    torch.testing.assert_close(ours, logits(plain, ids), atol=1e-5, rtol=1e-5)
    assert cosine_similarity(ours.flatten(), unquantised.flatten(), 0) > 0.999


@pytest.mark.parametrize("shard_size", ["5GB", "30KB"])
def test_a_saved_model_loads_bit_for_bit(checkpoint, tmp_path, ids, shard_size):
    first = load(checkpoint, dtype=torch.bfloat16, quantization_config=NF4ExpertsConfig())
    first.save_pretrained(tmp_path / "once", max_shard_size=shard_size)
    second, report = load_with_report(tmp_path / "once")
    second.save_pretrained(tmp_path / "twice", max_shard_size=shard_size)
    third, report_again = load_with_report(tmp_path / "twice")
    for key, stack in stacks_of(first).items():
        for other in (stacks_of(second)[key], stacks_of(third)[key]):
            assert all(torch.equal(tensor, other.weight.tensors()[field]) for field, tensor in stack.weight.tensors().items())
            assert (other.weight.nested_offset, other.weight.dtype) == (stack.weight.nested_offset, stack.weight.dtype)
    assert not any(names for report in (report, report_again) for names in report.values())
    assert torch.equal(logits(third, ids), logits(second, ids)) and torch.equal(logits(second, ids), logits(first, ids))


def load_with_report(folder):
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    return model.eval(), report


def test_saved_keys_are_read_by_bitsandbytes(checkpoint, tmp_path):
    model = load(checkpoint, quantization_config=NF4ExpertsConfig())
    model.save_pretrained(tmp_path)
    name = "model.layers.1.mlp.experts.down_proj"
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        state = {key.removeprefix(f"{name}."): file.get_tensor(key) for key in file.keys() if key.startswith(f"{name}.")}  # noqa: SIM118
        packed = file.get_tensor(name)
    theirs = bnb.functional.dequantize_4bit(packed, bnb.functional.QuantState.from_dict(state, torch.device("cpu")))
    assert torch.equal(theirs, model.dequantize(dtype=torch.float32).model.layers[1].mlp.experts.down_proj)


def test_a_model_that_was_saved_is_dequantised_to_its_dtype(checkpoint, tmp_path, ids):
    model = load(checkpoint, dtype=torch.bfloat16, quantization_config=NF4ExpertsConfig())
    expected = {key: stack.weight for key, stack in stacks_of(model).items()}
    model.save_pretrained(tmp_path)
    found = stacks_of(model.dequantize())
    assert all(torch.equal(found[key], dequantize_nf4(weight).bfloat16()) for key, weight in expected.items())
    assert logits(model, ids).isfinite().all()


def test_skipped_modules_stay_and_load_again(checkpoint, tmp_path, ids):
    config = NF4ExpertsConfig(llm_int8_skip_modules=["layers.0.mlp.experts", "layers.1.self_attn.q_proj"])
    model = load(checkpoint, dtype=torch.bfloat16, quantization_config=config)
    model.save_pretrained(tmp_path)
    again, report = load_with_report(tmp_path)
    assert not any(report.values()) and again.config.quantization_config.to_dict() == config.to_dict()
    for loaded in (model, again):
        assert [stack.element_size() < 1 for stack in stacks_of(loaded).values()] == [False, False, True, True]
        assert type(loaded.model.layers[1].self_attn.q_proj) is type(loaded.lm_head) is torch.nn.Linear
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_a_new_dtype_leaves_the_bytes_and_a_new_device_moves_them(checkpoint, ids):
    model = load(checkpoint, quantization_config=EXPERTS_ONLY)
    experts, packed, before = model.model.layers[0].mlp.experts, stacks_of(model)[0, "down_proj"].weight.packed, logits(model, ids)
    experts.to(torch.float16)
    assert experts.down_proj.dtype == torch.float16 and experts.down_proj.weight.packed is packed
    assert torch.equal(logits(model, ids), before)
    experts.to("meta")
    assert experts.down_proj.device.type == experts.down_proj.weight.absmax.device.type == "meta"


def test_another_implementation_is_refused_for_quantised_experts(checkpoint, ids):
    model = load(checkpoint, quantization_config=NF4ExpertsConfig(), experts_implementation="eager")
    logits(model, ids)  # loading chose ours
    model.set_experts_implementation("eager")
    with pytest.raises(ValueError, match="only experts_implementation='moe_kernels' computes with experts in NF4"):
        logits(model, ids)


def test_plain_experts_and_their_gradients_are_those_of_eager(checkpoint, ids):
    eager, ours = (load(checkpoint, experts_implementation=name) for name in ("eager", "moe_kernels"))
    losses = [model(ids, labels=ids).loss for model in (eager, ours)]
    torch.testing.assert_close(losses[1], losses[0], atol=1e-6, rtol=0)
    for loss in losses:
        loss.backward()
    for (name, parameter), other in zip(eager.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_a_model_with_nf4_experts_compiles_without_a_break(checkpoint, ids):
    model = load(checkpoint, quantization_config=EXPERTS_ONLY)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled, ids), logits(model, ids), atol=1e-6, rtol=1e-6)


def tiny_experts() -> MixtralExperts:
    config = MixtralConfig(**SHAPE, intermediate_size=128, num_local_experts=4, experts_implementation="moe_kernels")
    experts = MixtralExperts(config)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return experts


def test_gradients_reach_the_tokens_and_the_routing_weights():
    torch.manual_seed(0)
    experts, index = tiny_experts(), torch.tensor([[0, 2], [2, 3], [3, 0]])
    results = []
    for forward in (MixtralExperts.forward.__wrapped__, moe_kernels_forward):
        x, weights = torch.ones(3, 64).cumsum(1).sin().requires_grad_(), torch.tensor([[0.7, 0.3]] * 3, requires_grad=True)
        y = forward(experts, x, index, weights)
        results.append([y, *torch.autograd.grad((y * y.detach().cos()).sum(), (x, weights))])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("has_gate", False), ("is_transposed", True), ("has_bias", True), ("has_post_expert_norm", True),
        ("_is_expert_parallel", True), ("is_concatenated", False), ("act_fn", torch.nn.GELU()),
    ],
)  # fmt: skip
def test_experts_of_another_kind_are_refused_by_the_property(name, value):
    experts = tiny_experts()
    setattr(experts, name, value)
    with pytest.raises(ValueError, match=f"GELU, not SiLU|{name} is {value}"):
        experts(torch.ones(1, 64), torch.tensor([[0]]), torch.ones(1, 1))


def test_experts_with_a_gate_of_their_own_are_refused():
    class Clamped(MixtralExperts):
        def _apply_gate(self, gate_up_out):
            return super()._apply_gate(gate_up_out.clamp(max=7))

    with pytest.raises(ValueError, match=r"Clamped .* _apply_gate of its own"):
        moe_kernels_forward(Clamped(tiny_experts().config), torch.ones(1, 64), torch.tensor([[0]]), torch.ones(1, 1))


def test_gpt_oss_is_refused_while_loading(tmp_path):
    config = GptOssConfig(**SHAPE, intermediate_size=64, head_dim=16, num_local_experts=4, num_experts_per_tok=2)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    for refused in (lambda: use_moe_kernels(model), lambda: load(tmp_path, quantization_config=NF4ExpertsConfig())):
        with pytest.raises(ValueError, match=r"GptOssExperts cannot run .* is_transposed is True"):
            refused()


def test_models_without_dispatched_experts_are_refused():
    shape = {**SHAPE, "intermediate_size": 64}
    with pytest.raises(ValueError, match=r"Llama4TextExperts cannot run .* does not dispatch by experts_implementation"):
        use_moe_kernels(Llama4ForCausalLM(Llama4TextConfig(**shape, intermediate_size_mlp=64, num_local_experts=2, pad_token_id=0)))
    with pytest.raises(ValueError, match="LlamaForCausalLM has no fused experts"):
        use_moe_kernels(LlamaForCausalLM(LlamaConfig(**shape)))


def test_what_cannot_be_quantised_is_named(tmp_path):
    shape = {**SHAPE, "hidden_size": 24, "intermediate_size": 20}
    AutoModelForCausalLM.from_config(MixtralConfig(**shape, num_local_experts=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"down_proj: an expert of 24x20 values .* blocks of 64"):
        load(tmp_path, quantization_config=NF4ExpertsConfig())
    with pytest.raises(ValueError, match="no option bnb_4bit_quant_type"):
        NF4ExpertsConfig(bnb_4bit_quant_type="fp4")


def test_one_stack_at_a_time_is_unquantised_while_loading(checkpoint, monkeypatch):
    given, alive = [], []

    def quantize(stack):
        alive.append(sum(reference() is not None for reference in given))
        given.append(weakref.ref(stack))
        return quantize_nf4(stack)

    monkeypatch.setattr(nf4_experts, "quantize_nf4", quantize)
    load(checkpoint, quantization_config=NF4ExpertsConfig())
    assert alive == [0, 0, 0, 0]


def test_a_skipped_name_that_matches_nothing_is_refused(mixtral):
    """transformers ignores it, and quantises what was to be left alone."""
    with pytest.raises(ValueError, match=r"llm_int8_skip_modules has 'self_attn', which matches no module"):
        AutoModelForCausalLM.from_pretrained(mixtral, quantization_config=NF4ExpertsConfig(llm_int8_skip_modules=["q_proj", "self_attn"]))
