"""Every reader against every kind of damage: a typed error that names the file, or a result that holds; no hang, flood, code or socket."""

import os
import pwd
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.faults.damage import CONTENTS, PLACES
from tests.faults.mutations import Tally, attempt, confined
from tests.faults.reader import Reader
from tests.faults.readers import make_readers

# Without these the model is whole: a tokenizer has its defaults, an adapter need not say its language, work that never began has no facts.
OPTIONAL = {"generation_config.json", "run.json", "tokenizer_config.json", "programs.json"}


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> dict[str, Reader]:
    return {reader.name: reader for reader in make_readers(tmp_path_factory.mktemp("readers"))}


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """In a folder of its own, where a file `ran` would say that code did."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "ran").exists()


def read(reader: Reader) -> Tally:
    tally = Tally()
    with confined():
        attempt(reader, tally)
    return tally


def test_there_are_as_many_kinds_as_promised(readers):
    assert len(CONTENTS) + len(PLACES) >= 40 and len(readers) >= 30


@pytest.mark.parametrize("kind", CONTENTS)
def test_what_stands_in_a_file(readers, kind):
    failures = []
    for reader in readers.values():
        reader.victim.write_bytes(CONTENTS[kind](reader.valid))
        failures += [f"{reader.name}: {failure}" for failure in read(reader).failures]
        reader.victim.write_bytes(reader.valid)
    assert not failures


@pytest.mark.parametrize("kind", PLACES)
def test_what_stands_in_a_files_place(readers, kind):
    failures, accepted = [], set()
    for reader in readers.values():
        PLACES[kind](reader.victim)
        tally = read(reader)
        failures += [f"{reader.name}: {failure}" for failure in tally.failures]
        accepted |= {reader.victim.name} if tally.accepted else set()
        if reader.victim.is_dir() and not reader.victim.is_symlink():
            reader.victim.rmdir()
        else:
            reader.victim.unlink(missing_ok=True)
        reader.victim.write_bytes(reader.valid)
    assert not failures and accepted <= OPTIONAL


def test_a_file_of_another_reader(readers):
    """Files that were swapped: each reader gets what the next one reads."""
    failures, victims = [], list(readers.values())
    for reader, other in zip(victims, [*victims[1:], victims[0]], strict=True):
        reader.victim.write_bytes(other.valid)
        failures += [f"{reader.name} with {other.name}: {failure}" for failure in read(reader).failures]
        reader.victim.write_bytes(reader.valid)
    assert not failures


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read its files")
def test_a_file_that_may_not_be_read():
    folder = Path(tempfile.mkdtemp())
    failures = []
    try:
        readers = make_readers(folder)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o777)
        for reader in readers:
            reader.victim.chmod(0)
            os.seteuid(pwd.getpwnam("nobody").pw_uid)
            try:
                reader.read()
                failures.append(f"{reader.name}: it was read")
            except (PermissionError, ValueError, FileNotFoundError) as error:
                if reader.victim.name not in str(error) and str(reader.victim.parent) not in str(error):
                    failures.append(f"{reader.name}: {error}")
            except Exception as error:
                failures.append(f"{reader.name}: {type(error).__name__}: {error}")
            finally:
                os.seteuid(0)
            reader.victim.chmod(0o777)
    finally:
        shutil.rmtree(folder)
    assert not failures
