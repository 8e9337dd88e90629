"""`NF4ExpertsConfig`: any transformers mixture of experts in NF4, linear layers by bitsandbytes and fused experts by us.

`BitsAndBytesConfig(load_in_4bit=True)` leaves fused experts as they are, without a word. Here they are quantised as they stream in, and run
by `experts_implementation="moe_kernels"`. Checkpoints have the model's own names and bitsandbytes' keys, for experts too.

Shapes: E experts, D model width, F expert hidden width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightTransform
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from moe_kernels.nf4 import NF4Weight, dequantize_nf4, quantize_nf4
from moe_kernels.nf4_format import FACTS_KEY, NF4

from .checkpoint import parse_dtype
from .expert_stacks import NF4Stack
from .experts_interface import STACKS, check_experts, experts_of, use_moe_kernels

METHOD = "nf4_experts"
ROUTERS = r".*\.(gate|router|shared_expert_gate)"  # modules that choose experts; regular expressions over names, as in skip lists
KEYS = ("", ".absmax", ".nested_absmax", ".nested_quant_map", ".quant_map", f".{FACTS_KEY}")  # of a weight in NF4


@register_quantization_config(METHOD)
class NF4ExpertsConfig(BitsAndBytesConfig):
    """NF4 with nested absmax for linear layers and fused experts; `from_pretrained(ID, quantization_config=NF4ExpertsConfig())`.

    `llm_int8_skip_modules`: names of modules to leave alone, experts too, beside `lm_head` and routers, which always are.
    `bnb_4bit_compute_dtype`: of the linear layers; default the dtype of what they are given.
    """

    def __init__(
        self, llm_int8_skip_modules: list[str] | None = None, bnb_4bit_compute_dtype: torch.dtype | str | None = None, **unknown: Any
    ) -> None:
        if set(unknown) - {"quant_method"}:
            raise ValueError(f"NF4ExpertsConfig has no option {', '.join(sorted(unknown))}")
        super().__init__(
            load_in_4bit=True,
            bnb_4bit_quant_type=NF4.quant_type,
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=llm_int8_skip_modules,
            bnb_4bit_compute_dtype=bnb_4bit_compute_dtype,
        )
        if bnb_4bit_compute_dtype is None:
            self.bnb_4bit_compute_dtype = None  # type: ignore[assignment]  # as the input, to bitsandbytes; transformers' default is fp32
        self.quant_method = METHOD  # type: ignore[assignment]  # an enumeration, which a registered method is not in

    def to_dict(self) -> dict[str, Any]:
        # Without load_in_4bit, by which transformers would take it for its own configuration.
        compute_dtype = self.bnb_4bit_compute_dtype and str(self.bnb_4bit_compute_dtype).removeprefix("torch.")
        return {"quant_method": METHOD, "llm_int8_skip_modules": self.llm_int8_skip_modules, "bnb_4bit_compute_dtype": compute_dtype}

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()


@register_quantizer(METHOD)
class NF4ExpertsQuantizer(Bnb4BitHfQuantizer):
    """transformers' quantiser for bitsandbytes, which does the linear layers, with fused experts beside them."""

    @staticmethod
    def get_modules_to_not_convert(
        model: PreTrainedModel, skip_modules: list[str] | None = None, keep_in_fp32_modules: list[str] | None = None, *_: Any
    ) -> list[str]:
        # Their default drops lm_head from the list when a list is given.
        skipped = Bnb4BitHfQuantizer.get_modules_to_not_convert(model, skip_modules, keep_in_fp32_modules, add_default_skips=True)
        return [*skipped, ROUTERS]

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:  # type: ignore[override]
        super()._process_model_before_weight_loading(model, **kwargs)
        if not self.pre_quantized:
            _check_skipped(model, self.quantization_config.llm_int8_skip_modules or [])
        # Names of the experts that are, or are to be, in NF4.
        self._experts = {name for name, _ in experts_of(model) if should_convert_module(name, self.modules_to_not_convert)}
        for name in self._experts:
            module = model.get_submodule(name)
            check_experts(module)
            for stack in STACKS:
                _check_blocks(f"{name}.{stack}", getattr(module, stack))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self._experts:
            use_moe_kernels(model)
        # Saving would take packed bytes apart as if they were the matrices that were read; we save the model's own names.
        model._weight_conversions = []  # type: ignore[assignment]
        return super()._process_model_after_weight_loading(model, **kwargs)

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        from bitsandbytes.nn import Linear4bit

        if isinstance(dtype, str):  # as saving leaves it in the model's configuration
            dtype = parse_dtype(dtype)
        if any(isinstance(module, Linear4bit) for module in model.modules()):  # theirs fails where there is none
            model = super()._dequantize(model, dtype)
        for module, name in ((model.get_submodule(module), stack) for module in self._experts for stack in STACKS):
            setattr(module, name, nn.Parameter(dequantize_nf4(getattr(module, name).weight).to(dtype)))
        return model

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        return self._is_expert_stack(param_name) or super().param_needs_quantization(model, param_name, **kwargs)

    def _is_expert_stack(self, name: str) -> bool:
        module, _, stack = name.rpartition(".")
        return stack in STACKS and module in self._experts

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize(self)

    def update_weight_conversions(self, weight_conversions: list[WeightTransform], *model: PreTrainedModel) -> list[WeightTransform]:
        """`model` is not handed over by transformers 5.17."""
        if not self.pre_quantized:
            return super().update_weight_conversions(weight_conversions, *model)
        names = {stack: [f"{stack}{key}$" for key in KEYS] for stack in STACKS}
        # The linear layers' come first: they take the keys of one that is called like a stack.
        return self.get_weight_conversions() + [WeightConverter(names[stack], stack, [_Deserialize(self)]) for stack in STACKS]

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        state: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            state.update(tensor.weight.state_dict(name) if isinstance(tensor, NF4Stack) else {name: tensor})
        return state, {}


class _Quantize(ConversionOps):
    """Of the tensors of one parameter, when a checkpoint's separate matrices have been stacked."""

    def __init__(self, hf_quantizer: NF4ExpertsQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(self, input_dict: dict[str, Any], *args: Any, **context: Any) -> dict[str, Any]:
        from transformers.integrations.bitsandbytes import Bnb4bitQuantize  # imports bitsandbytes: seconds

        ((name, value),) = input_dict.items()
        if not self.hf_quantizer._is_expert_stack(name):
            return Bnb4bitQuantize(self.hf_quantizer).convert(input_dict, *args, **context)
        return {name: _parameter(quantize_nf4(value[0] if isinstance(value, list) else value))}


class _Deserialize(ConversionOps):
    """Of the tensors under bitsandbytes' keys of one stack; a stack that was left alone is one tensor."""

    def __init__(self, hf_quantizer: NF4ExpertsQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(self, input_dict: dict[str, Any], *args: Any, **context: Any) -> dict[str, Any]:
        full_name = context["full_layer_name"]
        name = full_name.rpartition(".")[2]
        state = {key.removesuffix("$"): tensors[0] for key, tensors in input_dict.items()}
        if list(state) == [name]:
            return state
        weight = NF4Weight.from_state_dict(state, name)
        expected = tuple(context["model"].get_parameter(full_name).shape)
        if weight.shape != expected:
            raise ValueError(f"{full_name} has shape {weight.shape} in the checkpoint; expected {expected}")
        return {name: _parameter(weight)}


def _parameter(weight: NF4Weight) -> nn.Parameter:
    return nn.Parameter(NF4Stack(weight), requires_grad=False)


def _check_skipped(model: PreTrainedModel, patterns: list[str]) -> None:
    """ValueError naming the first pattern that leaves no module alone; transformers ignores it."""
    names = [name for name, module in model.named_modules() if not any(module.children())] + [name for name, _ in experts_of(model)]
    for pattern in patterns:
        if all(should_convert_module(name, [pattern]) for name in names):
            raise ValueError(
                f"llm_int8_skip_modules has {pattern!r}, which matches no module: it is a regular expression of a name from its start "
                "to the end of one of its parts ('.*self_attn'), or a name's end"
            )


def _check_blocks(name: str, stack: Tensor) -> None:
    """ValueError unless every expert of `stack` [E, out, in] is a whole number of NF4's blocks."""
    _, rows, columns = stack.shape
    if rows * columns % NF4.block:
        raise ValueError(f"{name}: an expert of {rows}x{columns} values is no whole number of NF4 blocks of {NF4.block}; skip the module")
