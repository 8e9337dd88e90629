"""TransCoder's functions from GeeksforGeeks (Roziere et al. 2020, arXiv:2006.03511), each with a script that compares two functions on inputs.

The script holds a reference, `f_gold`, and expects `f_filled` at a mark. Traps: it prints how many inputs agree and exits with 0 whatever
the number; every Java script imports javafx's Pair, which no JDK has. Arrays cross as vectors: a C++ script passes the address of a vector's
first element, which is turned into the vector.
"""

import re
from typing import Any

from .task import Task

KEYS = {"id", "f_gold", "script"}
_MARK = re.compile(r"^[ \t]*(//|#)[ \t]*TOFILL[ \t]*$", re.MULTILINE)
_RESULT = {  # what reports, and what takes its place
    "python": (r"print\(\"#Results: .*\)", "assert n_success == len(param), (n_success, len(param))"),
    "java": (r"System\.out\.println\(\"#Results:.*?(\w+(?:\.size\(\)|\.length))\);", r"if (n_success != \1) throw new AssertionError(n_success);"),
    "cpp": (r"cout << \"#Results:.*?(\w+\.size\(\));", r"if (n_success != (int) \1) return 1;"),
}


def read(row: dict[str, Any], lang: str) -> Task:
    before, *rest = _MARK.split(row["script"])
    if len(rest) != 2 or lang not in _RESULT:
        raise ValueError(f"{row['id']} has no script with one TOFILL mark in a language of this set")
    tests, count = re.subn(*_RESULT[lang], rest[1])
    if count != 1:
        raise ValueError(f"{row['id']} reports its results in an unknown way")
    program = row["f_gold"].replace("f_gold", "f_filled")
    head, body = (program, "") if lang == "python" else re.split(r"(?<=\{)", program, maxsplit=1)
    if lang == "python":
        line = program.index("\n", program.index("def f_filled")) + 1
        head, body = program[:line], program[line:]
    imports = before[: before.index(row["f_gold"].split("(")[0].strip())] if row["f_gold"].split("(")[0].strip() in before else ""
    before, imports = (text.replace("import javafx.util.Pair;", "") for text in (before, imports))
    if lang == "cpp":
        tests = re.sub(r"f_filled\(.*", lambda call: re.sub(r"&(\w+\[i\])\.front\(\)", r"moe_wire::whole(\1)", call[0]).replace("f_gold(moe_wire::whole", "f_gold(moe_wire::whole"), tests)
    return Task(
        task_id=row["id"],
        lang=lang,
        text=row.get("text", ""),
        prompt=imports + head,
        entry="f_filled",
        trusted=before if lang == "python" else before + "\n" + head,
        closing="" if lang == "python" else "}\n",
        tests=tests,
        reference=body + ("\n}\n" if lang == "java" else ""),
    )
