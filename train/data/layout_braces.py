"""Tokens of Java, JavaScript and C++ into source text: one statement a line, blocks indented by 4 spaces."""

from .angle_brackets import angle_brackets
from .layout_python import MARKS

_CONTROL = frozenset(("if", "for", "while", "switch", "catch", "synchronized"))  # a statement follows their brackets
# Words that end no expression: a sign or bracket after them starts one.
_WORDS = _CONTROL | {"return", "else", "do", "case", "throw", "new", "delete", "instanceof", "try", "typeof", "function", "await", "yield"}
_WORDS_OF = {"java": _WORDS, "cpp": _WORDS | {"auto"}, "javascript": _WORDS | {"of", "in", "let", "const", "var"}}
_CLASSES = frozenset(("class", "struct", "union", "enum"))
_HEADS = _CLASSES | {"namespace", ")"}  # after these, a C++ brace behind a word opens a block
_ACCESS = frozenset(("public", "private", "protected"))
_TYPES = frozenset(("int", "char", "double", "float", "long", "short", "bool", "void", "unsigned", "string", "auto", "const", "size_t"))
_BEFORE_VALUES = frozenset(("=", "(", ",", "[", "return", "?", "&&", "||", "??", ":"))  # a brace after these holds values
_AFTER_BLOCK = frozenset((")", "]", ",", ";", ".", "else", "catch", "finally"))  # go on in the line of the closing brace


def layout_braces(tokens: list[str], lang: str) -> str:
    """`tokens` are Java's, JavaScript's or C++'s. Braces that do not match, as snippets have, are laid out as they come."""
    return _Layout([token for token in tokens if token not in MARKS], lang).text()


class _Layout:
    """One pass over the tokens: each is put into the line, tight to its left or right neighbour or not.

    `open` holds what is open: "(", "[", "(control" for the bracket of a control statement, "{values", and a block by its
    kind: "block", "do", "switch", "class".
    """

    def __init__(self, tokens: list[str], lang: str) -> None:
        self.tokens, self.lang = tokens, lang
        self.words = _WORDS_OF[lang]
        self.angles = set() if lang == "javascript" else angle_brackets(tokens)
        self.lines: list[str] = []
        self.line: list[str] = []
        self.start = 0  # position of the first token of the line
        self.open: list[str] = []
        self.questions: list[int] = [0]  # per open bracket: question marks that wait for their colon
        self.depth = 0
        self.previous = ""
        self.tight = True  # whether no space follows `previous`
        self.operand = False  # whether an expression may end with `previous`

    def text(self) -> str:
        for position, token in enumerate(self.tokens):
            if handler := _HANDLERS.get(token):
                handler(self, position, token)
            elif token[-1].isalnum() or token[-1] in "_$\"'`" or (len(token) > 2 and token[0] in "/#"):
                self._word(position, token)
            else:
                self._put(token)
        self._end_line(len(self.tokens))
        return "\n".join(self.lines) + "\n"

    def _put(self, token: str, left: bool = False, right: bool = False, operand: bool = False) -> None:
        """Appends `token`; `left`, `right`: without a space on that side; by default a binary operator."""
        if not (left or self.tight):
            self.line.append(" ")
        self.line.append(token)
        self.previous, self.tight, self.operand = token, right, operand

    def _end_line(self, start: int) -> None:
        """Finishes the line, if it has begun; the next one starts with the token at `start`."""
        if self.line:
            label = self.line[-1] == ":" and (self.line[0] in _ACCESS or self.line[0] in ("case", "default"))
            self.lines.append("    " * (self.depth - label) + "".join(self.line))
            self.line = []
        self.start = start
        self.previous, self.tight, self.operand = "", True, False

    def _push(self, kind: str) -> None:
        self.open.append(kind)
        self.questions.append(0)

    def _pop(self) -> str:
        if not self.open:
            return ""
        self.questions.pop()
        return self.open.pop()

    def _word(self, position: int, token: str) -> None:
        if token[0] == "#" and self.lang == "cpp":
            self._end_line(position)
            self.lines.append(token)
            self.start = position + 1
        else:
            self._put(token, operand=token not in self.words or self.previous == ".")

    def _open_bracket(self, position: int, token: str) -> None:
        self._push("(control" if self.previous in _CONTROL and not self.operand else token)
        self._put(token, left=self.operand, right=True)

    def _close_bracket(self, position: int, token: str) -> None:
        kind = self._pop() if self.open and self.open[-1][0] in "([" else token
        self._put(token, left=True, operand=kind != "(control" and not self._is_cast(position))

    def _is_cast(self, position: int) -> bool:
        """Whether the bracket that closes at `position` holds a built-in type alone and is no call or parameter list."""
        opened, held = self.tokens[max(0, position - 2) : position] if position > 1 else ("", "")
        before = self.tokens[position - 3][-1] if position > 2 else ""
        return opened == "(" and held in _TYPES and self.lang != "javascript" and not (before.isalnum() or before in "_])>")

    def _open_brace(self, position: int, token: str) -> None:
        follower = self.tokens[position + 1 : position + 2]
        if self._holds_values(position):
            hugs = self.previous in ("(", "[", "{", "]") or (self.lang == "cpp" and self.operand)
            self._put("{", left=hugs, right=self.lang != "javascript" or follower == ["}"])
            self._push("{values")
            return
        head = self.tokens[self.start : position]
        kind = "do" if self.previous == "do" else "switch" if head[:1] == ["switch"] else "block"
        if kind == "block" and not _CLASSES.isdisjoint(head) and ")" not in head:
            kind = "class"
        self._put("{", right=True)
        if follower != ["}"]:
            self._end_line(position + 1)
        self._push(kind)
        self.depth += _width(kind)

    def _holds_values(self, position: int) -> bool:
        """Whether the brace at `position` opens an initialiser or object, not a block."""
        if self.previous in _BEFORE_VALUES or (self.previous == "]" and self.lang == "java"):
            return True
        if self.previous == "{" and self.open and self.open[-1] == "{values":
            return True
        if self.lang != "cpp" or not self.operand or self.previous[-1] in ')]"':
            return False
        return bool(self.open and self.open[-1] in ("(", "[", "{values")) or _HEADS.isdisjoint(self.tokens[self.start : position])

    def _close_brace(self, position: int, token: str) -> None:
        while len(self.open) > 1 and self.open[-1][0] in "([":  # brackets that nothing closed
            self._pop()
        kind = self._pop()
        if kind == "{values":
            self._put("}", left=self.lang != "javascript" or self.previous == "{", operand=True)
            return
        if self.previous != "{":
            self._end_line(position)
        self.depth = max(0, self.depth - _width(kind))
        self._put("}", left=True, operand=True)
        follower = self.tokens[position + 1] if position + 1 < len(self.tokens) else ""
        goes_on = follower in _AFTER_BLOCK or (kind == "do" and follower == "while") or (kind == "class" and self.lang == "cpp")
        if not goes_on and not (self.open and self.open[-1][0] in "(["):
            self._end_line(position + 1)

    def _semicolon(self, position: int, token: str) -> None:
        self._put(";", left=True)
        if not self.open or self.open[-1][0] not in "([{":
            self._end_line(position + 1)

    def _colon(self, position: int, token: str) -> None:
        """Of a conditional, a for-each loop, a base class, an object's key, or a label, which ends its line."""
        inside = self.open[-1][0] if self.open else ""
        if self.questions[-1]:
            self.questions[-1] -= 1
            self._put(":")
        elif inside in ("(", "["):
            self._put(":")
        elif inside == "{":
            self._put(":", left=True)
        elif self.tokens[self.start] in ("case", "default") or (self.previous in _ACCESS and self.start == position - 1):
            self._put(":", left=True)
            self._end_line(position + 1)
        else:
            based = self.lang == "cpp" and (self.previous == ")" or not _CLASSES.isdisjoint(self.tokens[self.start : position]))
            self._put(":", left=not based)

    def _question(self, position: int, token: str) -> None:
        if self.previous not in ("<", ",") or self.lang != "java":  # there it is a wildcard
            self.questions[-1] += 1
        self._put("?")

    def _sign(self, position: int, token: str) -> None:
        """A sign before its operand, an operator between two, or the mark of a pointer or reference type."""
        if self.lang == "cpp" and token in "*&&" and self._is_type(position):
            self._put(token, left=True)
        else:
            self._put(token, right=not self.operand)

    def _is_type(self, position: int) -> bool:
        """Whether the tokens before `position` look like a C++ type, so that `*` and `&` hug it."""
        if self.previous in _TYPES or position - 1 in self.angles:
            return True
        if self.previous in ("*", "&"):
            return not self.tight
        before = self.tokens[position - 2] if position - 2 >= self.start else "const"
        named = self.operand and self.tokens[position + 1 : position + 2] and self.tokens[position + 1][0].isalpha()
        typed = before in ("const", "struct") or (before in ("(", ",") and self.previous[0].isupper() and not self.previous.isupper())
        return bool(named and typed and self.previous[-1].isalnum())

    def _step(self, position: int, token: str) -> None:
        """`++`, `--` or `...` before or behind its operand."""
        self._put(token, left=self.operand, right=not self.operand, operand=self.operand)

    def _angle(self, position: int, token: str) -> None:
        if position not in self.angles:
            self._put(token)
        elif token == "<":
            self._put(token, left=self.operand, right=True)
        else:
            self._put(token, left=True, operand=True)

    def _scope(self, position: int, token: str) -> None:
        self._put(token, left=self.operand, right=True)

    def _member(self, position: int, token: str) -> None:
        self._put(token, left=True, right=True)

    def _arrow(self, position: int, token: str) -> None:
        self._put(token, left=self.lang == "cpp", right=self.lang == "cpp")

    def _prefix(self, position: int, token: str) -> None:
        self._put(token, right=True)

    def _comma(self, position: int, token: str) -> None:
        self._put(token, left=True)


def _width(kind: str) -> int:
    """Indents of what stands in a block: the labels of a switch are one, their statements two deep."""
    return 2 if kind == "switch" else 1 if kind else 0


_HANDLERS = {
    "{": _Layout._open_brace,
    "}": _Layout._close_brace,
    ";": _Layout._semicolon,
    ":": _Layout._colon,
    "?": _Layout._question,
    "->": _Layout._arrow,
    ",": _Layout._comma,
    **dict.fromkeys("([", _Layout._open_bracket),
    **dict.fromkeys(")]", _Layout._close_bracket),
    **dict.fromkeys(("+", "-", "*", "&", "&&"), _Layout._sign),
    **dict.fromkeys(("++", "--", "..."), _Layout._step),
    **dict.fromkeys(("<", ">", ">>", ">>>"), _Layout._angle),
    **dict.fromkeys((".", "?."), _Layout._member),
    **dict.fromkeys("!~@", _Layout._prefix),
    "::": _Layout._scope,
}
