"""The report as one HTML file: style and images inline, nothing fetched, light or dark as the reader's system is.

Links lead to the `run.json` files beside it, so the folder can be moved as a whole.
"""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from .bootstrap import LEVEL, RESAMPLES
from .figures import SCORE
from .html_parts import Links, cards, html_figure, html_table, origins, page, side_by_side
from .report_tables import SIDE_BY_SIDE, TOKEN_BY_TOKEN, Section, sections
from .routing_page import programs_section


def render(
    report: dict[str, Any], figures: Mapping[str, dict[str, Path]], captions: Mapping[str, str], programs: dict[str, Any] | None
) -> str:
    """The page. `figures`: {name: {theme: PNG}}; `programs`: as eval.routing wrote them."""
    links, texts = Links(report["sources"]), report["texts"]
    scored = [name for roles in report["behind"].values() for name in roles.values()]
    routed = report["routing"]["sources"] if report["routing"] else []
    behind = {"gates": routed}
    behind["training"] = [name for row in report["training"].values() for name in row["sources"]]

    def figure(name: str) -> str:
        runs = links.named(dict.fromkeys(behind.get(name, scored)))
        return html_figure(name, figures[name], captions[name], runs) if name in figures else ""

    def content(section: Section) -> str:
        if section.title == TOKEN_BY_TOKEN:
            return programs_section(programs, links.named(routed)) if programs else ""
        if section.title == SIDE_BY_SIDE:
            return side_by_side(report["generations"], report["behind"], SCORE, links)
        return "".join([*map(figure, section.figures), *(html_table(listing, links) for listing in section.listings)])

    shown = [(section.title, section.text, made) for section in sections(report) if (made := content(section))]
    contents = "".join(f"<a href='#s{number}'>{escape(title)}</a>" for number, (title, *_) in enumerate(shown))
    head = f"<h1>{escape(report['title'])}</h1><p class='faint'>{escape(texts['summary'])}</p>{cards(report['headlines'], links)}"
    body = "".join(
        f"<section id='s{number}'><h2>{escape(title)}</h2>{f'<p>{escape(text)}</p>' if text else ''}{made}</section>"
        for number, (title, text, made) in enumerate(shown)
    )
    intervals = (
        f"Intervals: {LEVEL} %, {RESAMPLES:,} resamples of problems, paired; Wilson's for means of 0 and 1. "
        "Every number is a link to its run."
    )
    last = f"<section id='runs'><h2>Where the numbers come from</h2><p>{intervals}</p>{origins(report['runs'], links)}</section>"
    contents = f"<nav>{contents}<a href='#runs'>Where the numbers come from</a></nav>"
    return page(report["title"], f"{head}{contents}{body}{last}")
