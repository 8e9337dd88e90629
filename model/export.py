"""`python -m model.export --model DIR --out DIR`: a mixture as plain Mixtral, which transformers, vLLM and llama.cpp's converter read.

Whatever the layout and the format it has here, each expert gets its own w1, w2, w3 in one of torch's float types: NF4 is dequantised, LoRA
factors are merged (W + B A in fp32, rounded once). Wnoise is left out, as noisy top-k without noise is Mixtral's top-k. Tensors are made
one after the other and written in shards.

Shapes: E experts, D model width, F expert hidden width.
"""

import argparse
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor
from tqdm import tqdm
from transformers import MixtralConfig

from moe_kernels.nf4 import NF4Weight, dequantize_nf4
from moe_kernels.nf4_format import NF4, dtype_name

from .checkpoint import CONFIG, DTYPES, check_finite, model_folder, parse_dtype
from .checkpoint_writer import CheckpointWriter
from .cli import make_parser, run_command
from .configuration_moe import MoEConfig
from .experts import DenseExperts, LoraExperts
from .output import output_folder, write_json, write_run
from .quantization import MatrixModule, quantized_matrices
from .strict_json import read_json
from .tokenizer import copy_tokenizer

if TYPE_CHECKING:
    from .modeling_moe import MoEForCausalLM

_PLAIN = re.compile(
    r"(model\.embed_tokens|model\.norm|lm_head)\.weight"
    r"|model\.layers\.\d+\.(self_attn\.[qkvo]_proj|input_layernorm|post_attention_layernorm)\.weight"
    r"|model\.layers\.\d+\.mlp\.(gate\.(noise_)?weight|experts\.\w+)"
)


def export_mixtral(model: "MoEForCausalLM", out: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes `model` to the folder `out` as a plain Mixtral in `dtype`, with the tokenizer of the folder that it was loaded from.

    ValueError if plain Mixtral is not the same function; FileExistsError if `out` is not empty. On any error `out` is left as it was.
    """
    config = mixtral_settings(model, dtype)
    with output_folder(out) as folder:
        _write(model, config, folder, dtype)


def _write(model: "MoEForCausalLM", config: dict[str, Any], folder: Path, dtype: torch.dtype) -> None:
    with CheckpointWriter(folder) as writer:
        for name, tensor in tqdm(mixtral_tensors(model), desc="Exporting", unit="tensor", leave=False):
            writer.add(name, check_finite(tensor.to(dtype), f"{name} of the exported model, in {dtype_name(dtype)},"))
    write_json(folder / CONFIG, config)
    model.generation_config.save_pretrained(folder)
    if model.name_or_path:
        with suppress(FileNotFoundError):  # what it was loaded from is gone
            _copy_tokenizer(model_folder(model.name_or_path), folder)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    copy_tokenizer(source, folder)
    path = folder / "tokenizer_config.json"
    if path.is_file() and (settings := read_json(path)).get("tokenizer_class") == "TokenizersBackend":
        write_json(path, {**settings, "tokenizer_class": "PreTrainedTokenizerFast"})  # the name that transformers 4 knows too


def mixtral_settings(model: "MoEForCausalLM", dtype: torch.dtype) -> dict[str, Any]:
    """The `config.json` of the plain Mixtral, as both transformers 4 and 5 read it; ValueError if there is no such Mixtral."""
    config: MoEConfig = model.config
    if config.router_type == "switch":
        raise ValueError("router_type is 'switch', whose one weight is not renormalised; plain Mixtral's is always 1")
    if config.router_type == "sequence":
        raise ValueError("router_type is 'sequence'; plain Mixtral chooses for each token by itself")
    if config.num_shared_experts:
        raise ValueError(f"num_shared_experts is {config.num_shared_experts}; plain Mixtral has no experts that are always on")
    if config.attention_experts:
        raise ValueError(f"attention_experts is {', '.join(config.attention_experts)}; plain Mixtral has no attention experts")
    names = [*(name for name, _ in model.named_parameters()), *(matrix.full_name for matrix in quantized_matrices(model))]
    if others := [name for name in names if not _PLAIN.fullmatch(name)]:
        raise ValueError(f"plain Mixtral has nothing like {', '.join(others[:3])}")
    fields = {field: getattr(config, field) for field in MixtralConfig.__dataclass_fields__ if hasattr(config, field)}
    rope: Any = config.rope_parameters
    return {
        **MixtralConfig(**fields).to_dict(),
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "head_dim": config.head_dim or config.hidden_size // config.num_attention_heads,
        "num_experts_per_tok": config.num_local_experts if config.router_type == "softmax" else config.num_experts_per_tok,
        "dtype": dtype_name(dtype),
        # transformers 4 knows none of `dtype`, `rope_parameters`, and takes its own defaults without a word
        "torch_dtype": dtype_name(dtype),
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else {key: rope[key] for key in rope if key != "rope_theta"},
    }


def mixtral_tensors(model: "MoEForCausalLM") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the plain Mixtral by its name in transformers 4, one after the other."""
    tied = model.all_tied_weights_keys
    for prefix, module in model.named_modules():
        plain = prefix.replace(".mlp", ".block_sparse_moe")
        with align_module_device(module):  # reads what accelerate has offloaded
            if isinstance(module, DenseExperts | LoraExperts):
                for expert in range(model.config.num_local_experts):
                    for short, weight in zip(("w1", "w3", "w2"), expert_matrices(module, expert), strict=True):
                        yield f"{plain}.{expert}.{short}.weight", weight
                continue
            for name in module.quantized_matrices() if isinstance(module, MatrixModule) else ():
                yield f"{plain}.{name}", values(module.matrix(name))
            for name, parameter in module.named_parameters(recurse=False):
                if name != "noise_weight" and f"{prefix}.{name}" not in tied:
                    yield f"{plain}.{name}", parameter.detach()


@torch.no_grad()
def expert_matrices(module: DenseExperts | LoraExperts, expert: int) -> tuple[Tensor, Tensor, Tensor]:
    """W1, W3 [F, D] and W2 [D, F] of one expert."""
    if isinstance(module, DenseExperts):
        gate, up = _of_expert(module.matrix("gate_up_proj"), expert).chunk(2)
        return gate, up, _of_expert(module.matrix("down_proj"), expert)
    gate, up, down = (_merged(module, name, expert) for name in ("gate_proj", "up_proj", "down_proj"))
    return gate, up, down


def _of_expert(stack: Tensor | NF4Weight, expert: int) -> Tensor:
    if isinstance(stack, Tensor):
        return stack.detach()[expert]
    _, rows, columns = stack.shape
    whole_blocks = rows * columns % NF4.block == 0
    return values(stack.expert(expert)) if whole_blocks else values(stack)[expert]


def _merged(module: LoraExperts, name: str, expert: int) -> Tensor:
    a, b = (getattr(module, f"{name}_lora_{side}")[expert].float() for side in "AB")
    return values(module.matrix(name)).float() + b @ a


def values(weight: Tensor | NF4Weight) -> Tensor:
    """What the model multiplies by."""
    return weight.detach() if isinstance(weight, Tensor) else dequantize_nf4(weight)


def export(args: argparse.Namespace) -> None:
    """The command."""
    from .modeling_moe import MoEForCausalLM

    out, dtype = Path(args.out), parse_dtype(args.dtype)
    with output_folder(out) as folder:
        model = MoEForCausalLM.from_pretrained(args.model)
        config = mixtral_settings(model, dtype)
        _write(model, config, folder, dtype)
        write_run(folder, seed=args.seed, figures={}, model=str(args.model), dtype=args.dtype)
    print(f"{out}: plain Mixtral, {config['num_local_experts']} experts, {args.dtype}")


def main() -> int:
    parser = make_parser("model.export", "Writes a mixture as plain Mixtral, for transformers, vLLM and llama.cpp's converter.")
    parser.add_argument("--model", required=True, help="folder of a mixture")
    parser.add_argument("--out", required=True, help="output folder")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16", help="of the weights")
    return run_command(export, parser)


if __name__ == "__main__":
    raise SystemExit(main())
