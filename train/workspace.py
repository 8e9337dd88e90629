"""Where an unfinished training run keeps its checkpoints: a hidden folder beside its output.

The output appears whole, at the end. Until then `.NAME.unfinished/` holds the checkpoints and the facts of the run;
`--resume` goes on from it only if the facts (data hash, base, every setting that changes the result) are the same.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.output import check_absent, write_json

from .trainer import newest_checkpoint

FACTS = "facts.json"


@contextmanager
def workspace(out: Path, facts: dict[str, Any], *, resume: bool) -> Iterator[Path]:
    """Yields the workspace of the run that will become `out`, and removes it once the run is done.

    After an error it stays if it holds a checkpoint to resume from. `FileExistsError` if it exists without `resume`,
    `ValueError` if there is nothing to resume or a fact differs (the sentence names it).
    """
    check_absent(out)
    folder = out.with_name(f".{out.name}.unfinished")
    facts = json.loads(json.dumps(facts, default=str))  # as they will be read back
    if newest_checkpoint(folder) is None:
        if resume:
            raise ValueError(f"nothing to resume: {folder} holds no checkpoint")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(folder / FACTS, facts)
    elif not resume:
        raise FileExistsError(f"an interrupted run lies in {folder}; add --resume to go on, or remove it")
    else:
        _check_same(folder, facts)
    try:
        yield folder
    except BaseException:
        if newest_checkpoint(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder)


def _check_same(folder: Path, facts: dict[str, Any]) -> None:
    before = json.loads((folder / FACTS).read_text())
    changed = sorted(key for key in facts.keys() | before.keys() if facts.get(key) != before.get(key))
    if changed:
        was = "; ".join(f"{key} was {before.get(key)!r} and is {facts.get(key)!r}" for key in changed)
        raise ValueError(f"cannot resume {folder}: {was}")
