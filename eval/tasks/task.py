"""One programming task, whatever set it is from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A program is `prompt` + completion. The tests run as `trusted` + a call to the program + `closing` + `tests`.

    `trusted` is what the tests need of the prompt. In Python and JavaScript it stops before the function `entry`; in Java and C++ it ends with
    that function's opening brace, `closing` ends what it opened, and types are read from it.
    """

    task_id: str
    lang: str
    text: str  # what the program should do, in words
    prompt: str
    entry: str
    trusted: str
    tests: str
    closing: str = ""
    reference: str | None = None  # a completion that should pass
    stop: tuple[str, ...] = ()  # a completion ends before the first of these
