"""What lies beside an output until that is whole: `.NAME.writing`, which nobody goes on with, and `.NAME.unfinished`, which a re-run does.

One process at a time holds the lock of such a folder. An output made from unfinished work appears by a rename; just before it the work
is marked with the output's manifest (`DONE`), so that after a kill in between the next call can tell that it has done its part.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .strict_json import read_json

FACTS = "facts.json"  # what must be the same for the work to go on
DONE = "done"  # SHA-256 of the manifest of the output that was made of the work
_LOCK = "lock"
_SHORT = 60  # characters of a fact that an error quotes; a hash is longer


def writing(target: Path) -> Path:
    """Where a command writes `target` if it cannot go on after a kill."""
    return target.with_name(f".{target.name}.writing")


def unfinished(target: Path) -> Path:
    """Where the unfinished work of the command that writes `target` lies, if it is one that can go on."""
    return target.with_name(f".{target.name}.unfinished")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes `folder` and holds its lock, which the system releases with the process, however that ends.

    ValueError if another process holds it.
    """
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ValueError(f"another process is at work in {folder}") from None
    except BaseException:  # a full disk, or interrupted, perhaps between the making of the file and its lock
        with suppress(OSError):  # Timeout is one: another process has it
            if not lock.is_locked:
                lock.acquire()
            (folder / _LOCK).unlink()
        with suppress(OSError):
            folder.rmdir()
        lock.release(force=True)
        raise
    try:
        yield
    finally:
        lock.release()


def check_same_facts(work: Path, facts: dict[str, Any]) -> None:
    """`ValueError` naming what differs if the unfinished `work` has other facts."""
    before = read_json(work / FACTS)
    changed = sorted(name for name in before.keys() | facts.keys() if before.get(name) != facts.get(name))
    if changed:
        what = "; ".join(_change(name, before.get(name), facts.get(name)) for name in changed)
        raise ValueError(
            f"{work} holds unfinished work with other settings ({what}); run that command again to finish it, or remove the folder"
        )


def _change(name: str, before: Any, now: Any) -> str:
    texts = repr(before), repr(now)
    return f"{name} was {texts[0]} and is {texts[1]}" if max(map(len, texts)) <= _SHORT else f"{name} differs"


def empty(work: Path) -> None:
    """Removes all that lies in the locked folder `work` but its lock."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def remove_work(work: Path) -> None:
    """Removes the locked folder `work`, its mark last: `remove_leftovers` goes on with it if this is interrupted."""
    for path in sorted(work.iterdir(), key=lambda path: path.name in (DONE, _LOCK)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    work.rmdir()


def remove_leftovers(target: Path, manifest_sha256: str | None) -> None:
    """Removes what a killed command left beside its output `target`; not what another process is at, nor the work of another output."""
    for work in (writing(target), unfinished(target)):
        with suppress(ValueError, OSError):  # another process is at it, or has just removed it
            if work.is_dir() and (work == writing(target) or _is_done(work, manifest_sha256)):
                with locked(work):
                    remove_work(work)


def _is_done(work: Path, manifest_sha256: str | None) -> bool:
    if not {path.name for path in work.iterdir()} - {_LOCK}:
        return True
    return (work / DONE).is_file() and (work / DONE).read_text() == manifest_sha256
