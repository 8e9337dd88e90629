"""`python -m model.serve`: `transformers serve` that finds `MoEForCausalLM`, e.g. `python -m model.serve runs/demo/mixture`.

`transformers serve` looks a checkpoint's class up by name in the package `transformers`, past the Auto classes, so there it has to stand.
Options are those of `transformers serve --help`; it needs `pip install transformers[serving]`. `transformers chat` is a client of
that server and needs nothing.
"""

import sys

import transformers
from transformers.cli.transformers import app

from . import MoEForCausalLM


def main() -> None:
    transformers.MoEForCausalLM = MoEForCausalLM  # type: ignore[attr-defined]
    app(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    main()
