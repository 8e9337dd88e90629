import json
import weakref
from functools import partial

import pytest
import torch
from torch.nn.functional import softmax, softplus
from transformers import AutoModelForCausalLM, MixtralForCausalLM
from transformers.trainer_utils import load_sharded_checkpoint

from model import MoEConfig, MoEForCausalLM
from model.routers import auxiliary_loss, mean_over_layers


@torch.no_grad()
def test_auto_class_arguments_reach_the_model(noisy, ids, tmp_path):
    noisy.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype="bfloat16", device_map="cpu", local_files_only=True
    )
    assert (model.config._attn_implementation, model.dtype) == ("eager", torch.bfloat16)
    assert len(model(ids, output_attentions=True).attentions) == 2


def noise_seeds(monkeypatch) -> list[int]:
    """Collects the noise seeds that the routers ask for from here on."""
    from model import routers

    seen: list[int] = []
    original = routers.route

    def spy(*args, noise_seed, **kwargs):
        seen.append(None if noise_seed is None else noise_seed.item())
        return original(*args, noise_seed=noise_seed, **kwargs)

    monkeypatch.setattr(routers, "route", spy)
    return seen


@torch.no_grad()
def test_logits_are_mixtrals_in_fp32(mixtral, ids):
    ours, theirs = MoEForCausalLM.from_pretrained(mixtral), MixtralForCausalLM.from_pretrained(mixtral)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_bf16_is_as_close_to_fp32_as_mixtral_is(mixtral, ids):
    exact = MixtralForCausalLM.from_pretrained(mixtral, dtype=torch.float32)(ids).logits
    ours = MoEForCausalLM.from_pretrained(mixtral, dtype=torch.bfloat16)(ids).logits
    theirs = MixtralForCausalLM.from_pretrained(mixtral, dtype=torch.bfloat16)(ids).logits
    assert ours.dtype == torch.bfloat16
    # the median over tokens: a token whose experts nearly tie may be sent elsewhere by either
    errors = [(logits.float() - exact).norm(dim=-1).median() for logits in (ours, theirs)]
    assert errors[0] < 1.25 * errors[1]


@torch.no_grad()
def test_router_logits_and_hidden_states_are_mixtrals(mixtral, ids):
    ours, theirs = MoEForCausalLM.from_pretrained(mixtral), MixtralForCausalLM.from_pretrained(mixtral)
    a, b = (model(ids, output_router_logits=True, output_hidden_states=True) for model in (ours, theirs))
    for field in ("router_logits", "hidden_states"):
        assert len(a[field]) == len(b[field])
        for x, y in zip(a[field], b[field], strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_save_and_load_gives_equal_bits(mixtral, ids, tmp_path, quantization):
    model = MoEForCausalLM.from_pretrained(mixtral, quantize=quantization, router_type="noisy_topk")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, MoEForCausalLM) and again.config.quantization == quantization
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


def test_load_state_dict_takes_nf4(mixtral, ids):
    loaded = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    fresh = MoEForCausalLM(loaded.config)
    fresh.load_state_dict(loaded.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(ids).logits, loaded(ids).logits)
    state = loaded.state_dict()
    del state["model.layers.0.mlp.experts.down_proj"]
    with pytest.raises(RuntimeError, match=r"Missing.*layers\.0\.mlp\.experts\.down_proj"):
        fresh.load_state_dict(state)


@pytest.mark.filterwarnings("ignore:.*which is a no-op")
def test_load_state_dict_leaves_nf4_where_the_model_is(mixtral):
    """As Trainer reads its best checkpoint: to the CPU, whatever the card."""
    loaded = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    for model in (MoEForCausalLM.from_pretrained(mixtral, quantize="nf4"), MoEForCausalLM(loaded.config)):
        model.to("meta").load_state_dict(loaded.state_dict(), strict=False)
        assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
        model.load_state_dict(loaded.state_dict(), assign=True)
        assert all(tensor.device.type == "cpu" for name, tensor in model.named_buffers() if "packed" in name)


def test_an_nf4_matrix_may_lie_in_several_shards(mixtral, ids, tmp_path):
    """transformers' own loader of a sharded checkpoint, which Trainer resumes by, hands over a shard at a time."""
    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = {}
    for key, file in json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"].items():
        shards.setdefault(key.partition("_proj")[0], set()).add(file)
    assert max(map(len, shards.values())) > 1
    other = MoEForCausalLM(model.config).eval()
    load_sharded_checkpoint(other, str(tmp_path), strict=False)  # as Trainer calls it
    with torch.no_grad():
        assert torch.equal(other(ids).logits, model(ids).logits)
    plain = {"model.layers.0.mlp.experts.down_proj": torch.zeros(4, 64, 128)}
    with pytest.raises(ValueError, match="is not stored as NF4"):
        other.load_state_dict(plain, strict=False)


def test_nf4_is_held_once(mixtral):
    """A move leaves no second copy behind."""
    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    packed = weakref.ref(model.model.layers[0].mlp.experts.down_proj_packed)
    model.to("meta")
    assert packed() is None


def test_nf4_survives_a_change_of_dtype(mixtral):
    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "nested" in name or "packed" in name}
    model.to(torch.bfloat16)
    after = dict(model.named_buffers())
    assert before and all(torch.equal(after[name], buffer) and after[name].dtype == buffer.dtype for name, buffer in before.items())


def test_nf4_leaves_gate_norms_embeddings_and_head_alone(mixtral):
    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    whole = {name.split(".")[-2] for name, parameter in model.named_parameters()}
    assert whole == {"embed_tokens", "lm_head", "norm", "gate", "input_layernorm", "post_attention_layernorm"}


@pytest.mark.parametrize("exclude_embeddings", [False, True])
def test_a_value_in_nf4_counts_as_a_parameter(mixtral, exclude_embeddings):
    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4")
    plain = MixtralForCausalLM.from_pretrained(mixtral)
    assert model.num_parameters(exclude_embeddings=exclude_embeddings) == plain.num_parameters(exclude_embeddings=exclude_embeddings)
    rest = [parameter for name, parameter in plain.named_parameters() if "_proj" not in name]
    assert model.num_parameters(only_trainable=True) == sum(map(torch.numel, rest))


@torch.no_grad()
def test_cached_generation_is_uncached(noisy, ids):
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(noisy.generate(ids, use_cache=True, **options), noisy.generate(ids, use_cache=False, **options))


@torch.no_grad()
def test_left_padding_changes_nothing(noisy, ids):
    padded = torch.cat([torch.zeros(3, 5, dtype=torch.long), ids], dim=1)
    mask = (padded != 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = noisy(padded, attention_mask=mask, position_ids=positions).logits[:, 5:]
    torch.testing.assert_close(logits, noisy(ids).logits, atol=1e-5, rtol=0)


def squared_variation(values):
    return values.var(correction=0) / values.mean() ** 2


def test_aux_loss_is_shazeers_over_the_tokens_that_count(noisy, ids):
    """Importance and load (arXiv:1701.06538, eq. 6-11) recomputed in fp64 from the router's input, token by token."""
    from model.routers import noise_seeds
    from moe_kernels.noise import standard_normal

    noisy.config.importance_coef, noisy.config.load_coef = 0.7, 0.3
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    inputs = []
    hooks = [layer.mlp.gate.register_forward_pre_hook(lambda _, args: inputs.append(args[0].double())) for layer in noisy.model.layers]
    noisy.train()
    noisy.set_router_step(11)
    output = noisy(ids, attention_mask=mask, labels=ids)
    for hook in hooks:
        hook.remove()
    losses = []
    normal = torch.distributions.Normal(0.0, 1.0)
    for index, (layer, x) in enumerate(zip(noisy.model.layers, inputs, strict=True)):
        gate = layer.mlp.gate
        clean, std = x @ gate.weight.double().T, softplus(x @ gate.noise_weight.double().T)
        noise = standard_normal(noise_seeds(noisy.config.router_seed, 2, torch.tensor(11))[index], len(x), 4).double()
        importance, load = torch.zeros(4, dtype=torch.double), torch.zeros(4, dtype=torch.double)
        for token in mask.reshape(-1).nonzero()[:, 0]:
            h = clean[token] + noise[token] * std[token]
            best = h.topk(2)
            importance = importance.index_add(0, best.indices, softmax(best.values, 0))
            for expert in range(4):
                others = torch.cat([h[:expert], h[expert + 1 :]])
                load[expert] = load[expert] + normal.cdf((clean[token, expert] - others.topk(2).values[1]) / std[token, expert])
        losses.append(0.7 * squared_variation(importance) + 0.3 * squared_variation(load))
    expected = sum(losses) / len(losses)
    torch.testing.assert_close(output.aux_loss.double(), expected, rtol=1e-4, atol=0)
    labels_loss = noisy.loss_function(output.logits, ids, 64)
    torch.testing.assert_close(output.loss, labels_loss + output.aux_loss)


def test_evaluation_loss_is_the_language_models_alone(noisy, ids):
    with torch.no_grad():
        output = noisy(ids, labels=ids, output_router_logits=True)
        assert output.aux_loss > 0
        torch.testing.assert_close(output.loss, noisy.loss_function(output.logits, ids, 64))


def test_aux_loss_weighs_the_micro_batchs_share(noisy, ids):
    noisy.train()
    noisy.set_router_step(0)
    whole = noisy(ids, labels=ids)
    noisy.set_router_step(0)
    half = noisy(ids, labels=ids, num_items_in_batch=2 * ids[:, 1:].numel())
    torch.testing.assert_close(half.loss, whole.loss / 2)


def gradients(model, ids, step):
    model.zero_grad()
    model.set_router_step(step)
    model(ids, labels=ids).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_checkpointed_recompute_draws_the_same_noise(noisy, ids):
    noisy.train()
    plain = gradients(noisy, ids, step=4)
    other = gradients(noisy, ids, step=5)
    noisy.gradient_checkpointing_enable()
    recomputed = gradients(noisy, ids, step=4)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    assert any(not torch.equal(plain[name], other[name]) for name in plain)


def test_two_forwards_before_backward_recompute_their_own_noise(noisy, ids):
    """As in preference training: the step must belong to the forward, not to the model."""
    noisy.train()

    def run():
        noisy.zero_grad()
        noisy.set_router_step(0)
        (noisy(ids, labels=ids).loss + 2 * noisy(ids.flip(0), labels=ids).loss).backward()
        return {name: parameter.grad.clone() for name, parameter in noisy.named_parameters()}

    plain = run()
    noisy.gradient_checkpointing_enable()
    recomputed = run()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_noise_differs_by_layer_and_step_and_is_absent_in_evaluation(noisy, ids, monkeypatch):
    seen = noise_seeds(monkeypatch)
    noisy.train()
    noisy(ids)
    noisy(ids)
    assert len(set(seen)) == 4 and None not in seen
    noisy.eval()
    noisy(ids)
    assert seen[4:] == [None, None]


def test_only_the_gate_learns_when_the_rest_is_frozen(mixtral, ids):
    model = MoEForCausalLM.from_pretrained(mixtral, quantize="nf4", router_type="noisy_topk").train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".mlp.gate." in name)
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".mlp.gate." in name), name
        assert parameter.grad is None or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("router_type", ["noisy_topk", "topk", "softmax", "switch"])
def test_every_router_type_trains_its_gate_and_generates(mixtral, ids, router_type):
    model = MoEForCausalLM.from_pretrained(mixtral, router_type=router_type, importance_coef=0.0, load_coef=0.0).train()
    model(ids, labels=ids).loss.backward()
    assert all(layer.mlp.gate.weight.grad.abs().max() > 1e-5 for layer in model.model.layers)
    routing = model.model.layers[0].mlp.gate.last_routing
    assert routing.experts_TK.shape[1] == {"softmax": 4, "switch": 1}.get(router_type, 2)
    assert not routing.weights_TK.requires_grad
    assert model.eval().generate(ids, max_new_tokens=2, attention_mask=torch.ones_like(ids), pad_token_id=0).shape[1] <= 19


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"router_type": "best"}, "router_type is 'best'; allowed: noisy_topk"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
        ({"expert_layout": "lora"}, "lora_rank is 0"),
        ({"quantization": "int3"}, "quantization is 'int3'"),
        ({"expert_names": ["a"]}, "expert_names has 1 names for 8 experts"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        MoEConfig(**change)


def test_the_base_model_draws_the_noise_and_routes_as_the_whole_one_does(noisy, padded):
    """A padded batch in training, as a head of one's own would get it."""
    noisy.train().set_router_step(4)
    whole = noisy(**padded, output_router_logits=True, output_hidden_states=True)
    noisy.set_router_step(4)
    base = noisy.model(**padded, output_router_logits=True, output_routings=True)
    assert torch.equal(base.last_hidden_state, whole.hidden_states[-1])
    assert all(map(torch.equal, base.router_logits, whole.router_logits))
    of_layer = partial(auxiliary_loss, config=noisy.config)
    assert torch.equal(mean_over_layers(of_layer, base.routings, padded["attention_mask"].bool()), whole.aux_loss)
    assert not torch.equal(noisy.model(**padded).last_hidden_state, base.last_hidden_state)  # the next step's noise
    noisy.eval()
    assert torch.equal(noisy.model(**padded).last_hidden_state, noisy.model(**padded).last_hidden_state)
