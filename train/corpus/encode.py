"""Source text to XLCoST's token form; `train.data.xlcost` is the way back.

Tokens stand apart by one space. Layout becomes marks: NEW_LINE, INDENT and DEDENT in Python; a C-like program is one line
with NEW_LINE after preprocessor lines. In strings a space is `▁`, a line break STRNEWLINE, a tab TABSYMBOL.
"""

import io
import re
import tokenize

_ESCAPES = {"\\n": " STRNEWLINE ", "\\t": " TABSYMBOL ", " ": " ▁ "}
_TOKEN = re.compile(
    r"""(?P<directive>\#[^\n]*) | (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*') | [A-Za-z_]\w* | \d[\w.]*
    | >>>= | === | !== | >>= | <<= | >>> | \.\.\. | => | -> | :: | \?\? | && | \|\| | \+\+ | -- | << | >> | [-+*/%&|^<>=!]= | \S""",
    re.VERBOSE,
)


def encode(code: str, lang: str) -> str:
    """`code` in `lang` as one line of tokens."""
    return " ".join(_python_tokens(code) if lang == "python" else _clike_tokens(code))


def _python_tokens(code: str) -> list[str]:
    marks = {tokenize.NEWLINE: "NEW_LINE", tokenize.INDENT: "INDENT", tokenize.DEDENT: "DEDENT"}
    tokens = []
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type in marks:
            tokens.append(marks[token.type])
        elif token.type == tokenize.STRING:
            tokens.append(_string(token.string))
        elif token.type not in (tokenize.NL, tokenize.ENDMARKER):
            tokens.append(token.string)
    return tokens


def _clike_tokens(code: str) -> list[str]:
    tokens = []
    for match in _TOKEN.finditer(code):
        if match["directive"]:
            tokens += [match[0].strip(), "NEW_LINE"]
        else:
            tokens.append(_string(match[0]) if match["string"] else match[0])
    return tokens


def _string(literal: str) -> str:
    """`"a b"` as `" a ▁ b "`."""
    body = re.sub(r"\\n|\\t| ", lambda match: _ESCAPES[match[0]], literal[1:-1])
    return " ".join([literal[0], *body.split(), literal[-1]])
