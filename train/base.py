"""`python -m train.base`: the embedded base, a Mistral-shaped generalist small enough to train in minutes on a CPU.

It is to the demo what Mistral-7B is to the study: a model that has read code in all four languages, and some text about
it, without ever having seen the prompt template. What it reads, and what it has to keep in view, is in `documents.py`.
The result is cached under the user's cache folder by a hash of everything that made it.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from transformers import MistralConfig, MistralForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase, set_seed

from model.cli import make_parser
from model.languages import LANGUAGES
from model.output import MANIFEST, RUN, sha256_of

from .cache import user_cache
from .checkpoints import newest_checkpoint
from .data import load_pairs
from .data.pairs import Pair
from .data.sources import MIN_CARD_BYTES, find_source, has_card
from .documents import DOCUMENTS, VOCABULARY, HeaderTrainer, collate_documents, encode_documents, make_documents, train_tokenizer
from .plan import TrainingPlan, add_plan_flags, plan_training, show_plan
from .plan_data import find_tokenizer, rows_of, takes_xlcost
from .plan_models import base_config, whole
from .processes import LAUNCHED, processes, run_in_all
from .results import write_output
from .settings import add_training_flags, check_flags, settings_of
from .trainer import train_pairs
from .workspace import check_free, unfinished, workspace

MISTRAL, SHORT = "mistralai/Mistral-7B-v0.1", "mistral-7b"
# 1.5 M parameters: 9,200 tokens/s on two cores. Of the shapes tried (docs/log.md) the one that learns most in three minutes.
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
}


def full_name(name: str) -> str:
    """`mistral-7b` is short for its name on the hub, where no folder is called so; every other name is itself."""
    return MISTRAL if name == SHORT and not Path(SHORT).exists() else name


def resolve_base(name: str) -> tuple[str, str]:
    """The folder or hub name that `name` stands for, and one line that says which it is and why.

    "auto" is Mistral-7B on a machine with a CUDA card of 20 GB and the hub within reach, else the embedded base, which is
    trained first if the cache does not hold it.
    """
    if name != "auto":
        return (full_name(name),) * 2
    if not has_card():
        reason = f"no CUDA card of {MIN_CARD_BYTES / 1e9:.0f} GB"
    elif not _within_reach(MISTRAL):
        reason = f"{MISTRAL} is out of reach"
    else:
        return MISTRAL, f"{MISTRAL} (auto: a CUDA card of {MIN_CARD_BYTES / 1e9:.0f} GB and the hub are there)"
    folder = embedded_base()
    return str(folder), f"the embedded base in {folder} (auto: {reason})"


def planned_base(name: str, gpu: str) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase | None, str]:
    """The configuration and, if it is at hand, the tokenizer of what `resolve_base` would be on a card, and one line that says which it is.

    Nothing is trained or downloaded for "auto" and Mistral-7B.
    """
    if full_name(name) == MISTRAL or (name == "auto" and takes_xlcost(gpu)):
        return (
            MistralConfig(vocab_size=32000),
            find_tokenizer(MISTRAL),
            f"{MISTRAL}{' (auto: the card has room for it)' * (name == 'auto')}",
        )
    if name != "auto":
        return base_config(name), find_tokenizer(name), name
    args = make_base_parser().parse_args([])
    cached = _cache_folder(args, find_source(args.data, next(iter(LANGUAGES)), "program")[0], 1)
    return MistralConfig(vocab_size=VOCABULARY, **SHAPE), find_tokenizer(cached), "the embedded base (auto: the card has no room for a 7B)"


def _within_reach(repository: str) -> bool:
    try:
        hf_hub_download(repository, "config.json")
    except (OSError, ValueError):
        return False
    return True


def embedded_base() -> Path:
    """The cached embedded base with default settings; trained now if it is not there (about three minutes on two cores).

    It is always what one process makes: of several the first starts that one, and the others wait.
    """
    args, all_processes = make_base_parser().parse_args([]), processes()
    folder = _cache_folder(args, find_source(args.data, next(iter(LANGUAGES)), "program")[0], 1)
    if all_processes.is_main_process and not (folder / MANIFEST).exists():
        print(_before_training(folder.parent), file=sys.stderr)
    if all_processes.num_processes == 1:
        return train_base(args)
    if all_processes.is_main_process:
        alone = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
        subprocess.run([sys.executable, "-m", "train.base"], env=alone, check=True)
    all_processes.wait_for_everyone()
    return folder


def _before_training(cache: Path) -> str:
    """One line: how long it takes, and which bases of other versions are there, as those of an earlier demo's experts are."""
    others = sorted(cache.glob(f"base-*/{MANIFEST}"), key=lambda file: file.stat().st_mtime)
    if not others:
        return "the embedded base is trained first: about three minutes on two cores"
    kept = "one base" if len(others) == 1 else f"{len(others)} bases"
    return (
        f"this version's embedded base is trained first: about three minutes on two cores; {kept} of other versions or settings "
        f"can be taken instead, the newest with --base {others[-1].parent}: an expert of one base does not fit a mixture of another"
    )


def plan_base(args: argparse.Namespace) -> TrainingPlan:
    """Of the very rows, which take seconds to make."""
    check_flags(args)
    data, note = find_source(args.data, next(iter(LANGUAGES)), "program")
    documents = make_documents(_all_languages(str(data), "train", args), args.seed)
    rows = encode_documents(documents, train_tokenizer([document for document, _ in documents]), args.max_length)
    config = MistralConfig(vocab_size=VOCABULARY, sliding_window=None, **SHAPE)
    return plan_training(config, args, whole, rows_of([len(row["input_ids"]) for row in rows], note))


def train_base(args: argparse.Namespace) -> Path:
    """The command: trains tokenizer and model on all languages' training splits; writes a Mistral checkpoint, or finds it in the cache.

    The last line it prints is the folder.
    """
    check_flags(args)
    data, note = find_source(args.data, next(iter(LANGUAGES)), "program")
    out = Path(args.out) if args.out else _cache_folder(args, data, processes().num_processes)
    if not args.out and (out / MANIFEST).exists():
        print(f"base: in the cache\n{out}")
        return out
    # In the cache nobody asked for a run of his own: an interrupted one simply goes on.
    resume = args.resume or (not args.out and newest_checkpoint(unfinished(out)) is not None)
    check_free(out, resume=resume)
    print(f"base: {'going on with the interrupted' if resume else 'starting a'} training on {note}")
    set_seed(args.seed)
    pairs = {split: _all_languages(str(data), split, args) for split in ("train", "valid")}
    documents = {split: make_documents(of_split, args.seed) for split, of_split in pairs.items()}
    tokenizer = train_tokenizer([document for document, _ in documents["train"]])
    rows = {split: encode_documents(of_split, tokenizer, args.max_length) for split, of_split in documents.items()}
    config = MistralConfig(
        vocab_size=VOCABULARY,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        sliding_window=None,
        **SHAPE,
    )
    if not args.ignore_plan:
        plan_training(config, args, whole, rows_of([len(row["input_ids"]) for row in rows["train"]], note), timed=False).check()
    facts = {"data": note, "shape": SHAPE, "documents": DOCUMENTS, "settings": settings_of(args)}
    model = MistralForCausalLM(config)
    with workspace(out, facts, resume=resume) as folder:
        pad = partial(collate_documents, pad_token_id=tokenizer.pad_token_id)
        trainer = train_pairs(model, tokenizer, rows["train"], rows["valid"][: args.eval_limit], args, folder, HeaderTrainer, pad)
        write_output(out, trainer, folder, figures={}, **facts)
    print(out)
    return out


def _all_languages(data: str, split: str, args: argparse.Namespace) -> list[Pair]:
    limit = args.limit if split == "train" else args.eval_limit
    return [pair for lang in LANGUAGES for pair in load_pairs(data, lang, split, limit=limit, seed=args.seed).rows]


def _cache_folder(args: argparse.Namespace, data: Path, number_of_processes: int) -> Path:
    """Named after a hash of every setting, of the data, and of the source files that decide what the base becomes."""
    settings = {name: value for name, value in settings_of(args).items() if name != "data"}
    room = Path(__file__).parent
    names = ("base.py", "documents.py", "trainer.py", "batches.py", "loss.py", "settings.py")
    sources = [*(room / name for name in names), *sorted((room / "data").glob("*.py"))]
    files = [data] if data.is_file() else sorted(path for path in data.rglob("*") if path.is_file())
    facts = [settings, number_of_processes, [sha256_of(path) for path in sources], [sha256_of(path) for path in files if path.name != RUN]]
    return user_cache() / f"base-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"


def make_base_parser() -> argparse.ArgumentParser:
    parser = make_parser("train.base", "Trains the embedded base, a tokenizer and a small Mistral-shaped model; the result is cached.")
    parser.add_argument("--data", default="corpus", help="corpus, a file or a folder")
    parser.add_argument("--out", help="output folder (default: the user's cache folder, by content hash)")
    add_plan_flags(parser)
    add_training_flags(parser, learning_rate=6e-3, batch_size=16, epochs=1, max_length=384)
    parser.set_defaults(eval_limit=32, eval_every=100, max_steps=900, limit=4000)  # limit: rows of each language
    return parser


def main() -> int:
    return run_in_all(lambda args: show_plan(plan_base(args)) if args.plan else train_base(args), make_base_parser())


if __name__ == "__main__":
    raise SystemExit(main())
