"""One programming task, whatever set it is from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from model.languages import LANGUAGES, get_language

# A base goes on behind a program with the next prompt of the project's template.
NEXT_PROMPT = tuple(f"\n### {title}\n" for title in (*(language.title for language in LANGUAGES.values()), "Code"))
_FENCE = re.compile(r"^```([^\n`]*)$\n?", re.MULTILINE)  # group 1: the tag, which only a fence that opens has


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
    problem: str = ""  # of which the set has several wordings, each a task; "": it has this one alone

    def __post_init__(self) -> None:
        check_stop(self.stop)

    @property
    def group(self) -> str:
        """What tasks share that are not independent of each other."""
        return self.problem or self.task_id

    def program(self, completion: str) -> str:
        return self.preamble + self.prompt + completion + self.ending

    def cut(self, completion: str) -> str:
        """`completion` up to its first stop sequence."""
        return cut(completion, self.stop)


def unfenced(answer: str, lang: str) -> str:
    """A whole program as a chat model gives it: a fenced block of Markdown, or what ends at a lone closing fence; else all of `answer`.

    Of several blocks the first that is tagged as `lang`, else the first without a tag, else the longest. The last may be cut off.
    """
    fences = list(_FENCE.finditer(answer))
    tags = [fence[1].strip().lower().partition(" ")[0] for fence in fences]
    if not fences:
        return answer
    before = answer[: fences[0].start()]
    if before.strip() and _closes_first(tags):
        return before
    ends = [fence.start() for fence in fences[1::2]] + [len(answer)]
    blocks = [(tag, answer[fence.end() : end]) for tag, fence, end in zip(tags[::2], fences[::2], ends, strict=False)]
    language = get_language(lang)
    for wanted in ({language.name, language.title.lower(), language.suffix[1:]}, {""}):
        if named := [text for tag, text in blocks if tag in wanted]:
            return named[0]
    return max((text for _, text in blocks), key=len)


def _closes_first(tags: Sequence[str]) -> bool:
    """Whether the first of the fences with these `tags` ends a block whose opening is not there; the others open and close in turn."""
    closing_in_turn, after_a_lone_one = tags[1::2], tags[::2]
    return not any(after_a_lone_one) and (len(tags) % 2 == 1 or any(closing_in_turn))


def check_stop(stop: Sequence[str]) -> None:
    """ValueError for an empty stop text."""
    if "" in stop:
        raise ValueError("a stop text is empty: every completion would end before its first character")


def cut(completion: str, stop: Sequence[str]) -> str:
    """`completion` up to the first of the sequences `stop`."""
    return completion[: min((place for mark in stop if (place := completion.find(mark)) >= 0), default=len(completion))]
