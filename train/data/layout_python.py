"""Python tokens into source text, spaced as Black does it."""

import keyword

MARKS = {"NEW_LINE": 0, "INDENT": 1, "DEDENT": -1}  # and what they add to the depth
_WORDS = frozenset(keyword.kwlist) - {"True", "False", "None"}  # keywords that are no operands
_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")
_TIGHT = _CLOSE | frozenset(",;:")  # no space before
_SIGNS = frozenset(("+", "-", "~", "*", "**"))


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
    parts = [tokens[0]]
    previous = tokens[0]
    brackets: list[str] = [previous] if previous in _OPEN else []
    glue = previous == "@" or previous in _OPEN or previous in _SIGNS  # no space after `previous`
    lambdas = [previous == "lambda"]  # per open bracket: a lambda waits for its colon
    annotated = False  # inside a call's or definition's brackets: a colon since the last comma
    for token in tokens[1:]:
        operand = _is_operand(previous)
        keyword_equals = token == "=" and brackets[-1:] == ["("] and not annotated
        if not (glue or token in _TIGHT or keyword_equals or (operand and token in "([.")) or token == "import":
            parts.append(" ")
        parts.append(token)
        glue = token in _OPEN or token == "." or keyword_equals or (not operand and token in _SIGNS)
        if token in _OPEN:
            brackets.append(token)
            lambdas.append(False)
            annotated = False
        elif token in _CLOSE and brackets:
            brackets.pop()
            lambdas.pop()
        elif token == "lambda":
            lambdas[-1] = True
        elif token == ":":
            glue = brackets[-1:] == ["["] and not lambdas[-1]  # a slice
            annotated = not lambdas[-1]
            lambdas[-1] = False
        elif token == ",":
            annotated = False
        previous = token
    return "".join(parts)


def _is_operand(token: str) -> bool:
    """Whether an expression may end with `token`, so that a bracket after it is a call and a minus a difference."""
    last = token[-1]
    return (last.isalnum() or last in "_)]}\"'") and token not in _WORDS
