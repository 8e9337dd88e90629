"""XLCoST's token form and back to source text.

XLCoST (Zhu et al. 2022, arXiv:2206.08474) stores each program as one line of space-separated tokens, made by TransCoder's
tokenisers. Layout is written as marks: NEW_LINE, INDENT and DEDENT in Python, NEW_LINE after preprocessor lines in C++.
String literals are split at their punctuation too; in them `▁` is a space, STRNEWLINE is `\\n`, TABSYMBOL is `\\t`, and every
other space was not there. In Java strings a plain NEW_LINE is `\\n` as well, so marks cannot be replaced blindly.
"""

import re
from functools import lru_cache

from .layout_braces import layout_braces
from .layout_python import layout_python

_OPERATORS = {
    "python": "**= //= >>= <<= ... ** // >> << <= >= == != += -= *= /= %= &= |= ^= @= := ->",
    "java": ">>>= >>= <<= ... <= >= == != && || ++ -- += -= *= /= %= &= |= ^= << -> ::",
    "javascript": ">>>= **= >>= <<= === !== &&= ||= ??= ... ** <= >= == != && || ?? ?. ++ -- += -= *= /= %= &= |= ^= << =>",
    "cpp": "<=> >>= <<= ... <= >= == != && || ++ -- += -= *= /= %= &= |= ^= << -> ::",
}
_QUOTED = r"{0}(?:\\\s*\S|[^\\{0}])*{0}"
_STRING = "|".join(map(_QUOTED.format, "\"'"))
_LITERALS = {
    "python": rf"\b(?i:[rbfu]|rb|br|rf|fr)\s*(?:{_STRING})|{_STRING}",
    "java": _STRING,
    "javascript": rf"{_STRING}|{_QUOTED.format('`')}|(?<=[(,=:\[!&|?{{}};]\s)/(?:\\\s*\S|[^/\\])+/(?:\s*[dgimsuy]+\b)?",
    "cpp": rf"#\s*include\s*(?:<[^>]*>|\"[^\"]*\")|#\s*\w(?:(?!NEW_LINE).)*|{_STRING}",
}
_NUMBER = r"(?:\d|\.\d)(?:[\w.]|(?<=[eE])[+-](?=\d)|'(?=\d))*"
_SPACED = re.compile(r"\s+")
_GLUED = re.compile(r"\w[(\[;:,]|[(\[]\w")  # outside of literals, only source text has punctuation touching a word
_MARK = re.compile(r"▁|\b(?:NEW_LINE|STRNEWLINE|TABSYMBOL)\b")
_APART = re.compile(r"(?<!\S)[()\[\];](?!\S)")  # no braces: `} else {` is how source text is written, too
_WORDS = re.compile(r"[^\W_]\s+[^\W_]")  # in literals without a mark, only source text has a space between two words


def is_token_form(codes: list[str]) -> bool:
    """Whether most of those of `codes` that show either form are tokens; one such as `x = a + b` shows neither and does not count."""
    return sum(map(_vote, codes)) > 0


def _vote(code: str) -> int:
    """1 for tokens (a mark, or a bracket or semicolon apart), -1 for source text (punctuation or line breaks as tokens have none), or 0."""
    outside = re.sub(_STRING, "", code)
    if "\n" in code or _GLUED.search(outside):
        return -1
    if _MARK.search(code):
        return 1
    if any(_WORDS.search(literal) for literal in re.findall(_STRING, code)):
        return -1
    return int(bool(_APART.search(outside)))


def decode(code: str, lang: str) -> str:
    """The source text of `code`, which is in token form: real strings, one statement a line, indents of 4 spaces."""
    tokens = decode_tokens(code, lang)
    return layout_python(tokens) if lang == "python" else layout_braces(tokens, lang)


def decode_tokens(code: str, lang: str) -> list[str]:
    """The tokens of `code` with its literals and preprocessor lines restored; the layout marks stand among them."""
    return [_restore(token) if token[0] in "\"'`/#>:rbfuRBFU" else token for token in _lexer(lang).findall(code)]


@lru_cache
def _lexer(lang: str) -> re.Pattern[str]:
    """Longest match first. TransCoder's tokenisers split `>>` and `::` at times: runs of `>` are one token here."""
    operators = "|".join(map(re.escape, _OPERATORS[lang].split()))
    split = r">(?:\s*>)+" + (r"|:\s*:" if lang == "cpp" else "")
    return re.compile(rf"{_LITERALS[lang]}|[^\W\d][\w$]*|\$[\w$]*|{_NUMBER}|{operators}|{split}|\S")


def _restore(token: str) -> str:
    """A string, regular expression, preprocessor line or split operator as it stood in the source."""
    if token[0] == "#":
        return _restore_directive(token)
    if token[-1] not in "\"'`" and token[0] != "/":
        return token if token[0] not in ">:" else "".join(token.split())
    if token[0] == "`" and "▁" not in token and "$ {" not in token:
        return token  # a template literal that was not split: its spaces are its own
    token = "".join(token.split()).replace("▁", " ")
    if "NEW" in token or "TAB" in token:
        token = token.replace("STRNEWLINE", r"\n").replace("NEW_LINE", r"\n").replace("TABSYMBOL", r"\t")
    return token


def _restore_directive(token: str) -> str:
    """`# include < cmath >` is `#include <cmath>`; a macro's body keeps its tokens."""
    directive = "#" + _SPACED.sub(" ", token[1:]).strip()
    if not directive.startswith("#include"):
        return directive
    return "#include " + "".join(directive.removeprefix("#include").split())
