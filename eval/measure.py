"""Everything that is measured of the completions in one language: rows of `samples.jsonl`, and figures with bootstrap intervals."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from model.languages import get_language
from train.data.pairs import Pair

from .answers import Loss
from .bootstrap import LEVEL, bootstrap
from .score import PARTS, score_set
from .tables import METRIC_TITLES, cell, few_note
from .text_metrics import text_score

Compiler = Callable[[Sequence[str], str], list["bool | None"]]  # programs, language


def measure_completions(
    lang: str,
    kinds: dict[str, list[Pair]],
    completions: Sequence[str],
    seed: int,
    compiler: Compiler | None = None,
    losses: Sequence[Loss] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures by kind and the rows of `samples.jsonl`; `completions` and `losses` in the order of the points of all kinds.

    `compiler` says which programs compile, None for those that it could not look at: they leave the rate, and "uncompiled" counts them.
    """
    figures: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    remaining, remaining_losses = iter(completions), iter(losses or ())
    for kind, points in kinds.items():
        predictions = list(islice(remaining, len(points)))
        references = [point.code for point in points]
        scores, figures[kind] = score_set(references, predictions, lang)
        rows = []
        for point, prediction, score in zip(points, predictions, scores, strict=True):
            about = {"id": point.id, "lang": lang, "kind": kind, "group": point.group, "text": point.text, "reference": point.code}
            measured = {**asdict(score), **asdict(text_score(point.code, prediction, lang))}
            rows.append({**about, "prediction": prediction, **measured})
        if compiler:
            for name, programs in (("compiles", predictions), ("reference_compiles", references)):
                for row, verdict in zip(rows, compiler(programs, lang), strict=True):
                    row[name] = verdict
            figures[kind]["uncompiled"] = sum(row["compiles"] is None for row in rows)
        if losses is not None:
            for row, loss in zip(rows, islice(remaining_losses, len(points)), strict=True):
                row |= {"reference_nats": loss.nats, "reference_tokens": loss.tokens}
            figures[kind]["loss"] = sum(row["reference_nats"] for row in rows) / sum(row["reference_tokens"] for row in rows)
        figures[kind]["metrics"] = estimates(rows, f"{seed}/{lang}/{kind}")
        samples += rows
    return figures, samples


def estimates(rows: Sequence[dict[str, Any]], seed: str) -> dict[str, dict[str, Any]]:
    """{metric or part: {"value", "low", "high", "n"}} over the rows that have it; intervals by a bootstrap over problems (`group`)."""
    found = {}
    for name in (*METRIC_TITLES, *PARTS):
        present = [row for row in rows if row.get(name) is not None]
        if present:
            values = [float(row[name]) for row in present]
            estimate = bootstrap({name: ([row["group"] for row in present], {name: values})}, f"{seed}/{name}")[name][name]
            found[name] = {**estimate.as_dict(), "n": len(present)}
    return found


def score_table(figures: dict[str, dict[str, Any]], name: str) -> str:
    """The figures as aligned text, x 100: CodeBLEU with its parts, then every metric with its interval."""
    columns = ("CodeBLEU", "corpus", "library", "n-gram", "keywords", "syntax", "data flow")
    lines = [f"{name + ' (x 100)':<24}{'n':>5}{'empty':>7}" + "".join(f"{column:>10}" for column in columns)]
    for lang, kinds in figures.items():
        for kind, row in kinds.items():
            values = [row["codebleu"], row["codebleu_corpus"], row["codebleu_library"], *(row["parts"][part] for part in PARTS)]
            cells = "".join(f"{'-' if value is None else format(100 * value, '.1f'):>10}" for value in values)
            lines.append(f"{get_language(lang).title + ', ' + kind:<24}{row['n']:>5}{row['empty']:>7}{cells}")
    shown = [metric for metric in METRIC_TITLES if any(metric in row["metrics"] for kinds in figures.values() for row in kinds.values())]
    marked: list[str] = []
    lines.append(f"\n{f'[{LEVEL} % interval]':<24}" + "".join(f"{METRIC_TITLES[metric]:>22}" for metric in shown))
    for lang, kinds in figures.items():
        for kind, row in kinds.items():
            texts = [" ".join(cell(metric, row["metrics"].get(metric))).strip() for metric in shown]
            lines.append(f"{get_language(lang).title + ', ' + kind:<24}" + "".join(f"{text:>22}" for text in texts))
            marked += texts
    return "\n".join(line for line in (*lines, few_note(marked)) if line)
