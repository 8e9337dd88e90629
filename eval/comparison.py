"""The figures of a study at one length: every system's measures with intervals, and each claim against baseline and experts.

Scores are means over points; the loss is nats per token of the references, over all tokens. "all" is the mean of the languages, given
where a system has all of them. Intervals and tests are over problems (`bootstrap`, `significance`), paired between systems.
"""

from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

from .bootstrap import Estimate, Stratum, average, bootstrap, difference, ratio
from .contamination import CONTAMINATED
from .figures import ALL, SCORE
from .runs import Sample, read_run
from .significance import holm, paired_test
from .study_file import Study
from .text_metrics import TEXT_METRICS

LOSS = "loss"
STUDY_METRICS = (SCORE, "codebleu_library", *TEXT_METRICS, LOSS)
COMPILED = ("compiles", "reference_compiles")  # of studies that ask for it
CLAIMED = (SCORE, LOSS)

Langs = dict[str, list[Sample]]  # [language], in the order of the points
Rows = dict[str, dict[str, Langs]]  # [kind][system]
Means = dict[str, dict[str, Estimate]]  # [system][language or "all"]
Shares = dict[str, dict[str, list[float]]]  # [language][kind]: `contamination.found_shares` of the points


def study_rows(folder: Path, study: Study, shares: Shares | None) -> Rows:
    """The samples of all systems' runs in `folder`; each gets its share of seen shingles as "seen" (0 if nobody looked)."""
    rows: Rows = defaultdict(lambda: defaultdict(dict))
    for system in study.systems:
        for source in system.sources(study.langs):
            for lang, kinds in read_run(folder / source.run).samples.items():
                for kind, samples in kinds.items():
                    seen = shares[lang][kind] if shares else [0.0] * len(samples)
                    rows[kind][system.name][lang] = [{**row, "seen": share} for row, share in zip(samples, seen, strict=True)]
    return rows


def compare_systems(study: Study, rows: Rows, seed: int) -> dict[str, Any]:
    """{kind: {"points", "systems", "unseen", "claims"}} as they stand in `study.json`."""
    figures = {}
    for kind, systems in rows.items():
        metrics = STUDY_METRICS + (COMPILED if study.compile else ())
        means = {metric: metric_means(systems, metric, len(study.langs), f"{seed}/{kind}") for metric in metrics}
        unseen = {name: _unseen(langs) for name, langs in systems.items()}
        left = {lang for langs in unseen.values() for lang in langs}
        figures[kind] = {
            "points": _count(systems),
            "systems": _as_dicts(means),
            "unseen": {"points": _count(unseen), "systems": _as_dicts({SCORE: metric_means(unseen, SCORE, len(left), f"{seed}/{kind}")})},
            "claims": claims(study, systems, means, f"{seed}/{kind}"),
        }
    return figures


def _unseen(langs: Langs) -> Langs:
    """The points that do not count as seen, and the languages that have any."""
    left = {lang: [row for row in rows if row["seen"] < CONTAMINATED] for lang, rows in langs.items()}
    return {lang: rows for lang, rows in left.items() if rows}


def metric_means(systems: dict[str, Langs], metric: str, languages: int, seed: str) -> Means:
    """The mean of a metric for each system, by language, and over `languages` of them where it has so many."""
    if metric == LOSS:
        nats, tokens = (_by_language(systems, key, seed) for key in ("reference_nats", "reference_tokens"))
        means = {name: {lang: ratio(nats[name][lang], tokens[name][lang]) for lang in own} for name, own in nats.items()}
    else:
        means = _by_language(systems, metric, seed)
    return {name: own | ({ALL: average(list(own.values()))} if own and len(own) == languages else {}) for name, own in means.items()}


def _by_language(systems: dict[str, Langs], key: str, seed: str) -> Means:
    """Over the points at which all systems have the figure: a program that no compiler could look at leaves the rates."""
    strata: dict[str, Stratum] = {}
    for lang in dict.fromkeys(lang for langs in systems.values() for lang in langs):
        scored = {name: langs[lang] for name, langs in systems.items() if lang in langs}
        points = [rows for rows in zip(*scored.values(), strict=True) if all(row[key] is not None for row in rows)]
        if points:
            values = {name: [float(rows[place][key]) for rows in points] for place, name in enumerate(scored)}
            strata[lang] = [rows[0]["group"] for rows in points], values
    found = bootstrap(strata, seed) if strata else {}
    return {name: {lang: row[name] for lang, row in found.items() if name in row} for name in systems}


def claims(study: Study, systems: dict[str, Langs], means: dict[str, Means], seed: str) -> list[dict[str, Any]]:
    """Every system against baseline and experts, by language and over all: paired difference, ratio, p-value.

    `p_holm` is adjusted for the number of claims about a metric over all languages; claims about one language have none. The losses of
    models with different tokenizers are of different tokens, so they are not compared.
    """
    references = [name for name in dict.fromkeys((study.baseline, study.experts)) if name]
    pairs = [(name, against) for against in references for name in systems if name not in (study.baseline, against)]
    found: list[dict[str, Any]] = []
    for (name, against), metric in product(pairs, CLAIMED):
        if metric == LOSS and not _same_tokens(systems[name], systems[against]):
            continue
        ours, theirs = means[metric][name], means[metric][against]
        for lang in [lang for lang in ours if lang in theirs]:
            differences = problem_differences(systems[name], systems[against], metric, list(systems[name]) if lang == ALL else [lang])
            figures = {
                "difference": difference(ours[lang], theirs[lang]).as_dict(),
                "ratio": ratio(ours[lang], theirs[lang]).as_dict(),
                "p": paired_test(differences, f"{seed}/{name}/{against}"),
            }
            found.append({"system": name, "against": against, "metric": metric, "lang": lang, **figures})
    for metric in CLAIMED:
        tested = [claim for claim in found if claim["metric"] == metric and claim["lang"] == ALL and claim["p"] is not None]
        for claim, adjusted in zip(tested, holm([claim["p"] for claim in tested]), strict=True):
            claim["p_holm"] = adjusted
    return found


def problem_differences(ours: Langs, theirs: Langs, metric: str, langs: list[str]) -> dict[str, float]:
    """What each problem adds to the difference of two systems' means over `langs`."""
    key = "reference_nats" if metric == LOSS else metric
    shares: dict[str, float] = defaultdict(float)
    for lang in langs:
        weight = sum(row["reference_tokens"] for row in ours[lang]) if metric == LOSS else len(ours[lang])
        for row, other in zip(ours[lang], theirs[lang], strict=True):
            shares[row["group"]] += (row[key] - other[key]) / weight / len(langs)
    return shares


def _same_tokens(ours: Langs, theirs: Langs) -> bool:
    counts = [[[row["reference_tokens"] for row in side[lang]] for lang in ours if lang in theirs] for side in (ours, theirs)]
    return counts[0] == counts[1]


def _count(systems: dict[str, Langs]) -> dict[str, dict[str, int]]:
    """{language: its points and problems}."""
    rows = {lang: own for langs in systems.values() for lang, own in langs.items()}
    return {lang: {"n": len(own), "groups": len({row["group"] for row in own})} for lang, own in rows.items()}


def _as_dicts(means: dict[str, Means]) -> dict[str, dict[str, dict[str, Any]]]:
    """{system: {language or "all": {metric: {"value", "low", "high"}}}}."""
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for metric, systems in means.items():
        for name, langs in systems.items():
            for lang, value in langs.items():
                figures.setdefault(name, {}).setdefault(lang, {})[metric] = value.as_dict()
    return figures
