"""One reader of a file, the errors that it may raise, and the shape of the models that are read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.model.conftest import SHAPE

ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
SMALL = {**SHAPE, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}


@dataclass(frozen=True)
class Reader:
    """`read` reads `victim`, which lies in a folder of its own. `share`: of the mutations, in parts of the sum of all."""

    name: str
    victim: Path
    read: Callable[[], Any]
    share: int = 10

    @property
    def valid(self) -> bytes:
        return self.victim.with_name(self.victim.name + ".valid").read_bytes()
