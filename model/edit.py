"""`python -m model.edit MIXTURE OUT`: adds, replaces or removes one expert of a finished mixture, a shared one too.

Every other expert keeps its bits, and the gates keep their other rows, trained as they are. A new expert's row comes from prompts (what the
router sees at their last token, scaled to the other rows' length) or is a copy of another expert's.

Shapes: D model width.
"""

import argparse
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .adapters import Adapter, base_fact
from .checkpoint import GENERATION, Checkpoint, model_folder
from .checkpoint_writer import SHARD_BYTES, CheckpointWriter
from .cli import make_parser, run_command
from .config_file import moe_config, read_config
from .configuration_moe import ATTENTION, MoEConfig
from .experts import PROJECTIONS
from .generation import encode_prompts, pad_left
from .load import load_model
from .new_expert import open_new_expert
from .output import output_folder, refuse_existing, write_run
from .restack import NEW, Edit, edited_tensors
from .routers import MoERouter
from .sources import ExpertSource, unique_names
from .strict_json import check_text
from .tokenizer import copy_tokenizer


def edited_config(config: MoEConfig, experts: list[str], routed: int, attention: list[str], adapter: Adapter | None) -> MoEConfig:
    """The configuration after an edit; ValueError if it means nothing, as with fewer experts than a token takes."""
    ranks = (adapter.rank(PROJECTIONS), adapter.rank(ATTENTION)) if adapter else (0, 0)
    return MoEConfig.from_dict(
        {
            **config.to_dict(),
            "num_local_experts": routed,
            "num_shared_experts": len(experts) - routed,
            "expert_names": experts,
            "lora_rank": max(config.lora_rank, ranks[0]) if config.expert_layout == "lora" else 0,
            "attention_experts": attention or None,
            "attention_lora_rank": max(config.attention_lora_rank, ranks[1]) if attention else 0,
        }
    )


def changed_attention(config: MoEConfig, weights: Checkpoint, order: list[int | None], adapter: Adapter | None) -> list[str]:
    """The projections of attention in which an expert of the edited mixture differs; ValueError if it is a new one's alone."""
    had = config.attention_experts or []
    if adapter and (more := adapter.attention - set(had)):
        changes = f"{adapter.folder} changes {', '.join(sorted(more))}"
        raise ValueError(f"{changes}; of attention the experts of this mixture change {', '.join(had) or 'none'}")
    kept = [index for index in order if index is not NEW]

    def is_kept(projection: str) -> bool:
        return any(weights.tensor(name)[kept].any() for name in weights if name.endswith(f".self_attn.{projection}_lora_B"))

    return [projection for projection in had if (adapter and projection in adapter.attention) or is_kept(projection)]


def reorder(args: argparse.Namespace, names: list[str], routed: int) -> tuple[list[int | None], int]:
    """The old index of each expert that there will be, or NEW, and how many of them the gate chooses among (it did among `routed`)."""
    order: list[int | None] = list(range(len(names)))
    if args.remove:
        place = _find(names, args.remove)
        del order[place]
        return order, routed - (place < routed)
    if args.replace:
        order[_find(names, args.replace[0])] = NEW
        return order, routed
    order.insert(len(names) if args.shared else routed, NEW)
    return order, routed + (not args.shared)


def gate_rows(args: argparse.Namespace, names: list[str], routed: int, weights: Checkpoint, folder: Path) -> dict[str, Tensor]:
    """The new expert's row [D] of each gate, by the gate's name; empty if the gate does not choose it."""
    if args.prompts:
        return prompt_rows(folder, args.prompts)
    if args.like:
        return _copied_rows(weights, _find(names[:routed], args.like))
    place = _find(names, args.replace[0]) if args.replace else routed
    return _copied_rows(weights, place) if place < routed else {}


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
            rows = encode_prompts(tokenizer, [prompt])
            if not rows[0]:
                raise ValueError(f"--prompts holds {prompt!r}, which has no tokens")
            model(**pad_left(tokenizer, rows, model.device), use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: (sums[name] / sums[name].norm() * gate.weight.float().norm(dim=1).mean()).cpu() for name, gate in gates.items()}


def edit_mixture(args: argparse.Namespace) -> None:
    """The command: works out the edit and writes the edited mixture to `args.out`."""
    _check_flags(args)
    folder, out = model_folder(args.model), Path(args.out)
    refuse_existing(out)
    settings = read_config(folder)
    if settings.get("model_type") != MoEConfig.model_type:
        raise ValueError(f"{folder} is a {settings.get('model_type')!r} model; composed mixtures are edited ({MoEConfig.model_type!r})")
    config, weights = moe_config(settings, folder), Checkpoint(folder)
    names = config.expert_names or [f"expert-{index}" for index in range(config.num_stored_experts)]
    order, routed = reorder(args, names, config.num_local_experts)
    text = args.replace[1] if args.replace else args.add
    source = open_new_expert(text, config, folder, args.base) if text else None
    if isinstance(source, ExpertSource):
        source = replace(source, residual_scale=args.residual_scale)
    elif args.residual_scale != 1:
        raise ValueError("--residual-scale is for a new expert of the dense layout; the experts of the lora layout share one FFN")
    adapter = source.adapter if isinstance(source, ExpertSource) else source
    attention = changed_attention(config, weights, order, adapter)
    experts = _edited_names(names, order, args.name, source.name if source else "")
    changed = edited_config(config, experts, routed, attention, adapter)
    with output_folder(out) as temporary:
        rows = gate_rows(args, names, config.num_local_experts, weights, folder)  # may run the model: not before the output can be written
        edit = Edit(changed, order, source, rows)
        edit.config.save_pretrained(temporary)
        with CheckpointWriter(temporary, SHARD_BYTES) as writer:
            for group in tqdm(edited_tensors(weights, edit), desc="Editing", unit="tensor"):
                writer.add_group(group)
        copy_tokenizer(folder, temporary)
        if (folder / GENERATION).is_file():
            shutil.copyfile(folder / GENERATION, temporary / GENERATION)
        facts = {"model": str(folder), "experts": edit.config.expert_names, **base_fact(folder)}
        write_run(temporary, seed=args.seed, figures={}, **facts)
    shared = f", shared by every token: {', '.join(experts[routed:])}" if experts[routed:] else ""
    print(f"{out}: {routed} experts ({', '.join(experts[:routed])}){shared}")


class Once(argparse.Action):
    """Stores a value; ValueError for one of an edit's flags that is given twice: argparse would take the last."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if getattr(namespace, self.dest) is not self.default:
            raise ValueError(f"{option_string} was given twice; an edit takes it once")
        setattr(namespace, self.dest, values)


def _check_flags(args: argparse.Namespace) -> None:
    for prompt in args.prompts or ():
        check_text(prompt, "--prompts")
    if args.remove and args.name:
        raise ValueError("--name is of a new expert: it goes with --add or --replace")
    if not args.add and (args.prompts or args.like or args.shared):
        raise ValueError("--prompts, --like and --shared are about an expert that is added: they go with --add")
    if args.add and sum(map(bool, (args.prompts, args.like, args.shared))) != 1:
        raise ValueError(
            "--add needs one of --prompts, which are like what the expert is for, --like, an expert to take turns with, and --shared, "
            "for an expert that every token goes to"
        )


def _edited_names(names: list[str], order: list[int | None], wanted: str | None, default: str) -> list[str]:
    """The experts' names in their new order; ValueError if another expert has the name that was `wanted` for the new one."""
    kept = [names[index] for index in order if index is not NEW]
    if wanted in kept:
        raise ValueError(f"there is an expert {wanted!r} already; --name another")
    new = wanted or unique_names([*kept, default])[-1]
    return [new if index is NEW else names[index] for index in order]


def _find(names: list[str], name: str) -> int:
    if name not in names:
        raise ValueError(f"there is no expert {name!r}; there are {', '.join(names)}")
    if names.count(name) > 1:
        raise ValueError(f"several experts are called {name!r}: {', '.join(names)}")
    return names.index(name)


def _copied_rows(weights: Checkpoint, expert: int) -> dict[str, Tensor]:
    return {name.removesuffix(".weight"): weights.tensor(name)[expert] for name in weights if name.endswith(".gate.weight")}


def main() -> int:
    parser = make_parser("model.edit", "Adds, replaces or removes one expert of a mixture; the others keep their bits.")
    parser.register("action", None, Once)  # of every flag below that names no action
    parser.add_argument("model", help="folder of a mixture")
    parser.add_argument("out", help="output folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--add", metavar="SOURCE", help="a new expert: an adapter, a checkpoint, or checkpoint+adapter")
    what.add_argument("--replace", nargs=2, metavar=("NAME", "SOURCE"), help="an expert by another, which keeps its row of the gates")
    what.add_argument("--remove", metavar="NAME", help="an expert")
    parser.add_argument("--prompts", nargs="+", metavar="TEXT", help="to --add: what should lead to the expert")
    parser.add_argument("--like", metavar="NAME", help="to --add: an expert whose row of the gates the new one copies, to be trained apart")
    parser.add_argument("--shared", action="store_true", help="to --add: an expert for every token, beside those that the gate chooses")
    parser.add_argument(
        "--name", help="of the new expert (default: the adapter's language, or the folder's name, and a number if that is taken)"
    )
    parser.add_argument("--residual-scale", type=float, default=1.0, help="of the new expert's down projection, as in a recipe")
    parser.add_argument("--base", help="folder of the base, for a mixture of the dense layout")
    return run_command(edit_mixture, parser)


if __name__ == "__main__":
    raise SystemExit(main())
