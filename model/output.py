"""Output folders that are either whole or absent, and the `run.json` in each.

A command writes into a hidden folder beside its target; `manifest.json` (size and SHA-256 of every file) is written last
and the folder is then renamed. A crash, a full disk or a loss of power leaves the target as it was; what a killed command
leaves behind is removed by the next that is to write the same target, also if that finds it whole and refuses.
"""

import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from .languages import LANGUAGES
from .strict_json import fits_a_path, read_json
from .unfinished import DONE, locked, remove_leftovers, unfinished, writing

MANIFEST = "manifest.json"
RUN = "run.json"
_GRAMMARS = ("tree-sitter", *(f"tree-sitter-{lang}" for lang in LANGUAGES))
_PACKAGES = ("torch", "transformers", "bitsandbytes", "peft", "safetensors", "datasets", "codebleu", *_GRAMMARS)


def refuse_existing(target: Path) -> None:
    """`FileExistsError` if `target` exists and is not an empty folder: no command writes over earlier work.

    ValueError if it is a place that no folder can be renamed to: an output appears by a rename, after all the work.
    What the command that made it left, if it was killed just then, is removed.
    """
    if target.name and not fits_a_path(str(unfinished(target))):  # beside it lies what is not whole yet, with a longer name
        raise ValueError(f"the output {str(target)[:100]!r} is no path that can be made: a name has 1 to 243 bytes")
    if not target.name or target.is_symlink() or target.is_mount():
        kind = "a link" if target.is_symlink() else "a mount point" if target.is_mount() else "no name of a folder"
        raise ValueError(f"the output {target} is {kind}, and it would appear by a rename; name a folder within: {target / 'out'}")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        manifest = target / MANIFEST
        remove_leftovers(target, sha256_of(manifest) if manifest.is_file() else None)
        raise FileExistsError(f"the output {target} exists; name another or remove it first")


@contextmanager
def output_folder(target: Path, made_from: Path | None = None) -> Iterator[Path]:
    """Yields a temporary folder beside `target`; on success it becomes `target`, on any error it is removed.

    `made_from` is unfinished work that is done with then. FileExistsError if `target` exists; ValueError if another process is writing it.
    """
    refuse_existing(target)
    place = writing(target)
    temporary = place / "output"
    with locked(place):
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            temporary.mkdir()
            yield temporary
            publish(temporary, target, made_from)
        finally:
            shutil.rmtree(place, ignore_errors=True)


def publish(folder: Path, target: Path, made_from: Path | None = None) -> None:
    """Gives a finished folder its manifest and then its name `target`; the work that it was made from is marked in between."""
    write_manifest(folder)
    if made_from is not None:
        (made_from / DONE).write_text(sha256_of(folder / MANIFEST))
    if target.exists():
        target.rmdir()
    folder.rename(target)
    sync(target.parent)


def write_manifest(folder: Path) -> None:
    """Syncs all files and folders to the disk and writes `manifest.json`: {"files": {relative path: {"size": bytes, "sha256": hex}}}."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing is as slow as the disk
        digests = pool.map(_sync_and_hash, files)
        rows = {
            str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": digest}
            for path, digest in zip(files, digests, strict=True)
        }
    write_json(folder / MANIFEST, {"files": rows})
    for path in (folder / MANIFEST, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)


def _sync_and_hash(path: Path) -> str:
    sync(path)
    return sha256_of(path)


def check_manifest(folder: Path) -> None:
    """`ValueError` naming the first file of `folder` that is missing or differs from its manifest, or what is wrong with the manifest."""
    for name, row in manifest_rows(folder).items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing, but {MANIFEST} lists it")
        if path.stat().st_size != row["size"] or sha256_of(path) != row["sha256"]:
            raise ValueError(f"{path} differs from what {MANIFEST} says of it")


def manifest_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest's rows, {relative path: {"size", "sha256"}}; `ValueError` if it has none such, or one of a file outside of `folder`."""
    rows = read_json(folder / MANIFEST).get("files")
    if not isinstance(rows, dict) or not all(isinstance(row, dict) and {"size", "sha256"} <= row.keys() for row in rows.values()):
        raise ValueError(f"{folder / MANIFEST} does not say the size and sha256 of each of its files")
    for name in rows:
        if name.startswith("/") or ".." in Path(name).parts or not fits_a_path(name):
            raise ValueError(f"{folder / MANIFEST} names {name[:100]!r}, which does not lie in its folder")
    return rows


def sync(path: Path) -> None:
    """Waits until the disk has what was written to a file, or the names in a folder, so that no later rename can come before it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in 1 MiB pieces (`hashlib.file_digest` needs Python 3.11)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, by rename: readers see the old file or the new one. ValueError for NaN, which JSON has not."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be written: {error}") from error
    temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")  # a lone surrogate then is JSON's escape
    os.replace(temporary, path)


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is an output of its own, by rename: what a full disk or a kill took half of is not called `path`."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_run(folder: Path, *, seed: int, figures: dict[str, Any], **facts: Any) -> None:
    """Writes `run.json`: command line, versions, machine, seed, `figures`, and any further `facts`."""
    versions = {name: metadata.version(name) for name in _PACKAGES if _installed(name)}
    record = {
        "command": [*_program(), *sys.argv[1:]],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {"python": platform.python_version(), **versions},
        "machine": {"processor": platform.machine(), "model": _cpu_model(), "cores": os.cpu_count()},
        "seed": seed,
        **facts,
        "figures": figures,
    }
    write_json(folder / RUN, record)


def _program() -> list[str]:
    """As it is called: with `python -m` the first argument is a file that alone cannot be run."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return ["python", "-m", module.name.removesuffix(".__main__")] if module else [Path(sys.argv[0]).name]


def _cpu_model() -> str | None:
    """What Linux calls the first processor; None elsewhere, or where it has no name (as on some AArch64)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
