"""Task sets: one adapter a format, each of which knows its set's traps.

task         `Task`, what all of them become
reading      what adapters share
humaneval_x, mbxp, multipl_e, transcoder, exercism, corpus    `read(row, lang)` of one row of a set
"""

import gzip
import json
from pathlib import Path

from train.corpus import build

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
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        rows = [_read(line, number, path, lang) for number, line in enumerate(file, start=1) if line.strip()]
    tasks = [task for task in rows if task is not None]
    if len(tasks) < len(rows):
        print(f"{len(tasks)} of the {len(rows)} tasks can be judged (docs/evaluation.md)")
    if not tasks:
        raise ValueError(f"{path} holds no tasks")
    if len({task.task_id for task in tasks}) < len(tasks):
        raise ValueError(f"{path} holds a task twice")
    return tasks


def _read(line: str, number: int, path: Path, lang: str) -> "Task | None":
    try:
        row = json.loads(line)
        adapter = next((module for module in _ADAPTERS if isinstance(row, dict) and set(row) >= module.KEYS), None)
        if adapter is None:
            raise ValueError("its columns are those of no known task set")
        if (row.get("lang") or row.get("language") or lang) not in (lang, *_SHORT.get(lang, ())):
            raise ValueError(f"it is a task in {row.get('lang') or row.get('language')}, not in {lang}")
        return adapter.read(row, lang)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}, line {number}: {error}") from error


_SHORT = {"python": ("py",), "javascript": ("js",)}

__all__ = ["CORPUS", "Task", "load_tasks"]
