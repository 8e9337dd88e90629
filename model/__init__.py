"""The mixture of experts as a transformers model: importing this package registers it with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .configuration_moe import MoEConfig
from .experts_interface import use_moe_kernels
from .modeling_moe import MoEForCausalLM, MoEModel
from .nf4_experts import NF4ExpertsConfig
from .peft_names import register_mixtrals_names
from .trainer_callback import RouterStepCallback

AutoConfig.register(MoEConfig.model_type, MoEConfig, exist_ok=True)
AutoModel.register(MoEConfig, MoEModel, exist_ok=True)
AutoModelForCausalLM.register(MoEConfig, MoEForCausalLM, exist_ok=True)
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[MoEConfig.model_type] = MoEForCausalLM.__name__  # Trainer's label smoothing shifts the labels of these
register_mixtrals_names()

__all__ = ["MoEConfig", "MoEForCausalLM", "MoEModel", "NF4ExpertsConfig", "RouterStepCallback", "use_moe_kernels"]
