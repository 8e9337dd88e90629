"""Safetensors checkpoints, read tensor by tensor from memory-mapped files. (`checkpoint_writer.py` writes them.)

What is read is not trusted: a folder may come from anywhere.
"""

import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .saving import finish_save
from .strict_json import fits_a_path, read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
GENERATION = "generation_config.json"
HEAD = "lm_head.weight"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DENSE_DTYPES = {**DTYPES, "float64": torch.float64}  # a mixture has it not: its kernels and NF4 stop at float32
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PACKED = 4  # values that a stored one stands for at most: two in a byte of NF4, and twice as many for what a file may lack, such as a head
_LITTLE = 1 << 24  # values that may be built whatever the weights have: what then does not fit is named by tensor
_SHOWN = 5  # names that an error shows before it counts the rest


def model_folder(name: str | Path, beside: Path = Path(), cache_dir: str | Path | None = None, revision: str | None = None) -> Path:
    """The local folder of a model: `name` itself, `name` beside a file, or its snapshot in the hub's cache (by default the usual one,
    and the branch main); nothing is downloaded.

    A save to it that was cut short after its commit is finished.
    """
    for folder in (Path(name), beside / name):
        if fits_a_path(str(folder)) and folder.is_dir():
            finish_save(folder)
            return folder
    try:
        return Path(snapshot_download(str(name), revision=revision, cache_dir=cache_dir, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        advice = f"; `hf download {name}` puts a model of the hub there" if isinstance(error, LocalEntryNotFoundError) else ""
        raise FileNotFoundError(f"{name} is neither a folder nor a model in the local hub cache{advice}") from None


class Checkpoint:
    """The tensors of a checkpoint folder (one `model.safetensors` or an index with shards), or of one safetensors file.

    Errors: FileNotFoundError when a file is missing; ValueError when a file is damaged, or when index and shards do not hold exactly the
    same tensors, each once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[Path, Any] = {}
        self._owner: dict[str, Path] = {}
        listed = _listed_files(path)
        for file in [*dict.fromkeys(listed.values())] if listed else [_single_file(path)]:
            for name in self._opened(file).offset_keys():
                if name in self._owner:
                    raise ValueError(f"{name} is in two shards: {self._owner[name]} and {file}")
                self._owner[name] = file
        if listed and listed != self._owner:
            wrong = sorted(name for name in listed.keys() | self._owner.keys() if listed.get(name) != self._owner.get(name))
            raise ValueError(f"{path / INDEX} does not say what its shards hold: it is wrong about {some(wrong)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._owner)

    def __contains__(self, name: str) -> bool:
        return name in self._owner

    def tensor(self, name: str) -> Tensor:
        """The tensor, mapped from its file; its memory is let go of with it. ValueError if a value is infinite or not a number.

        The mapping is its own: what was read through a shared one would count as this process's memory as long as the checkpoint is open.
        Looking at every value costs 8 GB/s on two cores, less than any disk; safetensors does not look.
        """
        return check_finite(_open(self._owner[name]).get_tensor(name), f"{name} in {self._owner[name]}")

    def rows(self, name: str, rows_N: Tensor) -> Tensor:
        """Some rows of a tensor, by their numbers; no others are read. ValueError as of `tensor`."""
        return check_finite(_open(self._owner[name]).get_tensor(name)[rows_N], f"{name} in {self._owner[name]}")

    def check_values(self) -> None:
        """Reads every tensor; ValueError as of `tensor`."""
        for name in self:
            self.tensor(name)

    def check_size(self, described: int) -> None:
        """ValueError if the folder's configuration, of so many values, is of more than these weights can be: they would be memory."""
        stored = sum(math.prod(self.shape(name)) for name in self)
        if described > max(_PACKED * stored, _LITTLE):
            raise ValueError(f"{self.path / CONFIG} describes a model of {described} values, but its weights have {stored}")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._opened(self._owner[name]).get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """As safetensors calls it, e.g. BF16."""
        return self._opened(self._owner[name]).get_slice(name).get_dtype()

    def head(self, name: str, count: int) -> Tensor:
        """The first `count` values of a tensor (fewer if its first row is shorter), without reading the rest."""
        rows = self._opened(self._owner[name]).get_slice(name)
        if not rows.get_shape():
            return self.tensor(name).reshape(1)
        return rows[:1].reshape(-1)[:count] if len(rows.get_shape()) > 1 else rows[:count]

    def _opened(self, file: Path) -> Any:
        if file not in self._files:
            self._files[file] = _open(file)
        return self._files[file]


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Of the embeddings, which are never quantised: for a model whose config names no dtype."""
    names = (name for name in checkpoint if name.endswith("embed_tokens.weight"))
    return next((checkpoint.head(name, 1).dtype for name in names), torch.float32)


def is_tied(checkpoint: Checkpoint, config_says: bool) -> bool:
    """Whether the head is the embeddings; not where the file has a head of its own, whatever its configuration says (as in transformers).

    A warning says so then.
    """
    name = next((name for name in checkpoint if name.endswith("embed_tokens.weight")), None)
    if not config_says or name is None or HEAD not in checkpoint:
        return config_says
    head, embeddings = checkpoint.tensor(HEAD), checkpoint.tensor(name)
    if head.dtype == embeddings.dtype and torch.equal(head, embeddings):
        return True
    warnings.warn(
        f"{checkpoint.path} has tie_word_embeddings, but a {HEAD} that differs from {name}: they are not tied, and both are used",
        stacklevel=2,
    )
    return False


def check_finite(tensor: Tensor, where: str, error: type[ValueError] = ValueError) -> Tensor:
    """`tensor`; an `error` naming `where` if it has floats that are infinite or not numbers."""
    if tensor.dtype in DENSE_DTYPES.values() and tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise error(f"{where} has values that are infinite or not numbers")
    return tensor


def _open(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file: {error}") from None
    except MemoryError as error:  # it has more bytes than this process may map
        raise ValueError(f"{file} cannot be mapped into memory: {error}") from None


def _single_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder with a checkpoint")
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    raise FileNotFoundError(f"{path} has neither {WEIGHTS} nor {INDEX}; only safetensors checkpoints are read")


def _listed_files(folder: Path) -> dict[str, Path]:
    """The shard of every tensor, by the index of `folder`; empty if there is none."""
    index = folder / INDEX
    if not index.is_file():
        return {}
    if (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} has both {WEIGHTS} and {INDEX}, and programs differ in which they read; remove the one that is old")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files")
    names = set(weight_map.values())
    for name in sorted(names):
        if Path(name).name != name or not name.endswith(".safetensors") or not fits_a_path(name):
            raise ValueError(f"{index} names {name[:100]!r}; a shard is a .safetensors file in the same folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing, but {INDEX} lists it")
    if extra := sorted(file.name for file in folder.iterdir() if _SHARD.fullmatch(file.name) and file.name not in names):
        raise ValueError(f"{folder} has shards that {INDEX} does not list: {some(extra)}; remove them if they are old")
    return {tensor: folder / name for tensor, name in weight_map.items()}


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def parse_dtype(name: str | torch.dtype) -> torch.dtype:
    """`torch.bfloat16` for "bfloat16" or for itself; ValueError for a name of anything but the three dtypes a model may have."""
    if isinstance(name, torch.dtype):
        return name
    if name not in list(DTYPES):  # a list, as a YAML file's value need not be hashable
        raise ValueError(f"dtype is {name!r}; allowed: {', '.join(DTYPES)}")
    return DTYPES[name]
