"""The texts: `title | comment ; comment`, XLCoST's form, from the wordings of a family."""

import re
from dataclasses import dataclass
from random import Random

from model.languages import get_language

from .definition import Family
from .printers import printer_class
from .variants import Variant, variants

_MARK = re.compile(r"{(\w+)}")
_VERBS = """
    add arrange build calculate check combine compare compute convert count cut decide decode delete detect determine divide
    encode evaluate exchange extract find flip generate get identify insert keep locate make mark measure merge mirror move
    multiply pick put remove replace return reverse rotate search shift sort split subtract swap take tally tell test toggle turn
    verify
"""
# Prefixes by how a title starts; every title may also stand alone.
_FOR_VERB = ("", "", "Program to ", "{language} program to ", "Write a function to ")
_FOR_PROGRAM = ("", "", "{language} ", "Write a ")
_FOR_OTHERS = ("", "", "", "{language} program: ")


@dataclass(frozen=True)
class Wording:
    """One text of one program: which title, prefix and comment wordings."""

    variant: Variant
    title: int
    prefix: int
    comments: tuple[int, ...]


def prefixes(title: str) -> tuple[str, ...]:
    first = title.split()[0]
    return _FOR_VERB if first in _VERBS.split() else _FOR_PROGRAM if first == "program" else _FOR_OTHERS


def draw(family: Family, titles: range, random: Random) -> Wording:
    """A random wording with one of `titles`. A variable is renamed only in a text that mentions it."""
    title = random.choice(titles)
    options = prefixes(family.titles[title])
    prefix = options.index(random.choice(options))
    comments = tuple(random.randrange(len(wordings)) for wordings in family.comments)
    variant = random.choice(variants(family))
    parts = [family.titles[title], *(wordings[pick] for wordings, pick in zip(family.comments, comments, strict=True))]
    if variant.rename and not any(f"{{{variant.rename[0]}}}" in part for part in parts):
        variant = Variant(variant.family, variant.holes)
    return Wording(variant, title, prefix, comments)


def write_text(family: Family, wording: Wording, lang: str) -> str:
    """The text as it stands in the data for `lang`: the same words, names in the language's style."""
    title = family.titles[wording.title]
    prefix = prefixes(title)[wording.prefix].format(language=get_language(lang).title)
    comments = [write_comment(family, wording, place, lang) for place in range(len(family.comments))]
    return f"{prefix}{_fill(title, wording.variant, lang)} | {' ; '.join(comments)}"


def write_comment(family: Family, wording: Wording, place: int, lang: str) -> str:
    return _fill(family.comments[place][wording.comments[place]], wording.variant, lang)


def _fill(text: str, variant: Variant, lang: str) -> str:
    """Puts names and hole values in; `;` is kept for what separates comments."""
    holes, name = dict(variant.holes), printer_class(lang).name

    def value(match: re.Match[str]) -> str:
        mark = match[1]
        return str(holes[mark]) if mark in holes else name(variant.names.get(mark, mark))

    return _MARK.sub(value, text.replace(";", ","))
