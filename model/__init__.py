"""The mixture of experts as a transformers model: importing this package registers it with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_moe import MoEConfig
from .experts_interface import use_moe_kernels
from .modeling_moe import MoEForCausalLM, MoEModel
from .nf4_experts import NF4ExpertsConfig
from .trainer_callback import RouterStepCallback

AutoConfig.register(MoEConfig.model_type, MoEConfig, exist_ok=True)
AutoModel.register(MoEConfig, MoEModel, exist_ok=True)
AutoModelForCausalLM.register(MoEConfig, MoEForCausalLM, exist_ok=True)

__all__ = ["MoEConfig", "MoEForCausalLM", "MoEModel", "NF4ExpertsConfig", "RouterStepCallback", "use_moe_kernels"]
