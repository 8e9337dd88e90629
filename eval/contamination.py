"""How much of the test points' programs stands in training rows: the share of a program's shingles, runs of 5 tokens, found there."""

from collections.abc import Iterable, Sequence

from tqdm import tqdm

from train.data.filters import SHINGLE

from .lexer import code_tokens

CONTAMINATED = 0.7  # from this share on a point counts as seen; PaLM's rule (Chowdhery et al. 2022, section 8), of 8-grams

Shingles = set[tuple[str, ...]]


def shingles_of(code: str, lang: str) -> Shingles:
    """The runs of 5 tokens of the language's lexer, without comments and layout; the whole program if it is shorter."""
    tokens = code_tokens(code, lang)
    return set(zip(*(tokens[start:] for start in range(SHINGLE)), strict=False)) or {tuple(tokens)}


def found_shares(codes: Sequence[str], training: Iterable[str], lang: str) -> list[float]:
    """For each program the share, in [0, 1], of its shingles that stand in any of the `training` programs."""
    wanted = [shingles_of(code, lang) for code in codes]
    known: Shingles = set()
    for code in tqdm(sorted(set(training)), desc=f"shingles {lang}", unit="program", disable=None):
        known |= shingles_of(code, lang)
    return [len(own & known) / len(own) for own in wanted]
