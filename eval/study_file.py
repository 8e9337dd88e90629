"""The file of a study: which systems are scored, on which points, and what they are compared with. Read strictly."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from model.languages import LANGUAGES, get_language
from model.strict_json import fits_int64, shown
from model.strict_yaml import check_mapping, optional_text_field, read_yaml, text_field

from .answers import ROUTERS
from .tasks.task import check_stop

KEYS = ("data", "train", "split", "langs", "limit", "lengths", "batch_size", "compile", "baseline", "experts", "systems")
SYSTEM_KEYS = ("name", "model", "adapter", "router", "prompt_of", "stop")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Source(NamedTuple):
    """One model of a system, and the languages that it answers for."""

    run: str  # the name of its run's folder
    model: str
    adapter: str | None
    langs: list[str]


@dataclass(frozen=True)
class System:
    """What is scored. `model` and `adapter` may be {language: folder}: then each language is answered by its own."""

    name: str
    model: str | dict[str, str]
    adapter: str | dict[str, str] | None
    router: str | None
    prompt_of: str | None
    stop: list[str]

    def sources(self, langs: list[str]) -> list[Source]:
        """One for all of `langs`, or one for each of them that the system has a model and adapter for."""
        parts = [part for part in (self.model, self.adapter) if isinstance(part, dict)]
        if not parts:
            return [Source(self.name, str(self.model), None if self.adapter is None else str(self.adapter), langs)]
        own = [lang for lang in langs if all(lang in part for part in parts)]
        return [Source(f"{self.name}-{lang}", str(_of(self.model, lang)), _of(self.adapter, lang), [lang]) for lang in own]


def _of(part: str | dict[str, str] | None, lang: str) -> str | None:
    return part[lang] if isinstance(part, dict) else part


@dataclass(frozen=True)
class Study:
    """`baseline` and `experts` name the systems that all others are compared with."""

    data: str
    train: str | None  # the rows that the points' programs are looked for in; None: nowhere
    split: str
    langs: list[str]
    limit: int
    lengths: list[int]  # tokens of a completion, ascending
    batch_size: int
    compile: bool  # whether programs are given to their compilers
    baseline: str
    experts: str | None
    systems: list[System]


def read_study(path: Path) -> Study:
    """FileNotFoundError or ValueError naming the file, the key and what it may hold."""
    raw = check_mapping(read_yaml(path), KEYS, str(path))
    systems = raw.get("systems")
    if not isinstance(systems, list) or not systems:
        raise ValueError(f"{path}: systems must be a list of at least one system")
    data = text_field(raw, "data", str(path), "auto")
    study = Study(
        data=data,
        train=optional_text_field(raw, "train", str(path)) if "train" in raw else data,
        split=text_field(raw, "split", str(path), "test"),
        langs=_list(raw, "langs", str, str(path), list(LANGUAGES)),
        limit=_count(raw.get("limit", 50), f"{path}: limit"),
        lengths=sorted(_count(value, f"{path}: lengths") for value in _list(raw, "lengths", int, str(path), [256, 650])),
        batch_size=_count(raw.get("batch_size", 16), f"{path}: batch_size"),
        compile=_flag(raw, "compile", str(path)),
        baseline=text_field(raw, "baseline", str(path), "base"),
        experts=optional_text_field(raw, "experts", str(path)),
        systems=[_read_system(value, f"{path}: system {number}") for number, value in enumerate(systems, 1)],
    )
    _check(study, path)
    return study


def _read_system(raw: Any, where: str) -> System:
    check_mapping(raw, SYSTEM_KEYS, where)
    name = text_field(raw, "name", where)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{where}: name is {shown(name)}; it is up to 100 letters, digits, '.', '_' and '-', as it names a folder")
    where = f"{where} ({name})"
    router = optional_text_field(raw, "router", where)
    if router not in (None, *ROUTERS):
        raise ValueError(f"{where}: router is {shown(router)}; allowed: {', '.join(ROUTERS)}")
    model, adapter = _by_lang(raw, "model", where), _by_lang(raw, "adapter", where)
    if model is None:
        raise ValueError(f"{where} has no model: a folder, a name in the hub's cache, or one for each language")
    stop = _list(raw, "stop", str, where, [])
    try:
        check_stop(stop)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return System(name, model, adapter, router, optional_text_field(raw, "prompt_of", where), stop)


def _check(study: Study, path: Path) -> None:
    names = [system.name for system in study.systems]
    runs = [source.run for system in study.systems for source in system.sources(study.langs)]
    for found in (names, runs):
        if twice := [name for name in found if found.count(name) > 1]:
            raise ValueError(f"{path}: two systems, or their runs, are called {twice[0]!r}")
    for key, name in (("baseline", study.baseline), ("experts", study.experts)):
        if name is not None and name not in names:
            raise ValueError(f"{path}: {key} is {shown(name)}, which is no system; there are: {', '.join(names)}")
    for lang in study.langs:
        get_language(lang)
    for system in study.systems:
        if not system.sources(study.langs):
            raise ValueError(f"{path}: the system {system.name} has no model for any of {', '.join(study.langs)}")


def _by_lang(raw: dict[str, Any], key: str, where: str) -> str | dict[str, str] | None:
    if isinstance(raw.get(key), dict):
        value = check_mapping(raw[key], LANGUAGES, f"{where}: {key}")
        return {lang: text_field(value, lang, f"{where}: {key}") for lang in value}
    return optional_text_field(raw, key, where)


def _flag(raw: dict[str, Any], key: str, where: str) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{where}: {key} must be true or false, not {shown(value)}")
    return value


def _list(raw: dict[str, Any], key: str, kind: type, where: str, default: Iterable[Any]) -> list[Any]:
    value = raw.get(key, default)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value) or (key != "stop" and not value):
        raise ValueError(f"{where}: {key} must be a list, not {shown(value)}")
    return list(dict.fromkeys(value))


def _count(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or not fits_int64(value):
        raise ValueError(f"{where} must be a whole number of at least 1, not {shown(value)}")
    return value
