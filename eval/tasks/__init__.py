"""Task sets: one adapter a format, each of which knows its set's traps.

task         `Task`, what all of them become
reading      what adapters share
humaneval_x, mbxp, multipl_e, transcoder, exercism, corpus    `read(row, lang)` of one row of a set
"""

import gzip
import zlib
from dataclasses import fields
from pathlib import Path

from model.strict_json import parse_json
from train.corpus import build
from train.data.reading import lines_of

from . import corpus, exercism, humaneval_x, mbxp, multipl_e, transcoder
from .task import Task

_ADAPTERS = (humaneval_x, mbxp, multipl_e, transcoder, exercism, corpus)
CORPUS = "corpus"


def load_tasks(source: str, lang: str) -> list[Task]:
    """The tasks of a JSONL file (gzipped or not), or of the embedded corpus for "corpus", in file order.

    The format is told by the rows' columns. Tasks that no adapter can have judged are left out, which is printed. ValueError for another
    format or an empty file.
    """
    path = build() / f"{lang}.tasks.jsonl.gz" if source == CORPUS else Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"there is no task file {path}; --tasks takes a JSONL file or {CORPUS!r}")
    try:
        rows = [_read(line, number, path, lang) for number, line in enumerate(lines_of(path), start=1) if line.strip()]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    tasks = [task for task in rows if task is not None]
    if len(tasks) < len(rows):
        print(f"{len(tasks)} of the {len(rows)} tasks can be judged (docs/evaluation.md)")
    if not tasks:
        raise ValueError(f"{path} holds no tasks")
    if len({task.task_id for task in tasks}) < len(tasks):
        raise ValueError(f"{path} holds a task twice")
    return tasks


def _read(line: bytes, number: int, path: Path, lang: str) -> "Task | None":
    try:
        row = parse_json(line)
        adapter = next((module for module in _ADAPTERS if isinstance(row, dict) and set(row) >= module.KEYS), None)
        if adapter is None:
            raise ValueError("its columns are those of no known task set")
        if (row.get("lang") or row.get("language") or lang) not in (lang, *_SHORT.get(lang, ())):
            raise ValueError(f"it is a task in {row.get('lang') or row.get('language')}, not in {lang}")
        task = adapter.read(row, lang)
        for field in fields(Task) if task else ():
            if field.type is str and not isinstance(getattr(task, field.name), str):
                raise ValueError(f"its {field.name} is no text but {getattr(task, field.name)!r}")
        return task
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}, line {number}: {error}") from error


_SHORT = {"python": ("py",), "javascript": ("js",)}

__all__ = ["CORPUS", "Task", "load_tasks"]
