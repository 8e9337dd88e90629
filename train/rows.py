"""The rows that an expert learns from: which levels of its language, in which prompt, and with which gaps."""

import argparse
from collections import Counter
from dataclasses import replace
from typing import Any

from model.infill import find_sentinels
from model.languages import LANGUAGES, language_title
from model.prompt import FORMATS

from .data import Loaded, Pair, format_table, load_pairs
from .data.gaps import draw_gaps
from .data.mixing import mix, parse_levels
from .data.prompts import Example, encode_pairs
from .data.sources import check_levels, find_source

SPM_RATE = 0.5


def add_row_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say what is read, and what becomes of it."""
    group = parser.add_argument_group("rows")
    group.add_argument("--lang", required=True, metavar="LANG", help=f"{', '.join(LANGUAGES)}, or another's name with --data of your own")
    group.add_argument("--data", default="auto", help="corpus, xlcost, a file or folder; auto: xlcost where Mistral-7B fits, else corpus")
    text = "program (whole ones), snippet (fragments), or both by weight: program:0.7,snippet:0.3"
    group.add_argument("--level", default="program", help=text)
    text = "of the prompt; instruct: a chat template, which is saved with the tokenizer"
    group.add_argument("--format", choices=FORMATS, default="completion", help=text)
    group.add_argument("--fim-rate", type=float, default=0.0, help="share of the rows that become a gap to fill (fill-in-the-middle)")
    text = f"share of those in which the suffix comes before the prefix (default: {SPM_RATE})"
    group.add_argument("--fim-spm-rate", type=float, default=argparse.SUPPRESS, help=text)


def check_rows(args: argparse.Namespace) -> None:
    """The errors of the flags and of where the data lie; `--fim-spm-rate` gets its default."""
    shares = parse_levels(args.level)
    if not hasattr(args, "fim_spm_rate"):
        args.fim_spm_rate = SPM_RATE if args.fim_rate else None
    elif not args.fim_rate:
        raise ValueError("--fim-spm-rate is a share of the rows with a gap, and without --fim-rate there are none")
    for name in ("fim_rate", "fim_spm_rate"):
        if not 0 <= (getattr(args, name) or 0) <= 1:
            raise ValueError(f"--{name.replace('_', '-')} is a probability and must lie in [0, 1], not {getattr(args, name)}")
    if args.lang not in LANGUAGES:
        name = language_title(args.lang)
        print(f"language: {name}, by its name alone: its programs are not parsed, and eval.codebleu and eval.pass_at_k do not know it")
    if args.plan:
        return
    for level in shares:
        path, _ = find_source(args.data, args.lang, level)
        if len(shares) > 1:
            check_levels(path)


def read_pairs(args: argparse.Namespace, split: str, limit: int | None) -> dict[str, Loaded]:
    """The pairs of one split by level, with at most `limit` of each; errors as of `load_pairs`."""
    return {level: load_pairs(args.data, args.lang, split, level=level, limit=limit, seed=args.seed) for level in parse_levels(args.level)}


def encode_rows(
    args: argparse.Namespace, pairs_of: dict[str, Loaded], tokenizer: Any, split: str, limit: int | None
) -> tuple[list[Example], dict[str, Any]]:
    """Encoded rows of what `read_pairs` read, and their facts: the source, its SHA-256, and how many of each level and kind there are.

    Kinds: "whole" programs, and those with a gap to be filled, by the order of their parts. Prints all that and what each rule dropped.
    """
    shares = parse_levels(args.level)
    rows: dict[str, list[tuple[str, Example]]] = {level: [] for level in shares}
    facts: dict[str, Any] = {"data_sha256": {}}
    for level, loaded in pairs_of.items():
        gaps = draw_gaps([pair.code for pair in loaded.rows], args.fim_rate, args.fim_spm_rate, args.seed, find_sentinels(tokenizer))
        kinds: dict[str, list[Pair]] = {"whole": []}
        for pair, gap in zip(loaded.rows, gaps, strict=True):
            kinds.setdefault("whole" if gap is None else "SPM" if gap.spm else "PSM", []).append(replace(pair, gap=gap))
        dropped = dict(loaded.dropped)
        for kind, pairs in kinds.items():
            examples, too_long = encode_pairs(pairs, tokenizer, args.max_length)
            rows[level] += [(kind, example) for example in examples]
            dropped |= {rule: dropped.get(rule, 0) + count for rule, count in too_long.items()}
        if not rows[level]:
            raise ValueError(f"no {split} row of {loaded.source} fits --max-length {args.max_length}")
        print(f"{split}, {level}: {len(rows[level]):,} rows of {loaded.source}\n{format_table(dropped)}")
        facts["data"] = loaded.source
        facts["data_sha256"][level] = loaded.sha256
    mixed = mix(rows, shares, limit, args.seed)
    facts["rows"] = {level: dict(Counter(kind for kind, _ in drawn)) for level, drawn in mixed.items()}
    print(f"{split}: {_format_counts(facts['rows'])}")
    return [example for drawn in mixed.values() for _, example in drawn], facts


def _format_counts(rows: dict[str, dict[str, int]]) -> str:
    """As in "40 program (22 whole, 7 PSM, 11 SPM), 26 snippet (26 whole)"."""
    return ", ".join(
        f"{sum(kinds.values()):,} {level} ({', '.join(f'{count:,} {kind}' for kind, count in kinds.items())})"
        for level, kinds in rows.items()
    )
