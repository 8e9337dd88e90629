"""The mixture of experts as a transformers model: importing this package registers it with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_moe import MoEConfig
from .modeling_moe import MoEForCausalLM, MoEModel

AutoConfig.register(MoEConfig.model_type, MoEConfig, exist_ok=True)
AutoModel.register(MoEConfig, MoEModel, exist_ok=True)
AutoModelForCausalLM.register(MoEConfig, MoEForCausalLM, exist_ok=True)

__all__ = ["MoEConfig", "MoEForCausalLM", "MoEModel"]
