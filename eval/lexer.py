"""Code tokens by the language's own grammar, so that layout does not change a score.

Under `str.split`, `f(x)` is one token and `f ( x )` four; here both are four. The tokens are the leaves of the tree-sitter
parse, comments and docstrings left out, string literals whole (a space inside a string is content). The lexer never fails:
text that the parser skipped inside an error is cut into words and single signs. Python's indentation gives no token: the syntax part of
CodeBLEU is what sees blocks.
"""

import re

from tree_sitter import Node

from train.data.filters import parser

STRINGS = {"string", "string_literal", "raw_string_literal", "char_literal", "character_literal", "template_string", "regex"}
_COMMENTS = {"comment", "line_comment", "block_comment", "html_comment"}
_WORDS = re.compile(r"\w+|[^\w\s]")


def code_tokens(code: str, lang: str) -> list[str]:
    """The tokens of `code` in order; [] for text that holds no code (blank, or nothing but comments)."""
    source = code.encode("utf-8", "replace")
    tokens: list[str] = []
    end = 0  # of the last leaf, in bytes
    for node in leaves(parser(lang).parse(source).root_node):
        tokens += _WORDS.findall(source[end : node.start_byte].decode("utf-8", "replace"))
        end = max(end, node.end_byte)
        if not is_silent(node):
            tokens += _texts(node, source[node.start_byte : node.end_byte].decode("utf-8", "replace"))
    return tokens + _WORDS.findall(source[end:].decode("utf-8", "replace"))


def leaves(root: Node) -> list[Node]:
    """Leaves in source order, without recursion: a degenerate program nests deeper than Python's stack."""
    stack, leaves = [root], []
    while stack:
        node = stack.pop()
        if node.type in STRINGS or is_silent(node) or not node.children:
            leaves.append(node)
        else:
            stack += reversed(node.children)
    return leaves


def is_silent(node: Node) -> bool:
    """Comments, and Python's docstrings (a statement that is one string)."""
    if node.type in _COMMENTS:
        return True
    return node.type == "expression_statement" and [child.type for child in node.children] == ["string"]


def _texts(node: Node, text: str) -> list[str]:
    """One token, except for leaves that hold blanks though they are no strings (preprocessor lines, an unparsed root)."""
    if not text or node.type in STRINGS:
        return [text] if text else []
    return _WORDS.findall(text) if text.startswith("#") or any(sign.isspace() for sign in text) else [text]
