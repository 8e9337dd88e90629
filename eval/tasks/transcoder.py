"""TransCoder's functions from GeeksforGeeks (Roziere et al. 2020, arXiv:2006.03511), each with a script that compares two functions.

The script holds a reference, `f_gold`, and expects `f_filled` at a mark. Traps: the name does not say what to write: a comment above it
does; it prints how many inputs agree and exits with 0 whatever the number; every Java script imports javafx's Pair, which no JDK has.
Arrays cross as vectors: a C++ script passes the address of a vector's first element, which is turned into the vector.
"""

import re
from typing import Any

from .humaneval_x import STOP
from .task import Task

KEYS = {"id", "f_gold", "script"}
_MARK = re.compile(r"^[ \t]*(//|#)[ \t]*TOFILL[ \t]*$", re.MULTILINE)
_RESULT = {  # what reports, and what takes its place
    "python": (r"print\(\"#Results: .*\)", "assert n_success == len(param), (n_success, len(param))"),
    "java": (
        r"System\.out\.println\(\"#Results:.*?(\w+(?:\.size\(\)|\.length))\);",
        r"if (n_success != \1) throw new AssertionError(n_success);",
    ),
    "cpp": (r"cout << \"#Results:.*?(\w+\.size\(\));", r"if (n_success != (int) \1) return 1;"),
}


def read(row: dict[str, Any], lang: str) -> Task:
    before, *rest = _MARK.split(row["script"])
    if len(rest) != 2 or lang not in _RESULT:
        raise ValueError(f"{row['id']} has no script with one TOFILL mark in a language of this set")
    tests, count = re.subn(*_RESULT[lang], rest[1])
    if count != 1:
        raise ValueError(f"{row['id']} reports its results in an unknown way")
    gold = row["f_gold"]
    if lang == "java":  # some rows hold the whole head of the file
        gold = gold[gold.rfind("\n", 0, gold.index("f_gold")) + 1 :]
    above = before[: before.index(gold.partition("(")[0].strip())]
    program = gold.replace("f_gold", "f_filled")
    place = program.index("{") + 1 if lang != "python" else program.index("\n", program.index("def f_filled")) + 1
    head, body = program[:place], program[place:]
    if lang == "java":
        above, before = (text.replace("import javafx.util.Pair;", "").replace("public class ", "class ") for text in (above, before))
    if lang == "cpp":
        tests = _vectors(tests)
    text = " ".join(row.get("text", "").split())
    asked = f"{'#' if lang == 'python' else '//'} {text}\n" if text else ""
    return Task(
        task_id=row["id"],
        lang=lang,
        text=text,
        prompt=above + asked + head,
        entry="f_filled",
        trusted=before if lang == "python" else before + "\n" + head,
        closing="" if lang == "python" else "}\n",
        tests=tests,
        reference=body + ("\n}\n" if lang == "java" else ""),
        stop=STOP[lang],
    )


def _vectors(tests: str) -> str:
    """`tests` with whole vectors in calls of f_filled, where a pointer to the first element stood."""
    for call in reversed(list(re.finditer(r"f_filled\(", tests))):
        depth, end = 1, call.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(tests[end], 0)
            end += 1
        arguments = re.sub(r"&(\w+\[i\])\.front\(\)", r"moe_wire::whole(\1)", tests[call.end() : end])
        tests = tests[: call.end()] + arguments + tests[end:]
    return tests
