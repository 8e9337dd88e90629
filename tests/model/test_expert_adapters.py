"""PEFT's LoRA on fused experts, through PEFT's own functions and files, against stock PEFT and against W + s·B A in fp64.

Shapes: T tokens, K experts per token, E experts, D model width, F expert hidden width, R LoRA rank.
"""

import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from model import NF4ExpertsConfig, use_moe_kernels
from model.expert_stacks import NF4Stack

GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
EXPERTS_ONLY = NF4ExpertsConfig(llm_int8_skip_modules=[".*self_attn"])


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def load_nf4(folder):
    return load(folder, quantization_config=EXPERTS_ONLY)


def load_dequantised(folder):
    """The plain model with the weights that `load_nf4`'s NF4 stands for."""
    return load_nf4(folder).dequantize(dtype=torch.float32)


def load_prepared(folder):
    return use_moe_kernels(load(folder))


def adapt(model, *targets, **options):
    """PEFT's model with both factors random."""
    config = LoraConfig(r=3, lora_alpha=12, target_modules=[], target_parameters=list(targets or (GATE_UP, DOWN)), **options)
    adapted = get_peft_model(model, config)
    torch.manual_seed(3)
    for parameter in factors(adapted).values():
        torch.nn.init.normal_(parameter, std=0.1)
    return adapted.eval()


def factors(adapted):
    return {name: parameter for name, parameter in adapted.named_parameters() if "lora_" in name}


def gradients(adapted, ids):
    loss = adapted(ids, labels=ids).loss
    return loss, torch.autograd.grad(loss, list(factors(adapted).values()))


@pytest.fixture(params=["plain", "prepared", "nf4"])
def pair(request, mixtral):
    """A function that loads a model for our experts, and one that loads the same weights for stock PEFT on transformers' own."""
    ours = {"plain": lambda: load(mixtral, experts_implementation="moe_kernels"), "prepared": lambda: load_prepared(mixtral)}
    stock = (lambda: load_dequantised(mixtral)) if request.param == "nf4" else (lambda: load(mixtral))

    def eager():
        model = stock()
        model.set_experts_implementation("eager")
        return model

    return ours.get(request.param, lambda: load_nf4(mixtral)), eager


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")  # PEFT says so of a parameter's key, and then uses it
@pytest.mark.parametrize(
    ("targets", "options"),
    [((GATE_UP, DOWN), {}), ((GATE_UP,), {}), ((DOWN,), {}), ((GATE_UP, DOWN), {"rank_pattern": {".*down_proj": 5}, "use_rslora": True})],
    ids=["both", "gate_up", "down", "ranks"],
)
def test_logits_and_gradients_are_those_of_stock_peft(pair, targets, options, ids):
    ours, stock = (adapt(make(), *targets, **options) for make in pair)
    with torch.no_grad():
        base = stock.base_model(ids).logits
        torch.testing.assert_close(ours(ids).logits, base, atol=1e-5, rtol=1e-5)
        assert torch.equal(ours(ids).logits, ours(ids).logits)
        with stock.disable_adapter(), ours.disable_adapter():
            unadapted = stock(ids).logits
            torch.testing.assert_close(ours(ids).logits, unadapted, atol=1e-5, rtol=1e-5)
    assert (base - unadapted).abs().max() > 0.1
    for ours_grad, stock_grad in zip(gradients(ours, ids)[1], gradients(stock, ids)[1], strict=True):
        torch.testing.assert_close(ours_grad, stock_grad, atol=1e-5 * stock_grad.abs().max().item(), rtol=1e-4)


def test_adapter_files_pass_both_ways(pair, tmp_path, ids):
    ours, stock = pair
    for make, other in (pair, (stock, ours)):
        trained = adapt(make())
        trained.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(other(), tmp_path).eval()
        assert all(torch.equal(factor, factors(trained)[name]) for name, factor in factors(loaded).items())
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids).logits, trained(ids).logits, atol=1e-5, rtol=1e-5)


def test_factors_mean_what_the_formula_says_in_fp64(mixtral):
    """lora_A is [E·R, in] with the expert outside, lora_B [out, R·E] with the rank outside; one wrong view trains other experts."""
    wrapped = adapt(load_nf4(mixtral)).base_model.model.model.layers[0].mlp.experts
    experts = wrapped.get_base_layer()
    stacks = {"down_proj": wrapped, "gate_up_proj": wrapped.base_layer}
    torch.manual_seed(1)
    x_TD, index_TK, weights_TK = torch.randn(6, 64), torch.tensor([[0, 3]] * 5 + [[3, 1]]), torch.rand(6, 2)  # expert 2 has no token

    leaves = {}
    for name, wrapper in stacks.items():
        base = getattr(experts, name).weight
        dense = torch.stack([bytes_to_fp64(base, e) for e in range(base.shape[0])])
        a, b = (getattr(wrapper, part)["default"].weight.detach().double().requires_grad_() for part in ("lora_A", "lora_B"))
        delta = torch.einsum("ore,eri->eoi", b.view(len(b), 3, 4), a.view(4, 3, -1)) * 4.0  # alpha / R = 12 / 3
        leaves[name] = dense + delta, a, b
    expected = torch.zeros(6, 64, dtype=torch.float64)
    for t, (chosen, weights) in enumerate(zip(index_TK.tolist(), weights_TK.double(), strict=True)):
        for e, weight in zip(chosen, weights, strict=True):
            gate, up = (leaves["gate_up_proj"][0][e] @ x_TD[t].double()).chunk(2)
            expected[t] += weight * (leaves["down_proj"][0][e] @ (torch.nn.functional.silu(gate) * up))
    y_TD = wrapped(x_TD, index_TK, weights_TK)
    torch.testing.assert_close(y_TD.double(), expected, atol=1e-5, rtol=1e-5)

    upstream = torch.randn(6, 64)
    y_TD.backward(upstream)
    expected.backward(upstream.double())
    for name, wrapper in stacks.items():
        for part, leaf in zip(("lora_A", "lora_B"), leaves[name][1:], strict=True):
            ours = getattr(wrapper, part)["default"].weight.grad.double()
            torch.testing.assert_close(ours, leaf.grad, atol=1e-5 * leaf.grad.abs().max().item(), rtol=1e-4)
    assert not wrapped.lora_A["default"].weight.grad.view(4, 3, -1)[2].any()


def bytes_to_fp64(stack, expert):
    from bitsandbytes.functional import dequantize_4bit

    from moe_kernels.nf4 import to_bitsandbytes

    return dequantize_4bit(*to_bitsandbytes(stack))[expert].double()


class LargestNew(TorchDispatchMode):
    """The largest number of floats that any operator returned in memory that is not a model's."""

    def __init__(self, model):
        super().__init__()
        self.known = {parameter.data_ptr() for parameter in model.parameters() if not isinstance(parameter, NF4Stack)}
        self.values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if type(tensor) is torch.Tensor and tensor.is_floating_point() and tensor.data_ptr() not in self.known:
                self.values = max(self.values, tensor.numel())
        return result


def test_no_stack_of_all_experts_is_ever_made(pair, ids, request):
    """T = 4 tokens make activations far smaller than the smaller stack, [E, D, F]. Without preparing plain experts PEFT makes both."""
    ours, stock = (adapt(make()) for make in pair)
    stack = 4 * 64 * 128
    largest = []
    for model in (ours, stock):
        with LargestNew(model) as seen:
            gradients(model, ids[:1, :4])
        largest.append(seen.values)
    assert largest[0] >= stack if request.node.callspec.params["pair"] == "plain" else largest[0] < stack
    assert largest[1] >= 2 * stack  # PEFT's own way is seen by this means


def test_an_adapter_trained_on_nf4_lowers_the_loss_also_on_the_unquantised_model(mixtral, tmp_path, ids):
    model = prepare_model_for_kbit_training(load_nf4(mixtral), gradient_checkpointing_kwargs={"use_reentrant": False})
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], target_parameters=[GATE_UP, DOWN])).train()
    optimizer = torch.optim.AdamW([parameter for parameter in adapted.parameters() if parameter.requires_grad], lr=1e-2)
    for _ in range(8):
        loss = adapted(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(tmp_path)
    with torch.no_grad():
        before = load(mixtral)(ids, labels=ids).loss
        after = PeftModel.from_pretrained(load(mixtral), tmp_path).eval()(ids, labels=ids).loss
    assert after < before - 0.5


def test_gradient_checkpointing_changes_no_gradient(mixtral, ids):
    model = adapt(load_nf4(mixtral)).train()
    expected = gradients(model, ids)[1]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert all(torch.equal(grad, other) for grad, other in zip(gradients(model, ids)[1], expected, strict=True))


def test_preparing_for_training_leaves_the_bytes(mixtral, ids):
    model = load(mixtral, dtype=torch.bfloat16, quantization_config=EXPERTS_ONLY)
    stack = model.model.layers[0].mlp.experts.down_proj
    packed = stack.weight.packed
    prepare_model_for_kbit_training(model)
    stack = model.model.layers[0].mlp.experts.down_proj
    assert stack.dtype == torch.float32 and stack.weight.packed is packed and stack.weight.dtype == torch.bfloat16
    assert math.isfinite(adapt(model)(ids, labels=ids).loss.item())


def test_plain_experts_merge_as_in_stock_peft(mixtral, ids):
    merged = [adapt(make(mixtral)).merge_and_unload() for make in (load_prepared, load)]
    for (name, ours), stock in zip(merged[0].named_parameters(), merged[1].parameters(), strict=True):
        assert torch.equal(ours, stock), name
    with torch.no_grad():
        torch.testing.assert_close(merged[0](ids).logits, adapt(load(mixtral))(ids).logits, atol=1e-5, rtol=1e-5)


def test_what_nf4_experts_cannot_do_is_an_error(mixtral, ids):
    with pytest.raises(ValueError, match="PEFT can have one adapter active on them, and cannot merge it"):
        adapt(load_nf4(mixtral)).merge_and_unload()
    two = adapt(load_nf4(mixtral))
    two.add_adapter("second", two.peft_config["default"])
    two.set_adapter("second")
    with torch.no_grad():
        assert not torch.equal(two(ids).logits, adapt(load_nf4(mixtral))(ids).logits)  # switching is possible
    two.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="PEFT can have one adapter active on them"):
        two(ids)
    with pytest.raises(ValueError, match="lora_dropout"):
        get_peft_model(load_nf4(mixtral), LoraConfig(target_modules=[], target_parameters=[DOWN], lora_dropout=0.1))
