"""Measures of likeness over real programs: identity, nothing, layout, symmetry, deletion; and what must not pay."""

import gzip
import json
import random
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest

from benchmarks.text_metrics import predictions
from eval.score import PARTS, score_row
from eval.text_metrics import TEXT_METRICS, text_score
from model.languages import LANGUAGES
from train.data.pairs import Pair

LIKENESS = ("edit_similarity", "chrf")


@pytest.fixture(scope="module")
def rows(shared_data: Path) -> dict[str, list[Pair]]:
    """16 test rows a language."""
    found = {}
    for lang in LANGUAGES:
        with gzip.open(shared_data / "pairs" / f"{lang}.test.jsonl.gz", "rt") as file:
            read = [json.loads(line) for line in file]
        chosen = random.Random(1).sample(read, 16)
        found[lang] = [Pair(row["text"], row["code"], lang, row["id"], row["group"], "") for row in chosen]
    return found


def measured(reference: str, prediction: str, lang: str) -> dict[str, float]:
    return {**vars(text_score(reference, prediction, lang)), "codebleu": score_row(reference, prediction, lang).codebleu}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_identity_is_1_and_nothing_is_0(rows: dict[str, list[Pair]], lang: str) -> None:
    comment = "# " if lang == "python" else "// "
    for row in rows[lang]:
        same = measured(row.code, row.code, lang)
        assert same == pytest.approx(dict.fromkeys(same, 1.0))
        for nothing in ("", " \n", comment + " ".join(row.text.split())):
            assert set(measured(row.code, nothing, lang).values()) == {0.0}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_layout_and_comments_change_nothing(rows: dict[str, list[Pair]], lang: str) -> None:
    comment = "# not of it" if lang == "python" else "// not of it"
    for index, row in enumerate(rows[lang]):
        respaced = predictions(rows[lang], index, lang, 0)["in other layout"]
        assert respaced != row.code
        assert measured(row.code, f"{comment}\n{respaced}\n\n{comment}\n", lang) == pytest.approx(measured(row.code, row.code, lang))


def test_indentation_in_python_is_content() -> None:
    inside, after = "for a in b:\n    c(a)\n    d(a)\n", "for a in b:\n    c(a)\nd(a)\n"
    assert text_score(inside, after, "python").exact_match == 0.0
    assert text_score(inside, inside.replace("    ", "\t"), "python").exact_match == 1.0


@pytest.mark.parametrize("lang", LANGUAGES)
def test_sides_can_be_swapped(rows: dict[str, list[Pair]], lang: str) -> None:
    """All but BLEU (a precision with a brevity penalty) and chrF (recall weighs twice)."""
    for one, other in pairwise(rows[lang]):
        there, back = score_row(one.code, other.code, lang), score_row(other.code, one.code, lang)
        for part in ("weighted_ngram", "syntax"):
            assert getattr(there, part) == pytest.approx(getattr(back, part))
        if there.dataflow is not None and back.dataflow is not None:
            assert there.dataflow == pytest.approx(back.dataflow)
        texts = text_score(one.code, other.code, lang), text_score(other.code, one.code, lang)
        assert texts[0].edit_similarity == pytest.approx(texts[1].edit_similarity)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_mean_falls_with_every_tenth_that_is_cut_off(rows: dict[str, list[Pair]], lang: str) -> None:
    """In the mean over programs. A single one may rise: a cut can mend what an earlier one broke."""
    means = []
    for tenths in range(10, -1, -2):
        cut = [
            measured(row.code, "\n".join(row.code.splitlines()[: len(row.code.splitlines()) * tenths // 10]), lang) for row in rows[lang]
        ]
        means.append({name: mean(row[name] for row in cut) for name in ("codebleu", *LIKENESS)})
    for before, after in pairwise(means):
        assert all(after[name] < before[name] for name in before)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_what_is_no_answer_scores_below_every_kind_of_answer(rows: dict[str, list[Pair]], lang: str) -> None:
    scored: dict[str, list[float]] = {}
    library: dict[str, list[float]] = {}
    for index, row in enumerate(rows[lang][:8]):
        for name, text in predictions(rows[lang], index, lang, 0).items():
            score = score_row(row.code, text, lang)
            scored.setdefault(name, []).append(score.codebleu)
            library.setdefault(name, []).append(score.codebleu_library)
            assert score.dataflow is None or score.dataflow <= score.syntax
            parts = [part for part in (getattr(score, part) for part in PARTS) if part is not None]
            assert score.codebleu == pytest.approx(mean(parts))
    means = {name: mean(values) for name, values in scored.items()}
    answers = ["the reference", "variables renamed", "one sign dropped", "first 80 % of the lines", "first half of the lines"]
    fakes = ["prose", "prose, a word a line", "the prompt", "keywords", "its commonest name, repeated", "another row's program"]
    least = min(means[name] for name in answers)
    assert all(means[name] < least / 2 for name in (*fakes, "ten other programs"))
    assert mean(library["prose"]) > 2 * means["prose"]  # what is corrected
    assert mean(library["ten other programs"]) > 2 * means["ten other programs"]


def test_figures_of_others() -> None:
    """The example of the package's README; an edit distance by hand."""
    prediction, reference = "def add ( a , b ) :\n return a + b", "def sum ( first , second ) :\n return second + first"
    score = score_row(reference, prediction, "python")
    assert score.codebleu_library == pytest.approx(0.5537, abs=1e-4)
    assert (score.ngram, score.syntax, score.dataflow) == (pytest.approx(0.1041, abs=1e-4), 1.0, 1.0)
    assert text_score("a = b + c", "a = d + c * e", "python").edit_similarity == pytest.approx(1 - 3 / 7)
    assert tuple(vars(text_score("a", "b", "python"))) == TEXT_METRICS


@pytest.mark.parametrize("odd", ["\ud800 lone", "\x00", "(" * 500, "é 漢字 ▁", '"' * 7])
def test_odd_text_is_measured(odd: str) -> None:
    for lang in LANGUAGES:
        assert all(
            0 <= value <= 1 for value in vars(text_score("int a = f ( b ) ;" if lang != "python" else "a = f(b)", odd, lang)).values()
        )
