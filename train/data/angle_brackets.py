"""Which `<` and `>` of Java and C++ enclose type arguments: the grammars need types to know, here their neighbours tell."""

_INSIDE = frozenset((",", "::", ".", "?", "&", "*", "[", "]", "(", ")", "..."))
_BEHIND = frozenset(("(", ")", ",", "::", "{", "&", "*", "&&", ">", ">>", "[", ";", "...", "."))
_LONGEST = 60  # tokens


def angle_brackets(tokens: list[str]) -> set[int]:
    """Positions of the `<`, `>`, `>>` around type arguments: behind a word, with words and type punctuation only inside."""
    found: set[int] = set()
    for start, token in enumerate(tokens):
        if token == "<" and start and start not in found and _is_word(tokens[start - 1]):
            found |= _match(tokens, start)
    return found


def _match(tokens: list[str], start: int) -> set[int]:
    """The `<` at `start`, its partner and all between them; empty if these are comparisons."""
    brackets: set[int] = set()
    depth = 0
    for position in range(start, min(start + _LONGEST, len(tokens))):
        token = tokens[position]
        if token == "<":
            depth += 1
            brackets.add(position)
        elif token.strip(">") == "" and len(token) <= depth:
            depth -= len(token)
            brackets.add(position)
            if not depth:
                behind = tokens[position + 1] if position + 1 < len(tokens) else ""
                return brackets if behind in _BEHIND or _is_word(behind) else set()
        elif token not in _INSIDE and not _is_word(token):
            break
    return set()


def _is_word(token: str) -> bool:
    return token[-1:].isalnum() or token[-1:] == "_"
