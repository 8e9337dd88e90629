"""HumanEval-X (Zheng et al. 2023, arXiv:2303.17568): 164 problems in each language.

Traps: C++ references leave their own includes to the runner, which has every standard header; JavaScript asserts with console.assert, which
in node neither throws nor changes the exit status (the harness replaces it).
"""

from typing import Any

from .reading import before_entry, last_function
from .task import Task

KEYS = {"task_id", "prompt", "canonical_solution", "declaration", "test"}
STOP = {  # Java's function stands in a class, whose brace would be missing if a `main` behind it were cut off
    "python": ("\ndef ", "\nclass ", "\nif __name__", "\nprint(", "\nassert ", "\n#", "\n@"),
    "java": ("\nclass ", "\npublic class ", "\nimport ", "\npackage ", "\n//", "\n/*"),
    "javascript": ("\nconst ", "\nfunction ", "\nconsole.", "\nlet ", "\nvar ", "\n//", "\n/*"),
    "cpp": ("\nint main", "\n#include", "\n/*", "\n//"),
}


def read(row: dict[str, Any], lang: str) -> Task:
    entry = last_function(row["declaration"], lang)
    braces = lang in ("java", "cpp")
    return Task(
        task_id=row["task_id"],
        lang=lang,
        text=row.get("text", ""),
        prompt=row["prompt"],
        entry=entry,
        trusted=row["declaration"] if braces else before_entry(row["declaration"], entry, lang),
        closing={"java": "}\n}\n", "cpp": "}\n"}.get(lang, ""),
        tests=row["test"],
        reference=row["canonical_solution"],
        stop=STOP[lang],
    )
