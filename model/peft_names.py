"""PEFT's adapters of Mixtral's experts, on ours.

An adapter names a Mixtral's experts as transformers 4 did (w1, w2, w3), or by "all-linear". What that means for the fused matrices of
transformers 5, PEFT and transformers look up by the model's type; for one that they do not know, experts are left out in silence.
"""

import sys

from transformers import conversion_mapping

from .configuration_moe import MoEConfig

_PEFTS_COPY = "peft.utils.transformers_weight_conversion"  # which has its own of the table, made when it is imported


def register_mixtrals_names() -> None:
    """Makes PEFT and transformers read the names in an adapter of ours as in one of Mixtral's."""
    if conversion_mapping.get_checkpoint_conversion_mapping(MoEConfig.model_type) is not None:
        return
    mapping = conversion_mapping.get_checkpoint_conversion_mapping("mixtral")
    conversion_mapping.register_checkpoint_conversion_mapping(MoEConfig.model_type, mapping)
    for module in (conversion_mapping, sys.modules.get(_PEFTS_COPY)):
        if module is not None:
            module._MODEL_TO_CONVERSION_PATTERN[MoEConfig.model_type] = "mixtral"
