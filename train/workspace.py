"""Where an unfinished training run keeps its checkpoints: a hidden folder beside its output.

The output appears whole, at the end. Until then `.NAME.unfinished/` holds the checkpoints and the facts of the run;
`--resume` goes on from it only if the facts (data hash, base, every setting that changes the result) are the same.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from model.output import MANIFEST, refuse_existing, write_json
from model.unfinished import FACTS, check_same_facts, empty, locked, remove_work, unfinished

from .checkpoints import newest_checkpoint
from .processes import processes


def check_free(out: Path, *, resume: bool) -> None:
    """The errors of `workspace` that need no facts, for the start of a command."""
    refuse_existing(out)
    found = newest_checkpoint(unfinished(out)) is not None
    if resume and not found:
        raise ValueError(f"nothing to resume: {unfinished(out)} holds no checkpoint")
    if found and not resume:
        raise FileExistsError(f"an interrupted run lies in {unfinished(out)}; add --resume to go on, or remove it")


@contextmanager
def workspace(out: Path, facts: dict[str, Any], *, resume: bool) -> Iterator[Path]:
    """Yields the workspace of the run that will become `out`, and removes it once the run is done in all processes.

    After an error it stays if it holds a checkpoint to resume from. `FileExistsError` if it exists without `resume`,
    `ValueError` if there is nothing to resume or a fact differs (the sentence names it).
    """
    check_free(out, resume=resume)
    folder, all_processes = unfinished(out), processes()
    # as they will be read back; with another number of processes the dropout would differ
    facts = json.loads(json.dumps({**facts, "processes": all_processes.num_processes}, default=str))
    if resume:
        check_same_facts(folder, facts)
    with locked(folder) if all_processes.is_main_process else nullcontext():
        try:
            if all_processes.is_main_process and not resume:
                empty(folder)
                write_json(folder / FACTS, facts)
            all_processes.wait_for_everyone()
            yield folder
        except BaseException:
            if all_processes.is_main_process:
                if newest_checkpoint(folder) is None or (out / MANIFEST).exists():
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    print(f"the last checkpoint stays in {folder}: the same command with --resume goes on from there", file=sys.stderr)
            raise
        all_processes.wait_for_everyone()
        if all_processes.is_main_process:
            remove_work(folder)
