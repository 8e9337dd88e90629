"""Small programs in four languages, and evaluation runs made of hand-written samples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.runs import CODEBLEU
from model.output import output_folder, write_run

PROGRAMS = {
    "python": "def total(values):\n    result = 0\n    for value in values:\n        result += value\n    return result\n",
    "java": "static int total(int[] values) {\n    int result = 0;\n    for (int value : values) {\n        result += value;\n    }\n"
    "    return result;\n}\n",
    "javascript": "function total(values) {\n    let result = 0;\n    for (const value of values) {\n        result += value;\n    }\n"
    "    return result;\n}\n",
    "cpp": "int total(vector<int> values) {\n    int result = 0;\n    for (int value : values) {\n        result += value;\n    }\n"
    "    return result;\n}\n",
}

WriteRun = Callable[..., Path]


@pytest.fixture
def programs() -> dict[str, str]:
    return PROGRAMS


@pytest.fixture
def write_codebleu_run(tmp_path: Path) -> WriteRun:
    """write(name, role, {lang: {kind: [score of each point]}}, **facts) -> RUN; every second point is of the same problem."""

    def write(name: str, role: str, scores: dict[str, dict[str, list[float]]], **facts: Any) -> Path:
        samples, figures = [], {}
        for lang, kinds in scores.items():
            figures[lang] = {kind: {**_figures(values)} for kind, values in kinds.items()}
            for kind, values in kinds.items():
                samples += [_sample(lang, kind, index, score, name) for index, score in enumerate(values)]
        settings = {"split": "test", "limit": 50, "max_new_tokens": 100, "model": "a", "adapter": None, "data": {}, **facts}
        with output_folder(tmp_path / name) as folder:
            (folder / "samples.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples))
            write_run(folder, seed=0, figures=figures, program=CODEBLEU, name=name, role=role, **settings)
        return tmp_path / name

    return write


def _figures(values: list[float]) -> dict[str, Any]:
    mean = sum(values) / len(values)
    parts = {"ngram": mean, "weighted_ngram": mean, "syntax": mean, "dataflow": None}
    return {"n": len(values), "empty": 0, "codebleu": mean, "codebleu_corpus": mean, "codebleu_library": mean, "parts": parts}


def _sample(lang: str, kind: str, index: int, score: float, name: str) -> dict[str, Any]:
    row = {"id": f"{lang}/{kind}/{index}", "lang": lang, "kind": kind, "group": f"g{index // 2}", "text": f"text\u2028{index}"}
    return {**row, "reference": f"reference {index}", "prediction": f"<{name}> & {index}", "codebleu": score, "codebleu_library": score}
