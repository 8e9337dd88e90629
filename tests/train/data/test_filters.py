"""Every rule on rows at both sides of its threshold; near duplicates against the quadratic definition."""

import random

import pytest

from train.data.filters import (
    has_long_line,
    has_long_mean_line,
    is_generated,
    is_mostly_symbols,
    near_duplicates,
    parses,
    repeated,
    squeeze,
)


def test_long_lines() -> None:
    assert has_long_line("x" * 1001) and has_long_line("a = 1\n" + "x" * 1001 + "\n")
    assert not has_long_line("x" * 1000 + "\n" + "y" * 1000)


def test_mean_line() -> None:
    assert has_long_mean_line("x" * 202 + "\n\n")
    assert not has_long_mean_line("x" * 200 + "\n\n")


def test_alphanumeric_share_counts_white_space() -> None:
    assert is_mostly_symbols("a   +")
    assert not is_mostly_symbols("a  +")
    assert is_mostly_symbols("\n")


def test_generated_by_the_first_five_lines() -> None:
    assert is_generated("\n\n\n\n// This file is Auto-Generated.\nint x;")
    assert not is_generated("\n\n\n\n\n// This file is auto-generated.\nint x;")


@pytest.mark.parametrize(
    ("lang", "good", "bad"),
    [
        ("python", "def f(a):\n    return a or 1\n", "def f(a):\n    return a 1\n"),
        ("java", "class A { boolean f(int n) { return n == 0 || n == 1; } }", "class A { boolean f(int n) { return n == 0 n == 1; } }"),
        ("javascript", "if (n == 0 || m == 0) f();", "if (n == 0 m == 0) f();"),
        ("cpp", "int f(int n) { if (n == 0 || n == 1) return 1; }", "int f(int n) { if (n == 0 n == 1) return 1; }"),
    ],
)
def test_parser_of_each_language(lang: str, good: str, bad: str) -> None:
    assert parses(good, lang) and not parses(bad, lang)


def test_parser_sees_a_missing_bracket() -> None:
    assert not parses("int main() { return 0;", "cpp")


def test_repeated_by_squeezed_code() -> None:
    assert repeated([squeeze("a = 1\n"), squeeze("b"), squeeze(" a=1")]) == [False, False, True]


def test_near_duplicates_are_those_of_the_definition() -> None:
    """Texts made by changing a few words of others, compared pair by pair with the sets of their shingles."""
    draw = random.Random(0)
    words = [f"w{i}" for i in range(60)]
    texts: list[str] = []
    for _ in range(300):
        row = draw.choices(words, k=draw.randrange(3, 90)) if not texts or draw.random() < 0.5 else draw.choice(texts).split()
        for _ in range(draw.randrange(3)):
            row[draw.randrange(len(row))] = draw.choice(words)
        texts.append(" ".join(row))

    kept: list[set[tuple[str, ...]]] = []
    expected = []
    for text in texts:
        tokens = text.split()
        shingles = {tuple(tokens[i : i + 5]) for i in range(len(tokens) - 4)} or {tuple(tokens)}
        expected.append(any(len(shingles & other) / len(shingles | other) >= 0.85 for other in kept))
        if not expected[-1]:
            kept.append(shingles)
    assert 20 < sum(expected) < 150
    assert near_duplicates(texts) == expected
