"""One printer a language, by the names of `model.languages`."""

import ast
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from model.languages import get_language

from ..inference import infer
from ..scopes import find_scopes
from .base import Printed, Printer

__all__ = ["Printed", "Printer", "print_program", "printer_class"]


def printer_class(lang: str) -> type[Printer]:
    """The class `Printer` of `printers/<lang>.py`."""
    found: type[Printer] = import_module(f".{get_language(lang).name}", __package__).LanguagePrinter
    return found


def print_program(functions: Sequence[ast.FunctionDef], path: Path, lang: str) -> Printed:
    """`functions` (helpers first) of the definition file `path` as one program in `lang`."""
    typed = infer(functions, path)
    return printer_class(lang)(typed, find_scopes(typed)).program()
