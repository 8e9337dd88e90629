"""`python -m model.serve`: `transformers serve` that finds `MoEForCausalLM`, e.g. `python -m model.serve runs/demo/mixture`.

`transformers serve` looks a checkpoint's class up by name in the package `transformers`, past the Auto classes, so there it has to stand.
Options are those of `transformers serve --help`; it needs `pip install .[serve]`. `transformers chat` is a client of
that server and needs nothing. Requests pass `RequestGuard` first.
"""

import argparse
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import transformers
from transformers import GenerationConfig
from transformers.cli.serving import model_manager, server
from transformers.cli.serving.utils import BaseHandler, split_model_id
from transformers.cli.transformers import app
from transformers.utils.logging import log_levels

from . import MoEForCausalLM
from .checkpoint import model_folder
from .cli import MISTAKES, say_mistake
from .config_file import read_config
from .request_guard import RequestGuard

GREEDY_BELOW = 1e-5  # of temperatures: logits divided by less would overflow


class LocalModelManager(model_manager.ModelManager):
    """Ends the command in a sentence where the model that it names is not here or does not load: transformers would ask the hub for
    minutes, then show tracebacks."""

    def __init__(self, **options: Any) -> None:
        try:
            if options.get("force_model") is not None:
                name, _, revision = split_model_id(options["force_model"])[0].partition("@")
                read_config(model_folder(name, revision=revision or None))
            super().__init__(**options)  # loads it
        except (*MISTAKES, ImportError, TypeError) as error:  # a library that an option needs; an option that a model does not know
            raise SystemExit(say_mistake(f"python -m model.serve: {error}")) from None


def sampling(build: Callable[..., GenerationConfig]) -> Callable[..., GenerationConfig]:
    """`BaseHandler._build_generation_config` that samples where a request has a temperature or top_p; transformers' takes both without.

    All tokens are drawn from, not the 50 likeliest alone, unless the model's generation_config says otherwise.
    """

    @wraps(build)
    def build_sampling(self: BaseHandler, body: dict[str, Any], *others: Any, **options: Any) -> GenerationConfig:
        config = build(self, body, *others, **options)
        if "temperature" in body or "top_p" in body:
            config.do_sample = True
        if config.temperature is not None and config.temperature < GREEDY_BELOW:
            config.do_sample = False
        if config.top_k is None:
            config.top_k = 0
        return config

    return build_sampling


def main() -> None:
    transformers.MoEForCausalLM = MoEForCausalLM  # type: ignore[attr-defined]
    build = server.build_server

    def build_guarded(model_manager: Any, chat_handler: Any, *handlers: Any, **options: Any) -> Any:
        from starlette.middleware import Middleware  # of the extra `serve`

        built = build(model_manager, chat_handler, *handlers, **options)
        guard = Middleware(RequestGuard, models=model_manager, template_kwargs=chat_handler.chat_template_kwargs)
        built.user_middleware.append(guard)  # innermost: its answers pass through CORS too
        return built

    server.build_server = build_guarded  # the command imports both when it runs
    model_manager.ModelManager = LocalModelManager  # type: ignore[misc, assignment]
    BaseHandler._build_generation_config = sampling(BaseHandler._build_generation_config)  # type: ignore[method-assign]
    try:
        _check_log_level()
        app(["serve", *sys.argv[1:]])
    except (*MISTAKES, ImportError) as error:
        raise SystemExit(say_mistake(f"python -m model.serve: {error}")) from None


def _check_log_level() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--log-level", default="warning")
    level = parser.parse_known_args(sys.argv[1:])[0].log_level
    if level.lower() not in log_levels:
        raise ValueError(f"--log-level is {level!r}; allowed: {', '.join(log_levels)}")


if __name__ == "__main__":
    main()
