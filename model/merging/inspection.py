"""`--inspect`: what a merge's task vectors are like, before one is made of them."""

from pathlib import Path

from ..output import output_folder, write_json, write_run
from .config import given_parameters
from .opening import Merge
from .task_vectors import DENSITY, TOTAL, Density, draw_heat_map, find_base, measure, text_table


def inspect(merge: Merge, out: Path, density: float | None, seed: int) -> None:
    """Measures the task vectors, prints them and writes them to `out` as JSON and as a heat map; no model is written.

    `density`: of which sign conflicts are counted; None: the file's. ValueError if it is not above 0 and at most 1.
    """
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"--density is {density:g}; it must be above 0 and at most 1")
    base = find_base(merge.sources, merge.config.base_model)
    sources = {name: source for name, source in merge.sources.items() if name != merge.config.base_model}
    names = [source.name for source in sources.values()]
    experts = {source.name if names.count(source.name) == 1 else name: source for name, source in sources.items()}
    if density is None and "density" not in given_parameters(merge.config):
        density = DENSITY
    rows = measure(base, experts, _densities_of_file(merge) if density is None else lambda *_: density)
    with output_folder(out) as folder:
        base_name = merge.config.base_model or str(base.folder)
        write_json(folder / "task_vectors.json", {"base": base_name, "density": density, "layers": rows})
        draw_heat_map(rows, folder / "task_vectors.png")
        write_run(folder, seed=seed, figures=rows[TOTAL], density=density)
    print(text_table(rows))


def _densities_of_file(merge: Merge) -> Density:
    """What the merge itself keeps of each tensor of a model, where its method thins task vectors."""
    terms = [term for step in merge.steps for term in step.terms]
    found = {(term.source, term.name): term.values["density"] for term in terms if "density" in term.values}
    return lambda source, name: found.get((source, name), DENSITY)
