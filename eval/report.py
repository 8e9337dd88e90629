"""`python -m eval.report RUN... --out DIR`: the study as one page, from the runs of eval.codebleu and eval.routing.

Takes the base's run, the experts' (one a language), the mixture's, and one of eval.routing; which is which is what `--name` said
("base", "expert-cpp", "mixture") or what the command found. Runs on different points, prompts or lengths are refused. DIR holds
`report.html` (self-contained), `report.md`, `report.json` (every number, unrounded) and the figures as PNG.
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from model.checkpoint import read_json
from model.cli import make_parser, run_command
from model.output import check_absent, output_folder, write_json, write_run

from . import plots
from .bootstrap import LEVEL
from .figures import ALL, aligned, compare, conditions, details, estimate, generations, kinds_of, languages_of, precision, training_summary
from .html import render
from .runs import ARRAYS, Run, Systems, read_runs, read_training
from .tables import METRICS_TITLE, cell, grid, kind_title, lang_title, markdown_table, metrics_grid, text_table

TITLE1, TITLE2 = "Table 1: base against experts", "Table 2: base against mixture"


def main(args: Namespace) -> None:
    check_absent(args.out)
    systems, routing = read_runs(args.runs)
    logs = [read_training(path) for path in args.training]
    report = build(systems, routing, logs, args.title, args.seed)
    arrays = read_json(routing.path / ARRAYS) if routing else None
    with output_folder(args.out) as folder:
        figures, captions = draw(folder, systems, report, arrays, logs)
        (folder / "report.html").write_text(render(report, figures, captions), encoding="utf-8")
        (folder / "report.md").write_text(markdown(report, figures, captions), encoding="utf-8")
        write_json(folder / "report.json", report)
        headlines = {row["name"]: row["estimate"] for row in report["headlines"]}
        write_run(folder, seed=args.seed, figures=headlines, program="eval.report", runs=[str(path) for path in args.runs])
    for title, key in ((TITLE1, "table1"), (TITLE2, "table2")):
        if report["tables"][key]:
            print(text_table(title, report["tables"][key]), end="\n\n")
    print(f"the report: {args.out / 'report.html'}")


def build(systems: Systems, routing: Run | None, logs: list[tuple[str, list[dict[str, Any]]]], title: str, seed: int) -> dict[str, Any]:
    """`report.json`: tables, headlines, texts, details, routing, training, generations and the runs' conditions."""
    means, counts = estimate(systems, seed)
    tables = {"table1": compare(means, counts, "expert"), "table2": compare(means, counts, "mixture")}
    every = [run for run in (systems.base, *systems.experts.values(), systems.mixture, routing) if run]
    unique = {run.path: run for run in every}
    return {
        "title": title,
        "interval_percent": LEVEL,
        "headlines": headlines(tables),
        "tables": tables,
        "texts": texts(systems, counts),
        "details": details(systems),
        "routing": routing.facts["figures"] if routing else None,
        "training": training_summary(logs),
        "generations": generations(systems),
        "runs": [conditions(run) for run in unique.values()],
    }


def headlines(tables: dict[str, Any]) -> list[dict[str, Any]]:
    """The ratios that a reader comes for, over all languages: one entry a kind and question."""
    questions = (
        ("table1", "ratio", "expert", "the base's CodeBLEU by the language's expert"),
        ("table2", "ratio", "mixture", "the base's CodeBLEU by the mixture"),
        ("table2", "kept", "mixture", "of the experts' mean kept by the mixture"),
    )
    found = []
    for kind in dict.fromkeys(kind for table in tables.values() for kind in table):
        for table, column, role, text in questions:
            row = tables[table].get(kind, {}).get(ALL)
            if row is None or column not in row:
                continue
            figure, interval = cell(column, row[column])
            text = f"{text} · {kind_title(kind).lower()}, n = {row['n']}"
            note = f"{LEVEL} % interval {interval}" if interval else ""
            found.append(
                {"name": f"{kind}/{role}/{column}", "role": role, "figure": figure, "text": text, "interval": note, "estimate": row[column]}
            )
    return found


def texts(systems: Systems, counts: dict[str, dict[str, dict[str, int]]]) -> dict[str, str]:
    """The sentences that say under what conditions the numbers hold."""
    some = next(iter(systems.of(languages_of(systems)[0]).values()))
    points = "; ".join(
        f"{kind_title(kind).lower()}: {counts[kind][ALL]['n']} points of {counts[kind][ALL]['groups']} problems" for kind in counts
    )
    decoding = f"greedy decoding, at most {some.facts['max_new_tokens']} new tokens, one prompt format for all systems"
    scale = f"CodeBLEU × 100, corrected, mean over the points; in brackets the {LEVEL} % interval from a bootstrap over problems"
    return {
        "summary": f"{', '.join(map(lang_title, languages_of(systems)))}; {points}; {decoding}; {precision(systems)}.",
        "table1": f"{scale}, paired for difference and ratio. Each expert sees its own language only.",
        "table2": f"{scale}, paired. The points are Table 1's; “of expert” is the share of the experts' mean that the mixture keeps.",
        "generations": "One point a language, picked by rule and not by hand: the one at which the expert has its median score.",
        "score": "All × 100, means over points. CodeBLEU here corrects the package codebleu 0.7.0: a data-flow score of 0 counts as 0, "
        "not as 1; an empty prediction scores 0; a reference without data flow leaves that part out; n-grams are of lexer tokens; "
        "the parts are F1, and data flow counts at most as much as syntax, so that neither length nor prose gains anything. "
        "“Library” is the package's own formula, for comparison with the literature; “corpus level” sums counts before dividing.",
        "metrics": f"All × 100 with {LEVEL} % intervals from a bootstrap over problems. All but “Library” are of tokens of the language's "
        "lexer, without comments. “Parses” is by tree-sitter; “compiles” stands beside the rate of the references, often fragments.",
    }


def draw(
    folder: Path, systems: Systems, report: dict[str, Any], arrays: dict[str, Any] | None, logs: list[tuple[str, list[dict[str, Any]]]]
) -> tuple[dict[str, dict[str, Path]], dict[str, str]]:
    """Writes the figures; ({name: {theme: path}}, {name: caption})."""
    figures, captions = {}, {}
    scores = {kind: {lang: plots.row_scores(aligned(systems, lang, kind)) for lang in languages_of(systems)} for kind in kinds_of(systems)}
    sizes = ". ".join(f"{kind_title(kind)}: n = {_sizes(langs)}" for kind, langs in scores.items())
    tables = [table for table in report["tables"].values() if table]
    if tables:
        figures["means"] = plots.save(folder, "means", lambda colours: plots.means_figure(tables, colours))
        captions["means"] = f"Mean CodeBLEU by language; lines are {LEVEL} % intervals. {sizes}."
    figures["distributions"] = plots.save(folder, "distributions", lambda colours: plots.distributions_figure(scores, colours))
    captions["distributions"] = f"Each dot is one point's score, the shape their density, the bar their mean. {sizes}."
    if arrays:
        figures["gates"] = plots.save(folder, "gates", lambda colours: plots.gates_figure(arrays, colours))
        tokens = ", ".join(
            f"{lang_title(lang)} {row['tokens']:,} tokens of {row['n']} programs" for lang, row in arrays["languages"].items()
        )
        captions["gates"] = f"Which expert the gate puts first for the tokens of reference programs, without noise. {tokens}."
    if logs:
        figures["training"] = plots.save(folder, "training", lambda colours: plots.training_figure(logs, colours))
        captions["training"] = "Training loss by step, and loss on the validation rows; each panel has its own scale."
    return figures, captions


def _sizes(langs: dict[str, dict[str, list[float]]]) -> str:
    sizes = {lang: len(next(iter(roles.values()))) for lang, roles in langs.items() if any(roles.values())}
    same = set(sizes.values())
    return f"{same.pop()} a language" if len(same) == 1 else ", ".join(f"{n} {lang_title(lang)}" for lang, n in sizes.items())


def markdown(report: dict[str, Any], figures: dict[str, dict[str, Path]], captions: dict[str, str]) -> str:
    parts = [f"# {report['title']}", report["texts"]["summary"]]
    parts += ["\n".join(f"- **{row['figure']}** {row['text']}{row['interval'] and ', '}{row['interval']}" for row in report["headlines"])]
    for title, key in ((TITLE1, "table1"), (TITLE2, "table2")):
        if report["tables"][key]:
            parts += [f"## {title}", report["texts"][key]]
            parts += [f"### {kind_title(kind)}\n\n{markdown_table(*grid(rows))}" for kind, rows in report["tables"][key].items()]
    parts += ["## Figures", *(f"![{captions[name]}]({paths['light'].name})\n\n{captions[name]}" for name, paths in figures.items())]
    head, cells = metrics_grid(report["details"])
    if head:
        parts += [f"## {METRICS_TITLE}", report["texts"]["metrics"], markdown_table(head, cells)]
    parts += ["## Programs side by side", report["texts"]["generations"]]
    for lang, point in report["generations"].items():
        parts.append(f"### {lang_title(lang)}\n\n{point['text']}")
        programs = {"reference": point["reference"], **{role: row["prediction"] for role, row in point["systems"].items()}}
        parts += [f"{role.capitalize()}:\n\n````{lang}\n{code.strip()}\n````" for role, code in programs.items()]
    return "\n\n".join(parts) + "\n"


def parse() -> ArgumentParser:
    parser = make_parser("eval.report", __doc__ or "")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="an output folder of eval.codebleu or eval.routing")
    parser.add_argument(
        "--training", nargs="+", type=Path, default=[], metavar="DIR", help="output folders of training commands, for the curves"
    )
    parser.add_argument("--title", default="A mixture of code experts", help="of the report")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, parse()))
