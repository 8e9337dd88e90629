"""`python -m model.merge CONFIG.yml OUT`: one model out of several of one architecture, from mergekit's YAML file.

Tensors are merged one by one and written in shards, so that memory holds a few of them. Adapters need no merged copy.
A command that was killed goes on after its last whole shard when it is run again.
`--inspect` looks at the task vectors instead (`merging/task_vectors.py`).
"""

import argparse
import hashlib
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .checkpoint import CONFIG, GENERATION, Checkpoint, parse_dtype
from .checkpoint_writer import SHARD_BYTES, CheckpointWriter
from .cli import make_parser, run_command
from .merging.config import MergeConfig, read_merge_config, unused_parameters
from .merging.methods import METHODS
from .merging.plan import Step, count_layers, make_plan
from .merging.sources import HEAD, SourceModel, open_sources
from .merging.task_vectors import TOTAL, draw, find_base, measure, text_table
from .merging.tensors import Merger
from .merging.vocabulary import Alignment, align
from .output import output_folder, refuse_existing, write_json, write_run
from .resume import resumable_folder
from .same_tokenizer import brings_tokenizer, take_chat_template
from .strict_json import read_json
from .tokenizer import read_tokenizer

CONFIG_COPY = "mergekit_config.yml"  # as mergekit calls it
_TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja")


@dataclass(frozen=True)
class Merge:
    """A configuration whose models are open. `reference` gives the output's configuration and, if nothing else is said, its tokenizer."""

    config: MergeConfig
    sources: dict[str, SourceModel]
    reference: SourceModel
    alignment: Alignment | None
    steps: list[Step]


def open_merge(path: Path) -> Merge:
    """Reads a configuration, opens its models and plans the merge; FileNotFoundError or ValueError if that cannot be done."""
    config = read_merge_config(path)
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
            dtype, out_dtype = torch.float32, out_dtype or merge.reference.stored(merge.steps[0].terms[0].name).dtype
    return Merger(config.method, dtype, out_dtype, merge.alignment, seed, fast_ties)


def write_weights(folder: Path, merger: Merger, steps: list[Step]) -> torch.dtype:
    """Writes the merged tensors in shards, after those that are there already; returns the widest of their dtypes."""
    with CheckpointWriter(folder, SHARD_BYTES, resume=True) as writer:
        left = [step for step in steps if step.name not in writer.finished]
        for name, tensor in tqdm(merger.tensors(left), desc="Merging", unit="tensor", initial=len(steps) - len(left), total=len(steps)):
            writer.add(name, tensor)
    written = Checkpoint(folder)
    return reduce(torch.promote_types, [written.tensor(name).dtype for name in written])


def write_config(folder: Path, merge: Merge, dtype: torch.dtype) -> None:
    """The reference's configuration with the output's dtype, number of layers and vocabulary."""
    settings = read_json(merge.reference.folder / CONFIG)
    settings.pop("torch_dtype", None)  # as transformers 4 called it
    settings |= {"dtype": str(dtype).removeprefix("torch."), "num_hidden_layers": count_layers(merge.config, merge.reference)}
    settings["tie_word_embeddings"] = all(HEAD not in source.weights for source in merge.sources.values())
    if merge.alignment is not None:
        settings["vocab_size"] = merge.alignment.size
    write_json(folder / CONFIG, settings)


def write_tokenizer(folder: Path, merge: Merge) -> None:
    """The aligned tokenizer, or the reference's files as they are; with the chat template that the file asks for, else that of adapters."""
    template = merge.config.chat_template
    adapters = [source.adapter.folder for source in merge.sources.values() if source.adapter and brings_tokenizer(source.adapter.folder)]
    if merge.alignment is None and template is None and not adapters:
        for path in [path for pattern in _TOKENIZER_FILES for path in merge.reference.folder.glob(pattern)]:
            shutil.copy(path, folder / path.name)
        return
    tokenizer = merge.alignment.tokenizer if merge.alignment is not None else read_tokenizer(merge.reference.folder)
    if template == "auto":
        found = Counter(map(_chat_template, merge.sources.values()))
        found.pop(None, None)
        tokenizer.chat_template = found.most_common(1)[0][0] if found else None
    elif template is not None:
        tokenizer.chat_template = template
    else:
        take_chat_template(tokenizer, adapters)
    tokenizer.save_pretrained(folder)


def _chat_template(source: SourceModel) -> Any:
    tokenizer = read_tokenizer(source.folder)
    take_chat_template(tokenizer, [source.adapter.folder] if source.adapter else [])
    return tokenizer.chat_template


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
    refuse_existing(out)
    merge = open_merge(path)
    if args.inspect:
        inspect(merge, args)
        return
    for name in unused_parameters(merge.config):
        print(f"{path}: {name} has no effect on {merge.config.method}", file=sys.stderr)
    with resumable_folder(out, _facts(path, merge, args)) as (folder, _):
        write_tokenizer(folder, merge)  # first, as it may fail, and the rest takes long
        dtype = write_weights(folder, make_merger(merge, args.seed, args.fast_ties), merge.steps)
        write_config(folder, merge, dtype)
        if (merge.reference.folder / GENERATION).is_file():
            shutil.copy(merge.reference.folder / GENERATION, folder / GENERATION)
        shutil.copy(path, folder / CONFIG_COPY)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        models = {name: source.name for name, source in merge.sources.items()}
        write_run(folder, seed=args.seed, figures={"tensors": len(merge.steps), "bytes": size}, method=merge.config.method, models=models)
    print(f"{out}: {merge.config.method} of {', '.join(models)}, {size / 1e9:.2f} GB of {dtype}")


def _facts(path: Path, merge: Merge, args: argparse.Namespace) -> dict[str, str]:
    """What must be the same for an unfinished merge to be gone on with, by the name that an error gives it."""
    rows = [row_V.numpy().tobytes() for row_V in merge.alignment.rows] if merge.alignment else []
    return {
        "configuration": hashlib.sha256(path.read_bytes()).hexdigest(),
        "--fast-ties": str(args.fast_ties),
        "--seed": str(args.seed),
        "tokenizers": hashlib.sha256(b"".join(rows)).hexdigest(),
        **{name: source.fingerprint for name, source in merge.sources.items()},
    }


def main() -> int:
    parser = make_parser("model.merge", "Merges models of one architecture from a mergekit YAML file.")
    parser.add_argument("config", help=f"YAML file; merge_method is one of {', '.join(METHODS)}")
    parser.add_argument("out", help="output folder")
    text = "of entries as large as the smallest that is kept, keep the first: TIES is much faster, but not mergekit's to the bit"
    parser.add_argument("--fast-ties", action="store_true", help=text)
    text = "no effect, as merging always streams; mergekit has the flag"
    parser.add_argument("--low-memory", "--low-cpu-memory", action="store_true", help=text)
    parser.add_argument("--inspect", action="store_true", help="measure the task vectors (table, JSON, heat map) and write no model")
    parser.add_argument(
        "--density", type=float, default=0.2, help="share of entries, the largest, among which --inspect counts sign conflicts"
    )
    return run_command(merge_models, parser)


if __name__ == "__main__":
    raise SystemExit(main())
