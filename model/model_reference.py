"""How mergekit's YAML files name a model: by a text, or by a mapping that says the same."""

from typing import Any

from .strict_yaml import check_mapping, text_field

_KEYS = ("model", "lora", "override_architecture")
_PATH_KEYS = ("path", "revision")


def model_field(raw: dict[str, Any], key: str, where: str) -> str:
    """The model under `key`, as `MODEL` or `MODEL+ADAPTER`; ValueError if it is none.

    mergekit's mapping `{model: MODEL, lora: ADAPTER}`, where each is a text or `{path: ...}`, becomes that text, so that one model has one
    name however it is written.
    """
    if not isinstance(raw.get(key), dict):
        return text_field(raw, key, where)
    where = f"{where}: {key}"
    value = check_mapping(raw[key], _KEYS, where)
    if value.get("override_architecture") is not None:
        raise ValueError(f"{where}: override_architecture is not supported; the architecture is that of the model's configuration")
    model = _path(value, "model", where)
    return model if value.get("lora") is None else f"{model}+{_path(value, 'lora', where)}"


def optional_model_field(raw: dict[str, Any], key: str, where: str) -> str | None:
    return None if raw.get(key) is None else model_field(raw, key, where)


def _path(raw: dict[str, Any], key: str, where: str) -> str:
    if isinstance(raw.get(key), str):
        return raw[key]
    where = f"{where}.{key}"
    value = check_mapping(raw.get(key), _PATH_KEYS, where)
    if value.get("revision") is not None:
        raise ValueError(
            f"{where}: revision is {value['revision']!r}; give the folder of that revision, as models are read from the disk alone"
        )
    return text_field(value, "path", where)
