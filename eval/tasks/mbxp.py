"""MBXP (Athiwaratkun et al. 2022, arXiv:2210.14868), and MBPP and HumanEval in the same form.

Traps: in Python the tests only define `check`, which nobody calls; JavaScript's tests require lodash. Some rows have no reference.
"""

from typing import Any

from .humaneval_x import STOP
from .reading import before_entry
from .task import Task

KEYS = {"task_id", "prompt", "entry_point", "test", "description"}


def read(row: dict[str, Any], lang: str) -> Task:
    entry, braces = row["entry_point"], lang in ("java", "cpp")
    return Task(
        task_id=row["task_id"],
        lang=lang,
        text=row["description"],
        prompt=row["prompt"],
        entry=entry,
        trusted=row["prompt"] if braces else before_entry(row["prompt"], entry, lang),
        closing={"java": "}\n}\n", "cpp": "}\n"}.get(lang, ""),
        tests=row["test"] + (f"\ncheck({entry})\n" if lang == "python" else ""),
        reference=row.get("canonical_solution") or None,
        stop=STOP[lang],
    )
