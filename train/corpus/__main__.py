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
        print(f"{lang:10}  train {counts['train'].total()}", end="")
        for split in ("valid", "test"):
            print(f"  {split} {counts[split]['wording']} of unseen wordings + {counts[split]['family']} of unseen families", end="")
        print()


if __name__ == "__main__":
    sys.exit(main())
