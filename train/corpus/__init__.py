"""The embedded corpus: one definition a problem, printed as aligned programs in every language, in XLCoST's form.

definition   the decorator that the files of `families/` use, and their discovery
inference    types (`kinds`) of the definitions' Python subset; `scopes` says where a block-scoped language declares variables
variants     the programs of a family: values of its constants, names of its variables
printers     one file a language
texts        `title | comment ; comment` wordings
encode       source text to XLCoST's token form
build        the data set on disk; `check` runs every program against its cases
"""

from .build import build

__all__ = ["build"]
