"""`python -m model.serve`: `transformers serve` that finds `MoEForCausalLM`, e.g. `python -m model.serve runs/demo/mixture`.

`transformers serve` looks a checkpoint's class up by name in the package `transformers`, past the Auto classes, so there it has to stand.
Options are those of `transformers serve --help`; it needs `pip install .[serve]`. `transformers chat` is a client of
that server and needs nothing. Requests pass `RequestGuard` first.
"""

import sys
from typing import Any

import transformers
from transformers.cli.serving import server
from transformers.cli.transformers import app

from . import MoEForCausalLM
from .request_guard import RequestGuard


def main() -> None:
    transformers.MoEForCausalLM = MoEForCausalLM  # type: ignore[attr-defined]
    build = server.build_server

    def build_guarded(model_manager: Any, *handlers: Any, **options: Any) -> Any:
        built = build(model_manager, *handlers, **options)
        built.add_middleware(RequestGuard, models=model_manager)
        return built

    server.build_server = build_guarded  # the command imports it when it runs
    app(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    main()
