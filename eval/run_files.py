"""What a report reads of the files of a run, as shapes that they are held against: a damaged or hand-made file is named, with the place.

A shape is a type; `NUMBER`; `{key: shape}` for an object that has at least these keys, but for those that end in "?"; `Each(shape)` for one
with any keys; `[shape]` for a list; `Maybe(shape)` for what may be null; `Ends(shape)`, whose `low` and `high` are null together.

Shapes of arrays: L layers, C classes of token, E experts.
"""

import math
from typing import Any, NamedTuple

from model.strict_json import fits_int64, shown

from .token_classes import CLASSES


class Each(NamedTuple):
    shape: Any


class Maybe(NamedTuple):
    shape: Any


class Ends(NamedTuple):
    shape: Any


NUMBER = float
ESTIMATE_SHAPE = Ends({"value": Maybe(NUMBER), "low": Maybe(NUMBER), "high": Maybe(NUMBER)})
_ABOUT = {"name?": Maybe(str), "model?": Maybe(str), "versions?": dict, "command?": [str]}
_COST = {"seconds?": NUMBER, "generation_seconds?": NUMBER, "tokens_per_second?": Maybe(NUMBER), "batch_size?": int, "device?": str}
_COST |= {"peak_bytes?": int, "parameters?": int, "active_parameters?": int, "trainable_parameters?": int}
_COST |= {"dtype?": str, "quantization?": Maybe(str)}
_SCORES = {
    **{"n": int, "empty": int, "codebleu": Maybe(NUMBER), "codebleu_corpus": Maybe(NUMBER), "codebleu_library": Maybe(NUMBER)},
    **{"parts": Each(Maybe(NUMBER)), "metrics?": Each(ESTIMATE_SHAPE)},
}
SCORED_SHAPE = {
    **{**_ABOUT, "data?": Maybe(dict), "role": str, "dtype?": str, "quantization?": Maybe(str), "cost?": _COST},
    "adapter_lang?": Maybe(str),
    "figures": Each(Each(_SCORES)),
}
SAMPLE_SHAPE = {**dict.fromkeys(("id", "lang", "kind", "group", "text", "reference", "prediction"), str), "codebleu": NUMBER}
PASSED_SHAPE = {
    **{**_ABOUT, "data?": Maybe(dict), "tasks": str, "lang": str, "sandbox": {"isolated": bool}, "timeout": NUMBER, "memory": int},
    **{"n": Maybe(int), "temperature": Maybe(NUMBER), "top_p": Maybe(NUMBER), "top_k?": Maybe(int), "max_new_tokens": Maybe(int)},
    "template": bool,
    "cost?": Maybe(_COST),
    "judging?": {"programs": int, "seconds": NUMBER, "jobs": int},
    "figures": {"tasks": int, "samples": int, "outcomes": {"tool missing": int, "sandbox error": int}, "pass_at_k": Each(ESTIMATE_SHAPE)},
}
COUNT_SHAPE = {"task_id": str, "n": int, "passed": int}
PROGRAMS_SHAPE = {
    **{"model": str, "experts": [str], "max_new_tokens": int},
    "programs": [{"lang": str, "id": str, "kind": str, "text": str, "pieces": [str], "choices": [[[NUMBER]]]}],
}
ARRAYS_SHAPE = {"experts": [str], "nmi_language": Maybe([NUMBER]), "languages": Each({"n": int, "tokens": int})}
# Of a log entry of train.gate, the parts of its loss before their weights, and what they are measured in.
GATE_LOSSES = {
    "language_model_loss": ("language model loss", "nats per token"),
    "label_loss": ("language-label loss", "nats per token"),
    "importance_loss": ("importance loss", "squared variation"),
    "load_loss": ("load loss", "squared variation"),
    "balance_loss": ("balance loss", "K if all are alike"),
    "z_loss": ("z-loss", "nats²"),
}
PREFERENCE_MARGIN = "rewards/margins"  # only train.align logs it
ENTRY_SHAPE = {"step": int, "loss?": NUMBER, "eval_loss?": NUMBER, "seconds?": NUMBER, "learning_rate?": NUMBER}
ENTRY_SHAPE |= {f"{name}?": NUMBER for name in GATE_LOSSES}
TRAINED_SHAPE = {**_ABOUT, "figures": _COST}
_CLAIM = {"system": str, "against": str, "metric": str, "lang": str, "ratio": ESTIMATE_SHAPE, "p_holm?": NUMBER}
STUDY_SHAPE = {
    "study": {"systems": [{"name": str}], "langs": [str], "baseline": str, "experts?": Maybe(str)},
    "lengths": Each(Each({"points": Each({"n": int}), "systems": Each(Each(Each(ESTIMATE_SHAPE))), "claims": [_CLAIM]})),
}
SEEN_SHAPE = {  # of study.json: what was seen in training, and in which prompt each system was asked
    "prompt_templates": Each(str),
    "contamination": Maybe(Each(Each({"n": int, "median": NUMBER, "greatest": NUMBER, "seen": int}))),
    "lengths": Each(Each({"unseen": {"points": Each({"n": int}), "systems": Each(Each({"codebleu": ESTIMATE_SHAPE}))}})),
}


def check_shape(value: Any, shape: Any, where: str) -> Any:
    """`value`; ValueError naming `where` in it something has not the `shape`."""
    if isinstance(shape, Maybe):
        return value if value is None else check_shape(value, shape.shape, where)
    if isinstance(shape, Ends):
        check_shape(value, shape.shape, where)
        if (value["low"] is None) != (value["high"] is None):
            raise ValueError(f"{where} has one end of an interval without the other")
    elif isinstance(shape, dict | Each):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object, not {shown(value, 80)}")
        for key, inner in shape.items() if isinstance(shape, dict) else dict.fromkeys(value, shape.shape).items():
            name = key.removesuffix("?") if isinstance(shape, dict) else key
            if name in value:
                check_shape(value[name], inner, f"{where}: {name}")
            elif name == key:
                raise ValueError(f"{where} lacks {name}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, not {shown(value, 80)}")
        for index, item in enumerate(value):
            check_shape(item, shape[0], f"{where}[{index}]")
    elif not _is_of(value, shape):
        raise ValueError(f"{where} must be {_TITLES.get(shape, shape.__name__)}, not {shown(value, 80)}")
    return value


_TITLES = {float: "a finite number", int: "a whole number of 64 bits", str: "a text", bool: "true or false", dict: "an object"}


def _is_of(value: Any, kind: type) -> bool:
    if isinstance(value, bool) and kind is not bool:
        return False
    if kind is float:
        return isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and fits_int64(value)
    return isinstance(value, kind)


def check_arrays(arrays: dict[str, Any], where: str) -> dict[str, Any]:
    """What eval.routing measured, if every array is as long as the others say; ValueError naming the first that is not."""
    check_shape(arrays, ARRAYS_SHAPE, where)
    experts = len(arrays["experts"])
    if not arrays["languages"] or arrays["nmi_language"] == []:
        raise ValueError(f"{where} has no languages, or no layers")
    for lang, row in arrays["languages"].items():
        layers = len(row["top1"]) if isinstance(row.get("top1"), list) else 0
        wanted = {"top1": (layers, experts), "topk": (layers, experts), "by_class": (layers, len(CLASSES), experts)}
        wanted |= dict.fromkeys(("entropy_bits", "own_top1", "own_topk", "nmi_class"), (layers,))
        for name, shape in wanted.items():
            if name in row and row[name] is None and name.startswith(("own", "nmi")):
                continue
            if not layers or _array_shape(row.get(name)) != shape:
                raise ValueError(f"{where}: languages: {lang}: {name} must be numbers of shape {list(shape)}")
    return arrays


def check_programs(told: dict[str, Any], where: str) -> dict[str, Any]:
    """The programs of eval.routing, if they have as many choices as pieces, each of pairs of an expert and its share; else ValueError."""
    check_shape(told, PROGRAMS_SHAPE, where)
    experts = [repr(number) for number in range(len(told["experts"]))]  # as texts: 1.0 would be equal to 1
    for number, program in enumerate(told["programs"]):
        layers = {len(token) for token in program["choices"]}
        if len(program["choices"]) != len(program["pieces"]) or len(layers) > 1 or 0 in layers:
            raise ValueError(f"{where}: programs[{number}] must have the choices of each piece, in as many layers")
        for layer in (layer for token in program["choices"] for layer in token):
            if not layer or len(layer) % 2 or any(expert not in experts for expert in map(repr, layer[::2])):
                raise ValueError(f"{where}: programs[{number}] must have pairs of an expert and its share, not {shown(layer, 80)}")
    return told


def _array_shape(value: Any, most: int = 3) -> tuple[int, ...] | None:
    """None if it is no array of finite numbers in up to `most` dimensions. (numpy makes all texts of a list as long as the longest.)"""
    if not isinstance(value, list):
        return () if _is_of(value, NUMBER) else None
    shapes = {_array_shape(item, most - 1) for item in value} if most else {None}
    inner = shapes.pop() if len(shapes) == 1 else None
    return None if inner is None else (len(value), *inner)
