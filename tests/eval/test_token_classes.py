"""Characters' classes against Pygments' lexers, tokens' against their text, the figure of specialisation against scikit-learn's."""

from typing import Any

import numpy as np
import pytest
from pygments.lexers import get_lexer_by_name
from pygments.token import Token

from eval.specialisation import class_shares, normalised_mutual_information
from eval.token_classes import CLASSES, character_classes, token_classes

EXTRA = {
    "python": '# a note\nx = f(1.5, "two words") if not y else None\nimport os  # later\n',
    "java": '// a note\nclass A { double x = f(1.5, "two words"); /* or\n so */ boolean ok = true; Object o = null; }\n',
    "javascript": '// a note\nconst x = f(1.5, "two words", `t`); /* or\n so */ if (!x) { throw null; }\n',
    "cpp": "// a note\nint y = 3; double x = f(1.5, \"two words\", 'c'); /* or\n so */ bool ok = true;\n",
}


def by_pygments(code: str, lang: str) -> list[str]:
    lexer = get_lexer_by_name(lang, stripnl=False, ensurenl=False)
    classes = []
    for kind, text in lexer.get_tokens(code):
        if kind in Token.Comment:
            classes += ["comment"] * len(text.rstrip("\n")) + ["whitespace"] * text.endswith("\n")
            continue
        if kind in Token.Literal or kind in Token.Keyword.Constant or text in ("true", "false"):
            name = "literal"
        elif kind in Token.Operator or kind in Token.Punctuation:
            name = "keyword" if text.isalpha() else "operator"  # `not`, `in`
        elif kind in Token.Keyword:
            name = "keyword"
        else:
            name = "identifier"
        classes += ["whitespace" if sign.isspace() and name != "literal" else name for sign in text]
    return classes


@pytest.mark.parametrize("lang", ["python", "java", "javascript", "cpp"])
def test_characters_are_what_another_lexer_says(lang: str, programs: dict[str, str]) -> None:
    code = programs[lang] + EXTRA[lang]
    expected, found = by_pygments(code, lang), character_classes(code, lang)
    assert len(expected) == len(found) == len(code)
    assert [(sign, a, b) for sign, a, b in zip(code, expected, found, strict=True) if a != b] == []
    assert set(found) == set(CLASSES) - {"end"}


def test_docstrings_text_beyond_ascii_and_broken_programs() -> None:
    code = 'def f():\n    """größe — notes"""\n    größe = 1\n'
    classes = character_classes(code, "python")
    assert set(classes[code.index('"""') : code.index("größe =") - 5]) == {"comment"}
    start = code.index("größe =")
    assert classes[start : start + 9] == ["identifier"] * 5 + ["whitespace", "operator", "whitespace", "literal"]
    assert len(character_classes("((( ¿ what\n", "java")) == 11
    assert character_classes("", "cpp") == []


def test_a_token_is_what_its_visible_characters_are(tokenizer: Any, programs: dict[str, str]) -> None:
    for lang, code in programs.items():
        classes = [CLASSES[index] for index in token_classes(code, lang, tokenizer)]
        ids = tokenizer(code, add_special_tokens=False)["input_ids"]
        texts = [tokenizer.decode([token]) for token in ids]
        assert len(classes) == len(ids) + 1
        assert classes[-1] == "end"
        for text, name in zip(texts, classes, strict=False):
            assert (name == "whitespace") == (not text.strip())
            assert not (name == "operator" and text.strip().isalnum())
        assert dict(zip((text.strip() for text in texts), classes, strict=False))["return"] == "keyword"


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="need a fast tokenizer"):
        token_classes("x", "cpp", type("Slow", (), {"is_fast": False})())


def test_mutual_information_is_scikit_learns() -> None:
    # sklearn.metrics.normalized_mutual_info_score of scikit-learn 1.9.1 on labels with these counts
    assert normalised_mutual_information([[5, 1, 0], [2, 7, 3]]) == pytest.approx(0.28433244943253144)
    assert normalised_mutual_information([[8, 0, 1], [1, 9, 0], [2, 2, 2], [0, 0, 6]]) == pytest.approx(0.550574560812553)
    assert normalised_mutual_information(np.eye(4) / 4) == pytest.approx(1)
    assert normalised_mutual_information([[3, 3], [3, 3]]) == pytest.approx(0)
    assert normalised_mutual_information([[4, 0], [0, 0]]) is None


def test_shares_of_classes_are_of_their_own_tokens() -> None:
    by_class = np.zeros((2, len(CLASSES), 2))
    by_class[:, CLASSES.index("keyword")] = [[0.1, 0.1], [0.2, 0.0]]
    by_class[:, CLASSES.index("literal")] = [[0.0, 0.8], [0.4, 0.4]]
    shares = class_shares({"by_class": by_class.tolist()}, own=0)
    assert list(shares) == ["keyword", "literal"]
    assert shares["keyword"]["share"] == pytest.approx(0.2)
    assert shares["keyword"]["top1"] == pytest.approx([0.75, 0.25])
    assert shares["literal"]["own"] == pytest.approx(0.25)
