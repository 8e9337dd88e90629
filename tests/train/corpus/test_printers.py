"""What each language's printer writes for small definitions: the exact text, and the errors outside the subset."""

import ast
from pathlib import Path

import pytest

from train.corpus.definition import SubsetError
from train.corpus.inference import infer
from train.corpus.printers import printer_class
from train.corpus.scopes import find_scopes

PATH = Path("families/sample.py")


def printed(source: str, lang: str) -> str:
    functions = infer([node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)], PATH)
    return printer_class(lang)(functions, find_scopes(functions)).program().code


COUNT = """
def count_letters(words: list[str]) -> int:
    counts: dict[str, int] = {}
    total = 0
    for word in words:
        for c in word:
            if c.isalpha() and c != "x":
                counts[c] = counts.get(c, 0) + 1
    for i in range(len(words) - 1, -1, -1):
        total += i // 2
    return total + len(counts)
"""
COUNT_PRINTED = {
    "python": """\
def count_letters(words):
    counts = {}
    total = 0
    for word in words:
        for c in word:
            if c.isalpha() and c != "x":
                counts[c] = counts.get(c, 0) + 1
    for i in range(len(words) - 1, -1, -1):
        total += i // 2
    return total + len(counts)
""",
    "java": """\
import java.util.*;

class Solution {
    public static int countLetters(String[] words) {
        Map<Character, Integer> counts = new HashMap<>();
        int total = 0;
        for (String word : words) {
            for (char c : word.toCharArray()) {
                if (Character.isLetter(c) && c != 'x') {
                    counts.put(c, counts.getOrDefault(c, 0) + 1);
                }
            }
        }
        for (int i = words.length - 1; i >= 0; i--) {
            total += i / 2;
        }
        return total + counts.size();
    }
}
""",
    "javascript": """\
function countLetters(words) {
    const counts = new Map();
    let total = 0;
    for (const word of words) {
        for (const c of word) {
            if (c.toLowerCase() !== c.toUpperCase() && c !== "x") {
                counts.set(c, (counts.get(c) ?? 0) + 1);
            }
        }
    }
    for (let i = words.length - 1; i >= 0; i--) {
        total += Math.floor(i / 2);
    }
    return total + counts.size;
}
""",
    "cpp": """\
#include <cctype>
#include <string>
#include <unordered_map>
#include <vector>
using namespace std;

int countLetters(const vector<string>& words) {
    unordered_map<char, int> counts;
    int total = 0;
    for (const string& word : words) {
        for (char c : word) {
            if (isalpha(c) && c != 'x') {
                counts[c]++;
            }
        }
    }
    for (int i = (int) words.size() - 1; i >= 0; i--) {
        total += i / 2;
    }
    return total + (int) counts.size();
}
""",
}


@pytest.mark.parametrize("lang", COUNT_PRINTED)
def test_a_whole_program(lang: str) -> None:
    assert printed(COUNT, lang) == COUNT_PRINTED[lang]


def body(source: str, lang: str) -> list[str]:
    """The lines of a function's body."""
    lines = [line.strip() for line in printed(source, lang).splitlines()]
    start = next(
        place for place, line in enumerate(lines) if line.startswith(("public static", "function", "int", "string", "vector", "def"))
    )
    return [line for line in lines[start + 1 :] if line != "}"]


SWAP = """
def f(a: int, b: int) -> int:
    a, b = b, a % b
    return a
"""
GROW = """
def f(n: int) -> list[int]:
    out: Vec[int] = []
    out.append(n)
    last = out.pop()
    best = [last] * n
    return sorted(best)
"""
EITHER = """
def f(s: str) -> str:
    if len(s) > 2:
        out = s[1:3]
    else:
        out = s[0] + "-" + s[-1]
    return out
"""


@pytest.mark.parametrize(
    ("source", "lang", "lines"),
    [
        (SWAP, "java", ["int next = a % b;", "a = b;", "b = next;", "return a;"]),
        (SWAP, "javascript", ["[a, b] = [b, a % b];", "return a;"]),
        (GROW, "java", [
            "List<Integer> out = new ArrayList<>();", "out.add(n);", "int last = out.remove(out.size() - 1);", "int[] best = new int[n];",
            "Arrays.fill(best, last);", "int[] sorted = best.clone();", "Arrays.sort(sorted);", "return sorted;",
        ]),
        (GROW, "javascript", [
            "const out = [];", "out.push(n);", "const last = out.pop();", "const best = new Array(n).fill(last);",
            "return [...best].sort((a, b) => a - b);",
        ]),
        (GROW, "cpp", [
            "vector<int> out;", "out.push_back(n);", "int last = out.back();", "out.pop_back();", "vector<int> best(n, last);",
            "vector<int> sorted = best;", "sort(sorted.begin(), sorted.end());", "return sorted;",
        ]),
        (EITHER, "java", [
            "String out;", "if (s.length() > 2) {", "out = s.substring(1, 3);", "} else {",
            'out = s.charAt(0) + "-" + s.charAt(s.length() - 1);', "return out;",
        ]),
        (EITHER, "cpp", [
            "string out;", "if (s.size() > 2) {", "out = s.substr(1, 2);", "} else {", 'out = string(1, s[0]) + "-" + s.back();',
            "return out;",
        ]),
    ],
)  # fmt: skip
def test_statements(source: str, lang: str, lines: list[str]) -> None:
    assert body(source, lang) == lines


@pytest.mark.parametrize(
    ("expression", "python", "javascript"),
    [
        ("(a & b) == 0", "a & b == 0", "(a & b) === 0"),
        ("not (a < b or b < 0)", "not (a < b or b < 0)", "!(a < b || b < 0)"),
        ("0 <= a <= b", "0 <= a <= b", "0 <= a && a <= b"),
        ("a - (b - 1) == -(-a)", "a - (b - 1) == -(-a)", "a - (b - 1) === -(-a)"),
        ("(a << 1) + b > (1 if a > b else 2)", "(a << 1) + b > (1 if a > b else 2)", "(a << 1) + b > (a > b ? 1 : 2)"),
    ],
)
def test_precedence(expression: str, python: str, javascript: str) -> None:
    source = f"def f(a: int, b: int) -> bool:\n    return {expression}\n"
    assert body(source, "python") == [f"return {python}"]
    assert body(source, "javascript") == [f"return {javascript};"]


def test_a_changed_container_is_a_plain_reference_also_through_a_helper() -> None:
    source = (
        "def put(arr: list[int], i: int) -> None:\n    arr[i] = 0\n\n"
        "def f(arr: list[int], other: list[int]) -> list[int]:\n    put(arr, other[0])\n    return arr\n"
    )
    assert "vector<int> f(vector<int>& arr, const vector<int>& other) {" in printed(source, "cpp")


def test_boxed_values_and_texts_are_compared_by_value_in_java() -> None:
    source = "def f(s: str, v: Vec[int]) -> bool:\n    return s != s[::-1] or v[0] == v[-1]\n"
    assert body(source, "java") == ["return !s.equals(new StringBuilder(s).reverse().toString()) || v.get(0).equals(v.get(v.size() - 1));"]


def test_a_statement_ahead_of_a_condition_is_not_run_too_early() -> None:
    source = "def f(n: int) -> int:\n    stack: Vec[int] = [n]\n    if {}:\n        n = 1\n    return n\n"
    assert "int last = stack.back();" in body(source.format("stack.pop() > 1 and n > 1"), "cpp")
    with pytest.raises(SubsetError, match="compute it before, or nest two ifs"):
        printed(source.format("n > 1 and stack.pop() > 1"), "cpp")


@pytest.mark.parametrize(
    ("lines", "line", "rule"),
    [
        ("return [x for x in arr][0]", 2, "list comprehension"),
        ("return n ** 2", 2, "** is outside the subset"),
        ("with n:\n        return 1", 2, "the statement With is outside"),
        ("n = 1\n    return print(n)", 3, "print(n) is outside the subset"),
        ("items = []\n    return n", 2, "annotate items"),
        ("for i in range(n):\n        n -= 1\n    return n", 2, "n decides the range of this loop"),
        ("for i in range(n):\n        pass_by = i\n    return i", 2, "i is also used outside its loop"),
        ("while n > 0:\n        best = n\n        n -= 1\n    return best + missing", 5, "missing is neither a parameter nor assigned"),
        ("return n + arr", 2, "int and array do not take Add"),
        ('return arr[0] if n in arr else "a"', 2, "`in` is for set, dict, Vec and str"),
    ],
)
def test_what_is_outside_the_subset_is_named_with_file_and_line(lines: str, line: int, rule: str) -> None:
    with pytest.raises(SubsetError) as error:
        printed(f"def f(n: int, arr: list[int]) -> int:\n    {lines}\n", "java")
    assert str(error.value).startswith(f"families/sample.py:{line}: ") and rule in str(error.value)


def test_a_reserved_word_is_refused() -> None:
    with pytest.raises(SubsetError, match="default is a reserved word of java"):
        printed("def f(default: int) -> int:\n    return default\n", "java")
