"""`python -m model.edit MIXTURE OUT`: adds, replaces or removes one expert of a finished mixture.

Every other expert keeps its bits, and the gates keep their other rows, trained as they are. A new expert's row comes from prompts (what the
router sees at their last token, scaled to the other rows' length) or is a copy of another expert's.

Shapes: D model width.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer

from .adapters import BASE_FACT, Adapter, base_fact, base_fingerprint, is_adapter
from .checkpoint import CONFIG, INDEX, WEIGHTS, Checkpoint, CheckpointWriter, model_folder
from .cli import make_parser, run_command
from .compose import RECIPE_COPY
from .config_file import moe_config, read_config
from .configuration_moe import ATTENTION, MoEConfig
from .experts import PROJECTIONS
from .gate_report import GATE
from .load import load_model
from .mixture_tensors import SHARD_BYTES
from .output import MANIFEST, RUN, check_absent, output_folder, write_run
from .restack import NEW, Edit, edited_tensors
from .routers import MoERouter
from .same_tokenizer import check_same_tokenizer, take_chat_template
from .sources import Source, open_source


def edited_config(
    config: MoEConfig, names: list[str], order: list[int | None], name: str | None, source: Source | Adapter | None
) -> MoEConfig:
    """The configuration after an edit; ValueError if it means nothing, as with fewer experts than a token takes."""
    adapter = source if isinstance(source, Adapter) else source.adapter if source else None
    ranks = (adapter.rank(PROJECTIONS), adapter.rank(ATTENTION)) if adapter else (0, 0)
    if adapter and (more := adapter.attention - set(config.attention_experts or ())):
        have = ", ".join(config.attention_experts or ()) or "none"
        raise ValueError(f"{adapter.folder} changes {', '.join(sorted(more))}; of attention the experts of this mixture change {have}")
    return MoEConfig.from_dict(
        {
            **config.to_dict(),
            "num_local_experts": len(order) - config.num_shared_experts,
            "expert_names": [str(name) if index is NEW else names[index] for index in order],
            "lora_rank": max(config.lora_rank, ranks[0]) if config.expert_layout == "lora" else 0,
            "attention_lora_rank": max(config.attention_lora_rank, ranks[1]),
        }
    )


def prompt_rows(folder: Path, prompts: list[str]) -> dict[str, Tensor]:
    """A row [D] for each gate: the mean over `prompts` of what it sees at their last token, as long as its other rows are in the mean."""
    model, tokenizer = load_model(folder)
    gates = {name: module for name, module in model.named_modules() if isinstance(module, MoERouter)}
    sums: dict[str, Tensor] = {}

    def collect(name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
            sums[name] = sums.get(name, 0) + inputs[0][-1].float()

        return hook

    handles = [gate.register_forward_hook(collect(name)) for name, gate in gates.items()]
    with torch.inference_mode():
        for prompt in prompts:
            model(**tokenizer(prompt, return_tensors="pt").to(model.device), use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: (sums[name] / sums[name].norm() * gate.weight.float().norm(dim=1).mean()).cpu() for name, gate in gates.items()}


def edit_mixture(args: argparse.Namespace) -> None:
    """The command: works out the edit and writes the edited mixture to `args.out`."""
    folder, out = model_folder(args.model), Path(args.out)
    check_absent(out)
    settings = read_config(folder)
    if settings.get("model_type") != MoEConfig.model_type:
        raise ValueError(f"{folder} is a {settings.get('model_type')!r} model; composed mixtures are edited ({MoEConfig.model_type!r})")
    config, weights = moe_config(settings, folder), Checkpoint(folder)
    names = config.expert_names or [f"expert-{index}" for index in range(config.num_stored_experts)]
    order: list[int | None] = list(range(config.num_stored_experts))
    text, rows = args.add, {}
    if args.remove:
        order.remove(_find(names, args.remove, config))
    elif args.replace:
        old, text = args.replace
        place = _find(names, old, config)
        order[place] = NEW
        rows = _copied_rows(weights, place)
    else:
        if bool(args.prompts) == bool(args.like):
            raise ValueError("--add needs either --prompts, which are like what the expert is for, or --like, an expert to take turns with")
        order.insert(config.num_local_experts, NEW)
        rows = prompt_rows(folder, args.prompts) if args.prompts else _copied_rows(weights, _find(names, args.like, config))
    source = _open(text, config, folder, args.base) if text else None
    name = args.name or (source.name if source else None)
    edit = Edit(edited_config(config, names, order, name, source), order, source, rows)
    with output_folder(out) as temporary:
        edit.config.save_pretrained(temporary)
        with CheckpointWriter(temporary, SHARD_BYTES) as writer:
            for group in tqdm(edited_tensors(weights, edit), desc="Editing", unit="tensor"):
                writer.add_group(group)
        own = {CONFIG, WEIGHTS, INDEX, MANIFEST, RUN, RECIPE_COPY, GATE}  # the last two no longer describe it
        for file in folder.iterdir():
            if file.is_file() and file.name not in own and file.suffix != ".safetensors":
                shutil.copy(file, temporary / file.name)
        facts = {"model": str(folder), "experts": edit.config.expert_names, **base_fact(folder)}
        write_run(temporary, seed=args.seed, figures={}, **facts)
    print(f"{out}: {edit.config.num_local_experts} experts ({', '.join(edit.config.expert_names or [])})")


def _find(names: list[str], name: str, config: MoEConfig) -> int:
    if name not in names[: config.num_local_experts]:
        raise ValueError(f"there is no expert {name!r}; the gate chooses among {', '.join(names[: config.num_local_experts])}")
    if names[: config.num_local_experts].count(name) > 1:
        raise ValueError(f"several experts are called {name!r}: {', '.join(names)}")
    return names.index(name)


def _copied_rows(weights: Checkpoint, expert: int) -> dict[str, Tensor]:
    return {name.removesuffix(".weight"): weights.tensor(name)[expert] for name in weights if name.endswith(".gate.weight")}


def _check_shapes(adapter: Adapter, config: MoEConfig) -> None:
    """ValueError naming the first matrix of the adapter that the mixture has not, or has in another shape."""
    width, hidden = config.hidden_size, config.intermediate_size
    head = config.head_dim or width // config.num_attention_heads
    q, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    shapes = {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
    shapes |= {"q_proj": (q, width), "k_proj": (kv, width), "v_proj": (kv, width), "o_proj": (width, q)}
    for module in adapter.modules:
        _, _, layer, _, projection = module.split(".")
        if int(layer) >= config.num_hidden_layers:
            raise ValueError(f"{adapter.folder} changes {module}, but the mixture has {config.num_hidden_layers} layers")
        if adapter.shape(module) != shapes[projection]:
            found, expected = list(adapter.shape(module)), list(shapes[projection])
            raise ValueError(f"{adapter.folder} changes {module} as a matrix of {found}, but in the mixture it is {expected}")


def _open(text: str, config: MoEConfig, folder: Path, base: str | None) -> Source | Adapter:
    """The new expert; in the layout `lora` an adapter of the mixture's base, whose weights need not be there."""
    trained_on = base_fact(folder).get(BASE_FACT)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    place = model_folder(text.rpartition("+")[2])
    check_same_tokenizer(place, folder, tokenizer)
    asked = tokenizer.chat_template
    take_chat_template(tokenizer, [place] if is_adapter(place) else [])
    if tokenizer.chat_template != asked:
        raise ValueError(f"{place} was trained on another prompt (chat template) than the experts of {folder}")
    if config.expert_layout == "lora":
        place = model_folder(text)
        if not is_adapter(place):
            raise ValueError(f"{place} is no adapter; the experts of a mixture of the lora layout are adapters of its base")
        adapter = Adapter(place)
        adapter.check_layers_only()
        adapter.check_factors()
        _check_shapes(adapter, config)
        if adapter.run.get(BASE_FACT, trained_on) != trained_on and trained_on is not None:
            raise ValueError(f"{place} was trained on another base than the mixture's: their fingerprints differ")
        return adapter
    if base is None:
        raise ValueError("a mixture of the dense layout does not hold its base: give it as --base, to check the new expert against it")
    base_folder = model_folder(base)
    base_weights = Checkpoint(base_folder)
    if trained_on is not None and base_fingerprint(base_folder, base_weights) != trained_on:
        raise ValueError(f"{base_folder} is not the base of {folder}: their fingerprints differ")
    return open_source(text, base_folder, base_weights, Path())


def main() -> int:
    parser = make_parser("model.edit", "Adds, replaces or removes one expert of a mixture; the others keep their bits.")
    parser.add_argument("model", help="folder of a mixture")
    parser.add_argument("out", help="output folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--add", metavar="SOURCE", help="a new expert: an adapter, a checkpoint, or checkpoint+adapter")
    what.add_argument("--replace", nargs=2, metavar=("NAME", "SOURCE"), help="an expert by another, which keeps its row of the gates")
    what.add_argument("--remove", metavar="NAME", help="an expert")
    parser.add_argument("--prompts", nargs="+", metavar="TEXT", help="what should lead to the added expert")
    parser.add_argument("--like", metavar="NAME", help="an expert whose row of the gates the added one copies, to be trained apart")
    parser.add_argument("--name", help="of the new expert (default: the adapter's language, or the folder's name)")
    parser.add_argument("--base", help="folder of the base, for a mixture of the dense layout")
    return run_command(edit_mixture, parser)


if __name__ == "__main__":
    raise SystemExit(main())
