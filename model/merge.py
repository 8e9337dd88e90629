"""`python -m model.merge CONFIG.yml OUT`: one model out of several of one architecture, from mergekit's YAML file.

Tensors are merged one by one and written in shards, so that memory holds a few of them. Adapters need no merged copy.
`--inspect` looks at the task vectors instead (`merging/task_vectors.py`).
"""

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .checkpoint import CONFIG, parse_dtype, read_json
from .checkpoint_writer import CheckpointWriter
from .cli import make_parser, run_command
from .merging.config import MergeConfig, read_config, unused_parameters
from .merging.methods import METHODS
from .merging.plan import Step, count_layers, make_plan
from .merging.sources import Source, open_sources
from .merging.task_vectors import TOTAL, draw, find_base, measure, text_table
from .merging.tensors import Merger
from .merging.vocabulary import Alignment, align, load_tokenizer
from .output import check_absent, output_folder, write_json, write_run

CONFIG_COPY = "mergekit_config.yml"  # as mergekit calls it
_SHARD_BYTES = 1 << 30
_GENERATION = "generation_config.json"
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja")


@dataclass(frozen=True)
class Merge:
    """A configuration whose models are open. `reference` gives the output's configuration and, if nothing else is said, its tokenizer."""

    config: MergeConfig
    sources: dict[str, Source]
    reference: Source
    alignment: Alignment | None
    steps: list[Step]


def open_merge(path: Path) -> Merge:
    """Reads a configuration, opens its models and plans the merge; FileNotFoundError or ValueError if that cannot be done."""
    config = read_config(path)
    sources = open_sources(config.models, config.base_model, path.parent)
    reference = next(iter(sources.values()))
    alignment = align(config.tokenizer, sources, config.base_model, path.parent) if config.tokenizer else None
    return Merge(config, sources, reference, alignment, make_plan(config, sources, reference, alignment is not None))


def make_merger(merge: Merge, seed: int, fast_ties: bool) -> Merger:
    """How tensors are merged: with mergekit's bits, except that adapters which stand alone, which it cannot read, need not follow it.

    With them the arithmetic is in fp32 and the result in the base's dtype, unless the file says otherwise, and `fast_ties` holds.
    """
    config = merge.config
    dtype = parse_dtype(config.dtype) if config.dtype else None
    out_dtype = parse_dtype(config.out_dtype) if config.out_dtype else None
    if any(not source.in_file_dtype for source in merge.sources.values()):
        fast_ties = True
        if dtype is None:
            dtype, out_dtype = torch.float32, out_dtype or merge.reference.weights.tensor(merge.steps[0].terms[0].name).dtype
    return Merger(config.method, dtype, out_dtype, merge.alignment, seed, fast_ties)


def write_weights(folder: Path, tensors: Iterator[tuple[str, Tensor]], count: int) -> torch.dtype:
    """Writes the tensors in shards; returns the widest of their dtypes."""
    widest = None
    with CheckpointWriter(folder, _SHARD_BYTES) as writer:
        for name, tensor in tqdm(tensors, desc="Merging", unit="tensor", total=count):
            writer.add(name, tensor)
            widest = tensor.dtype if widest is None else torch.promote_types(widest, tensor.dtype)
    assert widest is not None
    return widest


def write_config(folder: Path, merge: Merge, dtype: torch.dtype) -> None:
    """The reference's configuration with the output's dtype, number of layers and vocabulary."""
    settings = read_json(merge.reference.folder / CONFIG)
    settings.pop("torch_dtype", None)  # as transformers 4 called it
    settings |= {"dtype": str(dtype).removeprefix("torch."), "num_hidden_layers": count_layers(merge.config, merge.reference)}
    if merge.alignment is not None:
        settings["vocab_size"] = merge.alignment.size
    write_json(folder / CONFIG, settings)


def write_tokenizer(folder: Path, merge: Merge) -> None:
    """The aligned tokenizer, or the reference's files as they are; with the chat template that the file asks for."""
    template = merge.config.chat_template
    if merge.alignment is None and template is None:
        for path in [path for pattern in _TOKENIZER_FILES for path in merge.reference.folder.glob(pattern)]:
            shutil.copy(path, folder / path.name)
        return
    tokenizer = merge.alignment.tokenizer if merge.alignment is not None else load_tokenizer(merge.reference.folder)
    if template == "auto":
        found = Counter(load_tokenizer(source.folder).chat_template for source in merge.sources.values())
        found.pop(None, None)
        tokenizer.chat_template = found.most_common(1)[0][0] if found else None
    elif template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def inspect(merge: Merge, args: argparse.Namespace) -> None:
    """Measures the task vectors, prints them and writes them as JSON and as a heat map; no model is written."""
    if not 0 < args.density <= 1:
        raise ValueError(f"--density is {args.density:g}; it must be above 0 and at most 1")
    base = find_base(merge.sources, merge.config.base_model)
    sources = {name: source for name, source in merge.sources.items() if name != merge.config.base_model}
    names = [source.name for source in sources.values()]
    experts = {source.name if names.count(source.name) == 1 else name: source for name, source in sources.items()}
    rows = measure(base, experts, args.density)
    with output_folder(Path(args.out)) as folder:
        write_json(folder / "task_vectors.json", {"base": str(base.folder), "density": args.density, "layers": rows})
        draw(rows, folder / "task_vectors.png")
        write_run(folder, seed=args.seed, figures=rows[TOTAL], density=args.density)
    print(text_table(rows))


def merge_models(args: argparse.Namespace) -> None:
    """The command: reads the configuration, opens its models, and writes the merged model, or what `--inspect` finds, to `args.out`."""
    path, out = Path(args.config), Path(args.out)
    check_absent(out)
    merge = open_merge(path)
    if args.inspect:
        inspect(merge, args)
        return
    for name in unused_parameters(merge.config):
        print(f"{path}: {name} has no effect on {merge.config.method}", file=sys.stderr)
    with output_folder(out) as folder:
        write_tokenizer(folder, merge)  # first, as it may fail, and the rest takes long
        dtype = write_weights(folder, make_merger(merge, args.seed, args.fast_ties).tensors(merge.steps), len(merge.steps))
        write_config(folder, merge, dtype)
        if (merge.reference.folder / _GENERATION).is_file():
            shutil.copy(merge.reference.folder / _GENERATION, folder / _GENERATION)
        shutil.copy(path, folder / CONFIG_COPY)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        models = {name: source.name for name, source in merge.sources.items()}
        write_run(folder, seed=args.seed, figures={"tensors": len(merge.steps), "bytes": size}, method=merge.config.method, models=models)
    print(f"{out}: {merge.config.method} of {', '.join(models)}, {size / 1e9:.2f} GB of {dtype}")


def main() -> int:
    parser = make_parser("model.merge", "Merges models of one architecture from a mergekit YAML file.")
    parser.add_argument("config", help=f"YAML file; merge_method is one of {', '.join(METHODS)}")
    parser.add_argument("out", help="output folder")
    text = "of entries as large as the smallest that is kept, keep the first: TIES is much faster, but not mergekit's to the bit"
    parser.add_argument("--fast-ties", action="store_true", help=text)
    parser.add_argument("--inspect", action="store_true", help="measure the task vectors (table, JSON, heat map) and write no model")
    parser.add_argument(
        "--density", type=float, default=0.2, help="share of entries, the largest, among which --inspect counts sign conflicts"
    )
    return run_command(merge_models, parser)


if __name__ == "__main__":
    raise SystemExit(main())
