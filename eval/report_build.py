"""What stands in a report, before it is drawn: every number unrounded, with the names of the runs that it came from (`report.json`)."""

from pathlib import Path
from typing import Any

from model.output import RUN
from model.strict_json import read_json
from train.routing import means, own_expert

from .bootstrap import LEVEL
from .figures import (
    ALL,
    against_base,
    conditions,
    details,
    generations,
    languages_of,
    precision,
    precision_of,
    role_means,
    training_summary,
)
from .report_study import read_study_result, study_tables
from .run_files import check_arrays
from .runs import ARRAYS, ROLES, Inputs, Run, Systems
from .sources import Sources, free_name
from .specialisation import class_shares
from .tables import cell, kind_title, lang_title

Logs = list[tuple[Path, str, list[dict[str, Any]]]]  # folder, label, entries
BASE_OF = {"ratio": "base", "kept": "expert"}  # what a headline's figure is divided by
GENERAL = {
    "routing": "Of the tokens of reference programs, EOS included, fed to the mixture without noise; means over layers. The first choice "
    "is the expert with the most weight. NMI is the normalised mutual information of a token's class and its first choice (Vinh, Epps and "
    "Bailey 2010): 0 says that the class tells nothing of the expert, 1 that it tells everything. Docstrings count as comments, brackets "
    "as operators.",
    "training": "Losses in nats per token are of programs and their EOS. That of train.align is the mean over pairs of a preference loss.",
}


def gather(inputs: Inputs, logs: Logs) -> Sources:
    """The names of all runs that a number can come from."""
    wanted = [(run.path, run.path.resolve().name) for run in inputs.runs]
    wanted += [(path, path.resolve().name) for path, *_ in logs]
    if inputs.study:
        study, result = read_study_result(inputs.study)
        for length in result["lengths"]:
            runs = [source.run for system in study.systems for source in system.sources(study.langs)]
            wanted += [(inputs.study.path / length / run, f"study-{length}-{run}") for run in runs]
    return Sources(wanted)


def labelled(logs: Logs, sources: Sources) -> Logs:
    """The logs under the names that `sources` has for their folders: two folders in different places may be called alike."""
    found: Logs = []
    for path, label, entries in logs:
        names = sources.names(path)  # none where there is no run.json
        found.append((path, names[0] if names else free_name(label, [*sources.paths, *(known for _, known, _ in found)]), entries))
    return found


def build(inputs: Inputs, logs: Logs, sources: Sources, title: str, seed: int) -> dict[str, Any]:
    """`report.json`."""
    systems = inputs.systems
    means_of, counts = role_means(systems, seed)
    tables = {"table1": against_base(means_of, counts, "expert"), "table2": against_base(means_of, counts, "mixture")}
    chosen = generations(systems)
    behind = {lang: {role: sources.names(run.path)[0] for role, run in systems.of(lang).items()} for lang in languages_of(systems)}
    return {
        "title": title,
        "interval_percent": LEVEL,
        "headlines": headlines(systems, tables, behind),
        "tables": tables,
        "texts": texts(systems, counts, {point["by"] for point in chosen.values()}),
        "details": details(systems),
        "study": study_tables(inputs.study, sources) if inputs.study else None,
        "passes": [pass_row(run, sources) for run in inputs.passes],
        "routing": routing(inputs.routing, sources) if inputs.routing else None,
        "training": training(logs, sources),
        "cost": cost(inputs, logs, sources),
        "generations": chosen,
        "behind": behind,
        "sources": sources.files(),
        "runs": {name: conditions(Run(path, read_json(path / RUN), {})) for name, path in sources.paths.items()},
    }


def pass_row(run: Run, sources: Sources) -> dict[str, Any]:
    """Of a run of eval.pass_at_k: the figures and what they depend on."""
    facts = run.facts
    how = {key: facts[key] for key in ("n", "temperature", "top_p", "max_new_tokens", "template", "timeout", "memory")}
    nameless = "completions made elsewhere" if facts.get("samples") else "the tasks' own solutions"
    about = {
        "name": facts.get("name") or facts.get("model") or nameless,
        "tasks": Path(facts["tasks"]).name,
        "lang": facts["lang"],
    }
    took = facts.get("cost")  # of generating, by a model
    how["precision"] = precision_of({**facts, **took}) if took else None
    return {**about, "figures": facts["figures"], "conditions": {**how, **facts["sandbox"]}, "sources": sources.names(run.path)}


def routing(run: Run, sources: Sources) -> dict[str, Any]:
    """Means over layers by language, with the shares by class of token."""
    arrays = check_arrays(read_json(run.path / ARRAYS), str(run.path / ARRAYS))
    languages = {}
    for lang, row in arrays["languages"].items():
        own = own_expert(arrays["experts"], lang)
        languages[lang] = {**{key: means(value) for key, value in row.items() if key != "by_class"}, "classes": class_shares(row, own)}
    overall = means(arrays["nmi_language"])
    return {"experts": arrays["experts"], "languages": languages, "nmi_language": overall, "sources": sources.names(run.path)}


def training(logs: Logs, sources: Sources) -> dict[str, dict[str, Any]]:
    """What the curves show, in figures."""
    summary = training_summary([(label, entries) for _, label, entries in logs])
    return {label: {**summary[label], "sources": sources.names(path)} for path, label, _ in logs}


def cost(inputs: Inputs, logs: Logs, sources: Sources) -> list[dict[str, Any]]:
    """What evaluation and training took, of the runs that say so."""
    rows = []
    for run in inputs.runs:
        if took := run.facts.get("cost"):
            precision = precision_of({**run.facts, **took})
            more = {"precision": precision, "seconds": took.get("generation_seconds"), "sources": sources.names(run.path)}
            rows.append({"name": f"{run.path.resolve().name}, generating", **took, **more})
        if took := run.facts.get("judging"):
            about = f"{run.path.resolve().name}, judging {took['programs']} programs at {took['jobs']} a time"
            rows.append({"name": about, "seconds": took["seconds"], "sources": sources.names(run.path)})
    for path, label, _ in logs:
        if names := sources.names(path):
            took = read_json(path / RUN)["figures"]
            rows.append({"name": f"{label}, training", **took, "precision": precision_of(took), "sources": names})
    return [row for row in rows if row.get("peak_bytes") or row.get("seconds")]


def _all_names(behind: dict[str, dict[str, str]], role: str) -> list[str]:
    return list(dict.fromkeys(roles[role] for roles in behind.values() if role in roles))


def shared_experts(systems: Systems) -> list[Run]:
    """Expert runs over several languages, none of which is known to be the expert's own."""
    return list({run.path: run for run in systems.experts.values() if len(run.samples) > 1}.values())


def headlines(systems: Systems, tables: dict[str, Any], behind: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """The ratios that a reader comes for, over all languages: one entry a kind and question."""
    by_expert = "the base's CodeBLEU by " + ("the experts given" if shared_experts(systems) else "the language's expert")
    questions = (
        ("table1", "ratio", "expert", by_expert),
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
            sources = [name for part in (BASE_OF[column], role) for name in _all_names(behind, part)]
            text = f"{text} · {kind_title(kind).lower()}, n = {row['n']}"
            note = f"{LEVEL} % interval {interval}" if interval else ""
            found.append(
                {
                    "name": f"{kind}/{role}/{column}",
                    "role": role,
                    "figure": figure,
                    "text": text,
                    "interval": note,
                    "estimate": row[column],
                    "sources": sources,
                }
            )
    return found


def texts(systems: Systems, counts: dict[str, dict[str, dict[str, int]]], picked_by: set[str]) -> dict[str, str]:
    """The sentences that say under what conditions the numbers hold; `picked_by`: roles whose median score picked the points shown."""
    if not (langs := languages_of(systems)):
        return {**GENERAL, "summary": "No text was scored: this report has no run of eval.codebleu."}
    some = next(iter(systems.of(langs[0]).values()))
    points = "; ".join(
        f"{kind_title(kind).lower()}: {counts[kind][ALL]['n']} points of {counts[kind][ALL]['groups']} problems" for kind in counts
    )
    decoding = f"greedy decoding, at most {some.facts['max_new_tokens']} new tokens, one prompt format for all systems"
    if given := [run.path.resolve().name for run in systems.runs if run.elsewhere]:
        decoding = f"the completions of {', '.join(given)} were made elsewhere, in a way that is not recorded"
    shared = {run.path.resolve().name: ", ".join(map(lang_title, run.samples)) for run in shared_experts(systems)}
    experts = "; ".join(f"{name} stands as the expert of {own}" for name, own in shared.items()) or "Each expert sees its own language only"
    scale = f"CodeBLEU × 100, corrected, mean over the points; in brackets the {LEVEL} % interval from a bootstrap over problems"
    return {
        **GENERAL,
        "summary": f"{', '.join(map(lang_title, langs))}; {points}; {decoding}; {precision(systems)}.",
        "table1": f"{scale}, paired for difference and ratio. {experts}.",
        "table2": f"{scale}, paired. The points are Table 1's; “of expert” is the share of the experts' mean that the mixture keeps.",
        "generations": "One point a language, picked by rule and not by hand: the one at which the "
        f"{' or the '.join(role for role in ROLES if role in picked_by)} has its median score.",
        "score": "All × 100, means over points. CodeBLEU here corrects the package codebleu 0.7.0: a data-flow score of 0 counts as 0, "
        "not as 1; an empty prediction scores 0; a reference without data flow leaves that part out; n-grams are of lexer tokens; "
        "the parts are F1, and data flow counts at most as much as syntax, so that neither length nor prose gains anything. "
        "“Library” is the package's own formula, for comparison with the literature; “corpus level” sums counts before dividing.",
        "metrics": f"All × 100 with {LEVEL} % intervals from a bootstrap over problems. All but “Library” are of tokens of the language's "
        "lexer, without comments. “Parses” is by tree-sitter; “compiles” stands beside the rate of the references, often fragments.",
    }
