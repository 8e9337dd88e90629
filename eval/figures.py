"""The figures of a report: Table 1 (base against experts), Table 2 (base against mixture), and what stands beside them.

Scores are the corrected CodeBLEU, mean over points, in [0, 1]. The row "all" is the mean of the languages. A table is
{kind: {lang or "all": {"n", "groups", column: {"value", "low", "high"}}}}.
"""

from typing import Any

from model.languages import LANGUAGES

from .bootstrap import Estimate, Stratum, average, bootstrap, difference, ratio
from .run_files import PREFERENCE_MARGIN
from .runs import ROLES, Run, Sample, Systems

ALL = "all"
SCORE = "codebleu"

Table = dict[str, dict[str, dict[str, Any]]]
Means = dict[str, dict[str, dict[str, Estimate]]]  # [kind][lang or "all"][role]


def aligned(systems: Systems, lang: str, kind: str) -> dict[str, list[Sample]]:
    """{role: its rows}, in the same order of points for every role."""
    return {
        role: sorted(run.samples[lang].get(kind, []), key=lambda row: (row["id"], row["reference"]))
        for role, run in systems.of(lang).items()
    }


def languages_of(systems: Systems) -> list[str]:
    return [lang for lang in LANGUAGES if systems.of(lang)]


def kinds_of(systems: Systems) -> list[str]:
    """Kinds of point that any run holds; "wording" (unseen wordings) before "family" (unseen families)."""
    return sorted({kind for lang in languages_of(systems) for run in systems.of(lang).values() for kind in run.samples[lang]}, reverse=True)


def role_means(systems: Systems, seed: int) -> tuple[Means, dict[str, dict[str, dict[str, int]]]]:
    """The means of every role, and {kind: {lang: {"n", "groups"}}}. A role's "all" is there if it has every language of the kind."""
    means: Means = {}
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for kind in kinds_of(systems):
        strata: dict[str, Stratum] = {}
        for lang in languages_of(systems):
            found = {role: rows for role, rows in aligned(systems, lang, kind).items() if rows}
            if found:
                groups = [row["group"] for row in next(iter(found.values()))]
                strata[lang] = groups, {role: [row[SCORE] for row in rows] for role, rows in found.items()}
        by_lang = bootstrap(strata, f"{seed}/{kind}")
        shared = [role for role in ROLES if all(role in row for row in by_lang.values())]
        means[kind] = {**by_lang, ALL: {role: average([row[role] for row in by_lang.values()]) for role in shared}}
        problems = {lang: groups for lang, (groups, _) in strata.items()}
        problems[ALL] = [group for groups in problems.values() for group in groups]
        counts[kind] = {lang: {"n": len(groups), "groups": len(set(groups))} for lang, groups in problems.items()}
    return means, counts


def against_base(means: Means, counts: dict[str, dict[str, dict[str, int]]], role: str) -> Table:
    """Base against `role` ("expert", "mixture"): means, paired difference, ratio; also the share of the experts that the mixture keeps."""
    table: Table = {}
    for kind, langs in means.items():
        rows = {}
        for lang, found in langs.items():
            if "base" not in found or role not in found:
                continue
            columns = {
                "base": found["base"],
                role: found[role],
                "difference": difference(found[role], found["base"]),
                "ratio": ratio(found[role], found["base"]),
            }
            if role == "mixture" and "expert" in found:
                columns["kept"] = ratio(found["mixture"], found["expert"])
            rows[lang] = {**counts[kind][lang], **{name: value.as_dict() for name, value in columns.items()}}
        if rows:
            table[kind] = rows
    return table


def details(systems: Systems) -> dict[str, Any]:
    """What each run measured, by its own `run.json`: {lang: {role: {kind: figures}}}, both scores and all parts."""
    return {lang: {role: run.facts["figures"][lang] for role, run in systems.of(lang).items()} for lang in languages_of(systems)}


def generations(systems: Systems) -> dict[str, dict[str, Any]]:
    """One point a language: that of the expert's (else the last role's) median score among the first kind, so nobody picked it."""
    chosen = {}
    for lang in languages_of(systems):
        kind = next(kind for kind in kinds_of(systems) if any(aligned(systems, lang, kind).values()))
        rows = aligned(systems, lang, kind)
        by = "expert" if rows.get("expert") else list(rows)[-1]
        median_of = rows[by]
        index = sorted(range(len(median_of)), key=lambda i: median_of[i][SCORE])[(len(median_of) - 1) // 2]
        point = {"by": by, **{key: median_of[index][key] for key in ("id", "kind", "text", "reference")}}
        chosen[lang] = {**point, "systems": {role: {key: rows[role][index][key] for key in ("prediction", SCORE)} for role in rows}}
    return chosen


def training_summary(logs: list[tuple[str, list[dict[str, Any]]]]) -> dict[str, dict[str, Any]]:
    """{label: steps, first and last training loss, best evaluation loss, what they are measured in, seconds}."""
    summary = {}
    for label, entries in logs:
        losses, checks = ([entry[key] for entry in entries if key in entry] for key in ("loss", "eval_loss"))
        summary[label] = {
            "steps": max(entry["step"] for entry in entries),
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
            "best_eval_loss": min(checks, default=None),
            "loss_unit": loss_unit(entries),
            "seconds": max((entry["seconds"] for entry in entries if "seconds" in entry), default=None),
        }
    return summary


def loss_unit(entries: list[dict[str, Any]]) -> str:
    """What the losses of a training log are measured in."""
    aligned_pairs = any(key.endswith(PREFERENCE_MARGIN) for entry in entries for key in entry)
    return "preference loss per pair" if aligned_pairs else "nats per token"


def precision(systems: Systems) -> str:
    """The dtype and quantisation of each role's runs, e.g. "base float32, expert float32, mixture float32 with NF4 matrices"."""
    runs: dict[str, list[Run | None]] = {"base": [systems.base], "expert": [*systems.experts.values()], "mixture": [systems.mixture]}
    found = {role: dict.fromkeys(precision_of(run.facts) for run in runs[role] if run) for role in ROLES}
    return ", ".join(f"{role} {' and '.join(names)}" for role, names in found.items() if names)


def precision_of(facts: dict[str, Any]) -> str:
    """Of a run's facts, such as "float32 with NF4 matrices and int8 activations"."""
    dtype, quantization = facts.get("dtype", "of unknown precision"), facts.get("quantization")
    activations = " and int8 activations" if facts.get("precision") == "int8" else ""
    return f"{dtype} with {quantization.upper()} matrices{activations}" if quantization else dtype


def conditions(run: Run) -> dict[str, Any]:
    """Which run a number came from and how it was made: all that its `run.json` says but for what it measured."""
    return {"path": str(run.path), **{key: value for key, value in run.facts.items() if key not in ("figures", "cost", "judging")}}
