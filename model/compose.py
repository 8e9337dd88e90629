"""`python -m model.compose CONFIG.yml OUT`: a mixture out of experts, from mergekit-moe's YAML file.

Attention, norms and embeddings are the base's; each expert gives its FFN; the gate comes from prompts (`gates.py`). Experts that are
adapters of the base become the `lora` layout (one base FFN and each expert's factors), others the `dense` one. Tensors are streamed
(`mixture_tensors.py`). A command that was killed goes on after its last whole shard when it is run again.

Shapes: L layers, E experts, D model width.
"""

import argparse
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from moe_kernels.nf4_format import dtype_name

from .adapters import BASE_FACT, base_fingerprint
from .checkpoint import GENERATION, Checkpoint, parse_dtype
from .checkpoint_writer import save_whole
from .cli import make_parser, run_command
from .configuration_moe import EXPERT_LAYOUTS
from .gate_data import find_gate_data
from .gate_making import make_gates
from .gate_report import GATE, degenerate_layers, describe, format_report, some_layers
from .ingredients import Ingredients, open_recipe
from .mixture_tensors import mixture_tensors, write_mixture
from .output import refuse_existing, sha256_of, write_json, write_run
from .resume import resumable_folder
from .same_tokenizer import check_same_tokenizer, take_chat_template
from .sources import all_the_same
from .strict_json import read_json
from .tokenizer import read_tokenizer

RECIPE_COPY = "mergekit_moe_config.yml"  # as mergekit calls it


def compose(args: argparse.Namespace) -> None:
    """The command: opens the recipe's sources, makes the gates and writes the mixture to `args.out`."""
    recipe_path, out = Path(args.config), Path(args.out)
    refuse_existing(out)
    given = open_recipe(recipe_path, args.layout, None if args.quantize == "none" else args.quantize, args.seed)
    tokenizer = read_tokenizer(given.base)
    for folder in dict.fromkeys(folder for source in given.sources for folder in source.folders if folder != given.base):
        check_same_tokenizer(folder, given.base, tokenizer)
    take_chat_template(tokenizer, [source.adapter.folder for source in given.sources if source.adapter])
    names = given.config.expert_names or []
    if all_the_same(given.sources[: len(given.recipe.experts)]):
        print(f"all experts are {names[0]}: until they are trained the mixture gives what one of them gives", file=sys.stderr)
    base_fact = base_fingerprint(given.base, given.base_weights)
    with resumable_folder(out, _facts(recipe_path, given, base_fact, args)) as (folder, scratch):
        gates, report = _make_or_read_gates(scratch, given, args.seed)
        print(format_report(report))
        if degenerate := degenerate_layers(report):
            where = some_layers(degenerate, given.config.num_hidden_layers)
            print(f"the gate hardly tells the experts apart in {where}: train it, or make it from other prompts or rows")
        write_mixture(folder, given.config, list(mixture_tensors(given, gates)))
        tokenizer.save_pretrained(folder)
        if (given.base / GENERATION).is_file():
            shutil.copy(given.base / GENERATION, folder / GENERATION)
        shutil.copy(recipe_path, folder / RECIPE_COPY)
        layout, quantization = given.config.expert_layout, given.config.quantization
        dtype = dtype_name(parse_dtype(given.config.dtype or "float32"))
        facts: dict[str, Any] = {"layout": layout, "quantization": quantization, "experts": names, BASE_FACT: base_fact}
        write_json(folder / GATE, report)
        write_run(folder, seed=args.seed, figures={"gate_condition_numbers": report["blocks"]["mlp"]["condition_numbers"]}, **facts)
    print(f"{out}: {len(names)} experts ({', '.join(names)}), {layout} layout, {quantization or dtype}")


def _facts(recipe_path: Path, given: Ingredients, base_fact: str, args: argparse.Namespace) -> dict[str, str]:
    """What must be the same for an unfinished mixture to be gone on with, by the name that an error gives it."""
    data = given.recipe.gate_data
    return {
        "recipe": hashlib.sha256(recipe_path.read_bytes()).hexdigest(),
        "--layout": given.config.expert_layout,
        "--quantize": args.quantize,
        "--seed": str(args.seed),
        "configuration": given.config.to_json_string(),
        "base": base_fact,
        **({"gate_data": sha256_of(find_gate_data(data, given.folder))} if data else {}),
        **{f"expert {index}": source.fingerprint for index, source in enumerate(given.sources)},
    }


def _make_or_read_gates(scratch: Path, given: Ingredients, seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The gates [L, E, D] of each block and what is said of them, from `scratch` if an earlier run got as far as that."""
    file = scratch / "gates.safetensors"
    if not file.exists():
        gates = make_gates(given, seed)
        names = given.config.expert_names or []
        write_json(scratch / GATE, describe(gates, given.recipe.gate_mode, names[: len(given.recipe.experts)]))
        save_whole(file, gates.blocks)  # last: where it is, the report is whole
    saved = Checkpoint(file)
    return {block: saved.tensor(block) for block in saved}, read_json(scratch / GATE)


def main() -> int:
    parser = make_parser("model.compose", "Composes a mixture of experts from a mergekit-moe YAML file.")
    parser.add_argument("config", help="YAML file: base_model, gate_mode, dtype, experts_per_token, experts")
    parser.add_argument("out", help="output folder")
    parser.add_argument("--layout", choices=EXPERT_LAYOUTS, help="lora: one FFN and factors (if all are adapters); dense: merged")
    parser.add_argument("--quantize", choices=("nf4", "none"), default="none", help="4-bit expert and attention matrices, or not")
    return run_command(compose, parser)


if __name__ == "__main__":
    raise SystemExit(main())
