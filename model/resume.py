"""Outputs that a killed command goes on with when it is run again.

Until the output is whole its folder lies in `.NAME.unfinished` beside it, with `facts.json`: what must be the same for the work to go on.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .output import MANIFEST, publish, refuse_existing, write_json
from .unfinished import FACTS, check_same_facts, locked, remove_work, unfinished


class Overflow(ValueError):
    """A value is too large for the output's dtype, as it would be if the same command went on: its work is not kept."""


class Unfinished(NamedTuple):
    output: Path  # becomes the target
    scratch: Path  # is removed then


@contextmanager
def resumable_folder(target: Path, facts: dict[str, str]) -> Iterator[Unfinished]:
    """Yields folders with what an earlier run with the same `facts` had finished, if there was one; on success `output` becomes `target`.

    After an error (but an `Overflow`) or a kill they stay if they hold a finished file of tensors. FileExistsError if `target` exists;
    ValueError, naming what differs, if the unfinished work has other facts, or if another process is at it.
    """
    refuse_existing(target)
    place = unfinished(target)
    folders = Unfinished(place / "output", place)
    with locked(place):
        is_begun = _has_tensors(folders.output) or _has_tensors(place)
        if is_begun:
            check_same_facts(place, facts)
            print(f"going on with the unfinished work in {place}", file=sys.stderr)
        try:
            if is_begun:
                for torn in folders.output.glob(".*"):  # of files that appear by a rename; .tmpXXXXXX is safetensors 0.8's
                    torn.unlink()
            else:
                shutil.rmtree(folders.output, ignore_errors=True)
                write_json(place / FACTS, facts)
            folders.output.mkdir(exist_ok=True)
            yield folders
            publish(folders.output, target, place)
        except BaseException as error:
            is_kept = not isinstance(error, Overflow) and (_has_tensors(folders.output) or _has_tensors(place))
            if is_kept and not (target / MANIFEST).exists():
                print(f"what is finished stays in {place}: the same command goes on from there", file=sys.stderr)
            else:
                shutil.rmtree(place, ignore_errors=True)
            raise
        remove_work(place)


def _has_tensors(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))
