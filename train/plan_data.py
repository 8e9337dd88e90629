"""How many rows a training run has, and how long they are, for its plan: counted where the data are at hand, else known from before."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from moe_kernels.cards import CARDS

from .data import load_pairs
from .data.prompts import encode_pairs
from .data.sources import MIN_CARD_BYTES, XLCOST, has_card

# Rows of XLCoST's train split (Zhu et al. 2022, arXiv:2206.08474, table 2), before the filters.
XLCOST_ROWS = {
    "program": {"cpp": 9797, "java": 9623, "python": 9263, "javascript": 8590},
    "snippet": {"cpp": 93847, "java": 91089, "python": 81207, "javascript": 70649},
}
# Mistral's tokens of a row, prompt included; estimated: a Python program's row has 1,240 bytes, 3 a token, and a program 9 snippets.
XLCOST_TOKENS = {"program": 410, "snippet": 60}
BYTES_PER_TOKEN = 3  # of code, where there is no tokenizer to ask; assumed


@dataclass(frozen=True)
class Rows:
    """The training data: rows, their mean and greatest length in tokens, and one line that says where that is from."""

    count: int
    mean: float
    longest: int
    note: str


def plan_rows(args: argparse.Namespace, languages: Iterable[str], tokenizer: PreTrainedTokenizerBase | None) -> Rows:
    """The rows of `languages`, of each as many as of the least, that --limit and --max-length leave. Nothing is downloaded."""
    if args.data == "xlcost" or (args.data == "auto" and _takes_xlcost(args.gpu)):
        least = min(min(XLCOST_ROWS[args.level][lang] for lang in languages), args.limit or 1 << 62)
        mean = min(XLCOST_TOKENS[args.level], args.max_length)
        note = f"{XLCOST} as published, unfiltered; counting would download it, and the length is an estimate"
        return Rows(least * len(list(languages)), mean, args.max_length, note)
    lengths: list[list[int]] = []
    for lang in languages:
        loaded = load_pairs(args.data, lang, "train", level=args.level, limit=args.limit, seed=args.seed)
        if tokenizer is None:
            of_lang = [len(pair.text + pair.code) // BYTES_PER_TOKEN for pair in loaded.rows]
            lengths.append([length for length in of_lang if length <= args.max_length])
        else:
            lengths.append([len(row["input_ids"]) for row in encode_pairs(loaded.rows, tokenizer, args.max_length)[0]])
    least = min(map(len, lengths))
    if not least:
        raise ValueError(f"no train row of {loaded.source} fits --max-length {args.max_length}")
    kept = [length for of_lang in lengths for length in of_lang[:least]]
    how = "counted" if tokenizer is not None else f"counted; there is no tokenizer, so {BYTES_PER_TOKEN} characters are a token"
    return Rows(len(kept), sum(kept) / len(kept), max(kept), f"{loaded.source}, {how}")


def find_tokenizer(folder: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder or the hub's cache, None where there is none."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        return None


def _takes_xlcost(gpu: str) -> bool:
    """What `--data auto` would be on the card, with the hub in reach."""
    return CARDS[gpu].memory >= MIN_CARD_BYTES if gpu in CARDS else gpu == "auto" and has_card()
