"""One printer a language, by the names of `model.languages`."""

from functools import cache
from importlib import import_module

from model.languages import get_language

from .base import Printed, Printer

__all__ = ["Printed", "Printer", "printer_class"]


@cache
def printer_class(lang: str) -> type[Printer]:
    """The class `LanguagePrinter` of `printers/<lang>.py`."""
    found: type[Printer] = import_module(f".{get_language(lang).name}", __package__).LanguagePrinter
    return found
