"""Pieces of the report's page: numbers that link to their runs, tables, figures, programs."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .report_tables import Listing
from .tables import HEADS, Cell, few_note, intervals, kind_title, lang_title

LABEL = " class='label'"  # of a cell that is no number
STYLE = Path(__file__).with_name("style.css")


def page(title: str, body: str) -> str:
    """A whole document around `body`."""
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    icon = "<link rel='icon' href='data:,'>"  # or the browser looks for one
    head = f"{meta}{icon}<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body><main>{body}</main></body></html>\n'


class Links:
    """Links from numbers to the `run.json` behind them; a number of several runs leads to a line that names them all."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = {name: quote(path) for name, path in files.items()}
        self.combinations: dict[str, list[str]] = {}  # anchor: names of runs

    def __call__(self, text: str, names: Sequence[str]) -> str:
        """`text` as HTML."""
        if not names or text == "–":
            return escape(text)
        if len(names) == 1:
            return f"<a class='n' href='{escape(self.files[names[0]], quote=True)}'>{escape(text)}</a>"
        found = next((anchor for anchor, known in self.combinations.items() if known == list(names)), f"from-{len(self.combinations) + 1}")
        self.combinations[found] = list(names)
        return f"<a class='n' href='#{found}'>{escape(text)}</a>"

    def named(self, names: Iterable[str]) -> str:
        """The runs themselves, one after the other."""
        return ", ".join(f"<a href='{escape(self.files[name], quote=True)}'>{escape(name)}</a>" for name in names)


def html_table(listing: Listing, links: Links) -> str:
    title = f"<h3>{escape(listing.title)}</h3>" if listing.title else ""
    labels = [not names for names in listing.sources[0]]
    head = zip(listing.head, labels, strict=True)
    lines = ["<tr>" + "".join(f"<th{LABEL if label else ''}>{escape(text)}</th>" for text, label in head) + "</tr>"]
    for number, (row, sources) in enumerate(zip(listing.cells, listing.sources, strict=True), start=1):
        cells = "".join(_cell(cell, names, links) for cell, names in zip(row, sources, strict=True))
        lines.append(f"<tr{' class=all' if listing.last and number == len(listing.cells) else ''}>{cells}</tr>")
    return f"{title}<div class='wide' tabindex='0'><table>{''.join(lines)}</table></div>{_note(intervals(listing.cells))}"


def _note(shown: Iterable[str]) -> str:
    note = few_note(shown)
    return f"<p class='faint'>{escape(note)}</p>" if note else ""


def _cell(cell: Cell, names: Sequence[str], links: Links) -> str:
    figure, interval = cell
    note = f"<span class='interval'>{escape(interval)}</span>" if interval else ""
    return f"<td{'' if names else LABEL}>{links(figure, names)}{note}</td>"


def html_figure(name: str, paths: dict[str, Path], caption: str, behind: str) -> str:
    """`behind`: links to the runs that are drawn."""
    dark, light = (base64.b64encode(paths[theme].read_bytes()).decode() for theme in ("dark", "light"))
    source = f"<source media='screen and (prefers-color-scheme: dark)' srcset='data:image/png;base64,{dark}'>"
    image = f"<img alt='{escape(caption, quote=True)}' src='data:image/png;base64,{light}'>"
    runs = f" <span class='behind'>Runs: {behind}.</span>" if behind else ""
    return f"<figure id='{name}'><picture>{source}{image}</picture><figcaption>{escape(caption)}{runs}</figcaption></figure>"


def cards(headlines: list[dict[str, Any]], links: Links) -> str:
    """One card a headline: {"role", "figure", "text", "interval", "sources"}."""
    shown = [
        f"<div class='card {row['role']}'><b>{links(row['figure'], row['sources'])}</b>"
        f"<span>{escape(row['text'])}</span><span>{escape(row['interval'])}</span></div>"
        for row in headlines
    ]
    return f"<div class='cards'>{''.join(shown)}</div>{_note(row['interval'] for row in headlines)}" if shown else ""


def side_by_side(chosen: dict[str, dict[str, Any]], behind: dict[str, dict[str, str]], score: str, links: Links) -> str:
    """Of each language one point: the reference and every system's program."""
    parts = []
    for lang, point in chosen.items():
        programs = [_program("reference", "Reference", "", point["reference"])]
        for role, row in point["systems"].items():
            note = f"CodeBLEU {links(f'{100 * row[score]:.1f}', [behind[lang][role]])}"
            programs.append(_program(role, HEADS[role], note, row["prediction"]))
        origin = f"<span class='faint'>({escape(point['id'])}, {escape(kind_title(point['kind']).lower())})</span>"
        prompt = f"<div class='prompt'>{escape(point['text'])} {origin}</div>"
        shown = f"{prompt}<div class='programs'>{''.join(programs)}</div>"
        parts.append(f"<details open><summary>{escape(lang_title(lang))}</summary>{shown}</details>")
    return "".join(parts)


def _program(role: str, title: str, note: str, code: str) -> str:
    """`note` is HTML."""
    shown = escape(code.strip()) or "<span class='faint'>(empty)</span>"
    return f"<div class='program {role}'><header>{escape(title)}<span>{note}</span></header><pre>{shown}</pre></div>"


def origins(runs: dict[str, dict[str, Any]], links: Links) -> str:
    """Every run with its conditions, and which runs a number of several comes from."""
    combined = "".join(f"<li id='{anchor}'>{links.named(names)}</li>" for anchor, names in links.combinations.items())
    parts = [f"<p>Numbers that come from several runs lead here:</p><ol class='behind'>{combined}</ol>"] if combined else []
    for name, run in runs.items():
        rows = {key: value for key, value in run.items() if key not in ("data", "versions", "path", "command")}
        data = run.get("data")
        if isinstance(data, dict) and "source" not in data:  # by language
            rows |= {f"data, {lang}": _data(row) for lang, row in data.items()}
        elif data is not None:
            rows["data"] = _data(data) if isinstance(data, dict) else data
        rows["versions"] = ", ".join(f"{package} {version}" for package, version in run.get("versions", {}).items())
        rows["command"] = " ".join(run.get("command", []))
        items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(_plain(value))}</dd>" for key, value in rows.items() if value is not None)
        where = f"<p>{links.named([name])} <code>{escape(run['path'])}</code></p>"
        parts.append(f"<details class='run'><summary>{escape(name)}</summary>{where}<dl>{items}</dl></details>")
    return "".join(parts)


def _data(row: dict[str, Any]) -> str:
    digest = f", SHA-256 {row['sha256'][:16]}…" if row["sha256"] else ""
    return f"{row['source']} ({row['rows']} rows{digest})"


def _plain(value: Any) -> str:
    return ", ".join(f"{key} {inner}" for key, inner in value.items() if inner is not None) if isinstance(value, dict) else str(value)
