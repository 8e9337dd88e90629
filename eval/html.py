"""The report as one HTML file: style and images inline, nothing fetched, light or dark as the reader's system is.

Links lead to the `run.json` files beside it, so the folder can be moved as a whole.
"""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from . import report_tables
from .bootstrap import LEVEL, RESAMPLES
from .figures import SCORE
from .html_parts import Links, cards, html_figure, html_table, origins, page, side_by_side
from .report_tables import Listing
from .routing_page import programs_section

TITLE1, TITLE2 = "Table 1: base against experts", "Table 2: base against mixture"


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

    def tables(listings: list[Listing]) -> str:
        return "".join(html_table(listing, links) for listing in listings)

    chosen = side_by_side(report["generations"], report["behind"], SCORE, links)
    sections = [  # title, text, what is shown
        (TITLE1, texts.get("table1"), tables(report_tables.comparisons(report, "table1", "expert"))),
        (TITLE2, texts.get("table2"), tables(report_tables.comparisons(report, "table2", "mixture"))),
        ("Figures", None, figure("means") + figure("distributions")),
        ("The study", report["study"] and report["study"]["note"], tables(report_tables.study(report))),
        ("Unit tests: pass@k", report_tables.PASS_TEXT, tables(report_tables.passes(report))),
        ("Routing", texts.get("routing"), figure("gates") + tables(report_tables.routing(report))),
        ("Experts, token by token", None, programs_section(programs, links.named(routed)) if programs else ""),
        ("Training", texts.get("training"), figure("training") + tables(report_tables.training(report))),
        ("Cost", report_tables.COST_TEXT, tables(report_tables.cost(report))),
        ("Programs side by side", texts.get("generations"), chosen),
        ("The score and its parts", texts.get("score"), tables(report_tables.parts(report))),
        ("Every measure of the text", texts.get("metrics"), tables([row._replace(title="") for row in report_tables.measures(report)])),
    ]
    shown = [section for section in sections if section[2]]
    contents = "".join(f"<a href='#s{number}'>{escape(title)}</a>" for number, (title, *_) in enumerate(shown))
    head = f"<h1>{escape(report['title'])}</h1><p class='faint'>{escape(texts['summary'])}</p>{cards(report['headlines'], links)}"
    body = "".join(
        f"<section id='s{number}'><h2>{escape(title)}</h2>{f'<p>{escape(text)}</p>' if text else ''}{content}</section>"
        for number, (title, text, content) in enumerate(shown)
    )
    intervals = (
        f"Intervals: {LEVEL} %, {RESAMPLES:,} resamples of problems (of tasks for pass@k), paired; Wilson's for means of 0 and 1. "
        "Every number is a link to its run."
    )
    last = f"<section id='runs'><h2>Where the numbers come from</h2><p>{intervals}</p>{origins(report['runs'], links)}</section>"
    contents = f"<nav>{contents}<a href='#runs'>Where the numbers come from</a></nav>"
    return page(report["title"], f"{head}{contents}{body}{last}")
