"""A report's tables as cells of text, each with the runs that it came from: HTML and Markdown print the same."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from train.routing import CONFUSED, own_expert

from .bootstrap import LEVEL
from .figures import ALL, SCORE
from .tables import HEADS, METRICS_TITLE, Cell, cell, grid, kind_title, lang_title, metrics_grid
from .token_classes import CLASSES

BEHIND = {"difference": ("base", "other"), "ratio": ("base", "other"), "kept": ("expert", "mixture")}  # roles of a figure that has several
PART_TITLES = ("Empty", "CodeBLEU", "n-gram", "Keywords", "Syntax", "Data flow", "Corpus level", "Library")

TITLE1, TITLE2 = "Table 1: base against experts", "Table 2: base against mixture"
TOKEN_BY_TOKEN, SIDE_BY_SIDE = "Experts, token by token", "Programs side by side"
PASS_TEXT = (
    f"The share of tasks that a model solves by k completions, unbiased (Chen et al. 2021), with {LEVEL} % intervals: Wilson's where all "
    "tasks agree, or where each is a problem of its own with k completions, else from a bootstrap over problems. Programs run against the "
    "tasks' tests, each within the wall time and memory given. What could not be judged counts nowhere."
)
COST_TEXT = (
    "As the runs themselves say. Peak memory is the process's, on a GPU what torch allocated. Tokens per second leave padding out. In "
    "generating they are of all completions, EOS included, over the wall time of reading prompts and generating; the batch is of prompts. "
    "In training they are of prompts and completions, of all processes, over the time of the optimizer steps, without evaluations; the "
    "batch is the rows of a step. Values in NF4 count as one parameter each; “for one token” leaves out the experts that a token does "
    "not go to. In judging, the time is that of compiling and running programs."
)


class Listing(NamedTuple):
    """A table. `sources` has the names of the runs behind each cell; none for a label. `last`: the last row is the total."""

    title: str
    head: list[str]
    cells: list[list[Cell]]
    sources: list[list[Sequence[str]]]
    last: bool = False


class Section(NamedTuple):
    """A part of the report: figures by name, then tables; or, by its title, what HTML and Markdown show each in its own way."""

    title: str
    text: str | None = None
    listings: Sequence[Listing] = ()
    figures: Sequence[str] = ()


def sections(report: dict[str, Any]) -> list[Section]:
    """In order, also those in which this report has nothing to show."""
    texts, study_text = report["texts"], report["study"] and report["study"]["note"]
    return [
        Section(TITLE1, texts.get("table1"), comparisons(report, "table1", "expert")),
        Section(TITLE2, texts.get("table2"), comparisons(report, "table2", "mixture")),
        Section("Figures", figures=("means", "distributions")),
        Section("The study", study_text, study(report)),
        Section("Unit tests: pass@k", PASS_TEXT, passes(report)),
        Section("Routing", texts.get("routing"), routing(report), ("gates",)),
        Section(TOKEN_BY_TOKEN),
        Section("Training", texts.get("training"), training(report), ("training",)),
        Section("Cost", COST_TEXT, cost(report)),
        Section(SIDE_BY_SIDE, texts.get("generations")),
        Section("The score and its parts", texts.get("score"), parts(report)),
        Section(METRICS_TITLE, texts.get("metrics"), measures(report)),
    ]


def sourced(row: list[Cell], names: Sequence[str], labels: int = 1) -> list[Sequence[str]]:
    """The same runs behind every cell of a row but its first `labels`."""
    return [()] * labels + [names] * (len(row) - labels)


def comparisons(report: dict[str, Any], key: str, role: str) -> list[Listing]:
    """Table 1 or 2: one for each kind of point."""
    found = []
    for kind, rows in report["tables"][key].items():
        columns = [name for name in HEADS if any(name in row for row in rows.values())]
        sources = []
        for lang in rows:
            langs = [name for name in rows if name != ALL] if lang == ALL else [lang]
            by_column = [_names(report, langs, ("base", role))]
            by_column += [
                _names(report, langs, [role if part == "other" else part for part in BEHIND.get(name, (name,))]) for name in columns
            ]
            sources.append([(), *by_column])
        found.append(Listing(kind_title(kind), *grid(rows), sources, last=ALL in rows))
    return found


def _names(report: dict[str, Any], langs: Sequence[str], roles: Sequence[str]) -> list[str]:
    behind = report["behind"]
    return list(dict.fromkeys(behind[lang][role] for role in roles for lang in langs if role in behind[lang]))


def parts(report: dict[str, Any]) -> list[Listing]:
    """The score and its parts, a row a language, system and kind."""
    cells, sources = [], []
    for lang, roles in report["details"].items():
        for role, kinds in roles.items():
            for kind, row in kinds.items():
                values = [row[SCORE], *row["parts"].values(), row["codebleu_corpus"], row["codebleu_library"]]
                shown = [lang_title(lang), HEADS[role], kind, str(row["n"]), str(row["empty"]), *map(_percent, values)]
                cells.append([(text, "") for text in shown])
                sources.append(sourced(cells[-1], _names(report, [lang], [role]), 3))
    return [Listing("", ["Language", "System", "Points", "n", *PART_TITLES], cells, sources)] if cells else []


def measures(report: dict[str, Any]) -> list[Listing]:
    """Every measure of the text, likewise."""
    head, cells = metrics_grid(report["details"])
    rows = [_names(report, [lang], [role]) for lang, roles in report["details"].items() for role, kinds in roles.items() for _ in kinds]
    return [Listing("", head, cells, [sourced(row, names, 3) for row, names in zip(cells, rows, strict=True)])] if head else []


def passes(report: dict[str, Any]) -> list[Listing]:
    """pass@k with its conditions, a row a run."""
    ks = sorted({k for row in report["passes"] for k in row["figures"]["pass_at_k"]}, key=int)
    head = ["Model", "Tasks", "Language", *(f"pass@{k}, %" for k in ks)]
    head += ["Tasks, n", "Completions", "of a task", "Not judged", "Precision", "Template", "Temperature", "top-p", "New tokens"]
    head += ["Limit, s", "Limit, MiB", "Sandbox"]
    cells: list[list[Cell]] = []
    for row in report["passes"]:
        figures, how = row["figures"], row["conditions"]
        unjudged = sum(figures["outcomes"][name] for name in ("tool missing", "sandbox error"))
        counts = [_text(count) for count in (figures["tasks"], figures["samples"], how["n"], unjudged)]
        settings = [_text(how[key]) for key in ("temperature", "top_p", "max_new_tokens", "timeout", "memory")]
        shown = [*counts, _text(how["precision"]), _yes(how["template"]), *settings, _yes(how["isolated"])]
        about = (row["name"], row["tasks"], lang_title(row["lang"]))
        rates = [cell("pass", figures["pass_at_k"].get(k)) for k in ks]
        cells.append([*((text, "") for text in about), *rates, *((text, "") for text in shown)])
    sources = [sourced(line, row["sources"], 3) for line, row in zip(cells, report["passes"], strict=True)]
    return [Listing("", head, cells, sources)] if cells else []


def routing(report: dict[str, Any]) -> list[Listing]:
    """First choices by language, the pair that is confused, and the own expert's share by class of token."""
    if not (found := report["routing"]):
        return []
    langs, experts, names = found["languages"], found["experts"], found["sources"]
    head = ["Language", "Tokens", *map(lang_title, experts), "own first", "own in K", "Entropy, bit"]
    cells = [
        [
            (lang_title(lang), ""),
            (f"{row['tokens']:,}", ""),
            *((_percent(share), "") for share in (*row["top1"], row["own_top1"], row["own_topk"])),
            (f"{row['entropy_bits']:.2f}", ""),
        ]
        for lang, row in langs.items()
    ]
    tables = [Listing("First choice by language, % of tokens", head, cells, [sourced(row, names) for row in cells])]
    places = [own_expert(experts, lang) for lang in CONFUSED]
    if None not in places and set(CONFUSED) <= langs.keys():
        head = ["Tokens of", *(f"{lang_title(lang)} {how}" for how in ("first", "in K") for lang in CONFUSED)]
        cells = [
            [(lang_title(lang), ""), *((_percent(langs[lang][key][place]), "") for key in ("top1", "topk") for place in places)]
            for lang in CONFUSED
        ]
        tables.append(Listing("Java and JavaScript apart, % of tokens", head, cells, [sourced(row, names) for row in cells]))
    head = ["Class of token", *map(lang_title, langs)]
    cells = [
        [(name, ""), *((_percent(row["classes"][name]["own"]) if name in row["classes"] else "–", "") for row in langs.values())]
        for name in CLASSES
    ]
    tables.append(Listing("Own expert first by class of token, %", head, cells, [sourced(row, names) for row in cells]))
    cells = [
        [("class of token", ""), *((_text(row["nmi_class"], ".3f"), "") for row in langs.values()), ("–", "")],
        [("language", ""), *[("–", "")] * len(langs), (_text(found["nmi_language"], ".3f"), "")],
    ]
    head = ["NMI of first choice and", *map(lang_title, langs), "All languages"]
    tables.append(Listing("How much one tells of the other", head, cells, [sourced(row, names) for row in cells]))
    return tables


def training(report: dict[str, Any]) -> list[Listing]:
    cells = []
    for label, row in report["training"].items():
        losses = [_text(row[key], ".3f") for key in ("first_loss", "last_loss", "best_eval_loss")]
        cells.append([(text, "") for text in (label, str(row["steps"]), row["loss_unit"], *losses, _text(row["seconds"], ".0f"))])
    head = ["Run", "Steps", "Loss in", "First loss", "Last loss", "Best validation loss", "Seconds to the last logged step"]
    sources = [sourced(line, row["sources"]) for line, row in zip(cells, report["training"].values(), strict=True)]
    return [Listing("", head, cells, sources)] if cells else []


def cost(report: dict[str, Any]) -> list[Listing]:
    head = ["Run", "Device", "Precision", "Parameters", "for one token", "Trained", "Peak memory", "Batch", "Tokens/s", "Seconds in all"]
    cells = []
    for row in report["cost"]:
        counts = [_millions(row.get(key)) for key in ("parameters", "active_parameters", "trainable_parameters")]
        peak = f"{row['peak_bytes'] / 2**30:.2f} GiB" if row.get("peak_bytes") else "–"
        speed = [_text(row.get("batch_size")), _text(row.get("tokens_per_second"), ".1f"), _text(row.get("seconds"), ".0f")]
        cells.append([(text, "") for text in (row["name"], row.get("device") or "–", row.get("precision") or "–", *counts, peak, *speed)])
    sources = [sourced(line, row["sources"], 3) for line, row in zip(cells, report["cost"], strict=True)]
    return [Listing("", head, cells, sources)] if cells else []


def study(report: dict[str, Any]) -> list[Listing]:
    """The comparison of each kind and length of eval.study, then what was seen in training."""
    tables = report["study"]["tables"] if report["study"] else []
    return [
        Listing(
            row["title"],
            row["head"],
            row["cells"],
            [sourced(line, names, row["labels"]) for line, names in zip(row["cells"], row["sources"], strict=True)],
        )
        for row in tables
        if row["cells"]
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _text(value: Any, form: str = "") -> str:
    return "–" if value is None else format(value, form)


def _yes(held: bool) -> str:
    return "yes" if held else "no"


def _millions(count: int | None) -> str:
    if not count:
        return "–"
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"
