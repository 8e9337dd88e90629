"""Token form, and that the loader's decoder gives the program back."""

import re

import pytest

from model.languages import LANGUAGES
from train.corpus.definition import load_families
from train.corpus.encode import encode
from train.corpus.variants import Programs, variants
from train.data.xlcost import decode


def test_python_layout_and_strings_become_marks() -> None:
    code = 'def f(s):\n    if s == "a b":\n        return ""\n    return "\\n"\n'
    assert encode(code, "python") == (
        'def f ( s ) : NEW_LINE INDENT if s == " a ▁ b " : NEW_LINE INDENT return " " NEW_LINE DEDENT return " STRNEWLINE " NEW_LINE DEDENT'
    )


def test_c_like_code_is_one_line_but_for_directives() -> None:
    code = "#include <string>\nusing namespace std;\n\nint f(const string& s) {\n    return s[0] == ' ' ? 1 : -x++;\n}\n"
    assert encode(code, "cpp") == (
        "#include <string> NEW_LINE using namespace std ; int f ( const string & s ) { return s [ 0 ] == ' ▁ ' ? 1 : - x ++ ; }"
    )


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_decoder_gives_every_program_back(lang: str) -> None:
    programs, families = Programs(load_families()), load_families()
    for row in families.values():
        code = programs.printed(variants(row)[0], lang).code
        decoded = decode(encode(code, lang), lang)
        assert encode(decoded, lang) == encode(code, lang)
        assert re.sub(r"\s", "", decoded) == re.sub(r"\s", "", code)
