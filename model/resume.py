"""Outputs that a killed command goes on with when it is run again.

Until the output is whole its folder lies in `.NAME.unfinished` beside it, with `facts.json`: what must be the same for the work to go on.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .output import DONE, check_absent, locked, publish, remove_work, unfinished, write_json
from .strict_json import read_json

FACTS = "facts.json"


class Unfinished(NamedTuple):
    output: Path  # becomes the target
    scratch: Path  # is removed then


@contextmanager
def resumable_folder(target: Path, facts: dict[str, str]) -> Iterator[Unfinished]:
    """Yields folders with what an earlier run with the same `facts` had finished, if there was one; on success `output` becomes `target`.

    After an error or a kill they stay if they hold a finished file of tensors. FileExistsError if `target` exists; ValueError, naming
    what differs, if the unfinished work has other facts, or if another process is at it.
    """
    check_absent(target)
    place = unfinished(target)
    folders = Unfinished(place / "output", place)
    with locked(place):
        is_begun = _has_tensors(folders.output) or _has_tensors(place)
        if is_begun:
            _check_same(place, facts)
            print(f"going on with the unfinished work in {place}", file=sys.stderr)
        try:
            if is_begun:
                for torn in folders.output.glob(".*.tmp"):  # of files that appear by a rename
                    torn.unlink()
            else:
                shutil.rmtree(folders.output, ignore_errors=True)
                write_json(place / FACTS, facts)
            folders.output.mkdir(exist_ok=True)
            yield folders
            (place / DONE).touch()
            publish(folders.output, target)
        except BaseException:
            if _has_tensors(folders.output) or _has_tensors(place):
                print(f"what is finished stays in {place}: the same command goes on from there", file=sys.stderr)
            else:
                shutil.rmtree(place)
            raise
        remove_work(place)


def _has_tensors(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _check_same(place: Path, facts: dict[str, Any]) -> None:
    before = read_json(place / FACTS)
    changed = [name for name in before.keys() | facts.keys() if before.get(name) != facts.get(name)]
    if changed:
        raise ValueError(
            f"{place} holds the unfinished work of another command (different: {', '.join(sorted(changed))}); "
            f"run that one again to finish it, or remove the folder"
        )
