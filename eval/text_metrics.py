"""What CodeBLEU does not say of a program's text: exact match, edit similarity, chrF, and whether it parses.

All four read the tokens of the language's lexer (`eval.lexer`), so layout in brace languages and comments change none of them. Published
figures are of raw text, where they do.
"""

from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein
from sacrebleu.metrics import CHRF

from train.data.filters import parses

from .lexer import code_tokens
from .score_parts import bare_program, measurable, subtrees

TEXT_METRICS = ("exact_match", "edit_similarity", "chrf", "parses")
_CHRF = CHRF()  # Popovic 2015: character 6-grams without spaces, recall weighted twice


@dataclass(frozen=True)
class TextScore:
    """Of one row, each in [0, 1]; `exact_match` and `parses` are 0 or 1."""

    exact_match: float
    edit_similarity: float
    chrf: float
    parses: float


def text_score(reference: str, prediction: str, lang: str) -> TextScore:
    """All 0 for a prediction without code, or with more of it than `measurable` takes.

    exact_match: the same tokens in the same syntax tree (Python's indentation is in the tree alone). edit_similarity: 1 - the tokens to
    insert, delete or replace / the longer side's (Levenshtein). parses: the grammar reads all of it, which a fragment of a program may too.
    """
    reference, prediction = measurable(reference, lang), measurable(prediction, lang)
    expected, given = code_tokens(reference, lang), code_tokens(prediction, lang)
    if not given:
        return TextScore(0.0, 0.0, 0.0, 0.0)
    return TextScore(
        exact_match=float(expected == given and _tree(reference, lang) == _tree(prediction, lang)),
        edit_similarity=Levenshtein.normalized_similarity(expected, given),
        chrf=_CHRF.sentence_score(" ".join(given), [" ".join(expected)]).score / 100,
        parses=float(parses(prediction, lang)),
    )


def _tree(code: str, lang: str) -> str:
    return subtrees(bare_program(code, lang), lang)[0]
