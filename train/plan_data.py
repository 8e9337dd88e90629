"""How many rows a training run has, and how long they are, for its plan: counted where the data are at hand, else known from before."""

import argparse
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from moe_kernels.cards import CARDS

from .batches import LengthGroupedSampler
from .data import load_pairs
from .data.mixing import mix, parse_levels
from .data.prompts import encode_pairs, packed_shape
from .data.sources import MIN_CARD_BYTES, XLCOST, has_card
from .processes import processes

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
    lengths: Sequence[int] = ()  # of each row, where they were counted


def rows_of(lengths: Sequence[int], note: str) -> Rows:
    """Of rows that were counted; `ValueError` if there are none."""
    if not lengths:
        raise ValueError(f"there are no train rows to plan with: {note}")
    return Rows(len(lengths), sum(lengths) / len(lengths), max(lengths), note, lengths)


Shape = tuple[int, int]  # sequences, and tokens of each


def batch_shapes(args: argparse.Namespace, rows: Rows | None, sequences: int) -> tuple[Shape, Shape]:
    """The largest batch, and a usual one; a row is so many `sequences`. Without `rows` all are of --max-length.

    `--packing` joins the rows of a batch: its shapes are those of the first epoch's batches, if the rows' lengths are known.
    """
    longest = min(args.max_length, rows.longest if rows else args.max_length)
    if rows and rows.lengths and getattr(args, "packing", False):
        span = args.batch_size * args.accumulation * processes().num_processes
        order = [rows.lengths[row] for row in LengthGroupedSampler(list(rows.lengths), span, args.seed, megabatch=1)]
        starts = range(0, len(order), args.batch_size)
        shapes = sorted((packed_shape(order[i : i + args.batch_size], args.max_length) for i in starts), key=math.prod)
        return shapes[-1], shapes[len(shapes) // 2]
    batch = min(args.batch_size, rows.count if rows else args.batch_size) * sequences
    return (batch, longest), (batch, max(2, round(min(rows.mean if rows else longest, longest))))


def plan_rows(args: argparse.Namespace, languages: Iterable[str], tokenizer: PreTrainedTokenizerBase | None, share: float = 1.0) -> Rows:
    """The rows of `languages`, of each as many as of the least, that `share`, --limit and --max-length leave. Nothing is downloaded."""
    shares = parse_levels(args.level)
    published = args.data == "xlcost" or (args.data == "auto" and takes_xlcost(args.gpu))
    lengths: list[list[int]] = []
    for lang in languages:
        if published:
            rows = {level: [min(XLCOST_TOKENS[level], args.max_length)] * XLCOST_ROWS[level][lang] for level in shares}
            note = f"{XLCOST} as published, unfiltered; counting would download it, and the length is an estimate"
        else:
            rows, note = _count(args, lang, shares, tokenizer)
        lengths.append([length for drawn in mix(rows, shares, None, args.seed).values() for length in drawn])
    wanted = math.ceil(share * min(map(len, lengths)))
    wanted = wanted if args.limit is None else min(wanted, args.limit)
    if not wanted:
        raise ValueError(f"no train row fits --max-length {args.max_length}: {note}")
    kept = [length for of_lang in lengths for length in of_lang[:wanted]]
    return Rows(len(kept), sum(kept) / len(kept), args.max_length, note) if published else rows_of(kept, note)


def _count(
    args: argparse.Namespace, lang: str, levels: Iterable[str], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[dict[str, list[int]], str]:
    """The lengths in tokens of a language's rows of each level, and where they are from."""
    rows: dict[str, list[int]] = {}
    for level in levels:
        loaded = load_pairs(args.data, lang, "train", level=level, limit=args.limit, seed=args.seed)
        if tokenizer is None:
            of_level = [len(pair.text + pair.code) // BYTES_PER_TOKEN for pair in loaded.rows]
            rows[level] = [length for length in of_level if length <= args.max_length]
        else:
            rows[level] = [len(row["input_ids"]) for row in encode_pairs(loaded.rows, tokenizer, args.max_length)[0]]
    how = "counted" if tokenizer is not None else f"counted; there is no tokenizer, so {BYTES_PER_TOKEN} characters are a token"
    return rows, f"{loaded.source}, {how}"


def find_tokenizer(folder: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder or the hub's cache, None where there is none."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return None


def takes_xlcost(gpu: str) -> bool:
    """What `--data auto` would be on the card, with the hub in reach."""
    return CARDS[gpu].memory >= MIN_CARD_BYTES if gpu in CARDS else gpu == "auto" and has_card()
