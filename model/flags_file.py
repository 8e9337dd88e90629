"""`--config FILE`: flags of a command from a YAML file; `--print-config` writes such a file.

Its keys are the flags' names. They come before the command line's own, which win, through the same parser: types, choices and required
flags are checked alike. The `run.json` of an earlier run is such a file too, by its settings.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .strict_json import shown
from .strict_yaml import check_mapping, read_yaml

_CONFIG, _PRINT = "config_file", "print_config"
_NOT_PRINTED = ("help", "resume", _CONFIG, _PRINT)


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Adds both flags; neither stands in the namespace of a run, so that a run's settings are the same with and without a file."""
    text = "YAML file of flags, or the run.json of an earlier run; flags on the command line win"
    parser.add_argument("--config", dest=_CONFIG, metavar="FILE", default=argparse.SUPPRESS, help=text)
    parser.add_argument(
        "--print-config", action="store_true", default=argparse.SUPPRESS, help="print all flags as such a file, and do nothing else"
    )


def with_config(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """`argv` with the flags of its `--config` file, if it has one, before its own.

    FileNotFoundError or ValueError naming the file and the key that is unknown or has no fit value.
    """
    if not any(action.dest == _CONFIG for action in parser._actions):
        return list(argv)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    found, rest = finder.parse_known_args(argv)
    return rest if found.config is None else [*_read_flags(parser, found.config), *rest]


def _read_flags(parser: argparse.ArgumentParser, path: Path) -> list[str]:
    raw = read_yaml(path)
    if path.name == "run.json" and isinstance(raw, dict):
        raw = raw.get("settings")
    if isinstance(raw, dict):
        raw = {str(key).replace("_", "-"): value for key, value in raw.items()}
    actions = {_name(action): action for action in parser._actions if action.dest not in ("help", _CONFIG, _PRINT)}
    flags: list[str] = []
    for key, value in check_mapping(raw, actions, str(path)).items():
        flags += _flag(key, value, actions[key], f"{path}: {key}")
    return flags


def _name(action: argparse.Action) -> str:
    return action.option_strings[0].lstrip("-") if action.option_strings else action.dest


def _flag(key: str, value: Any, action: argparse.Action, where: str) -> list[str]:
    """The flag as it would be typed; nothing for null."""
    if value is None:
        return []
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{where} must be true or false, not {shown(value)}")
        return [f"--{key}"] if value else [f"--no-{key}"] * isinstance(action, argparse.BooleanOptionalAction)
    if isinstance(value, bool) and {"on", "off"} <= set(action.choices or ()):
        value = "on" if value else "off"  # YAML 1.1 reads both words as booleans
    if isinstance(value, list) and action.nargs is not None:
        return [f"--{key}", *map(str, value)]
    if isinstance(value, dict | list | bool):
        raise ValueError(f"{where} must be one text or number, not {shown(value)}")
    return [f"--{key}={value}"]


def printed_config(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str | None:
    """All flags and their values as a YAML file, if `args` ask for it."""
    if not getattr(args, _PRINT, False):
        return None
    values = {_name(action): getattr(args, action.dest, None) for action in parser._actions if action.dest not in _NOT_PRINTED}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items() if value is not None}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
