"""One programming task, whatever set it is from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from model.languages import LANGUAGES

# A base goes on behind a program with the next prompt of the project's template.
NEXT_PROMPT = tuple(f"\n### {title}\n" for title in (*(language.title for language in LANGUAGES.values()), "Code"))
_FENCED = re.compile(r"^```[^\n`]*\n(.*?)(?:^```|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Task:
    """A program is `preamble` + `prompt` + completion + `ending`. The tests run as `trusted` + a call to it + `closing` + `tests`.

    `trusted` is what the tests need of the prompt. In Python and JavaScript it stops before the function `entry`; in Java and C++ it ends
    inside that function, `closing` ends what it opened, and types are read from it.
    """

    task_id: str
    lang: str
    text: str  # what the program should do, in words
    prompt: str
    entry: str
    trusted: str
    tests: str
    closing: str = ""
    preamble: str = ""  # not shown to the model
    ending: str = ""  # what stop sequences cut off a completion
    reference: str | None = None  # a completion that should pass
    stop: tuple[str, ...] = ()  # a completion ends before the first of these
    whole: bool = False  # the completion is a whole program, asked for by `text`, and may name its function itself
    classes: bool = False  # the tests use a program's module or classes, whose objects stay in its process

    def program(self, completion: str) -> str:
        return self.preamble + self.prompt + completion + self.ending

    def cut(self, completion: str) -> str:
        """`completion` up to its first stop sequence."""
        return cut(completion, self.stop)


def unfenced(answer: str) -> str:
    """A whole program as a chat model gives it: the text of the first fenced block of Markdown, else all of `answer`."""
    found = _FENCED.search(answer)
    return found[1] if found else answer


def cut(completion: str, stop: Sequence[str]) -> str:
    """`completion` up to the first of the sequences `stop`."""
    return completion[: min((place for mark in stop if (place := completion.find(mark)) >= 0), default=len(completion))]
