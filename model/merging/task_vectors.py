"""Task vectors as things one can look at: how long they are, which way they point, and where their signs disagree, layer by layer.

Shapes: E experts, N entries of one tensor.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .parallel import Rows, Run, blocks, several_cores
from .sources import SourceModel, tensor_names
from .sparsify import keep_largest

_LAYER = re.compile(r"\.layers\.(\d+)\.")
TOTAL = "all"
DENSITY = 0.2  # of which sign conflicts are counted, if nothing else is said
_LEAST_COSINE = 0.05  # at which a colour scale ends: smaller ones are next to nothing, and should look so
Density = Callable[[SourceModel, str], float]  # of a tensor of an expert


@dataclass
class Group:
    """Sums over the tensors of one layer."""

    products_EE: Tensor  # of task vectors with one another
    base_square: float = 0.0  # of the base's weights
    contested: int = 0  # entries that at least two experts keep
    conflicts: int = 0  # of these, entries that one of them raises and another lowers

    def add(self, other: "Group") -> None:
        self.products_EE += other.products_EE
        self.base_square += other.base_square
        self.contested += other.contested
        self.conflicts += other.conflicts

    def row(self, names: Sequence[str]) -> dict[str, Any]:
        norms = self.products_EE.diagonal().sqrt().tolist()
        cosines = {}
        for a, b in combinations(range(len(names)), 2):
            length = norms[a] * norms[b]
            cosines[f"{names[a]}, {names[b]}"] = float(self.products_EE[a, b]) / length if length else None
        share = self.conflicts / self.contested if self.contested else None
        return {
            "base_norm": math.sqrt(self.base_square),
            "norms": dict(zip(names, norms, strict=True)),
            "cosines": cosines,
            "sign_conflicts": share,
        }


def find_base(sources: dict[str, SourceModel], base: str | None) -> SourceModel:
    """The model that task vectors are differences from: the merge's base, or what all its adapters stand on."""
    if base is not None:
        return sources[base]
    folders = {source.folder for source in sources.values()}
    first = next(iter(sources.values()))
    if len(folders) > 1 or any(source.adapter is None for source in sources.values()):
        raise ValueError(
            "task vectors are differences from a base: give base_model, in a copy of the file if its method is linear, "
            "which would average it in"
        )
    return SourceModel(first.weights, None, first.is_tied)


def measure(base: SourceModel, experts: Mapping[str, SourceModel], density: Density) -> dict[str, dict[str, Any]]:
    """Rows by layer, and one for all, `TOTAL`: norms of base and task vectors, cosines between experts, and the share of sign conflicts.

    Conflicts are counted among the entries that at least two experts keep when each keeps of each tensor `density(expert, name)` · N of
    largest magnitude, as TIES does. Computed in fp32. ValueError if models have different tensors.
    """
    names = tensor_names(base, [base, *experts.values()])
    for expert in experts.values():
        for name in names:
            if name not in expert or expert.shape(name) != base.shape(name):
                raise ValueError(
                    f"{expert.weights.path} has no {name} of the shape that {base.weights.path} has, so there is no task vector"
                )
    groups: dict[str, Group] = {}
    with several_cores() as run:
        for name in tqdm(sorted(names, key=_layer_order), desc="Task vectors", unit="tensor"):
            match = _LAYER.search(name)
            key = match[1] if match else name.removesuffix(".weight").removeprefix("model.")
            part = _measure_tensor(name, base, list(experts.values()), density, run)
            for place in (key, TOTAL):
                groups.setdefault(place, _empty(len(experts))).add(part)
    rows = {key: group.row(list(experts)) for key, group in groups.items()}
    return {**{key: row for key, row in rows.items() if key != TOTAL}, TOTAL: rows[TOTAL]}


def _empty(count: int) -> Group:
    return Group(torch.zeros(count, count, dtype=torch.float64))


def _layer_order(name: str) -> tuple[int, str]:
    match = _LAYER.search(name)
    return (int(match[1]) if match else -1 if "embed" in name else 1 << 30), name


def _measure_tensor(name: str, base: SourceModel, experts: Sequence[SourceModel], density: Density, run: Run) -> Group:
    shape, weight = base.shape(name), base.rows(name, torch.float32)
    found = [(index, expert.task_vector(name, base, name, weight, torch.float32)) for index, expert in enumerate(experts)]
    vectors = [(index, vector) for index, vector in found if vector is not None]
    masks = [_keep_largest(vector, shape, density(experts[index], name), run) for index, vector in vectors]

    def look(rows: slice) -> Group:
        part = _empty(len(experts))
        part.base_square = float(weight(rows).double().square().sum())
        if not vectors:
            return part
        rows_EN = torch.stack([vector(rows).flatten() for _, vector in vectors])
        products = (rows_EN @ rows_EN.T).double()
        present = [index for index, _ in vectors]
        for i, index in enumerate(present):
            part.products_EE[index, present] = products[i]
        signs_EN = rows_EN.sign() * torch.stack([mask[rows].flatten() for mask in masks])
        part.contested = int((signs_EN.abs().sum(dim=0) > 1).sum())
        part.conflicts = int(((signs_EN > 0).any(dim=0) & (signs_EN < 0).any(dim=0)).sum())
        return part

    whole = _empty(len(experts))
    for part in run(look, blocks(shape)):
        whole.add(part)
    return whole


def _keep_largest(vector: Rows, shape: torch.Size, density: float, run: Run) -> Tensor:
    """The mask of the largest entries of one model's task vector, which is whole in memory only here."""
    if density == 0:
        return torch.zeros(shape, dtype=torch.bool)
    magnitudes = torch.empty(shape)

    def fill(rows: slice) -> None:
        magnitudes[rows] = vector(rows).abs_()

    list(run(fill, blocks(shape)))
    return keep_largest(magnitudes, density, fast_ties=True, run=run)


def text_table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a table for the terminal; experts are numbered in the pairs' heads."""
    names = list(rows[TOTAL]["norms"])
    pairs = [f"{a + 1}·{b + 1}" for a, b in combinations(range(len(names)), 2)]
    head = ["layer", "base", *(f"{n + 1} {name}" for n, name in enumerate(names)), *(f"cos {pair}" for pair in pairs), "conflicts"]
    lines = [head]
    for key, row in rows.items():
        share = row["sign_conflicts"]
        figures = [f"{norm:.4g}" for norm in (row["base_norm"], *row["norms"].values())]
        cosines = ["–" if value is None else f"{value:+.3f}" for value in row["cosines"].values()]
        lines.append([key, *figures, *cosines, "–" if share is None else f"{100 * share:.1f} %"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def draw_heat_map(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """A heat map, a row for each layer: norms relative to the base's, cosines between experts (to the largest), sign conflicts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    layers = [key for key in rows if key != TOTAL]
    names, pairs = list(rows[TOTAL]["norms"]), list(rows[TOTAL]["cosines"])

    def column(values: list[Any]) -> list[float]:
        return [math.nan if value is None else value for value in values]

    norms = [column([norm / (rows[key]["base_norm"] or math.nan) for norm in rows[key]["norms"].values()]) for key in layers]
    cosines = [column(list(rows[key]["cosines"].values())) for key in layers]
    conflicts = [column([rows[key]["sign_conflicts"]]) for key in layers]
    panels: list[tuple[str, list[list[float]], list[str], dict[str, Any]]] = [("norm / base's", norms, names, {"cmap": "Blues", "vmin": 0})]
    if pairs:
        limit = max(_LEAST_COSINE, *(abs(value) for row in cosines for value in row if not math.isnan(value)))
        scale = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        panels.append(("cosine", cosines, [pair.replace(", ", " · ") for pair in pairs], scale))
        panels.append(("sign conflicts", conflicts, ["all"], {"cmap": "Oranges", "vmin": 0, "vmax": 1}))
    widths = [max(1.5, len(labels)) for _, _, labels, _ in panels]
    size = (1.5 + 0.8 * sum(widths) + len(panels), 1.6 + 0.26 * len(layers))
    figure, axes = plt.subplots(1, len(panels), figsize=size, width_ratios=widths, squeeze=False, layout="constrained")
    for axis, (title, values, labels, colours) in zip(axes[0], panels, strict=True):
        image = axis.imshow(values, aspect="auto", **colours)
        axis.set_title(title)
        axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
        axis.set_yticks(range(len(layers)), layers if axis is axes[0][0] else [], fontsize=8)
        figure.colorbar(image, ax=axis)
    figure.savefig(path, dpi=150)
    plt.close(figure)
