"""`python -m model.compose CONFIG.yml OUT`: a mixture out of experts, from mergekit-moe's YAML file.

Attention, norms and embeddings are the base's; each expert gives its FFN; the gate comes from prompts (`gates.py`). Experts that are
adapters of the base become the `lora` layout (one base FFN and each expert's factors), others the `dense` one. Tensors are streamed.

Shapes: L layers, E experts, D model width, F expert hidden width, R LoRA rank.
"""

import argparse
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer

from moe_kernels.nf4 import quantize_nf4

from .adapters import BASE_FACT, Adapter, base_fingerprint, is_adapter
from .checkpoint import CONFIG, Checkpoint, CheckpointWriter, model_folder, parse_dtype, read_json
from .cli import make_parser, run_command
from .configuration_moe import EXPERT_LAYOUTS, MoEConfig
from .experts import PROJECTIONS
from .gates import DEGENERATE, PROMPT_MODES, condition_numbers, embedding_gates, hidden_gates, random_gates
from .modeling_moe import MoEForCausalLM
from .output import check_absent, output_folder, write_run
from .recipe import Recipe, read_recipe

RECIPE_COPY = "mergekit_moe_config.yml"  # as mergekit calls it
_FAMILIES = ("mistral", "llama")
_SHARED = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("vocab_size", "hidden_act", "rope_parameters"),
)
_QUANTIZED = re.compile(r"\.self_attn\.[qkvo]_proj\.weight$|\.experts\.(gate|up|gate_up|down)_proj$")
_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Source:
    """Where an expert's FFN comes from: a full checkpoint, with or without an adapter on it."""

    name: str
    weights: Checkpoint
    adapter: Adapter | None
    is_base: bool  # `weights` are the base's: with an adapter, this expert can be kept as its factors

    def matrix(self, module: str) -> Tensor:
        weight = self.weights.tensor(f"{module}.weight")
        return weight if self.adapter is None else self.adapter.apply(module, weight)


def open_source(text: str, base: Path, base_weights: Checkpoint, beside: Path) -> Source:
    """The expert that a recipe's `source_model` names: a checkpoint, an adapter of the base, or `checkpoint+adapter`.

    FileNotFoundError if nothing is there; ValueError if it does not fit the base.
    """
    folder, adapter_folder = _split_source(text, beside)
    if adapter_folder is None and is_adapter(folder):
        folder, adapter_folder = base, folder
    is_base = folder.resolve() == base.resolve()
    weights = base_weights if is_base else Checkpoint(folder)
    if not is_base:
        _check_same_shape(folder, base)
    adapter = None
    if adapter_folder is not None:
        adapter = Adapter(adapter_folder)
        adapter.check_ffn_only()
        adapter.check_base(folder, weights)
    return Source(adapter.name if adapter else folder.name, weights, adapter, is_base)


def _split_source(text: str, beside: Path) -> tuple[Path, Path | None]:
    """The folders on both sides of mergekit's `model+lora`; a folder may itself have a plus sign in its name."""
    for place in [index for index, letter in enumerate(text) if letter == "+"]:
        try:
            return model_folder(text[:place], beside), model_folder(text[place + 1 :], beside)
        except FileNotFoundError:
            continue
    return model_folder(text, beside), None


def _check_same_shape(folder: Path, base: Path) -> None:
    ours, theirs = _read_config(base), _read_config(folder)
    for field in _SHARED:
        if ours.get(field) != theirs.get(field):
            raise ValueError(f"{folder} has {field} = {theirs.get(field)!r}, but the base {base} has {ours.get(field)!r}")


def _read_config(folder: Path) -> dict[str, Any]:
    """The configuration with its family's defaults filled in; ValueError if it is not of the Mistral family."""
    kind = read_json(folder / CONFIG).get("model_type")
    if kind not in _FAMILIES:
        raise ValueError(f"{folder} is a {kind!r} model; base and experts must be one of {', '.join(_FAMILIES)}")
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()


def make_config(base: Path, recipe: Recipe, sources: list[Source], layout: str, quantization: str | None) -> MoEConfig:
    """The mixture's configuration from the base's; ValueError if the base is not of the Mistral family, or has biases."""
    settings = _read_config(base)
    if settings.get("attention_bias") or settings.get("mlp_bias"):
        raise ValueError(f"{base} has biases in its linear layers; Mixtral has none")
    dtype = recipe.dtype or settings.get("dtype") or "bfloat16"
    parse_dtype(dtype)
    ours = {
        "model_type": MoEConfig.model_type,
        "architectures": [MoEForCausalLM.__name__],
        "sliding_window": None,  # as mergekit-moe
        "num_local_experts": len(sources),
        "num_experts_per_tok": recipe.experts_per_token,
        "expert_layout": layout,
        "lora_rank": max(source.adapter.rank for source in sources if source.adapter) if layout == "lora" else 0,
        "quantization": quantization,
        "expert_names": [source.name for source in sources],
        "dtype": dtype,
    }
    return MoEConfig.from_dict({**settings, **ours})


def make_gates(base: Path, base_weights: Checkpoint, config: MoEConfig, recipe: Recipe, seed: int) -> Tensor:
    """The gates [L, E, D] of the recipe's mode."""
    prompts = [expert.prompts for expert in recipe.experts]
    if recipe.gate_mode not in PROMPT_MODES:
        return random_gates(recipe.gate_mode, config.num_hidden_layers, len(prompts), config.hidden_size, seed)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    if recipe.gate_mode == "hidden":
        return hidden_gates(base, tokenizer, prompts)
    return embedding_gates(base_weights.tensor("model.embed_tokens.weight"), config.num_hidden_layers, tokenizer, prompts)


def mixture_tensors(config: MoEConfig, base_weights: Checkpoint, sources: list[Source], gates_LED: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the mixture by its own name, in full precision, one after the other."""
    for name in base_weights:
        if ".mlp." not in name and not name.endswith("rotary_emb.inv_freq"):
            yield name, base_weights.tensor(name)
    for layer in range(config.num_hidden_layers):
        mlp = f"model.layers.{layer}.mlp"
        yield f"{mlp}.gate.weight", gates_LED[layer]
        yield f"{mlp}.gate.noise_weight", torch.zeros_like(gates_LED[layer])
        if config.expert_layout == "lora":
            yield from _lora_tensors(config, mlp, base_weights, sources)
        else:
            gates_and_ups = [torch.cat([source.matrix(f"{mlp}.gate_proj"), source.matrix(f"{mlp}.up_proj")]) for source in sources]
            yield f"{mlp}.experts.gate_up_proj", torch.stack(gates_and_ups)
            yield f"{mlp}.experts.down_proj", torch.stack([source.matrix(f"{mlp}.down_proj") for source in sources])


def _lora_tensors(config: MoEConfig, mlp: str, base_weights: Checkpoint, sources: list[Source]) -> Iterator[tuple[str, Tensor]]:
    for name in PROJECTIONS:
        weight = base_weights.tensor(f"{mlp}.{name}.weight")
        yield f"{mlp}.experts.{name}", weight
        a_ERI = torch.zeros(len(sources), config.lora_rank, weight.shape[1])
        b_EOR = torch.zeros(len(sources), weight.shape[0], config.lora_rank)
        for expert, source in enumerate(sources):
            assert source.adapter is not None
            factors = source.adapter.factors(f"{mlp}.{name}")
            if factors is not None:
                rank = factors[0].shape[0]
                a_ERI[expert, :rank] = factors[0]
                b_EOR[expert, :, :rank] = factors[1] * source.adapter.scaling(f"{mlp}.{name}")
        yield f"{mlp}.experts.{name}_lora_A", a_ERI
        yield f"{mlp}.experts.{name}_lora_B", b_EOR


def is_quantized(name: str) -> bool:
    """Whether NF4 keeps this tensor in 4 bits: expert and attention matrices; never gate, norms, embeddings, head or LoRA factors."""
    return _QUANTIZED.search(name) is not None


def write_mixture(folder: Path, config: MoEConfig, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Writes config and tensors, each cast to the config's dtype and quantised where the config says so."""
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else parse_dtype(str(config.dtype))
    config.save_pretrained(folder)
    with CheckpointWriter(folder) as writer:
        for name, tensor in tqdm(tensors, desc="Composing", unit="tensor"):
            if config.quantization == "nf4" and is_quantized(name):
                for key, part in quantize_nf4(tensor.to(dtype)).state_dict(name).items():
                    writer.add(key, part)
            else:
                writer.add(name, tensor.to(dtype))


def compose(args: argparse.Namespace) -> None:
    """The command: reads the recipe, opens its sources, makes the gates and writes the mixture to `args.out`."""
    recipe_path, out = Path(args.config), Path(args.out)
    check_absent(out)
    recipe = read_recipe(recipe_path)
    base = model_folder(recipe.base_model, recipe_path.parent)
    base_weights = Checkpoint(base)
    sources = [open_source(expert.source_model, base, base_weights, recipe_path.parent) for expert in recipe.experts]
    can_share = all(source.is_base and source.adapter for source in sources)
    layout = args.layout or ("lora" if can_share else "dense")
    if layout == "lora" and not can_share:
        raise ValueError("--layout lora needs every expert to be an adapter of the base; this recipe has full checkpoints")
    config = make_config(base, recipe, sources, layout, None if args.quantize == "none" else args.quantize)
    gates_LED = make_gates(base, base_weights, config, recipe, args.seed)
    conditions = condition_numbers(gates_LED)
    if degenerate := [layer for layer, condition in enumerate(conditions) if not condition <= DEGENERATE]:
        print(f"the gate hardly tells the experts apart in layers {degenerate}: their prompts are too similar there, so train the gate")
    with output_folder(out) as folder:
        write_mixture(folder, config, mixture_tensors(config, base_weights, sources, gates_LED))
        AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(folder)
        if (base / _GENERATION).is_file():
            shutil.copy(base / _GENERATION, folder / _GENERATION)
        shutil.copy(recipe_path, folder / RECIPE_COPY)
        facts: dict[str, Any] = {"layout": layout, "quantization": config.quantization, "experts": [source.name for source in sources]}
        facts[BASE_FACT] = base_fingerprint(base, base_weights)
        write_run(folder, seed=args.seed, figures={"gate_condition_numbers": conditions}, **facts)
    print(f"{out}: {len(sources)} experts ({', '.join(facts['experts'])}), {layout} layout, {config.quantization or config.dtype}")


def main() -> int:
    parser = make_parser("model.compose", "Composes a mixture of experts from a mergekit-moe YAML file.")
    parser.add_argument("config", help="YAML file: base_model, gate_mode, dtype, experts_per_token, experts")
    parser.add_argument("out", help="output folder")
    parser.add_argument("--layout", choices=EXPERT_LAYOUTS, help="lora: one FFN and factors (if all are adapters); dense: merged")
    parser.add_argument("--quantize", choices=("nf4", "none"), default="none", help="4-bit expert and attention matrices, or not")
    return run_command(compose, parser)


if __name__ == "__main__":
    raise SystemExit(main())
