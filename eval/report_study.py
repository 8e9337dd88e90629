"""A study's tables in a report, with the runs behind each row."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from model.strict_json import read_json

from .run_files import SEEN_SHAPE, STUDY_SHAPE, Each, Maybe, check_shape
from .runs import STUDY_FILE, Run
from .sources import Sources
from .study_file import Study, System
from .study_tables import (
    SEEN_TITLE,
    by_length,
    comparison_grid,
    contamination_grid,
    notes,
    points_title,
    unseen_grid,
    unseen_title,
    with_unseen,
)
from .tables import Grid

Told = TypeVar("Told", Study, System)


def read_study_result(run: Run) -> tuple[Study, dict[str, Any]]:
    """The study as it was asked for, and `study.json`; None for what a study of an earlier version does not say."""
    where = str(run.path / STUDY_FILE)
    result = check_shape(read_json(run.path / STUDY_FILE), STUDY_SHAPE, where)
    check_shape(result, SEEN_SHAPE, where)
    systems = result["study"]["systems"]
    for system, key in ((system, key) for system in systems for key in ("model", "adapter")):
        own = system.get(key)
        shape = Each(str) if isinstance(own, dict) else str if key == "model" else Maybe(str)
        check_shape(own, shape, f"{where}: study: systems: {system['name']}: {key}")
    known = [system["name"] for system in systems]
    for _, kind, figures in by_length(result):
        if strange := [name for name in (*figures["systems"], *figures["unseen"]["systems"]) if name not in known]:
            raise ValueError(f"{where} has {kind} figures of {strange[0][:80]!r}, which is none of its systems: {', '.join(known)}")
    return _told(Study, {**result["study"], "systems": [_told(System, system) for system in systems]}), result


def _told(kind: type[Told], said: dict[str, Any]) -> Told:
    known: dict[str, Any] = {field.name: said.get(field.name) for field in fields(kind)}
    return kind(**known)


def study_tables(run: Run, sources: Sources) -> dict[str, Any]:
    """The comparisons of eval.study and what was seen in training: {"note", "tables"}.

    Behind each row of a comparison are its system's runs, and those it is compared with; behind the seen shares is the study's own.
    """
    study, result = read_study_result(run)
    references = [system for system in study.systems if system.name in (study.baseline, study.experts)]

    def behind(length: str, names: Iterable[str], others: Sequence[System]) -> list[list[str]]:
        systems = {system.name: system for system in study.systems}
        folder = run.path / length
        return [
            sources.names(*(folder / source.run for one in (systems[name], *others) for source in one.sources(study.langs)))
            for name in names
        ]

    tables = []
    for length, kind, figures in by_length(result):
        tables.append(
            _study_table(points_title(kind, length), comparison_grid(study, figures), behind(length, figures["systems"], references))
        )
    if result["contamination"]:
        grid = contamination_grid(result["contamination"])
        tables.append(_study_table(SEEN_TITLE, grid, [sources.names(run.path)] * len(grid[1]), labels=2))
    for length, kind, figures in with_unseen(result):
        names = behind(length, figures["unseen"]["systems"], ())
        tables.append(_study_table(unseen_title(kind, length), unseen_grid(study, figures), names))
    return {"note": " ".join(notes(study, result, run.facts["seed"])), "tables": tables}


def _study_table(title: str, grid: Grid, behind: list[list[str]], labels: int = 1) -> dict[str, Any]:
    head, cells = grid
    return {"title": title, "head": head, "cells": cells, "sources": behind, "labels": labels}
