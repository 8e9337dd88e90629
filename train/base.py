"""`python -m train.base`: the embedded base, a Mistral-shaped generalist small enough to train in minutes on a CPU.

It is to the demo what Mistral-7B is to the study: a model that has read code in all four languages, and some text about
it, without ever having seen the prompt template. Its documents are, in the shares of `DOCUMENTS`:

    described a comment (in Python a docstring) that names the language and describes the program, then the program
    code      a comment that names the language, then a program
    page      Markdown: a heading that names the language, then a heading and lines of prose for each of some programs, no code

The pages are what makes `#` at the start of a line say nothing of the language: in code alone it means C++ (`#include`), and a base
without them answered the prompt template, which has headings, in C++ whatever was asked for. Pages that did not name their language
left the prompt's own tokens without one, and the gate astray where a completion starts (docs/log.md has both).

The header is what a path, a shebang or a code fence is in the wild. A gate can only read what the frozen attention brings to its
token, and a base of this size looks at the last few tokens: from `i < n; i++)` nobody can tell Java from C++. So training has a
second loss, `HeaderTrainer`'s: every layer has to keep the language of its document in view.

The result is cached under the user's cache folder by a hash of everything that made it.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import MistralConfig, MistralForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast, set_seed

from model.cli import make_parser
from model.languages import LANGUAGES, get_language
from model.output import MANIFEST, RUN, sha256_of

from .cache import user_cache
from .data import load_pairs
from .data.pairs import Pair
from .data.prompts import IGNORED, collate
from .data.sources import MIN_CARD_BYTES, find_source, has_card
from .plan import read_config
from .plan_data import find_tokenizer, takes_xlcost
from .processes import LAUNCHED, processes, run_in_all
from .settings import add_training_flags, check_flags
from .trainer import PairTrainer, newest_checkpoint, train_pairs, write_output
from .workspace import check_free, unfinished, workspace

MISTRAL = "mistralai/Mistral-7B-v0.1"
VOCABULARY = 2048
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
DOCUMENTS = {"described": 0.85, "code": 0.05, "page": 0.1}
PAGE_SECTIONS = 3  # so that after a second heading there is prose again
HEADER_WEIGHT = 0.2  # at 0.1 a probe reads the language off the gate's inputs for 93 % of the tokens, at 0.2 for 96 % or more (docs/log.md)
HEADER_TOKENS = 6  # BOS, the header and the marks of the next line: from here on the language has been named
# How a program's file says what it is, and how it goes on with a description: Python's docstring, everybody else's comments.
DOCSTRING = ('"""{title}\n', '"""\n')
COMMENTS = ("// {title}\n", "")
PAGE = "# {title}\n"


def train_tokenizer(documents: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `VOCABULARY` entries; puts BOS in front, as Mistral's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def make_documents(rows: list[Pair], seed: int) -> list[tuple[str, int]]:
    """One document per row, of a kind drawn by the shares of `DOCUMENTS`, in a random order, and its language."""
    draw = random.Random(seed)
    texts = {lang: [row.text for row in rows if row.lang == lang] for lang in LANGUAGES}
    documents = []
    for row in rows:
        kind = draw.choices(list(DOCUMENTS), list(DOCUMENTS.values()))[0]
        opening, closing = DOCSTRING if row.lang == "python" else COMMENTS
        opening = opening.format(title=get_language(row.lang).title)
        description = ("" if row.lang == "python" else "// ") + row.text + "\n"
        if kind == "page":
            sections = map(_section, [row.text, *draw.choices(texts[row.lang], k=PAGE_SECTIONS - 1)])
            document = PAGE.format(title=get_language(row.lang).title) + "".join(sections)
        else:
            document = opening + (description if kind == "described" else "") + closing + row.code
        documents.append((document, list(LANGUAGES).index(row.lang)))
    draw.shuffle(documents)
    return documents


def _section(text: str) -> str:
    """The title of `title | comment ; comment` as a heading, and a line for each comment."""
    return "### " + text.replace(" | ", "\n").replace(" ; ", "\n") + "\n"


def encode_documents(documents: list[tuple[str, int]], tokenizer: PreTrainedTokenizerFast, max_length: int) -> list[dict[str, Any]]:
    """A training row for each document: BOS document EOS, cut to `max_length`; the labels are the tokens themselves.

    One document a row, not joined into blocks: no attention across documents, and the link from a description to its program
    is learned sooner (docs/log.md).
    """
    encoded = tokenizer([document for document, _ in documents])["input_ids"]
    rows = [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id][:max_length] for ids in encoded]
    return [{"input_ids": row, "labels": row, "language": language} for row, (_, language) in zip(rows, documents, strict=True)]


class HeaderTrainer(PairTrainer):
    """Adds to the training loss that the input of every FFN names the document's language, in its first coordinates.

    That is the cross entropy of softmax(x[..., :number of languages]), x the normed residual stream that a gate would read,
    averaged over layers and tokens and weighted by `HEADER_WEIGHT`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inputs: list[Tensor] = []  # of each layer's FFN, [B, S, D]
        model: Any = self.model
        for layer in model.model.layers:
            layer.post_attention_layernorm.register_forward_hook(lambda module, args, output: self._inputs.append(output))

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Any:
        """As Trainer's; also counts the tokens of the whole step, of all processes, over which the second loss is a mean."""
        tokens = torch.stack([_after_header(batch).sum() for batch in batch_samples]).sum()
        self._tokens = self.accelerator.gather(tokens.to(device)).sum()
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:  # type: ignore[override]
        language_B = inputs.pop("language")
        self._inputs.clear()
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            target_BS = language_B[:, None].where(_after_header(inputs), IGNORED)
            named = [cross_entropy(x[..., : len(LANGUAGES)].flatten(0, 1), target_BS.flatten(), reduction="sum") for x in self._inputs]
            processes = self.accelerator.num_processes  # whose gradients will be averaged
            loss = loss + HEADER_WEIGHT * torch.stack(named).mean() * processes / self._tokens.clamp(min=1)  # rows may be all header
        return (loss, outputs) if return_outputs else loss


def _after_header(batch: dict[str, Tensor]) -> Tensor:
    """The tokens [B, S] from which a document's language is to be read."""
    mask_BS = batch["attention_mask"]
    return (mask_BS.cumsum(dim=1) > HEADER_TOKENS) & mask_BS.bool() & (batch["labels"] != IGNORED)


def collate_documents(rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """`collate`'s batch and the rows' `language` [B]."""
    return collate(rows, pad_token_id) | {"language": torch.tensor([row["language"] for row in rows])}


def resolve_base(name: str) -> tuple[str, str]:
    """The folder or hub name that `name` stands for, and one line that says which it is and why.

    "auto" is Mistral-7B on a machine with a CUDA card of 20 GB and the hub within reach, else the embedded base, which is
    trained first if the cache does not hold it.
    """
    if name != "auto":
        return name, name
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
    if name in (MISTRAL, "mistral-7b") or (name == "auto" and takes_xlcost(gpu)):
        return (
            MistralConfig(vocab_size=32000),
            find_tokenizer(MISTRAL),
            f"{MISTRAL}{' (auto: the card has room for it)' * (name == 'auto')}",
        )
    if name != "auto":
        return read_config(name), find_tokenizer(name), name
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
    if all_processes.num_processes == 1:
        return train_base(args)
    if all_processes.is_main_process:
        alone = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
        subprocess.run([sys.executable, "-m", "train.base"], env=alone, check=True)
    all_processes.wait_for_everyone()
    return _cache_folder(args, find_source(args.data, next(iter(LANGUAGES)), "program")[0], 1)


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
    settings = {key: value for key, value in vars(args).items() if key not in ("resume", "out")}
    facts = {"data": note, "shape": SHAPE, "documents": DOCUMENTS, "settings": settings}
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
    settings = {key: value for key, value in vars(args).items() if key not in ("resume", "out", "data")}
    room = Path(__file__).parent
    names = ("base.py", "trainer.py", "batches.py", "loss.py", "settings.py")
    sources = [*(room / name for name in names), *sorted((room / "data").glob("*.py"))]
    files = [data] if data.is_file() else sorted(path for path in data.rglob("*") if path.is_file())
    facts = [settings, number_of_processes, [sha256_of(path) for path in sources], [sha256_of(path) for path in files if path.name != RUN]]
    return user_cache() / f"base-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"


def make_base_parser() -> argparse.ArgumentParser:
    parser = make_parser("train.base", "Trains the embedded base, a tokenizer and a small Mistral-shaped model; the result is cached.")
    parser.add_argument("--data", default="corpus", help="corpus, a file or a folder")
    parser.add_argument("--out", help="output folder (default: the user's cache folder, by content hash)")
    add_training_flags(parser, learning_rate=6e-3, batch_size=16, epochs=1, max_length=384)
    parser.set_defaults(eval_limit=32, eval_every=100, max_steps=900, limit=4000)  # limit: rows of each language
    return parser


def main() -> int:
    return run_in_all(train_base, make_base_parser())


if __name__ == "__main__":
    raise SystemExit(main())
