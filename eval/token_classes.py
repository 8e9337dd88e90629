"""Which kind of thing in a program each token of a model is: keyword, identifier, literal, operator, comment, white space, or the end.

The program's characters get their class from the leaves of the tree-sitter parse, the tokens from their characters by the offsets that the
tokenizer gives. Docstrings count as comments, brackets and separators as operators, names of built-in types as keywords.
"""

from collections import Counter
from itertools import accumulate
from typing import Any

from tree_sitter import Node

from train.data.filters import parser

from .lexer import STRINGS, is_silent, leaves

CLASSES = ("keyword", "identifier", "literal", "operator", "comment", "whitespace", "end")
_LITERALS = {"integer", "float", "number", "true", "false", "none", "null", "undefined", "ellipsis", "nullptr", "system_lib_string"}


def token_classes(code: str, lang: str, tokenizer: Any) -> list[int]:
    """Index into CLASSES of each token that `tokenizer` makes of `code`, and of the EOS after it; ValueError if it gives no offsets.

    A token is of the class that most of its characters have, blanks left out unless it holds nothing else: "␣total" is an identifier.
    """
    if not tokenizer.is_fast:
        raise ValueError("the classes of tokens need a fast tokenizer (tokenizer.json), which says where in the text each token stands")
    offsets = tokenizer(code, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    classes = character_classes(code, lang)
    return [CLASSES.index(_of_token(classes[start : max(end, start + 1)])) for start, end in offsets] + [CLASSES.index("end")]


def _of_token(classes: list[str]) -> str:
    visible = Counter(name for name in classes if name != "whitespace")
    return visible.most_common(1)[0][0] if visible else "whitespace"


def character_classes(code: str, lang: str) -> list[str]:
    """The class of each character. What the parser skipped counts as identifiers and operators."""
    source = code.encode("utf-8", "replace")
    classes = [""] * len(source)  # by byte, as tree-sitter counts
    for node in leaves(parser(lang).parse(source).root_node):
        name = _of_leaf(node, source[node.start_byte : node.end_byte].decode("utf-8", "replace"))
        classes[node.start_byte : node.end_byte] = [name] * (node.end_byte - node.start_byte)
    starts = [0, *accumulate(len(sign.encode("utf-8", "replace")) for sign in code)]
    return [classes[start] or _of_text(sign) for start, sign in zip(starts, code, strict=False)]


def _of_leaf(node: Node, text: str) -> str:
    """Of a leaf of the parse; "" where its text says it."""
    if is_silent(node):
        return "comment"
    if node.type in STRINGS or node.type in _LITERALS or node.type.endswith("_literal"):
        return "literal"
    if node.type.endswith("identifier"):
        return "identifier"
    if node.type == "ERROR" or any(sign.isspace() for sign in text):
        return ""
    return "keyword" if text.lstrip("#")[:1].isalpha() else "operator"


def _of_text(sign: str) -> str:
    if sign.isspace():
        return "whitespace"
    return "identifier" if sign.isalnum() or sign == "_" else "operator"
