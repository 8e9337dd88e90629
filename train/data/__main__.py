"""`python -m train.data`: rows of every language as JSON lines, `lang` and `text` (prompt and program), e.g. for compose's `gate_data`.

They come from the loader that training has: decoded, filtered, without duplicates, drawn with the seed.
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from model.checkpoint import model_folder
from model.cli import make_parser, run_command
from model.languages import LANGUAGES
from model.output import write_whole
from model.prompt import format_prompt
from model.tokenizer import read_tokenizer

from .pairs import load_pairs
from .sources import LEVELS, SPLITS


def main(args: Namespace) -> None:
    langs = args.langs.split(",")
    if args.out.exists():
        raise FileExistsError(f"the output {args.out} exists; name another or remove it first")
    asked = read_tokenizer(model_folder(args.prompt_of)) if args.prompt_of else None
    lines = list(_lines(args, langs, asked))
    write_whole(args.out, "".join(f"{line}\n" for line in lines))
    print(f"{args.out}: {len(lines)} rows of {', '.join(langs)}")


def _lines(args: Namespace, langs: list[str], asked: PreTrainedTokenizerBase | None) -> Iterator[str]:
    """The JSON lines; the prompts are those of `asked`, without the BOS that a chat template writes: compose puts it before every text."""
    bos = (asked and asked.bos_token) or ""
    for lang in langs:
        loaded = load_pairs(args.data, lang, args.split, level=args.level, limit=args.limit, seed=args.seed)
        print(f"{lang}: {len(loaded.rows)} rows of {loaded.source}")
        for pair in loaded.rows:
            prompt = format_prompt(pair.text, lang, asked).removeprefix(bos)
            yield json.dumps({"lang": lang, "text": prompt + pair.code}, ensure_ascii=False)


def parse() -> ArgumentParser:
    parser = make_parser("train.data", __doc__ or "")
    parser.add_argument("out", type=Path, help="a new file, .jsonl")
    parser.add_argument("--data", default="auto", help="corpus, xlcost, a file or folder; auto: xlcost where Mistral-7B fits, else corpus")
    parser.add_argument("--langs", default=",".join(LANGUAGES), help="comma-separated")
    parser.add_argument("--split", choices=SPLITS, default="train", help="which part of the data")
    parser.add_argument("--level", choices=LEVELS, default="program", help="whole programs, or fragments")
    parser.add_argument("--limit", type=int, default=32, help="rows of each language")
    text = "write the prompts of this expert, which was trained with --format instruct, instead of the project's own"
    parser.add_argument("--prompt-of", metavar="DIR", help=text)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, parse()))
