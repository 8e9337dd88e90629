"""The rows that a gate learns from: a balanced share of each language that has an expert."""

import argparse
import math
import random

from transformers import PreTrainedTokenizerBase

from model.languages import LANGUAGES

from .data import format_table, load_pairs
from .data.prompts import IGNORED, Example, encode_pairs
from .routing import own_expert


def languages_of(args: argparse.Namespace, names: list[str]) -> list[str]:
    """The known languages that have an expert, and with data of one's own the languages that experts are called by; all known ones if none.

    An expert of a language without rows is named, as the gate will not learn when to choose it.
    """
    known = [lang for lang in LANGUAGES if own_expert(names, lang) is not None]
    found, absent = [], []
    for index, name in enumerate(names):
        if name == f"expert{index}" or any(own_expert([name], lang) == 0 for lang in known):  # the first is no one's choice of a name
            continue
        try:
            load_pairs(args.data, name, "train", level=args.level, limit=1, seed=args.seed)
            found.append(name)
        except (ValueError, FileNotFoundError):
            absent.append(name)
    if (known or found) and absent:
        print(f"no rows of {args.data} are in the language of the experts {', '.join(absent)}: the gate does not learn when to choose them")
    return [*known, *found] or list(LANGUAGES)


def load_rows(
    args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, names: list[str], split: str, share: float, limit: int | None
) -> tuple[dict[str, list[Example]], dict[str, str]]:
    """Encoded rows of each of `languages_of`, and each language's data hash.

    Equally many: `share` of the smallest language's rows, at most `limit`, drawn with the seed; too long ones then leave all languages.
    """
    loaded = {lang: load_pairs(args.data, lang, split, level=args.level, seed=args.seed) for lang in languages_of(args, names)}
    wanted = math.ceil(share * min(len(of_lang.rows) for of_lang in loaded.values()))
    wanted = wanted if limit is None else min(limit, wanted)
    rows = {}
    for lang, of_lang in loaded.items():
        pairs = list(of_lang.rows)
        random.Random(args.seed).shuffle(pairs)
        encoded, too_long = encode_pairs(pairs[:wanted], tokenizer, args.max_length)
        own = own_expert(names, lang)
        rows[lang] = [{**row, "own_expert": [IGNORED if own is None else own]} for row in encoded]
        dropped = {rule: count for rule, count in (of_lang.dropped | too_long).items() if count}
        print(f"{split}, {lang}: {len(encoded):,} rows of {of_lang.source}" + (f"\n{format_table(dropped)}" if dropped else ""))
    least = min(map(len, rows.values()))
    if not least:
        raise ValueError(f"a language has no {split} rows within --max-length {args.max_length}")
    return {lang: of_lang[:least] for lang, of_lang in rows.items()}, {lang: of_lang.sha256 for lang, of_lang in loaded.items()}
