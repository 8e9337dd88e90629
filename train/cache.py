"""The user's cache folder."""

import os
from pathlib import Path


def user_cache() -> Path:
    """`$XDG_CACHE_HOME/moe-kernels`, by default `~/.cache/moe-kernels`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe-kernels"
