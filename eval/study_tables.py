"""The tables of a study, as Markdown and for the terminal: the same cells."""

from typing import Any

from .bootstrap import LEVEL
from .comparison import LOSS
from .contamination import CONTAMINATED
from .figures import ALL, SCORE
from .study_file import Study
from .tables import METRIC_TITLES, Cell, Grid, aligned_text, cell, kind_title, lang_title, markdown_table

NOTE = (
    "CodeBLEU is corrected, x 100, the mean over points; “all” is the mean of the languages. In brackets the {level} % interval of a "
    "bootstrap over problems, paired between systems. p: two-sided sign-flip test over problems, adjusted (Holm) for the claims of the "
    "table. Loss: nats per token of the references. Greedy decoding, seed {seed}."
)
SEEN_TITLE = "Points whose programs stand in training rows"
CLEAN = "A point counts as seen if at least {share:.0f} % of its program's 5-token shingles stand in programs of the training rows."


def tables(study: Study, result: dict[str, Any]) -> list[tuple[str, Grid]]:
    """Title, head and cells of every table: the comparison by kind of point and length, all measures, contamination."""
    found = [(points_title(kind, length), comparison_grid(study, figures)) for length, kind, figures in by_length(result)]
    for length, kind, figures in by_length(result):
        found.append((f"Every measure of the text: {kind_title(kind).lower()}, at most {length} new tokens", _metrics_grid(figures)))
    if result["contamination"]:
        found.append((SEEN_TITLE, contamination_grid(result["contamination"])))
        found += [(unseen_title(kind, length), unseen_grid(study, figures)) for length, kind, figures in with_unseen(result)]
    return found


def by_length(result: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(length, kind of point, figures)."""
    return [(length, kind, figures) for length, kinds in result["lengths"].items() for kind, figures in kinds.items()]


def with_unseen(result: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Likewise, where programs were looked for in training rows and some points count as unseen."""
    return [row for row in by_length(result) if result["contamination"] and row[2]["unseen"]["points"]]


def points_title(kind: str, length: str) -> str:
    return f"{kind_title(kind)}, at most {length} new tokens"


def unseen_title(kind: str, length: str) -> str:
    return f"CodeBLEU on the points that count as unseen: {kind_title(kind).lower()}, at most {length} new tokens"


def notes(study: Study, result: dict[str, Any], seed: int) -> list[str]:
    """What a reader must know of the figures: how they are made, what counts as seen, and which systems saw another prompt."""
    found = [NOTE.format(level=LEVEL, seed=seed)]
    if result["contamination"]:
        found.append(CLEAN.format(share=100 * CONTAMINATED))
    templates = result["prompt_templates"]
    if others := [name for name, template in templates.items() if template != templates.get(study.baseline)]:
        found.append(f"Asked in a prompt template of their own, not in that of {study.baseline}: {', '.join(others)}.")
    return found


def comparison_grid(study: Study, figures: dict[str, Any]) -> Grid:
    """A row a system: CodeBLEU by language and over all, how it stands to baseline and experts, and the loss."""
    langs = [lang for lang in study.langs if lang in figures["points"]]
    references = [name for name in dict.fromkeys((study.baseline, study.experts)) if name]
    head = ["System", *(f"{lang_title(lang)} (n = {figures['points'][lang]['n']})" for lang in langs), "all"]
    for name in references:
        head += [f"/ {name}", f"p, {name}"]
    rows = []
    for system, own in figures["systems"].items():
        row: list[Cell] = [(system, ""), *(_plain(own.get(lang), SCORE) for lang in langs), cell(SCORE, own.get(ALL, {}).get(SCORE))]
        for name in references:
            claim = _claim(figures["claims"], system, name)
            row += [cell("ratio", claim and claim["ratio"]), (_p_value(claim), "")]
        rows.append([*row, (_loss(own.get(ALL, {}).get(LOSS)), "")])
    return [*head, "loss"], rows


def _claim(claims: list[dict[str, Any]], system: str, against: str) -> dict[str, Any] | None:
    wanted = (system, against, SCORE, ALL)
    return next((row for row in claims if (row["system"], row["against"], row["metric"], row["lang"]) == wanted), None)


def _p_value(claim: dict[str, Any] | None) -> str:
    p = None if claim is None else claim.get("p_holm")
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _plain(figures: dict[str, Any] | None, metric: str) -> Cell:
    """The figure without its interval."""
    return cell(metric, (figures or {}).get(metric))[0], ""


def _loss(figure: dict[str, Any] | None) -> str:
    return "–" if figure is None or figure["value"] is None else f"{figure['value']:.3f}"


def _metrics_grid(figures: dict[str, Any]) -> Grid:
    """A row a system: every measure over all languages."""
    own = {name: langs[ALL] for name, langs in figures["systems"].items() if ALL in langs}
    columns = [name for name in METRIC_TITLES if any(name in row for row in own.values())]
    return ["System", *(METRIC_TITLES[name] for name in columns)], [
        [(name, ""), *(cell(metric, row.get(metric)) for metric in columns)] for name, row in own.items()
    ]


def contamination_grid(summary: dict[str, dict[str, dict[str, float]]]) -> Grid:
    rows: list[list[Cell]] = [
        [
            (kind_title(kind), ""),
            (lang_title(lang), ""),
            (str(row["n"]), ""),
            *((f"{100 * row[key]:.0f} %", "") for key in ("median", "greatest")),
            (str(row["seen"]), ""),
        ]
        for lang, kinds in summary.items()
        for kind, row in kinds.items()
    ]
    return ["Points", "Language", "n", "median share found", "greatest", "count as seen"], rows


def unseen_grid(study: Study, figures: dict[str, Any]) -> Grid:
    points = figures["unseen"]["points"]
    langs = [lang for lang in study.langs if lang in points]
    rows: list[list[Cell]] = [
        [(name, ""), *(_plain(own.get(lang), SCORE) for lang in langs), cell(SCORE, own.get(ALL, {}).get(SCORE))]
        for name, own in figures["unseen"]["systems"].items()
    ]
    return ["System", *(f"{lang_title(lang)} (n = {points[lang]['n']})" for lang in langs), "all"], rows


def markdown(study: Study, result: dict[str, Any], seed: int) -> str:
    parts = ["# Study", *notes(study, result, seed)]
    for title, (head, cells) in tables(study, result):
        parts += [f"## {title}", markdown_table(head, cells)]
    return "\n\n".join(parts) + "\n"


def terminal(study: Study, result: dict[str, Any]) -> str:
    """The comparison at each kind and length; the rest stands in `study.md`."""
    shown = [(points_title(kind, length), comparison_grid(study, figures)) for length, kind, figures in by_length(result)]
    return "\n\n".join(f"{title}\n{aligned_text(head, cells)}" for title, (head, cells) in shown)
