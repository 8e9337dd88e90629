"""`python -m eval.report RUN... --out DIR`: what the evaluation commands found, as one page.

Takes the base's run of eval.codebleu, the experts' (one a language) and the mixture's; which is which is what `--name` said ("base",
"expert-cpp", "mixture") or what the command found. Runs on different points, prompts or lengths are refused. Beside them, or alone: runs of
eval.pass_at_k, and one folder each of eval.routing and eval.study. DIR holds `report.html`, which opens without a network, the `run.json`
that each of its numbers links to (`runs/`), `report.md`, `report.json` (every number, unrounded) and the figures as PNG.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from model.cli import make_parser, run_command
from model.output import output_folder, refuse_existing, write_json, write_run
from model.strict_json import read_json

from . import plots
from .bootstrap import LEVEL
from .figures import aligned, kinds_of, languages_of
from .html import render
from .report_build import build, gather, labelled
from .report_tables import SIDE_BY_SIDE, TITLE1, TITLE2, sections
from .run_files import check_arrays, check_programs
from .runs import ARRAYS, PROGRAMS, Run, Systems, read_inputs, read_training
from .tables import few_note, grid, intervals, kind_title, lang_title, markdown_table, text_table


def main(args: Namespace) -> None:
    refuse_existing(args.out)
    inputs = read_inputs(args.runs)
    logs = [(path, *read_training(path)) for path in args.training]
    sources = gather(inputs, logs)
    logs = labelled(logs, sources)
    report = build(inputs, logs, sources, args.title, args.seed)
    arrays, programs = (read_routing(inputs.routing, name) for name in (ARRAYS, PROGRAMS))
    with output_folder(args.out) as folder:
        sources.copy(folder)
        figures, captions = draw(folder, inputs.systems, report, arrays, [log[1:] for log in logs])
        texts = {"report.html": render(report, figures, captions, programs), "report.md": markdown(report, figures, captions)}
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", errors="replace")  # a run's folder may have a name that is no UTF-8
        write_json(folder / "report.json", report)
        headlines = {row["name"]: row["estimate"] for row in report["headlines"]}
        write_run(folder, seed=args.seed, figures=headlines, program="eval.report", runs=[str(path) for path in args.runs])
    for title, key in ((TITLE1, "table1"), (TITLE2, "table2")):
        if report["tables"][key]:
            print(text_table(title, report["tables"][key]), end="\n\n")
    print(f"the report: {args.out / 'report.html'}")


def read_routing(run: Run | None, name: str) -> Any:
    """A file of the routing run, None if it has none; ValueError for a run from before tokens had classes."""
    if run is None or not (run.path / name).is_file():
        return None
    found = read_json(run.path / name)
    if name == ARRAYS and "classes" not in found:
        raise ValueError(f"{run.path / name} lacks the classes of tokens: make it again with this version of eval.routing")
    return check_arrays(found, str(run.path / name)) if name == ARRAYS else check_programs(found, str(run.path / name))


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
        few = few_note(interval for table in tables for rows in table.values() for interval in intervals(grid(rows)[1]))
        captions["means"] = f"Mean CodeBLEU by language; lines are {LEVEL} % intervals. {sizes}. {few}".strip()
    if scores:
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
        captions["training"] = (
            "Training loss by step, and loss on the validation rows; each panel has its own scale. "
            "The parts of a gate's training loss are shown before their weights."
        )
    return figures, captions


def _sizes(langs: dict[str, dict[str, list[float]]]) -> str:
    sizes = {lang: len(next(iter(roles.values()))) for lang, roles in langs.items() if any(roles.values())}
    same = set(sizes.values())
    return f"{same.pop()} a language" if len(same) == 1 else ", ".join(f"{n} {lang_title(lang)}" for lang, n in sizes.items())


def markdown(report: dict[str, Any], figures: dict[str, dict[str, Path]], captions: dict[str, str]) -> str:
    parts = [f"# {report['title']}", report["texts"]["summary"]]
    parts += ["\n".join(f"- **{row['figure']}** {row['text']}{row['interval'] and ', '}{row['interval']}" for row in report["headlines"])]
    parts += [note] if (note := few_note(row["interval"] for row in report["headlines"])) else []
    for section in sections(report):
        shown = [f"![{captions[name]}]({figures[name]['light'].name})\n\n{captions[name]}" for name in section.figures if name in figures]
        shown += [f"{f'### {row.title}' if row.title else ''}\n\n{markdown_table(row.head, row.cells)}".strip() for row in section.listings]
        shown += list(_programs(report)) if section.title == SIDE_BY_SIDE else []
        parts += [f"## {section.title}", *([section.text] if section.text else []), *shown] if shown else []
    parts += ["## Where the numbers come from", "\n".join(f"- [{name}]({quote(path)})" for name, path in report["sources"].items())]
    return "\n\n".join(parts) + "\n"


def _programs(report: dict[str, Any]) -> Iterator[str]:
    """Of each language the point that is shown: the reference and every system's program."""
    for lang, point in report["generations"].items():
        yield f"### {lang_title(lang)}\n\n{point['text']}"
        programs = {"reference": point["reference"], **{role: row["prediction"] for role, row in point["systems"].items()}}
        yield from (f"{role.capitalize()}:\n\n````{lang}\n{code.strip()}\n````" for role, code in programs.items())


def parse() -> ArgumentParser:
    parser = make_parser("eval.report", __doc__ or "")
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="an output folder of eval.codebleu, eval.routing, eval.pass_at_k or eval.study"
    )
    parser.add_argument(
        "--training", nargs="+", type=Path, default=[], metavar="DIR", help="output folders of training commands, for the curves"
    )
    parser.add_argument("--title", default="A mixture of code experts", help="of the report")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, parse()))
