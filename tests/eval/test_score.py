"""CodeBLEU: each correction, agreement with the package where it is right, and no sensitivity to what must not matter."""

import gzip
import json
import logging
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import pytest
from codebleu import calc_codebleu
from codebleu.dataflow_match import get_data_flow

from eval.lexer import code_tokens
from eval.score import PARTS, score_row, score_set
from model.languages import LANGUAGES

NO_DATAFLOW = 'int main() { puts("hi"); }'


@pytest.mark.parametrize("lang", LANGUAGES)
def test_identical_is_1_and_empty_is_0(programs: dict[str, str], lang: str) -> None:
    program = programs[lang]
    assert score_row(program, program, lang).codebleu == 1.0
    comment = "# only words" if lang == "python" else "// only words"
    for empty in ("", " \n\t", comment):
        score = score_row(program, empty, lang)
        assert score.codebleu == 0.0
        assert [getattr(score, part) for part in PARTS] == [0.0] * 4
    assert score_row(program, "", lang).codebleu_library == pytest.approx(0.25)  # the fault that is corrected


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_word_pass_scores_low(programs: dict[str, str], lang: str) -> None:
    score = score_row(programs[lang], "pass", lang)
    assert score.codebleu < 0.01
    assert score.codebleu_library >= 0.25


def test_a_missing_data_flow_is_left_out_and_the_weights_renormalised() -> None:
    prediction = 'int main() { puts("hello"); }'
    score = score_row(NO_DATAFLOW, prediction, "cpp")
    assert score.dataflow is None
    assert score.codebleu == pytest.approx((score.ngram + score.weighted_ngram + score.syntax) / 3)
    assert 0 < score.codebleu < 1
    assert score_row(NO_DATAFLOW, NO_DATAFLOW, "cpp").codebleu == 1.0


def test_rows_without_data_flow_do_not_enter_the_mean_of_the_part(programs: dict[str, str]) -> None:
    program = programs["cpp"]
    rows, figures = score_set([program, NO_DATAFLOW], [program, NO_DATAFLOW], "cpp")
    assert [row.dataflow for row in rows] == [1.0, None]
    assert figures["parts"]["dataflow"] == figures["parts_corpus"]["dataflow"] == 1.0
    _, figures = score_set([program, NO_DATAFLOW], ["", ""], "cpp")
    assert figures["codebleu"] == figures["codebleu_corpus"] == 0.0
    assert (figures["n"], figures["empty"]) == (2, 2)


@pytest.mark.parametrize("lang", ["java", "javascript", "cpp"])
def test_spacing_does_not_change_the_score(programs: dict[str, str], lang: str) -> None:
    respaced = " ".join(code_tokens(programs[lang], lang))
    assert score_row(programs[lang], respaced, lang).codebleu == 1.0
    assert score_row(programs[lang], respaced, lang).codebleu_library < 0.9


def test_python_spacing_within_lines_does_not_change_the_score(programs: dict[str, str]) -> None:
    respaced = programs["python"].replace("(", " ( ").replace(")", " ) ").replace(":", " :")
    assert score_row(programs["python"], respaced, "python").codebleu == 1.0


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_score_falls_as_the_prediction_is_cut(programs: dict[str, str], lang: str) -> None:
    lines = programs[lang].splitlines()
    scores = [score_row(programs[lang], "\n".join(lines[:count]), lang).codebleu for count in (len(lines), 3, 1, 0)]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_library_figure_and_the_parts_are_the_package_s(shared_data: Path, lang: str) -> None:
    references = _programs(shared_data, lang)[:30]
    predictions = references[1:] + references[:1]
    rows, figures = score_set(references, predictions, lang)
    package = calc_codebleu(references, predictions, lang)
    # the package's data flow differs between two of its own runs by as much as this, see the next test
    assert figures["codebleu_library_corpus"] == pytest.approx(package["codebleu"], abs=0.01)
    recall, precision = (
        calc_codebleu(*sides, lang, tokenizer=lambda text: code_tokens(text, lang))
        for sides in ((references, predictions), (predictions, references))
    )
    assert figures["parts_corpus"]["ngram"] == pytest.approx(recall["ngram_match_score"], abs=1e-12)
    for part in ("weighted_ngram", "syntax"):
        f1 = harmonic_mean([recall[f"{part}_match_score"], precision[f"{part}_match_score"]])
        assert figures["parts_corpus"][part] == pytest.approx(f1, abs=1e-12)
    flow = harmonic_mean([recall["dataflow_match_score"], precision["dataflow_match_score"]])
    assert figures["parts_corpus"]["dataflow"] == pytest.approx(min(flow, figures["parts_corpus"]["syntax"]), abs=0.04)
    assert figures["codebleu"] == pytest.approx(sum(row.codebleu for row in rows) / len(rows))


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_order_of_an_edge_s_sources_does_not_matter(shared_data: Path, lang: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package lists them in the order of a set of strings, which changes with PYTHONHASHSEED, and so does its score."""
    programs = _programs(shared_data, lang)[:30]
    before = score_set(programs, programs[1:] + programs[:1], lang)

    def reordered(code: str, parser: Any) -> list[Any]:
        return [(*edge[:3], edge[3][::-1], edge[4]) for edge in get_data_flow(code, parser)]

    monkeypatch.setattr("eval.score_parts.get_data_flow", reordered)
    assert score_set(programs, programs[1:] + programs[:1], lang) == before


def test_odd_predictions_are_scored_in_silence(programs: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    odd = ["\ud800 lone surrogate", "\x00\x01", "(" * 2000, "def " * 300, "é 漢字 ▁", "'''", '"' * 7, "\\" * 9, "x = " + "[" * 200]
    with caplog.at_level(logging.DEBUG):
        for lang, program in programs.items():
            rows, _ = score_set([program] * len(odd), odd, lang)
            assert all(0 <= row.codebleu < 0.5 for row in rows)
            score_row(NO_DATAFLOW, odd[0], "cpp")
    assert not caplog.records


def test_the_package_s_own_example_has_its_published_parts() -> None:
    """Of its README: 0.5537 from 0.1041, 0.1109, 1 and 1. The program is right, so nothing is corrected."""
    row = score_row("def sum ( first , second ) :\n return second + first", "def add ( a , b ) :\n return a + b", "python")
    assert (row.ngram, row.weighted_ngram, row.syntax, row.dataflow) == pytest.approx((0.1041, 0.1109, 1, 1), abs=1e-4)
    assert (row.codebleu, row.codebleu_library) == pytest.approx((0.5537, 0.5537), abs=1e-4)


def test_the_paper_s_examples_are_near_their_published_scores() -> None:
    """Toy examples of Ren et al. 2020: 0.7238 for wrong types and names, 0.8397 for renamed variables, by another grammar of Java."""
    reference = "public static int Sign ( double d ) { return ( int ) ( ( d == 0 ) ? 0 : ( d < 0 ) ? - 1 : 1) ; }"
    wrong = "public static int Sign ( double d ) { return ( float ) ( ( d == 0 ) ? 0 : ( c < 0.0 ) ? - 1 : 1) ; }"
    renamed = score_row(reference, reference.replace("double d", "double c").replace("( d ", "( c "), "java")
    assert score_row(reference, wrong, "java").codebleu_library == pytest.approx(0.7238, abs=0.05)
    assert renamed.codebleu_library == pytest.approx(0.8397, abs=0.05)
    assert (renamed.syntax, renamed.dataflow) == (1, 1)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="2 references but 1 predictions"):
        score_set(["a", "b"], ["a"], "python")
    with pytest.raises(ValueError, match="no cpp rows"):
        score_set([], [], "cpp")
    with pytest.raises(ValueError, match="holds no python code: '# nothing'"):
        score_row("# nothing", "x = 1", "python")
    with pytest.raises(ValueError, match="unknown language 'cobol'"):
        score_row("a", "a", "cobol")


def _programs(shared_data: Path, lang: str) -> list[str]:
    with gzip.open(shared_data / "pairs" / f"{lang}.test.jsonl.gz", "rt") as file:
        return [json.loads(line)["code"] for line in file]
