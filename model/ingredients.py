"""What a mixture is made of: a recipe whose sources are open, and the configuration that follows from them."""

from dataclasses import dataclass
from pathlib import Path

from .checkpoint import Checkpoint, model_folder, parse_dtype
from .configuration_moe import ATTENTION, MoEConfig
from .experts import PROJECTIONS
from .modeling_moe import MoEForCausalLM
from .recipe import Recipe, read_recipe
from .sources import Source, check_matrices, open_source, read_base_config, unique_names


@dataclass(frozen=True)
class Ingredients:
    recipe: Recipe
    base: Path
    base_weights: Checkpoint
    sources: list[Source]  # of the routed experts, then of the shared ones
    config: MoEConfig


def open_recipe(path: Path, layout: str | None, quantization: str | None) -> Ingredients:
    """Reads a recipe and opens its base and experts; `layout` None is `lora` if all experts are adapters of the base, else `dense`.

    FileNotFoundError or ValueError says what is missing or does not fit.
    """
    recipe = read_recipe(path)
    base = model_folder(recipe.base_model, path.parent)
    base_weights = Checkpoint(base)
    check_matrices(base_weights, read_base_config(base))
    names = [*(expert.source_model for expert in recipe.experts), *recipe.shared_experts]
    sources = [open_source(name, base, base_weights, path.parent) for name in names]
    can_share = all(source.is_base and source.adapter for source in sources)
    if layout == "lora" and not can_share:
        raise ValueError("--layout lora needs every expert to be an adapter of the base; this recipe has full checkpoints")
    layout = layout or ("lora" if can_share else "dense")
    return Ingredients(recipe, base, base_weights, sources, make_config(base, recipe, sources, layout, quantization))


def make_config(base: Path, recipe: Recipe, sources: list[Source], layout: str, quantization: str | None) -> MoEConfig:
    """The mixture's configuration from the base's; ValueError if the base is not of the Mistral family, or has biases."""
    settings = read_base_config(base)
    if settings.get("attention_bias") or settings.get("mlp_bias"):
        raise ValueError(f"{base} has biases in its linear layers; Mixtral has none")
    dtype = recipe.dtype or settings.get("dtype") or "bfloat16"
    parse_dtype(dtype)
    adapters = [source.adapter for source in sources if source.adapter]
    attention = [projection for projection in ATTENTION if any(projection in adapter.attention for adapter in adapters)]
    ours = {
        "model_type": MoEConfig.model_type,
        "architectures": [MoEForCausalLM.__name__],
        "sliding_window": None,  # as mergekit-moe
        "num_local_experts": len(recipe.experts),
        "num_experts_per_tok": recipe.experts_per_token,
        "expert_layout": layout,
        "lora_rank": max(1, *(adapter.rank(PROJECTIONS) for adapter in adapters)) if layout == "lora" else 0,
        "attention_experts": attention or None,
        "attention_lora_rank": max((adapter.rank(ATTENTION) for adapter in adapters), default=0),
        "num_shared_experts": len(recipe.shared_experts),
        "shared_expert_scale": recipe.residual_scale,
        "quantization": quantization,
        "expert_names": unique_names([source.name for source in sources]),
        "dtype": dtype,
    }
    return MoEConfig.from_dict({**settings, **ours})
