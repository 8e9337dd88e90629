"""Whole models for `benchmarks.cpu.model`: ours, and transformers' Mixtral on the same weights.

The 4-bit peer is transformers' `MixtralForCausalLM` with a bitsandbytes `Linear4bit` for every attention matrix, and for gate, up and
down of every expert, as transformers 4 loads it under `load_in_4bit` (transformers 5 keeps its fused experts dense there). Its bytes are
ours, so all compute one function. In bf16 on a CPU with AVX512-BF16, `Linear4bit` repacks its bytes for a fused product and rounds the
absmax to bf16; otherwise it dequantises a matrix, then multiplies. Embedding, head, norms and router are dense in every model.

T tokens, E experts, D model width, F expert hidden width.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import MixtralConfig, MixtralForCausalLM

from benchmarks.cpu.contender import Missing
from model.configuration_moe import ATTENTION, MoEConfig
from model.experts import PROJECTIONS
from model.modeling_moe import MoEForCausalLM
from model.quantization import MatrixModule
from moe_kernels.nf4 import NF4Weight, dequantize_nf4


def random_mixture(seed: int = 0, **sizes: Any) -> MoEForCausalLM:
    """A mixture of random NF4 bytes: weights of standard deviation 0.02, a gate that chooses at random; fp32 elsewhere."""
    torch.manual_seed(seed)
    model = MoEForCausalLM(MoEConfig(quantization="nf4", router_type="topk", **sizes))
    for module in model.modules():
        if isinstance(module, MatrixModule):
            for name, shape in module.quantized_matrices().items():
                module.set_nf4(name, random_nf4(shape))
    model.eval()
    return model


def random_nf4(shape: tuple[int, ...]) -> NF4Weight:
    """Random levels times an absmax of 0.03 to 0.05."""
    blocks = -(-torch.Size(shape).numel() // 64)
    packed, absmax = (torch.randint(256, size, dtype=torch.uint8) for size in ((blocks * 32, 1), (blocks,)))
    return NF4Weight(packed, absmax, torch.full((-(-blocks // 256),), 0.01), 0.04, shape, torch.float32)


def active_parameters(model: MoEForCausalLM) -> int:
    """Weights that one token is multiplied with: attention, its experts and their factors, gate and head."""
    config: Any = model.config
    total = model.lm_head.weight.numel() + sum(layer.mlp.gate.weight.numel() for layer in model.model.layers)
    for module in model.modules():
        if isinstance(module, MatrixModule):
            for shape in (*module.quantized_matrices().values(), *(factor.shape for factor in module.parameters())):
                each = torch.Size(shape[-2:]).numel()
                total += each * config.num_experts_per_tok if len(shape) == 3 else each
    return total


def ours(model: MoEForCausalLM, dtype: torch.dtype, precision: str = "exact") -> MoEForCausalLM:
    """The same mixture in a dtype and precision, on the same memory but for what the dtype changes: parameters, never NF4 or buffers."""
    twin: Any = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    for module in twin.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # Not frozen, as it is loaded: torch's product of the prompt's last position with a frozen head copies the whole head.
            setattr(module, name, nn.Parameter(parameter.detach().to(dtype)))
    made: MoEForCausalLM = twin.set_precision(precision)
    return made


def linear4bit(weight: Any, dtype: torch.dtype) -> Any:
    """bitsandbytes' layer on the bytes of `weight` [out, in], for inputs of `dtype`."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    made = Linear4bit(weight.shape[1], weight.shape[0], bias=False, device="meta")
    state = replace(weight, dtype=dtype).state_dict("weight")
    made.weight = Params4bit.from_prequantized(state.pop("weight"), state, device="cpu", module=made)
    made.support_avx512bf16_for_cpu &= dtype == torch.bfloat16  # in fp32 it would compute in bf16, too
    return made.eval()


class LowRank(nn.Module):
    """A layer shared by the experts, plus an expert's factors `a` [R, in] and `b` [out, R] as PEFT adds them."""

    def __init__(self, base: nn.Module, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = (nn.Parameter(factor, requires_grad=False) for factor in (a, b))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + (x @ self.a.T) @ self.b.T
        return y


class Experts(nn.Module):
    """The loop of transformers' `MixtralExperts` over (gate, up, down) of each expert that has tokens."""

    def __init__(self, experts: Iterable[tuple[nn.Module, ...]]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.ModuleList(matrices) for matrices in experts)

    def forward(self, x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        y_TD = torch.zeros_like(x_TD)
        for e in experts_TK.unique().tolist():
            gate, up, down = cast(nn.ModuleList, self.experts[e])
            tokens, slots = (experts_TK == e).nonzero(as_tuple=True)
            rows = x_TD[tokens]
            y = down(silu(gate(rows)) * up(rows)) * weights_TK[tokens, slots, None]
            y_TD.index_add_(0, tokens, y.to(y_TD.dtype))
        return y_TD


def expert_matrices(experts: Any, dtype: torch.dtype) -> list[tuple[nn.Module, ...]]:
    """(gate, up, down) of each expert of ours as bitsandbytes' layers; the `lora` layout's shared matrices are shared."""
    if hasattr(experts, "gate_proj_lora_A"):
        shared = {name: linear4bit(experts.matrix(name), dtype) for name in PROJECTIONS}
        count = len(experts.gate_proj_lora_A)
        factors = {name: [getattr(experts, f"{name}_lora_{side}") for side in "AB"] for name in PROJECTIONS}
        return [tuple(LowRank(shared[name], factors[name][0][e], factors[name][1][e]) for name in PROJECTIONS) for e in range(count)]
    gate_up, down = experts.matrix("gate_up_proj"), experts.matrix("down_proj")
    count, rows, width = gate_up.shape
    halves = replace(gate_up, shape=(2 * count, rows // 2, width))
    return [tuple(linear4bit(q, dtype) for q in (halves.expert(2 * e), halves.expert(2 * e + 1), down.expert(e))) for e in range(count)]


def mixtral(model: MoEForCausalLM, replace_matrices: Callable[[Any, Any], None]) -> MixtralForCausalLM:
    """transformers' Mixtral on the weights of `model`; `replace_matrices` gives a decoder layer those that are NF4 in ours."""
    known = MixtralConfig().to_dict()
    config = MixtralConfig(**{name: value for name, value in model.config.to_dict().items() if name in known and name != "model_type"})
    with init_empty_weights(include_buffers=False):
        peer = MixtralForCausalLM._from_config(config, dtype=model.dtype)
    for layer, own in zip(peer.model.layers, model.model.layers, strict=True):
        replace_matrices(layer, own)
    missing = {name for name, parameter in peer.named_parameters() if parameter.is_meta}
    peer.load_state_dict({name: tensor for name, tensor in model.named_parameters() if name in missing}, strict=False, assign=True)
    if left := [name for name, parameter in peer.named_parameters() if parameter.is_meta]:
        raise ValueError(f"the peer has no values for {left[:3]}")
    return peer.eval()


def bitsandbytes(model: MoEForCausalLM) -> MixtralForCausalLM:
    def replace_matrices(layer: Any, own: Any) -> None:
        for name in ATTENTION:
            setattr(layer.self_attn, name, linear4bit(getattr(own.self_attn, name).matrix("weight"), model.dtype))
        layer.mlp.experts = Experts(expert_matrices(own.mlp.experts, model.dtype))

    return mixtral(model, replace_matrices)


def dense(model: MoEForCausalLM) -> MixtralForCausalLM:
    """transformers' own Mixtral, dequantised."""
    if model.config.expert_layout != "dense":
        raise Missing("transformers has no mixture whose experts share their matrices")

    def replace_matrices(layer: Any, own: Any) -> None:
        for name in ATTENTION:
            _set(getattr(layer.self_attn, name), "weight", getattr(own.self_attn, name).matrix("weight"), model.dtype)
        for name in ("gate_up_proj", "down_proj"):
            _set(layer.mlp.experts, name, own.mlp.experts.matrix(name), model.dtype)

    return mixtral(model, replace_matrices)


def _set(module: nn.Module, name: str, weight: Any, dtype: torch.dtype) -> None:
    setattr(module, name, nn.Parameter(dequantize_nf4(weight, dtype), requires_grad=False))


OURS = "ours exact fp32"
PEERS = {"fp32": "Mixtral Linear4bit fp32", "bf16": "Mixtral Linear4bit bf16"}  # the 4-bit peer of each dtype
FP32, BF16 = torch.float32, torch.bfloat16
CONTENDERS: dict[str, tuple[torch.dtype, Callable[[MoEForCausalLM], Any]]] = {  # what makes a model of our mixture in that dtype
    OURS: (FP32, lambda mixture: mixture),
    "ours exact bf16": (BF16, lambda mixture: mixture),
    "ours int8 fp32": (FP32, partial(ours, dtype=FP32, precision="int8")),
    "ours int8 bf16": (BF16, partial(ours, dtype=BF16, precision="int8")),
    PEERS["fp32"]: (FP32, bitsandbytes),
    PEERS["bf16"]: (BF16, bitsandbytes),
    "Mixtral dense bf16": (BF16, dense),
}
