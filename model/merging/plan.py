"""What is to be merged for each tensor of the output, with which values: worked out, and refused, before the first tensor is read."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint import CONFIG
from ..strict_json import read_json
from .config import Input, MergeConfig, Slice
from .methods import METHODS
from .parameters import Parameters, resolve
from .sources import EMBEDDINGS, HEAD, SourceModel, tensor_names

_LAYER = re.compile(r"(.*\.layers\.)(\d+)(\..*)")
VOCABULARY = (EMBEDDINGS, HEAD)  # tensors with a row for each token
_FIRST_SLICE = "model.embed_tokens."  # of the tensors outside the layers, these belong to the first slice, others to the last

Values = Mapping[str, float]


@dataclass(frozen=True)
class Term:
    """One model's part in a tensor: the tensor's name there, and the values of the parameters of that model."""

    source: SourceModel
    name: str
    values: Values


@dataclass(frozen=True)
class Step:
    """One tensor of the output; `base` is None for methods without task vectors, and otherwise not among `terms`."""

    name: str
    base: Term | None
    terms: tuple[Term, ...]
    values: Values


def count_layers(config: MergeConfig, reference: SourceModel) -> int:
    """How many layers the output has."""
    return sum(_length(part, reference) for part in config.slices)


def make_plan(config: MergeConfig, sources: Mapping[str, SourceModel], reference: SourceModel, any_vocabulary: bool) -> list[Step]:
    """The steps in the output's order: tensors outside the layers first, then layer after layer.

    `reference`: the model whose tensors' names are the output's. `any_vocabulary`: models may have different numbers of tokens.
    ValueError naming the tensor that a model lacks or has in another shape, or the parameter that is missing or out of range.
    """
    _check_names(config, sources, reference)
    steps = [
        Step(name, *_terms(config, sources, part, offset, position, name), _shared_values(config, part, name, position))
        for name, part, offset, position in _places(config, tensor_names(reference, sources.values()), reference)
    ]
    for step in steps:
        _check_shapes(step, any_vocabulary)
        _check_values(config.method, step)
    return steps


def _places(config: MergeConfig, names: list[str], reference: SourceModel) -> Iterator[tuple[str, Slice, int | None, float]]:
    """Each tensor's name, its slice, its layer's number within the slice (None outside the layers) and its place on a gradient."""
    in_layer = []
    for name in names:
        match = _LAYER.fullmatch(name)
        if match is None:
            yield name, config.slices[0 if name.startswith(_FIRST_SLICE) else -1], None, 0.0
        elif match[2] == "0":
            in_layer.append((match[1], match[3]))
    layer = 0
    for part in config.slices:
        length = _length(part, reference)
        for offset in range(length):
            position = offset / (length - 1) if length > 1 else 1.0  # as mergekit: a slice of one layer is at its end
            yield from ((f"{head}{layer}{tail}", part, offset, position) for head, tail in in_layer)
            layer += 1


def _length(part: Slice, reference: SourceModel) -> int:
    layers = part.inputs[0].layers
    return layers[1] - layers[0] if layers else read_json(reference.folder / CONFIG)["num_hidden_layers"]


def _terms(
    config: MergeConfig, sources: Mapping[str, SourceModel], part: Slice, offset: int | None, position: float, name: str
) -> tuple[Term | None, tuple[Term, ...]]:
    method = METHODS[config.method]
    base, terms = None, []
    for given in part.inputs:
        is_base = method.uses_task_vectors and given.model == part.base_model
        values: Values = {}
        if not is_base:
            values = _values(method.per_model, [given.parameters, part.parameters, *config.parameters], name, position, given.model)
        term = Term(sources[given.model], _name_in(given, name, offset), values)
        if is_base:
            base = term
        else:
            terms.append(term)
    if config.method == "slerp" and part.inputs[0].model != part.base_model:
        terms.reverse()  # t counts from the base
    return base, tuple(terms)


def _name_in(given: Input, name: str, offset: int | None) -> str:
    """The name in a model of the tensor that goes into `name`."""
    match = _LAYER.fullmatch(name)
    if match is None or offset is None or given.layers is None:
        return name
    return f"{match[1]}{given.layers[0] + offset}{match[3]}"


def _shared_values(config: MergeConfig, part: Slice, name: str, position: float) -> Values:
    return _values(METHODS[config.method].shared, [part.parameters, *config.parameters], name, position, config.method)


def _values(wanted: Mapping[str, float | None], levels: Sequence[Parameters], tensor: str, position: float, where: str) -> Values:
    values = {}
    for name, default in wanted.items():
        value = resolve(levels, name, tensor, position)
        if value is None:
            value = default
        if value is None:
            raise ValueError(f"{where} has no {name} for {tensor}; give it under `parameters`, for this model or for all")
        values[name] = float(value)
    return values


def _check_names(config: MergeConfig, sources: Mapping[str, SourceModel], reference: SourceModel) -> None:
    for given in [given for part in config.slices for given in part.inputs]:
        source = sources[given.model]
        ours, theirs = (_kinds(model, every_layer=given.layers is None) for model in (reference, source))
        if odd := sorted(ours ^ theirs):
            raise ValueError(f"{reference.weights.path} and {source.weights.path} have not the same tensors: only one has {odd[0]}")


def _kinds(source: SourceModel, every_layer: bool) -> set[str]:
    """The names of its tensors, or those of one layer."""
    return source.names() if every_layer else {_LAYER.sub(r"\g<1>0\g<3>", name) for name in source.names()}


def _check_shapes(step: Step, any_vocabulary: bool) -> None:
    terms = [step.base, *step.terms] if step.base else list(step.terms)
    shapes = []
    for term in terms:
        if term.name not in term.source:
            raise ValueError(f"{term.source.weights.path} has no {term.name}, which is to go into {step.name}")
        shapes.append(term.source.shape(term.name))
    start = 1 if any_vocabulary and step.name in VOCABULARY else 0
    for term, shape in zip(terms, shapes, strict=True):
        if shape[start:] != shapes[0][start:]:
            advice = "; tokenizer_source: base (or union) aligns vocabularies" if step.name in VOCABULARY else ""
            first = f"{list(shapes[0])} in {terms[0].source.weights.path}"
            raise ValueError(f"{term.name} is {list(shape)} in {term.source.weights.path}, but {first}{advice}")


def _check_values(method: str, step: Step) -> None:
    for term in step.terms:
        density, epsilon = term.values.get("density", 1.0), term.values.get("epsilon")
        for name in ("density", "gamma"):
            if not 0 <= (share := term.values.get(name, 1.0)) <= 1:
                raise ValueError(f"{name} is {share:g} for {term.name} of {term.source.name}; it must be from 0 to 1")
        if epsilon is not None and 0 < density < 1 and not 0 < density - epsilon <= density + epsilon < 1:
            raise ValueError(f"density {density:g} ± epsilon {epsilon:g} for {term.name} of {term.source.name} must lie between 0 and 1")
    weights = [term.values["weight"] for term in step.terms if "weight" in term.values]
    if method == "linear" and step.values["normalize"] and abs(sum(weights)) < 1e-8:
        raise ValueError(f"the weights {weights} for {step.name} add up to 0, so they cannot be normalized; give normalize: false")
