"""`save_pretrained` that never loses a checkpoint: killed at any point, the folder loads as what it was or as what it was to become.

A folder that is not there yet appears whole, by one rename (`output_folder`). In one that is there, which may hold an older checkpoint and
files that are not ours (a tokenizer, an optimizer's state, a log that is being written), only files of the checkpoint are touched:

    DIR/.saving/   the new files and their manifest are written and synced here
    DIR/.saved/    its name after one rename, the commit; then the files move to their places, the manifest last

Whoever next loads from DIR or saves to it finishes a move that was cut short (`finish_save`). So one mechanism serves every filesystem,
mount points, folders with strangers' files, and a process whose working directory is DIR. Exchanging whole folders (renameat2) needs a
way around each of these, and links to files that are not ours. Both need the space of two checkpoints while they save. A folder has one
writer at a time.

After a loss of power the same holds, as far as the disk keeps what it has synced.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .output import MANIFEST, manifest_rows, output_folder, sync, write_manifest

SAVING, SAVED = ".saving", ".saved"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


@contextmanager
def replaced_files(folder: Path) -> Iterator[Path]:
    """Yields an empty folder; on success its files replace those in `folder` all at once, on any error nothing has changed."""
    finish_save(folder)
    saving = folder / SAVING
    if saving.exists():  # of a save that was killed
        shutil.rmtree(saving)
    saving.mkdir()
    try:
        yield saving
        write_manifest(saving)
        saving.rename(folder / SAVED)
    finally:
        shutil.rmtree(saving, ignore_errors=True)
    sync(folder)
    finish_save(folder)


def finish_save(folder: Path) -> bool:
    """Moves the files of a committed save to their places, and removes weights that it replaces; False if there is none.

    ValueError if what lies there is not of our making.
    """
    saved = folder / SAVED
    if saved.is_symlink() or not saved.is_dir():
        return False
    with suppress(FileNotFoundError):  # another process is at it too, in the same order
        if (saved / MANIFEST).is_file():
            new = _names(saved)
            if any(_WEIGHTS.fullmatch(name) for name in new):
                for path in [path for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name) and path.name not in new]:
                    path.unlink()
            for path in sorted(saved.iterdir(), key=lambda path: path.name == MANIFEST):
                path.replace(folder / path.name)
            sync(folder)
        shutil.rmtree(saved)
    return True


def _names(saved: Path) -> set[str]:
    try:
        return set(manifest_rows(saved))
    except ValueError:
        raise ValueError(f"{saved} is no save that was interrupted, as its {MANIFEST} lists no files; remove it") from None


def check_not_interrupted(folder: Path, config: object) -> None:
    """ValueError if `config` was read from `folder` in the middle of a save, which is then finished."""
    if finish_save(folder) and config is not None:
        raise ValueError(f"a save to {folder} had been interrupted and is now finished; load again, as the configuration is the old one")


def save_model(save: Callable[..., None], target: Path, *, is_main_process: bool, **options: Any) -> None:
    """Calls `save`, transformers' `save_pretrained` of a model, so that `target` gets all of its files at once, and a manifest of them.

    `distributed_checkpoint=True` is left to transformers, as all processes write into the folder itself; so is a process that is not the
    main one and writes nothing.
    """
    if not is_main_process or options.get("distributed_checkpoint"):
        return save(target, is_main_process=is_main_process, **options)
    if options.get("push_to_hub"):
        options.setdefault("repo_id", target.resolve().name)
    with replaced_files(target) if target.exists() else output_folder(target) as folder:
        save(folder, **options)
