"""The report as one HTML file: style and images inline, nothing fetched, light or dark as the reader's system is."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from .bootstrap import LEVEL, RESAMPLES
from .figures import ALL, SCORE, Table
from .tables import HEADS, METRICS_TITLE, Cell, grid, kind_title, lang_title, metrics_grid

STYLE = Path(__file__).with_name("style.css")


def render(report: dict[str, Any], figures: Mapping[str, dict[str, Path]], captions: Mapping[str, str]) -> str:
    """The page. `figures`: {name: {theme: PNG}} in the order to show."""
    body = [_head(report), _cards(report["headlines"])]
    body.append(_table_section("Table 1 — base against experts", report["tables"]["table1"], report["texts"]["table1"]))
    body.append(_table_section("Table 2 — base against mixture", report["tables"]["table2"], report["texts"]["table2"]))
    body.append("<h2>Figures</h2>" + "".join(_figure(name, paths, captions[name]) for name, paths in figures.items()))
    body.append(_generations(report["generations"], report["texts"]["generations"]))
    body.append(_details(report["details"], report["texts"]["score"]))
    body.append(_metrics(report["details"], report["texts"]["metrics"]))
    body.append(_conditions(report["runs"]))
    title = escape(report["title"])
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"{meta}<title>{title}</title><style>{STYLE.read_text(encoding='utf-8')}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body><main>{"".join(body)}</main></body></html>\n'


def _head(report: dict[str, Any]) -> str:
    return f"<h1>{escape(report['title'])}</h1><p class='faint'>{escape(report['texts']['summary'])}</p>"


def _cards(headlines: list[dict[str, str]]) -> str:
    """One card a headline: {"role", "figure", "text"}."""
    cards = [
        f"<div class='card {row['role']}'><b>{escape(row['figure'])}</b>"
        f"<span>{escape(row['text'])}</span><span>{escape(row['interval'])}</span></div>"
        for row in headlines
    ]
    return f"<div class='cards'>{''.join(cards)}</div>"


def _table_section(title: str, table: Table, text: str) -> str:
    if not table:
        return ""
    parts = [f"<h2>{escape(title)}</h2><p>{escape(text)}</p>"]
    for kind, rows in table.items():
        parts.append(f"<h3>{escape(kind_title(kind))}</h3>{_html_table(*grid(rows), last=ALL in rows)}")
    return "".join(parts)


def _html_table(head: list[str], rows: list[list[Cell]], last: bool) -> str:
    """`last`: the last row is the total."""
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    for number, row in enumerate(rows, start=1):
        cells = "".join(f"<td>{escape(figure)}{_interval(interval)}</td>" for figure, interval in row)
        lines.append(f"<tr{' class=all' if last and number == len(rows) else ''}>{cells}</tr>")
    return f"<div class='wide'><table>{''.join(lines)}</table></div>"


def _interval(interval: str) -> str:
    return f"<span class='interval'>{escape(interval)}</span>" if interval else ""


def _figure(name: str, paths: dict[str, Path], caption: str) -> str:
    dark, light = (base64.b64encode(paths[theme].read_bytes()).decode() for theme in ("dark", "light"))
    source = f"<source media='screen and (prefers-color-scheme: dark)' srcset='data:image/png;base64,{dark}'>"
    image = f"<img alt='{escape(caption, quote=True)}' src='data:image/png;base64,{light}'>"
    return f"<figure id='{name}'><picture>{source}{image}</picture><figcaption>{escape(caption)}</figcaption></figure>"


def _generations(chosen: dict[str, dict[str, Any]], text: str) -> str:
    parts = [f"<h2>Programs side by side</h2><p>{escape(text)}</p>"]
    for lang, point in chosen.items():
        programs = [_program("reference", "Reference", "", point["reference"])]
        for role, row in point["systems"].items():
            programs.append(_program(role, HEADS[role], f"CodeBLEU {100 * row[SCORE]:.1f}", row["prediction"]))
        origin = f"<span class='faint'>({escape(point['id'])}, {escape(kind_title(point['kind']))})</span>"
        prompt = f"<div class='prompt'>{escape(point['text'])} {origin}</div>"
        parts.append(
            f"<details open><summary>{escape(lang_title(lang))}</summary>{prompt}<div class='programs'>{''.join(programs)}</div></details>"
        )
    return "".join(parts)


def _program(role: str, title: str, note: str, code: str) -> str:
    shown = escape(code.strip()) or "<span class='faint'>(empty)</span>"
    return f"<div class='program {role}'><header>{escape(title)}<span>{escape(note)}</span></header><pre>{shown}</pre></div>"


def _details(details: dict[str, dict[str, Any]], text: str) -> str:
    head = [
        "Language",
        "System",
        "Points",
        "n",
        "Empty",
        "CodeBLEU",
        "n-gram",
        "Keywords",
        "Syntax",
        "Data flow",
        "Corpus level",
        "Library",
    ]
    rows: list[list[Cell]] = []
    for lang, roles in details.items():
        for role, kinds in roles.items():
            for kind, row in kinds.items():
                names = [lang_title(lang), HEADS[role], kind, str(row["n"]), str(row["empty"])]
                values = [row[SCORE], *row["parts"].values(), row["codebleu_corpus"], row["codebleu_library"]]
                rows.append([(cell, "") for cell in [*names, *("–" if value is None else f"{100 * value:.1f}" for value in values)]])
    return f"<h2>The score and its parts</h2><p>{escape(text)}</p>{_html_table(head, rows, last=False)}"


def _metrics(details: dict[str, dict[str, Any]], text: str) -> str:
    head, cells = metrics_grid(details)
    return f"<h2>{METRICS_TITLE}</h2><p>{escape(text)}</p>{_html_table(head, cells, last=False)}" if head else ""


def _conditions(runs: list[dict[str, Any]]) -> str:
    parts = [f"<h2>Where the numbers come from</h2><p class='faint'>Intervals: {LEVEL} %, {RESAMPLES:,} resamples of problems, paired.</p>"]
    for run in runs:
        rows = {key: value for key, value in run.items() if key not in ("data", "versions", "path")}
        rows |= {
            f"data, {lang}": f"{row['source']} ({row['rows']} rows, SHA-256 {row['sha256'][:16]}…)"
            for lang, row in run.get("data", {}).items()
        }
        rows["versions"] = ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items())
        rows["command"] = " ".join(run.get("command", []))
        items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in rows.items() if value is not None)
        parts.append(f"<h3><code>{escape(run['path'])}/run.json</code></h3><dl>{items}</dl>")
    return "".join(parts)
