"""Safetensors checkpoints written tensor by tensor: never more than one shard's tensors are in memory."""

import json
import os
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from .checkpoint import INDEX, WEIGHTS, Checkpoint

SHARD_BYTES = 512 << 20  # of a command that can go on: so many wait in memory, and at most so many are lost by a kill


class CheckpointWriter:
    """Writes tensors into shards of at most `shard_bytes` (a larger tensor has its own), and the index; use as a context manager.

    A shard appears whole. With `resume` it goes on after the shards of a writer that was killed: the names in `finished` are not to be
    added again, and the files come out as if nothing had happened.
    """

    def __init__(self, folder: Path, shard_bytes: int = 2 << 30, resume: bool = False) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        # In the order of their numbers: a kill within `_finish` leaves the first of them under their final names.
        files = sorted(folder.glob("*.safetensors"), key=lambda file: file.name.split("-")[1:]) if resume else []
        self._shards = [(file, list(Checkpoint(file))) for file in files]
        self.finished = {name for _, names in self._shards for name in names}

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, error: type | None, *_: object) -> None:
        if error is None:
            self._finish()

    def add(self, name: str, tensor: Tensor) -> None:
        self.add_group({name: tensor})

    def add_group(self, tensors: dict[str, Tensor]) -> None:
        """Tensors that are one thing, such as the parts of an NF4 weight: they come to lie in one shard."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._pending and self._pending_bytes + size > self.shard_bytes:
            self._write_shard()
        self._pending |= {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        self._pending_bytes += size
        if self._pending_bytes >= self.shard_bytes:
            self._write_shard()

    def _write_shard(self) -> None:
        file = self.folder / f"shard-{len(self._shards) + 1:05d}.safetensors"
        save_whole(file, self._pending)
        self._shards.append((file, list(self._pending)))
        self._pending, self._pending_bytes = {}, 0

    def _finish(self) -> None:
        if self._pending or not self._shards:
            self._write_shard()
        count = len(self._shards)
        if count == 1:
            os.replace(self._shards[0][0], self.folder / WEIGHTS)
            return
        weight_map, size = {}, 0
        for number, (file, names) in enumerate(self._shards, start=1):
            final = self.folder / f"model-{number:05d}-of-{count:05d}.safetensors"
            os.replace(file, final)
            weight_map.update(dict.fromkeys(names, final.name))
            size += _data_bytes(final)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_whole(file: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a safetensors file that appears whole or not at all."""
    temporary = file.with_name(f".{file.name}.tmp")
    save_file(tensors, temporary, metadata={"format": "pt"})
    os.replace(temporary, file)


def _data_bytes(file: Path) -> int:
    """Bytes of a safetensors file's tensors: all after its header, whose length is the first 8 bytes."""
    with file.open("rb") as opened:
        return file.stat().st_size - 8 - int.from_bytes(opened.read(8), "little")
