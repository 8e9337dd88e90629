"""The programming languages that the project knows: one row each.

Adding a language is one row here and one printer in `train/corpus/printers/` (see CONTRIBUTING.md). Any other language can be trained and
asked for by its name alone, on data of the user's own: there is no corpus, no parser and no CodeBLEU for it (docs/training.md).
"""

import re
from dataclasses import dataclass

from .strict_json import shown


@dataclass(frozen=True)
class Language:
    name: str  # as typed on the command line and in file names
    title: str  # as written in the prompt
    suffix: str  # of a source file, with the dot
    xlcost: str  # the configuration prefix of codeparrot/xlcost-text-to-code, e.g. "C++" in "C++-program-level"
    grammar: str  # the module of its tree-sitter grammar
    codebleu: str  # its name in the codebleu package


_ROWS = (
    Language("python", "Python", ".py", "Python", "tree_sitter_python", "python"),
    Language("java", "Java", ".java", "Java", "tree_sitter_java", "java"),
    Language("javascript", "JavaScript", ".js", "Javascript", "tree_sitter_javascript", "javascript"),
    Language("cpp", "C++", ".cpp", "C++", "tree_sitter_cpp", "cpp"),
)

LANGUAGES: dict[str, Language] = {row.name: row for row in _ROWS}


_NAME = re.compile(r"[a-z][a-z0-9_]*")


def language_title(name: str) -> str:
    """How a prompt calls a language: a known one by its title, any other by its name with a capital.

    `ValueError` if the name is not lower-case letters, digits and underscores.
    """
    if name in LANGUAGES:
        return LANGUAGES[name].title
    if not _NAME.fullmatch(name):
        raise ValueError(f"the language {shown(name)} must be one of {', '.join(LANGUAGES)} or a name in lower case, such as rust")
    return name.capitalize()


def get_language(name: str) -> Language:
    """The row of `name`; `ValueError` with the known names otherwise."""
    if name not in LANGUAGES:
        raise ValueError(f"unknown language {shown(name)}; known: {', '.join(LANGUAGES)}")
    return LANGUAGES[name]
