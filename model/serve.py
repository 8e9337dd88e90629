"""`python -m model.serve`: `transformers serve` that finds `MoEForCausalLM`, e.g. `python -m model.serve runs/demo/mixture`.

`transformers serve` looks a checkpoint's class up by name in the package `transformers`, past the Auto classes, so there it has to stand.
Options are those of `transformers serve --help`; it needs `pip install .[serve]`. `transformers chat` is a client of
that server and needs nothing. Requests pass `RequestGuard` first.
"""

import sys
from typing import Any

import transformers
from transformers.cli.serving import model_manager, server
from transformers.cli.serving.utils import split_model_id
from transformers.cli.transformers import app

from . import MoEForCausalLM
from .checkpoint import model_folder
from .cli import MISTAKES, say_mistake
from .config_file import read_config
from .request_guard import RequestGuard


class LocalModelManager(model_manager.ModelManager):
    """Ends the command in a sentence where the model that it names is not here or does not load: transformers would ask the hub for
    minutes, then show tracebacks."""

    def __init__(self, **options: Any) -> None:
        try:
            if options.get("force_model") is not None:
                name, _, revision = split_model_id(options["force_model"])[0].partition("@")
                read_config(model_folder(name, revision=revision or None))
            super().__init__(**options)  # loads it
        except MISTAKES as error:
            raise SystemExit(say_mistake(f"python -m model.serve: {error}")) from None


def main() -> None:
    transformers.MoEForCausalLM = MoEForCausalLM  # type: ignore[attr-defined]
    build = server.build_server

    def build_guarded(model_manager: Any, *handlers: Any, **options: Any) -> Any:
        built = build(model_manager, *handlers, **options)
        built.add_middleware(RequestGuard, models=model_manager)
        return built

    server.build_server = build_guarded  # the command imports both when it runs
    model_manager.ModelManager = LocalModelManager  # type: ignore[misc, assignment]
    app(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    main()
