"""What CodeBLEU's four parts are counted from: n-grams, subtrees and data-flow edges, as the `codebleu` package extracts them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from codebleu.bleu import corpus_bleu
from codebleu.codebleu import PACKAGE_DIR
from codebleu.dataflow_match import dfg_function, get_data_flow, normalize_dataflow
from codebleu.parser import remove_comments_and_docstrings
from codebleu.weighted_ngram_match import corpus_bleu as corpus_weighted_recall

from model.languages import get_language

from .lexer import parser

KEYWORD_WEIGHT, OTHER_WEIGHT = 1.0, 0.2
LONGEST, DEEPEST = 100_000, 500  # characters of a program, and nodes of its tree in each other


@dataclass(frozen=True)
class Match:
    """How many of the reference's items the prediction holds and of how many, and the same the other way round."""

    found: int
    expected: int
    right: int
    given: int


def matched(rows: Sequence[Match]) -> tuple[float, float]:
    """F1 and recall; 0 where there is nothing to find."""
    found, expected, right, given = (sum(getattr(row, name) for row in rows) for name in ("found", "expected", "right", "given"))
    recall = found / expected if expected else 0.0
    return f1(recall, right / given if given else 0.0), recall


def f1(recall: float, precision: float) -> float:
    return 2 * recall * precision / (recall + precision) if recall and precision else 0.0


def clean(text: str) -> str:
    """Without lone surrogates (a byte-level model can emit halves of a character), which do not encode."""
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def measurable(text: str, lang: str) -> str:
    """`clean(text)`, or "" where it passes `LONGEST` or `DEEPEST`: such text is a model's loop, and counts as no code.

    The subtrees' text grows with the square of the depth (a sum of 3,000 numbers took 13 s), and tree-sitter prints a tree by recursion:
    20,000 brackets in each other end the process.
    """
    code = clean(text)
    return code if len(code) <= LONGEST and _depth(code, lang) <= DEEPEST else ""


def _depth(code: str, lang: str) -> int:
    cursor = parser(lang).parse(code.encode()).walk()
    depth = deepest = 0
    while True:
        if cursor.goto_first_child():
            depth += 1
            deepest = max(deepest, depth)
            continue
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent():
                return deepest
            depth -= 1


def bare_program(code: str, lang: str) -> str:
    """`code` without comments and docstrings."""
    if lang == "python":  # the package counts a tab as one space, which moves lines out of their block
        code = re.sub(r"^[ \t]+", lambda indent: indent[0].expandtabs(), code, flags=re.MULTILINE)
    try:
        return remove_comments_and_docstrings(code, get_language(lang).codebleu)
    except Exception:  # Python's tokenizer refuses broken programs: like the package, take them as they are
        return code


def bleu(references: Sequence[list[str]], predictions: Sequence[list[str]]) -> float:
    """BLEU-4 of token lists, smoothed by the package's method 1."""
    return float(corpus_bleu([[tokens] for tokens in references], predictions))


def weighted_recall(references: Sequence[list[str]], predictions: Sequence[list[str]], lang: str) -> float:
    """Recall of the references' n-grams with single keywords weighted more (the package's reading of the paper's equation 2)."""
    weighted = [
        [[tokens, {token: KEYWORD_WEIGHT if token in keywords(lang) else OTHER_WEIGHT for token in tokens}]] for tokens in references
    ]
    return float(corpus_weighted_recall(weighted, predictions))


@lru_cache
def keywords(lang: str) -> frozenset[str]:
    """The package's list for `lang`."""
    file = PACKAGE_DIR / "keywords" / f"{get_language(lang).codebleu}.txt"
    return frozenset(line.strip() for line in file.read_text(encoding="utf-8").splitlines())


def syntax_match(reference: str, prediction: str, lang: str) -> Match:
    """Subtrees that are found on the other side (equation 4 as the package counts it: a subtree may be found by several)."""
    expected, given = subtrees(reference, lang), subtrees(prediction, lang)
    present, wanted = set(given), set(expected)
    return Match(sum(subtree in present for subtree in expected), len(expected), sum(subtree in wanted for subtree in given), len(given))


def subtrees(code: str, lang: str) -> list[str]:
    """S-expressions of the root, which comes first, and of every inner node."""
    stack, subtrees = [parser(lang).parse(code.encode()).root_node], []
    while stack:
        node = stack.pop()
        subtrees.append(str(node))
        stack += [child for child in node.children if child.children]
    return subtrees


def dataflow_match(reference: str, prediction: str, lang: str) -> Match:
    expected, given = _edges(reference, lang), _edges(prediction, lang)
    common = (expected & given).total()
    return Match(common, expected.total(), common, given.total())


def _edges(code: str, lang: str) -> "Counter[tuple[str, str, tuple[str, ...]]]":
    """Data-flow edges (variable, relation, sources) with variables numbered in order of appearance."""
    flow = get_data_flow(code, [parser(lang), dfg_function[get_language(lang).codebleu]])
    first: dict[str, int] = {}
    for variable, position, *_ in flow:
        first[variable] = min(position, first.get(variable, position))
    last = max(first.values(), default=0) + 1
    ordered = [(*edge[:3], sorted(edge[3], key=lambda source: (first.get(source, last), source)), edge[4]) for edge in flow]
    return Counter((variable, relation, tuple(sources)) for variable, relation, sources in normalize_dataflow(ordered))
