"""`python -m model.check DIR...`: whether a folder still holds what was written into it, and nothing that no model could use.

Loading checks a checkpoint's structure and that every value is a number; it does not hash, which takes longer than loading. This does:
sizes and SHA-256 of all files against `manifest.json`, which every command here and `save_pretrained` write last. A folder without a
manifest, such as one of the hub, is checked in structure and values alone.
"""

import argparse
from pathlib import Path

from .adapters import ADAPTER_WEIGHTS, Adapter, is_adapter
from .checkpoint import CONFIG, GENERATION, INDEX, WEIGHTS, Checkpoint, model_folder
from .cli import make_parser, run_command
from .config_file import generation_config, read_config
from .output import MANIFEST, check_manifest, manifest_rows
from .tokenizer import read_tokenizer


def check_folder(folder: Path) -> str:
    """One sentence on what was found to be right; ValueError or FileNotFoundError naming the first file that is not."""
    found = []
    if (folder / MANIFEST).is_file():
        check_manifest(folder)
        rows = manifest_rows(folder)
        if others := sorted(path.name for path in folder.glob("*.safetensors") if path.name not in rows):
            raise ValueError(f"{folder / MANIFEST} does not list {', '.join(others[:5])}, so nobody knows whose weights these are")
        found.append(f"{len(rows)} files as {MANIFEST} says")
    else:
        found.append(f"no {MANIFEST}, so nothing says what was written")
    weights = None
    if is_adapter(folder):
        Adapter(folder)
        weights = Checkpoint(folder / ADAPTER_WEIGHTS)
    elif (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
        read_config(folder)
        weights = Checkpoint(folder)
    if weights is not None:
        weights.check_values()
        found.append(f"{len(list(weights))} tensors of finite values")
    if (folder / GENERATION).is_file():
        generation_config(folder)
    if (folder / "tokenizer_config.json").is_file():
        read_tokenizer(folder)
    if weights is None and not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} has neither {MANIFEST} nor weights ({CONFIG} with {WEIGHTS} or {INDEX}, or {ADAPTER_WEIGHTS})")
    return ", ".join(found)


def check(args: argparse.Namespace) -> None:
    """The command."""
    for name in args.folders:
        print(f"{name}: {check_folder(model_folder(name))}")


def main() -> int:
    parser = make_parser("model.check", "Checks folders against their manifests, and every value of their tensors.")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="a model, an adapter, or the output of any command")
    return run_command(check, parser)


if __name__ == "__main__":
    raise SystemExit(main())
