"""Shares of shingles against a search of every run of 5 tokens in every training program."""

import pytest

from eval.contamination import found_shares
from eval.lexer import code_tokens

TRAINING = [
    "def total(values):\n    result = 0\n    for value in values:\n        result += value\n    return result\n",
    "def count(values):\n    return sum(1 for value in values if value)\n",
]


def test_shares_are_those_of_a_naive_search() -> None:
    codes = [
        TRAINING[0].replace("result", "out"),
        TRAINING[0].split("return")[0],
        "def largest(a, b):\n    return a if a > b else b\n",
        "x = 1\n",
    ]
    seen = [code_tokens(code, "python") for code in TRAINING]
    expected = []
    for code in codes:
        tokens = code_tokens(code, "python")
        runs = {tuple(tokens[i : i + 5]) for i in range(max(1, len(tokens) - 4))}
        found = [run for run in runs if any(tuple(own[i : i + 5]) == run for own in seen for i in range(len(own)))]
        expected.append(len(found) / len(runs))
    assert found_shares(codes, TRAINING, "python") == expected
    assert 0 < expected[0] < expected[1] == 1
    assert expected[2] == expected[3] == 0


@pytest.mark.parametrize("change", [("    ", "\t"), ("result = 0", "result = 0  # the sum"), ("(values)", "( values )")])
def test_layout_and_comments_hide_nothing(change: tuple[str, str]) -> None:
    assert found_shares([TRAINING[0].replace(*change)], TRAINING, "python") == [1.0]
