"""The report's figures, each drawn twice: on light and on dark ground. One colour a role throughout."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from .figures import ALL, SCORE, Table, loss_unit
from .run_files import GATE_LOSSES
from .tables import HEADS, few_mark, kind_title, lang_title

THEMES = {
    "light": {"ground": "#ffffff", "ink": "#1c2330", "faint": "#667085", "grid": "#e4e7ec", "low": "#f4f6f9", "high": "#1f5fa8"},
    "dark": {"ground": "#161b22", "ink": "#e6eaf0", "faint": "#98a2b3", "grid": "#2d3540", "low": "#1d2530", "high": "#6cb0ff"},
}
ROLE_COLOURS = {"base": "#8b95a5", "expert": "#3b82c4", "mixture": "#e08a1e"}
WIDTH = 10.0  # inches
CELLS = 12  # columns of a heat map that leave room for figures in the cells

Theme = Mapping[str, str]
Draw = Callable[[Theme], Figure]


def save(folder: Path, name: str, draw: Draw) -> dict[str, Path]:
    """Draws `name.png` and `name-dark.png`; {theme: path}."""
    paths = {}
    for theme, colours in THEMES.items():
        paths[theme] = folder / (f"{name}.png" if theme == "light" else f"{name}-{theme}.png")
        with plt.rc_context(_style(colours)):
            figure = draw(colours)
            figure.savefig(paths[theme], dpi=150, metadata={"Software": None})
            plt.close(figure)
    return paths


def _style(colours: Theme) -> Any:
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), colours["ink"])
    faint = dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor", "axes.edgecolor"), colours["faint"])
    ground = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), colours["ground"])
    layout = {"use": True, "wspace": 0.04, "hspace": 0.06}
    layout = {f"figure.constrained_layout.{key}": value for key, value in layout.items()}
    spines = {f"axes.spines.{side}": False for side in ("top", "right", "left")}
    size = {
        "font.size": 10.5,
        "axes.titlesize": 11.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "font.family": "DejaVu Sans",
    }
    marks = {
        "xtick.color": colours["grid"],
        "ytick.color": colours["grid"],
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": colours["grid"],
    }
    return {**ink, **faint, **ground, **spines, **size, **marks, "legend.frameon": False, **layout}


def means_figure(tables: Sequence[Table], colours: Theme) -> Figure:
    """Mean CodeBLEU of each role with its interval, a panel a kind of point."""
    kinds = list(dict.fromkeys(kind for table in tables for kind in table))
    figure, axes = plt.subplots(1, len(kinds), figsize=(WIDTH, 3.8), sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        rows: dict[str, dict[str, Any]] = {}
        for table in tables:
            for lang, row in table.get(kind, {}).items():
                rows[lang] = {**rows.get(lang, {}), **row}
        _grouped_bars(axis, rows, colours)
        axis.set_title(kind_title(kind))
    axes[0][0].set_ylabel("CodeBLEU × 100 (corrected)")
    _legend(figure, axes[0][0])
    return figure


def _grouped_bars(axis: Axes, rows: dict[str, dict[str, Any]], colours: Theme) -> None:
    roles = [role for role in ROLE_COLOURS if any(role in row for row in rows.values())]
    width, highest = 0.8 / len(roles), 0.0
    for offset, role in enumerate(roles):
        places = [i + (offset - (len(roles) - 1) / 2) * width for i, row in enumerate(rows.values()) if role in row]
        figures = [row[role] for row in rows.values() if role in row]
        values = [100 * figure["value"] for figure in figures]
        axis.bar(places, values, width * 0.88, color=ROLE_COLOURS[role], label=HEADS[role])
        for place, value, figure in zip(places, values, figures, strict=True):
            if figure["low"] is not None:
                axis.plot([place, place], [100 * figure["low"], 100 * figure["high"]], color=colours["ink"], linewidth=1.2, alpha=0.75)
            top = value if figure["high"] is None else 100 * figure["high"]
            highest, shown = max(highest, top), f"{value:.{0 if value >= 9.5 else 1}f}{few_mark(figure)}"
            axis.annotate(shown, (place, top), (0, 3), textcoords="offset points", ha="center", fontsize=8, color=colours["faint"])
    axis.set_xticks(range(len(rows)), [lang_title(lang).replace(" ", "\n") for lang in rows])
    axis.set_ylim(0, max(1.1 * highest, axis.get_ylim()[1]))  # panels share the scale
    axis.grid(axis="x", visible=False)
    if ALL in rows and len(rows) > 1:
        axis.axvline(list(rows).index(ALL) - 0.5, color=colours["grid"], linewidth=1.2)


def distributions_figure(scores: dict[str, dict[str, dict[str, list[float]]]], colours: Theme) -> Figure:
    """Every point's score, [kind][lang][role]: a dot each, the density behind them, a bar at the mean.

    A role has the same place in all panels, which share the axis, also in those without it.
    """
    kinds, langs = list(scores), list(next(iter(scores.values())))
    shown = {role for by_lang in scores.values() for roles in by_lang.values() for role, values in roles.items() if values}
    names = [role for role in reversed(ROLE_COLOURS) if role in shown]
    height = 0.9 + 1.75 * len(kinds)
    figure, axes = plt.subplots(len(kinds), len(langs), figsize=(WIDTH, height), sharex=True, sharey=True, squeeze=False)
    for row, kind in zip(axes, kinds, strict=True):
        for axis, lang in zip(row, langs, strict=True):
            _clouds(axis, scores[kind].get(lang, {}), names, colours)
            axis.set_title(lang_title(lang), fontsize=10)
        row[0].set_ylabel(kind_title(kind).replace(" of seen problem families", "").replace("problem ", ""))
    figure.supxlabel("CodeBLEU × 100 (corrected) of one point", fontsize=10.5)
    return figure


def _clouds(axis: Axes, roles: dict[str, list[float]], names: Sequence[str], colours: Theme) -> None:
    """`names`: roles from below upwards."""
    jitter = np.random.default_rng(0)
    for place, role in enumerate(names):
        if not roles.get(role):
            continue
        values = 100 * np.asarray(roles[role])
        if len(values) > 2 and values.std() > 1e-6:
            parts: Any = axis.violinplot(values, [place], orientation="horizontal", widths=0.85, showextrema=False, side="high")
            parts["bodies"][0].set(facecolor=ROLE_COLOURS[role], alpha=0.35, edgecolor="none")
        axis.scatter(values, place - 0.04 - 0.22 * jitter.random(len(values)), s=7, color=ROLE_COLOURS[role], alpha=0.65, linewidths=0)
        axis.plot([values.mean()] * 2, [place - 0.3, place + 0.4], color=colours["ink"], linewidth=1.8)
    axis.set_yticks(range(len(names)), [HEADS[role] for role in names])
    axis.set_xlim(-2, 102)
    axis.set_ylim(-0.45, len(names) - 0.4)
    axis.grid(axis="y", visible=False)


def training_figure(logs: Sequence[tuple[str, list[dict[str, Any]]]], colours: Theme) -> Figure:
    """Training loss and evaluation loss (dots) against the step, a panel a run, and one for each part of a gate's loss."""
    parts = [(label, entries, name) for label, entries in logs for name in GATE_LOSSES if any(name in entry for entry in entries)]
    panels = len(logs) + len(parts)
    columns = min(3, panels)
    rows = -(-panels // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, 0.6 + 2.3 * rows), squeeze=False)
    for axis, (label, entries) in zip(axes.flat, logs, strict=False):
        _curve(axis, entries, "loss", ROLE_COLOURS["base"], "training")
        _curve(axis, entries, "eval_loss", ROLE_COLOURS["mixture"], "validation", marker="o", markersize=4)
        axis.set_title(label)
        axis.set_ylabel(loss_unit(entries))
    for axis, (label, entries, name) in zip(axes.flat[len(logs) :], parts, strict=False):
        _curve(axis, entries, name, ROLE_COLOURS["expert"], "part of a gate's loss")
        title, unit = GATE_LOSSES[name]
        axis.set_title(f"{label}\n{title}")
        axis.set_ylabel(unit)
    for axis in axes.flat[panels:]:
        axis.set_visible(False)
    _legend(figure, *axes.flat)
    figure.supxlabel("optimiser step", fontsize=10.5)
    return figure


def _curve(axis: Axes, entries: Sequence[dict[str, Any]], key: str, colour: str, label: str, **marks: Any) -> None:
    """A loss against the step; the panel begins at 0."""
    found = [(entry["step"], entry[key]) for entry in entries if key in entry]
    if found:
        axis.plot(*zip(*found, strict=True), color=colour, linewidth=1.2, label=label, **marks)
        axis.set_ylim(0, 1.05 * axis.dataLim.y1 or 1)
    axis.grid(axis="x", visible=False)


def gates_figure(arrays: dict[str, Any], colours: Theme) -> Figure:
    """Left: first choices by language and expert, mean over layers. Right: share of first choices that are the language's own, by layer."""
    langs, experts = list(arrays["languages"]), arrays["experts"]
    owned = {lang: row["own_top1"] for lang, row in arrays["languages"].items() if row["own_top1"] is not None}
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 1.6 + 0.62 * len(langs)), width_ratios=(1, 1.35))
    _heat(left, [np.mean(arrays["languages"][lang]["top1"], axis=0) for lang in langs], colours)
    left.set_xticks(np.arange(len(experts)) + 0.5, [lang_title(name) for name in experts])
    left.set_yticks(np.arange(len(langs)) + 0.5, [lang_title(lang) for lang in langs])
    left.set(title="First choice, % of tokens", xlabel="expert", ylabel="language of the program")
    layers = len(next(iter(arrays["languages"].values()))["top1"])
    if owned:
        _heat(right, list(owned.values()), colours)
        shown = np.arange(0, layers, max(1, layers // 8))
        right.set_xticks(shown + 0.5, shown)
        right.set_yticks(np.arange(len(owned)) + 0.5, [lang_title(lang) for lang in owned])
        right.set(title="Own expert first, % of tokens, by layer", xlabel="layer")
    right.set_visible(bool(owned))
    return figure


def _heat(axis: Axes, shares: Sequence[Sequence[float]], colours: Theme) -> None:
    """Shares [rows][columns] as a heat map from 0 to 100 %: with the figures in the cells if they fit, else with a scale."""
    table = 100 * np.asarray(shares)
    shades = LinearSegmentedColormap.from_list("shares", [colours["low"], colours["high"]])
    mesh = axis.pcolormesh(
        table, cmap=shades, vmin=0, vmax=100, edgecolors=colours["ground"], linewidth=2 if table.shape[1] <= CELLS else 0.5
    )
    axis.invert_yaxis()
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    if table.shape[1] > CELLS:
        axis.figure.colorbar(mesh, ax=axis, label="% of tokens", pad=0.01).outline.set_visible(False)
        return
    for (row, column), value in np.ndenumerate(table):
        colour = colours["ground"] if value > 55 else colours["ink"]
        axis.text(column + 0.5, row + 0.5, f"{value:.0f}", ha="center", va="center", color=colour)


def _legend(figure: Figure, *axes: Axes) -> None:
    """Of all that the panels show, once each."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=len(handles), fontsize=9.5)


def row_scores(rows: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """{role: scores} of `figures.aligned`."""
    return {role: [row[SCORE] for row in samples] for role, samples in rows.items()}
