"""Python tokens into source text, spaced as Black does it."""

import keyword
from dataclasses import dataclass

MARKS = {"NEW_LINE": 0, "INDENT": 1, "DEDENT": -1}  # and what they add to the depth
_WORDS = frozenset(keyword.kwlist) - {"True", "False", "None"}  # keywords that are no operands
_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")
_ENDS = frozenset(("_", ")", "]", "}", '"', "'"))  # how an operand may end, other than by a letter or digit
_TIGHT = _CLOSE | frozenset(",;:")  # no space before
_BEHIND_OPERAND = frozenset("([.")  # no space between an operand and these
_PREFIXES = frozenset(("+", "-", "~", "*", "**", "@"))


@dataclass
class _Bracket:
    kind: str
    in_lambda: bool = False  # a lambda waits for its colon
    annotated: bool = False  # there was a colon since the last comma


def layout_python(tokens: list[str]) -> str:
    """`tokens` are Python's, with NEW_LINE, INDENT and DEDENT among them. A DEDENT too many, as snippets have, is ignored."""
    lines: list[str] = []
    depth, start = 0, 0
    for position, token in enumerate(tokens):
        if token in MARKS:
            if position > start:
                lines.append("    " * depth + _line(tokens[start:position]))
            depth = max(0, depth + MARKS[token])
            start = position + 1
    if start < len(tokens):
        lines.append("    " * depth + _line(tokens[start:]))
    return "\n".join(lines) + "\n"


def _line(tokens: list[str]) -> str:
    """One logical line."""
    parts: list[str] = []
    opened = [_Bracket("")]
    previous, tight = "", True  # no space after `previous`
    for token in tokens:
        inner = opened[-1]
        operand = _is_operand(previous)
        argument = token == "=" and inner.kind == "(" and not inner.annotated  # f(x=1), but f(x: int = 1)
        if not (tight or token in _TIGHT or argument or (operand and token in _BEHIND_OPERAND)):
            parts.append(" ")
        parts.append(token)
        tight = token in _OPEN or (token == "." and operand) or argument or (not operand and token in _PREFIXES)
        if token in _OPEN:
            opened.append(_Bracket(token))
        elif token in _CLOSE:
            del opened[max(1, len(opened) - 1) :]
        elif token == "lambda":
            inner.in_lambda = True
        elif token == ":":
            tight = inner.kind == "[" and not inner.in_lambda  # a slice
            inner.annotated = not inner.in_lambda
            inner.in_lambda = False
        elif token == ",":
            inner.annotated = False
        previous = token
    return "".join(parts)


def _is_operand(token: str) -> bool:
    """Whether an expression may end with `token`, so that a bracket after it is a call and a minus a difference."""
    return (token[-1:].isalnum() or token[-1:] in _ENDS) and token not in _WORDS
