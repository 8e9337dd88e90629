"""`experts_implementation="moe_kernels"`: transformers' mixtures of experts computed by `moe_kernels.experts.moe_dense`.

Shapes: T tokens, K experts per token, E experts, D model width, F expert hidden width, R LoRA rank.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from moe_kernels.experts import ExpertLoRA, LoRA, moe_dense
from moe_kernels.routing import Routing
from moe_kernels.weights import Weight

from .expert_stacks import IMPLEMENTATION, DenseStack, LoRAStack, NF4Stack

STACKS = ("gate_up_proj", "down_proj")


def use_moe_kernels(model: PreTrainedModel) -> PreTrainedModel:
    """Sets `experts_implementation="moe_kernels"` on a loaded model, so that PEFT's LoRA on its experts is never multiplied out either.

    ValueError if an experts module cannot be computed so, or if there is none.
    """
    modules = [module for _, module in experts_of(model)]
    if not modules:
        raise ValueError(f"{type(model).__name__} has no fused experts that transformers dispatches by experts_implementation")
    for module in modules:
        check_experts(module)
    for module in modules:
        module.config._experts_implementation = IMPLEMENTATION
        for name in STACKS:
            stack = getattr(module, name)
            if type(stack) is nn.Parameter:
                stack.__class__ = DenseStack  # the same object, so that an optimizer made before keeps its parameters
    return model


def experts_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of all fused experts: those that transformers dispatches, and any other "Experts" with a 3-D stack."""
    for name, module in model.named_modules():
        stacked = any(parameter.dim() == 3 for parameter in module.parameters(recurse=False))
        if hasattr(module, "is_concatenated") or ("Experts" in type(module).__name__ and stacked):
            yield name, module


def check_experts(module: Any) -> None:
    """ValueError that names the property for which `moe_dense` cannot compute `module`."""
    problem = _unsupported(module)
    if problem:
        raise ValueError(
            f"{type(module).__name__} cannot run with experts_implementation={IMPLEMENTATION!r}: {problem}. "
            "It computes SiLU-gated experts of gate_up_proj [E, 2F, D] (gate first) and down_proj [E, D, F] without bias."
        )


def _unsupported(module: Any) -> str | None:
    if not hasattr(module, "is_concatenated"):
        return "it does not dispatch by experts_implementation"
    if not module.has_gate:
        return "has_gate is False"
    for flag in ("is_transposed", "has_bias", "has_post_expert_norm", "_is_expert_parallel"):
        if getattr(module, flag, False):  # transformers 5.17 knows no has_post_expert_norm
            return f"{flag} is True"
    if not module.is_concatenated:
        return "is_concatenated is False (gate and up rows are interleaved)"
    if type(module)._apply_gate is not _default_apply_gate:
        return "it has an _apply_gate of its own"
    if not isinstance(module.act_fn, nn.SiLU | SiLUActivation):
        return f"its activation is {type(module.act_fn).__name__}, not SiLU"
    return None


def moe_kernels_forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """y [T, D] of `hidden_states` [T, D], each of whose tokens goes to experts `top_k_index` with `top_k_weights` [T, K]."""
    check_experts(module)
    gate_up, lora_gate_up = _split(module.gate_up_proj)
    down, lora_down = _split(module.down_proj)
    weights_TK = top_k_weights if top_k_weights.dtype == torch.float64 else top_k_weights.float()
    unknown = weights_TK.new_empty(0)  # what else a router says is not read by the experts
    routing = Routing(weights_TK, top_k_index, logits_TE=unknown, importance_E=unknown, load_E=unknown)
    return moe_dense(hidden_states, routing, gate_up, down, _expert_lora(gate_up, lora_gate_up, down, lora_down))


def _split(stack: Tensor) -> tuple[Weight, LoRA | None]:
    """A stack's weight and, if PEFT adapts it, the factors."""
    base, lora = (stack.base, stack.lora) if isinstance(stack, LoRAStack) else (stack, None)
    return (base.weight if isinstance(base, NF4Stack) else base), lora


def _expert_lora(gate_up: Weight, lora_gate_up: LoRA | None, down: Weight, lora_down: LoRA | None) -> ExpertLoRA | None:
    """PEFT's factors as the kernels take them: gate and up share A, their B are the halves of one of 2F rows."""
    given = lora_gate_up or lora_down
    if given is None:
        return None
    lora_gate_up, lora_down = lora_gate_up or _zero_lora(gate_up, given.a), lora_down or _zero_lora(down, given.a)
    b1, b3 = lora_gate_up.b.chunk(2, dim=1)
    a, scaling = lora_gate_up.a, lora_gate_up.scaling
    return ExpertLoRA(w1=LoRA(a, b1, scaling), w3=LoRA(a, b3, scaling), w2=lora_down)


def _zero_lora(weight: Weight, like_ERI: Tensor) -> LoRA:
    """Factors that add nothing, for a stack without an adapter beside one that has one; the kernels want all three matrices'."""
    num_experts, out_features, in_features = weight.shape
    rank = like_ERI.shape[1]
    return LoRA(like_ERI.new_zeros(num_experts, rank, in_features), like_ERI.new_zeros(num_experts, out_features, rank), 1.0)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, moe_kernels_forward)
