"""Every reader of the package with a small valid file that it takes: what `damage.py` and `mutations.py` break.

A reader returns, or raises one of `ERRORS` with the file's name in its text. What it returns is consistent: it checks that itself.
"""

from pathlib import Path

from tests.faults.reader import Reader
from tests.faults.readers_of_data import row_files, yaml_files
from tests.faults.readers_of_models import adapters, weights
from tests.faults.readers_of_runs import run_files


def make_readers(folder: Path) -> list[Reader]:
    """All readers, their files under `folder`; each has read its valid file once."""
    readers = [*weights(folder), *adapters(folder), *yaml_files(folder), *row_files(folder), *run_files(folder)]
    for reader in readers:
        reader.victim.with_name(reader.victim.name + ".valid").write_bytes(reader.victim.read_bytes())
        reader.read()
    return readers
