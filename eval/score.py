"""CodeBLEU (Ren et al. 2020, arXiv:2009.10297) on top of the `codebleu` package, with its known faults corrected.

CodeBLEU = mean of four parts, each in [0, 1]: BLEU-4 over code tokens; n-grams with keywords weighted five times; syntax subtrees;
data-flow edges. The package extracts and counts.

| fault of codebleu 0.7.0 | here |
|---|---|
| a data-flow score of 0 counts as 1, so an empty prediction scores 0.25 | 0 counts as 0; a prediction without any code token scores 0 |
| a reference without data flow counts as a full match | that part is left out and the other weights are renormalised |
| prose has data flow (a word used again is a variable used again): a task's text scores 0.15 | data flow counts at most as much as syntax |
| three parts are recalls: ten other programs in a row score 0.4, as much as a right one | F1 of recall and precision |
| tokens by `str.split`: the same program with other spacing scores 0.66 | tokens by the language's lexer (`eval.lexer`) |
| edges list their sources in the order of a `set` of names: the score changes with PYTHONHASHSEED | sources in order of first appearance |
| a prediction of 20,000 brackets in each other ends the process | past 500, or 100,000 characters, it counts as no code |
| one warning a row on the root logger; an exception on text that is not valid Unicode | neither |

`codebleu` is the corrected score; its mean over rows is the headline figure. `codebleu_corpus` sums counts over the rows before dividing,
as the package does. `codebleu_library` is the package's own formula (spaces separate, 0 counts as 1), for comparison with the literature.
docs/metrics.md has the measurements behind the rules.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from .lexer import code_tokens
from .score_parts import (
    DEEPEST,
    LONGEST,
    Match,
    bare_program,
    bleu,
    clean,
    dataflow_match,
    f1,
    matched,
    measurable,
    syntax_match,
    weighted_recall,
)

PARTS = ("ngram", "weighted_ngram", "syntax", "dataflow")


@dataclass(frozen=True)
class Score:
    """Of one row or of a set; all in [0, 1]. `codebleu` is the mean of the four parts; `dataflow` is None where no reference has any."""

    ngram: float
    weighted_ngram: float
    syntax: float
    dataflow: float | None
    codebleu: float
    codebleu_library: float


def score_row(reference: str, prediction: str, lang: str) -> Score:
    """CodeBLEU of one prediction; `ValueError` if the reference holds no code."""
    return _combine([_evidence(reference, prediction, lang)], lang)


def score_set(references: Sequence[str], predictions: Sequence[str], lang: str) -> tuple[list[Score], dict[str, Any]]:
    """Scores of the rows, and the set's figures: `codebleu` (mean of rows), `codebleu_corpus`, both library figures, each part likewise.

    About 10 ms a row, so a set of some hundreds needs no second process.
    """
    if len(references) != len(predictions):
        raise ValueError(f"{len(references)} references but {len(predictions)} predictions")
    if not references:
        raise ValueError(f"there are no {lang} rows to score")
    pairs = tqdm(list(zip(references, predictions, strict=True)), desc=f"score {lang}", unit="program", disable=None)
    evidence = [_evidence(reference, prediction, lang) for reference, prediction in pairs]
    rows, corpus = [_combine([row], lang) for row in evidence], _combine(evidence, lang)
    figures = {
        "n": len(rows),
        "empty": sum(not row.tokens for row in evidence),
        "codebleu": mean_of(row.codebleu for row in rows),
        "codebleu_corpus": corpus.codebleu,
        "codebleu_library": mean_of(row.codebleu_library for row in rows),
        "codebleu_library_corpus": corpus.codebleu_library,
        "parts": {part: mean_of(getattr(row, part) for row in rows) for part in PARTS},
        "parts_corpus": {part: getattr(corpus, part) for part in PARTS},
    }
    return rows, figures


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; None if none is."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


@dataclass(frozen=True)
class _Evidence:
    """What one row adds to any score: tokens for the n-grams, matches of subtrees and of data-flow edges."""

    ref_tokens: list[str]
    tokens: list[str]
    ref_words: list[str]
    words: list[str]
    syntax: Match
    dataflow: Match


def _evidence(reference: str, prediction: str, lang: str) -> _Evidence:
    if not measurable(reference, lang) and clean(reference):
        raise ValueError(f"a reference may have {LONGEST} characters and {DEEPEST} brackets in each other: {reference[:60]!r}")
    reference, prediction = clean(reference), measurable(prediction, lang)
    tokens = code_tokens(reference, lang)
    if not tokens:
        raise ValueError(f"this reference holds no {lang} code: {reference[:60]!r}")
    bare_reference, bare_prediction = bare_program(reference, lang), bare_program(prediction, lang)
    return _Evidence(
        ref_tokens=tokens,
        tokens=code_tokens(prediction, lang),
        ref_words=reference.split(),
        words=prediction.split(),
        syntax=syntax_match(bare_reference, bare_prediction, lang),
        dataflow=dataflow_match(bare_reference, bare_prediction, lang),
    )


def _combine(rows: Sequence[_Evidence], lang: str) -> Score:
    """The score of rows taken together: n-gram, subtree and edge counts are summed before dividing."""
    (syntax, syntax_found), (flow, flow_found) = matched([row.syntax for row in rows]), matched([row.dataflow for row in rows])
    references, predictions = [row.ref_words for row in rows], [row.words for row in rows]
    library = [bleu(references, predictions), weighted_recall(references, predictions, lang), syntax_found, flow_found or 1.0]
    has_flow = any(row.dataflow.expected for row in rows)
    if not any(row.tokens for row in rows):
        return Score(0.0, 0.0, 0.0, 0.0 if has_flow else None, 0.0, sum(library) / 4)
    references, predictions = [row.ref_tokens for row in rows], [row.tokens for row in rows]
    ngram = bleu(references, predictions)
    weighted = f1(weighted_recall(references, predictions, lang), weighted_recall(predictions, references, lang))
    dataflow = min(flow, syntax) if has_flow else None
    parts = [part for part in (ngram, weighted, syntax, dataflow) if part is not None]
    return Score(ngram, weighted, syntax, dataflow, sum(parts) / len(parts), sum(library) / 4)
