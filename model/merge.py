"""`python -m model.merge CONFIG.yml OUT`: one model out of several of one architecture, from mergekit's YAML file.

Tensors are merged one by one and written in shards, so that memory holds a few of them. Adapters need no merged copy.
A command that was killed goes on after its last whole shard when it is run again.
`--inspect` looks at the task vectors instead (`merging/inspection.py`).
"""

import argparse
import hashlib
import shutil
import sys
from collections import Counter
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from moe_kernels.nf4_format import dtype_name

from .checkpoint import CONFIG, GENERATION, Checkpoint, check_finite
from .checkpoint_writer import SHARD_BYTES, CheckpointWriter
from .cli import make_parser, run_command
from .merging.config import unmatched_filters, unused_parameters
from .merging.inspection import inspect
from .merging.methods import METHODS
from .merging.opening import Merge, make_merger, open_merge
from .merging.plan import Step, count_layers
from .merging.sources import HEAD, SourceModel
from .merging.task_vectors import DENSITY
from .merging.tensors import Merger
from .output import refuse_existing, write_json, write_run
from .resume import Overflow, resumable_folder
from .same_tokenizer import brings_tokenizer, take_chat_template
from .strict_json import read_json
from .tokenizer import copy_tokenizer, read_tokenizer

CONFIG_COPY = "mergekit_config.yml"  # as mergekit calls it


def write_weights(folder: Path, merger: Merger, steps: list[Step]) -> torch.dtype:
    """Writes the merged tensors in shards, after those that are there already; returns the widest of their dtypes.

    Overflow naming the first tensor that has an infinite value.
    """
    with CheckpointWriter(folder, SHARD_BYTES, resume=True) as writer:
        left = [step for step in steps if step.name not in writer.finished]
        for name, tensor in tqdm(merger.tensors(left), desc="Merging", unit="tensor", initial=len(steps) - len(left), total=len(steps)):
            writer.add(name, check_finite(tensor, f"{name} of the merged model, in {dtype_name(tensor.dtype)},", Overflow))
    written = Checkpoint(folder)
    return reduce(torch.promote_types, [written.head(name, 1).dtype for name in written])


def write_config(folder: Path, merge: Merge, dtype: torch.dtype) -> None:
    """The reference's configuration with the output's dtype, number of layers, vocabulary and special tokens."""
    settings = read_json(merge.reference.folder / CONFIG)
    settings.pop("torch_dtype", None)  # as transformers 4 called it
    settings |= {"dtype": dtype_name(dtype), "num_hidden_layers": count_layers(merge.config, merge.reference)}
    settings["tie_word_embeddings"] = all(HEAD not in source.weights for source in merge.sources.values())
    if merge.alignment is not None:
        settings |= {"vocab_size": merge.alignment.size, **_special_ids(merge)}
    write_json(folder / CONFIG, settings)


def write_generation_config(folder: Path, merge: Merge) -> None:
    """The reference's, if it has one, with the output's special tokens."""
    if (merge.reference.folder / GENERATION).is_file():
        write_json(folder / GENERATION, read_json(merge.reference.folder / GENERATION) | _special_ids(merge))


def _special_ids(merge: Merge) -> dict[str, int | None]:
    """What generation begins, ends and pads with, where the output's tokens do not have the reference's numbers."""
    if merge.alignment is None or merge.config.tokenizer in ("base", "union", merge.config.models[0]):
        return {}
    return {name: getattr(merge.alignment.tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def write_tokenizer(folder: Path, merge: Merge) -> None:
    """The aligned tokenizer, or the reference's files as they are; with the chat template that the file asks for, else that of adapters."""
    template = merge.config.chat_template
    adapters = [source.adapter.folder for source in merge.sources.values() if source.adapter and brings_tokenizer(source.adapter.folder)]
    if merge.alignment is None and template is None and not adapters:
        return copy_tokenizer(merge.reference.folder, folder)
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


def merge_models(args: argparse.Namespace) -> None:
    """The command: reads the configuration, opens its models, and writes the merged model, or what `--inspect` finds, to `args.out`."""
    path, out = Path(args.config), Path(args.out)
    refuse_existing(out)
    if args.density is not None and not args.inspect:
        raise ValueError(f"--density is {args.density:g}, but it is of --inspect alone; a merge has the densities of its file")
    merge = open_merge(path)
    for name in unused_parameters(merge.config):
        print(f"{path}: {name} has no effect on {merge.config.method}", file=sys.stderr)
    for name, part in unmatched_filters(merge.config, [step.name for step in merge.steps]):
        print(f"{path}: the filter {part!r} of {name} occurs in no tensor's name", file=sys.stderr)
    if args.inspect:
        inspect(merge, out, args.density, args.seed)
        return
    with resumable_folder(out, _facts(path, merge, args)) as (folder, _):
        write_tokenizer(folder, merge)  # first, as it may fail, and the rest takes long
        write_generation_config(folder, merge)
        dtype = write_weights(folder, make_merger(merge, args.seed, args.fast_ties), merge.steps)
        write_config(folder, merge, dtype)
        shutil.copy(path, folder / CONFIG_COPY)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        models = {name: source.name for name, source in merge.sources.items()}
        write_run(folder, seed=args.seed, figures={"tensors": len(merge.steps), "bytes": size}, method=merge.config.method, models=models)
    base = merge.config.base_model if METHODS[merge.config.method].uses_task_vectors else None
    merged = [name for name in models if name != base]
    onto = f" onto {base}" if base else ""
    print(f"{out}: {merge.config.method} of {', '.join(merged)}{onto}, {size / 1e9:.2f} GB of {dtype_name(dtype)}")


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
    text = "take entries of equal magnitude in their order: TIES, Breadcrumbs and DELLA are much faster, but not mergekit's to the bit"
    parser.add_argument("--fast-ties", action="store_true", help=text)
    text = "no effect, as merging always streams; mergekit's is --low-cpu-memory"
    parser.add_argument("--low-memory", "--low-cpu-memory", action="store_true", help=text)
    parser.add_argument("--inspect", action="store_true", help="measure the task vectors (table, JSON, heat map) and write no model")
    text = f"share of entries, the largest, among which --inspect counts sign conflicts; else the file's density, or {DENSITY}"
    parser.add_argument("--density", type=float, help=text)
    return run_command(merge_models, parser)


if __name__ == "__main__":
    raise SystemExit(main())
