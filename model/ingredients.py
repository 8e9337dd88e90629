"""What a mixture is made of: a recipe whose sources are open, and the configuration that follows from them."""

from dataclasses import dataclass, replace
from pathlib import Path

from moe_kernels.nf4_format import dtype_name

from .checkpoint import Checkpoint, is_tied, parse_dtype, stored_dtype
from .configuration_moe import ATTENTION, MoEConfig
from .experts import PROJECTIONS
from .modeling_moe import MoEForCausalLM
from .recipe import Recipe, read_recipe
from .sources import ExpertSource, check_matrices, open_source, read_base_config, split_source, unique_names


@dataclass(frozen=True)
class Ingredients:
    recipe: Recipe
    folder: Path  # of the recipe, whose relative paths may start there
    base: Path
    base_weights: Checkpoint
    sources: list[ExpertSource]  # of the routed experts, then of the shared ones
    config: MoEConfig


def open_recipe(path: Path, layout: str | None, quantization: str | None, seed: int = 0) -> Ingredients:
    """Reads a recipe and opens its base and experts; `seed`: of the noise that it puts on them.

    `layout` None is `lora` if all experts are adapters of the base and keep their matrices, else `dense`. FileNotFoundError or ValueError
    says what is missing or does not fit.
    """
    recipe = read_recipe(path)
    base, base_adapter = split_source(recipe.base_model, path.parent)
    if base_adapter is not None:
        raise ValueError(f"{path}: base_model is {recipe.base_model}, but the base has no adapter; make one model of them with model.merge")
    base_weights = Checkpoint(base)
    check_matrices(base_weights, read_base_config(base))
    sources = []
    for index, expert in enumerate([*recipe.experts, *recipe.shared_experts]):
        source = open_source(expert.source_model, base, base_weights, path.parent)
        seed_of_own = f"{seed} {index}"
        sources.append(replace(source, noise_scale=expert.noise_scale, residual_scale=expert.residual_scale, noise_seed=seed_of_own))
        if source.adapter and layout == "lora":
            source.adapter.check_factors()
    obstacle = _obstacle_to_lora(recipe, sources)
    if layout == "lora" and obstacle:
        raise ValueError(f"--layout lora {obstacle}")
    layout = layout or ("dense" if obstacle else "lora")
    config = make_config(base_weights, recipe, sources, layout, quantization)
    return Ingredients(recipe, path.parent, base, base_weights, sources, config)


def _obstacle_to_lora(recipe: Recipe, sources: list[ExpertSource]) -> str | None:
    """Why the experts cannot be kept as one FFN and their factors; None if they can."""
    if not all(source.is_base and source.adapter and not source.adapter.is_dora for source in sources):
        return "needs every expert to be an adapter of the base; this recipe has full checkpoints"
    if any(expert.is_changed for expert in recipe.experts) or any(expert.noise_scale for expert in recipe.shared_experts):
        return "shares one FFN, which no expert's noise_scale or residual_scale can change; only shared experts may have a residual_scale"
    if len({expert.residual_scale for expert in recipe.shared_experts}) > 1:
        return "has one residual_scale for all shared experts; this recipe has several"
    return None


def make_config(weights: Checkpoint, recipe: Recipe, sources: list[ExpertSource], layout: str, quantization: str | None) -> MoEConfig:
    """The mixture's configuration from the base's; ValueError if the base is not of the Mistral family, or has biases."""
    base = weights.path
    settings = read_base_config(base)
    if settings.get("attention_bias") or settings.get("mlp_bias"):
        raise ValueError(f"{base} has biases in its linear layers; Mixtral has none")
    dtype = recipe.dtype or settings.get("dtype") or dtype_name(stored_dtype(weights))
    parse_dtype(dtype)
    adapters = [source.adapter for source in sources if source.adapter]
    attention = [projection for projection in ATTENTION if any(projection in adapter.attention for adapter in adapters)]
    ours = {
        "model_type": MoEConfig.model_type,
        "architectures": [MoEForCausalLM.__name__],
        "sliding_window": None,  # as mergekit-moe
        "tie_word_embeddings": is_tied(weights, bool(settings.get("tie_word_embeddings"))),
        "num_local_experts": len(recipe.experts),
        "num_experts_per_tok": recipe.experts_per_token,
        "expert_layout": layout,
        "lora_rank": max(1, *(adapter.rank(PROJECTIONS) for adapter in adapters)) if layout == "lora" else 0,
        "attention_experts": attention or None,
        "attention_lora_rank": max((adapter.rank(ATTENTION) for adapter in adapters), default=0),
        "num_shared_experts": len(recipe.shared_experts),
        # In the layout `dense` it is in their matrices.
        "shared_expert_scale": recipe.shared_experts[0].residual_scale if layout == "lora" and recipe.shared_experts else 1.0,
        "quantization": quantization,
        "expert_names": unique_names([source.name for source in sources]),
        "dtype": dtype,
    }
    return MoEConfig.from_dict({**settings, **ours})
