"""The `run.json` behind each number of a report: copied into the report's folder, and named there."""

import shutil
from collections.abc import Container, Iterable
from pathlib import Path

from model.output import RUN

RUNS = "runs"


def free_name(first: str, taken: Container[str]) -> str:
    """`first`, with a number behind it where it is taken."""
    name, number = first, 2
    while name in taken:
        name, number = f"{first}-{number}", number + 1
    return name


class Sources:
    """A name for each run's folder: the one that is wanted, if it is free."""

    def __init__(self, wanted: Iterable[tuple[Path, str]]) -> None:
        self.paths: dict[str, Path] = {}
        self._names: dict[Path, str] = {}
        for path, first in wanted:
            if (path / RUN).is_file() and path.resolve() not in self._names:
                name = free_name(first, self.paths)
                self.paths[name] = path
                self._names[path.resolve()] = name

    def names(self, *paths: Path) -> list[str]:
        """Of the folders that have a `run.json`."""
        return [self._names[path.resolve()] for path in paths if path.resolve() in self._names]

    def files(self) -> dict[str, str]:
        """{name: where its `run.json` lies in the report's folder}."""
        return {name: f"{RUNS}/{name}/{RUN}" for name in self.paths}

    def copy(self, folder: Path) -> None:
        """Copies every `run.json` into the report's `folder`."""
        for name, path in self.paths.items():
            (folder / RUNS / name).mkdir(parents=True)
            shutil.copyfile(path / RUN, folder / RUNS / name / RUN)
