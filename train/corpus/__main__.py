"""`python -m train.corpus`: builds the embedded corpus, or finds it built, and says where it stands and what it holds."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model.cli import make_parser, run_command
from model.languages import LANGUAGES

from .build import build, count_rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("train.corpus", __doc__ or "")
    parser.add_argument("--out", type=Path, help="a new folder (default: one in the user's cache, reused while nothing changes)")
    return run_command(_command, parser, argv)


def _command(args: argparse.Namespace) -> None:
    folder = build(args.out, args.seed)
    print(folder)
    for lang in LANGUAGES:
        counts = count_rows(folder, lang)
        held_out = ", ".join(f"{split} {rows['wording']} unseen wordings + {rows['family']} of unseen families" for split, rows in list(counts.items())[1:])
        print(f"  {lang}: train {counts['train'].total()}, {held_out}")


if __name__ == "__main__":
    sys.exit(main())
