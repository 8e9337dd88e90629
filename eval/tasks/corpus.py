"""The embedded corpus's test rows: a description in words, a whole program as the completion.

The text names no function, so a program may call its own as it likes: the last one that it defines is taken.
"""

from typing import Any

from .reading import before_entry
from .task import NEXT_PROMPT, Task

KEYS = {"task_id", "entry_point", "text", "code", "cases", "test"}
_PREAMBLE = {"cpp": "using namespace std;\n", "java": "import java.util.*;\n"}


def read(row: dict[str, Any], lang: str) -> Task:
    entry, code, preamble = row["entry_point"], row["code"], _PREAMBLE.get(lang, "")
    tests, closing = row["test"], ""
    if lang in ("java", "cpp"):
        trusted = preamble + _to_body(code, entry)
        closing = {"java": "}\n}\n", "cpp": "}\n"}[lang]
    else:
        trusted = before_entry(code, entry, lang)
    return Task(
        task_id=row["task_id"],
        lang=lang,
        text=row["text"],
        prompt="",
        preamble=preamble,
        entry=entry,
        trusted=trusted,
        closing=closing,
        tests=tests,
        reference=code,
        stop=NEXT_PROMPT,
        whole=True,
        problem=row.get("family", ""),
    )


def _to_body(code: str, entry: str) -> str:
    """Java or C++ `code` up to the opening brace of `entry`."""
    lines = code.splitlines(keepends=True)
    place = max(number for number, line in enumerate(lines) if f" {entry}(" in line and line.rstrip().endswith("{"))
    return "".join(lines[: place + 1])
