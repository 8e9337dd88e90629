"""MultiPL-E (Cassano et al. 2022, arXiv:2208.08227): HumanEval and MBPP in many languages. For evaluation only, says its licence.

The tests of Java and C++ begin with the brace that ends the function: stop sequences cut it from a completion. No references.
Trap: every Java prompt imports org.javatuples.
"""

from typing import Any

from .reading import before_entry, last_function
from .task import Task

KEYS = {"name", "prompt", "tests", "stop_tokens", "language"}
_NAMES = {"py": "python", "js": "javascript", "java": "java", "cpp": "cpp"}


def read(row: dict[str, Any], lang: str) -> Task:
    if _NAMES.get(row["language"]) != lang:
        raise ValueError(f"{row['name']} is in {row['language']!r}, not in {lang}")
    prompt, tests, closing = row["prompt"], row["tests"], ""
    entry = last_function(prompt, lang)
    if lang in ("java", "cpp"):
        # The brace moves to the program's end: the tests are compiled apart from it.
        closing, tests = "}\n", tests.lstrip().removeprefix("}")
    return Task(
        task_id=row["name"],
        lang=lang,
        text=" ".join(line.strip("/#* \"'") for line in prompt.splitlines() if line.strip().startswith(("//", "#", '"""', "*"))),
        prompt=prompt,
        entry=entry,
        trusted=prompt if closing else before_entry(prompt, entry, lang),
        closing=closing,
        tests=tests,
        ending={"java": "\n    }\n}\n", "cpp": "\n}\n"}.get(lang, ""),
        stop=tuple(row["stop_tokens"]),
    )
