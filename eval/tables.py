"""A report's tables as rows of text: the terminal, Markdown and HTML print the same cells."""

from collections.abc import Iterable
from typing import Any

from model.languages import LANGUAGES

from .bootstrap import FEW, LEVEL
from .figures import ALL, Table

KINDS = {"wording": "Unseen wordings of seen problem families", "family": "Unseen problem families", "test": "Test split"}
HEADS = {"base": "Base", "expert": "Expert", "mixture": "Mixture", "difference": "Difference", "ratio": "Times base", "kept": "Of expert"}
METRIC_TITLES = {
    "codebleu": "CodeBLEU",
    "codebleu_library": "Library",
    "exact_match": "Exact match",
    "edit_similarity": "Edit similarity",
    "chrf": "chrF",
    "parses": "Parses",
    "compiles": "Compiles",
    "reference_compiles": "Reference compiles",
}
METRICS_TITLE = "Every measure of the text"
SCALE = {"ratio": 1.0}  # everything else is shown x 100
SUFFIX = {"ratio": "×", "kept": " %"}
FEW_MARK = "†"
FEW_NOTE = f"{FEW_MARK} Of fewer than {FEW} problems: a bootstrap interval of so few is too narrow."

Cell = tuple[str, str]  # the figure, and its interval or ""
Grid = tuple[list[str], list[list[Cell]]]


def kind_title(kind: str) -> str:
    return KINDS.get(kind, kind.capitalize())


def lang_title(lang: str) -> str:
    if lang == ALL:
        return "All languages"
    return LANGUAGES[lang].title if lang in LANGUAGES else lang


def grid(rows: dict[str, dict[str, Any]]) -> Grid:
    """Header and cells of one kind of a `figures.Table`."""
    columns = [name for name in HEADS if any(name in row for row in rows.values())]
    head = ["Language", "n", *(HEADS[name] for name in columns)]
    cells = [[(lang_title(lang), ""), (str(row["n"]), ""), *(cell(name, row.get(name)) for name in columns)] for lang, row in rows.items()]
    return head, cells


def cell(name: str, figure: dict[str, Any] | None) -> Cell:
    """A figure of column `name`, and its interval, as they are printed."""
    if figure is None or figure["value"] is None:
        return "–", ""
    scale, digits = SCALE.get(name, 100.0), 2 if name in SCALE else 1
    sign = "+" if name == "difference" else ""

    def shown(value: float) -> str:
        return f"{round(scale * value, 9) + 0.0:{sign}.{digits}f}"  # a small loss is -0.0, the rounding error of none 0.0

    interval = "" if figure["low"] is None else f"[{shown(figure['low'])}, {shown(figure['high'])}]{few_mark(figure)}"
    return shown(figure["value"]) + SUFFIX.get(name, ""), interval


def few_mark(figure: dict[str, Any]) -> str:
    """Behind an interval of too few problems; what shows one adds `few_note`."""
    return FEW_MARK if figure.get("few") else ""


def few_note(shown: Iterable[str]) -> str:
    """The line under what is `shown`, "" if it has no marked interval."""
    return FEW_NOTE if any(text.endswith(FEW_MARK) for text in shown) else ""


def intervals(cells: list[list[Cell]]) -> list[str]:
    return [interval for row in cells for _, interval in row]


def metrics_grid(details: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> Grid:
    """Every metric with its interval, a row a language, system and kind of `figures.details`; ([], []) if no run has them."""
    rows = [(lang, role, kind, row) for lang, roles in details.items() for role, kinds in roles.items() for kind, row in kinds.items()]
    columns = [name for name in METRIC_TITLES if any(name in row.get("metrics", {}) for *_, row in rows)]
    if not columns:
        return [], []
    cells = [
        [(lang_title(lang), ""), (HEADS[role], ""), (kind, ""), *(cell(name, row.get("metrics", {}).get(name)) for name in columns)]
        for lang, role, kind, row in rows
    ]
    return ["Language", "System", "Points", *(METRIC_TITLES[name] for name in columns)], cells


def text_table(title: str, table: Table) -> str:
    """All kinds of a table as aligned text for a terminal."""
    lines = [f"{title} (x 100; [{LEVEL} % interval])"]
    for kind, rows in table.items():
        lines += [f"  {kind_title(kind)}", aligned_text(*grid(rows))]
    return "\n".join(lines)


def aligned_text(head: list[str], cells: list[list[Cell]]) -> str:
    """Columns of equal width for a terminal: the first to the left, the others to the right."""
    shown = [head, *([f"{figure} {interval}".strip() for figure, interval in row] for row in cells)]
    widths = [max(len(row[i]) for row in shown) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in shown
    ]
    return "\n".join(f"    {line}" for line in (*lines, few_note(intervals(cells))) if line)


def markdown_table(head: list[str], cells: list[list[Cell]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([f"{figure} {interval}".strip() for figure, interval in row] for row in cells)]
    note = few_note(intervals(cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + (f"\n\n{note}" if note else "")
