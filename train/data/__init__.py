"""(text, code) pairs: where they come from, what is dropped, and how they become token ids."""

from .pairs import Loaded, Pair, format_table, load_pairs

__all__ = ["Loaded", "Pair", "format_table", "load_pairs"]
