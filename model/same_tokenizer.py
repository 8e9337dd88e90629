"""Whether an expert reads text as the base does: a mixture has one tokenizer, the base's, with the prompt of its experts."""

import json
import reprlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from .checkpoint import some
from .prompt import format_prompt
from .tokenizer import read_tokenizer

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_SPECIAL = ("bos", "eos", "unk", "pad")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token: where in a text it is found
_ABSENT = object()


def check_same_tokenizer(folder: Path, base: Path, base_tokenizer: PreTrainedTokenizerBase) -> None:
    """ValueError saying what differs between the tokenizers of an expert's `folder`, if it has one, and of its base."""
    if not any((folder / name).is_file() for name in _FILES):
        return
    try:
        tokenizer = read_tokenizer(folder)
    except ValueError as error:
        raise ValueError(f"{folder} has a tokenizer that cannot be read: {error}") from error
    if found := differences(base_tokenizer, tokenizer):
        raise ValueError(f"{folder} has another tokenizer than the base {base} (base's -> expert's): {'; '.join(found)}")


def brings_tokenizer(adapter: Path) -> bool:
    return (adapter / "tokenizer_config.json").is_file()


def take_chat_template(tokenizer: PreTrainedTokenizerBase, adapters: list[Path]) -> None:
    """Gives `tokenizer`, the base's, the prompt that `adapters` were trained on: the chat template beside them, or none.

    An adapter that brings no tokenizer says nothing of it. ValueError naming two that were trained on different prompts.
    """
    folders = [folder for folder in adapters if brings_tokenizer(folder)]
    tokenizers = [read_tokenizer(folder) for folder in folders]
    templates = [own.chat_template for own in tokenizers]
    for folder, template in zip(folders, templates, strict=True):
        if template != templates[0]:
            raise ValueError(f"{folders[0]} and {folder} were trained on different prompts (chat templates), but a model has one")
    if templates:
        format_prompt("", "python", tokenizers[0])  # a template that fails is an error that names the adapter, not the base
        tokenizer.chat_template = templates[0]


def differences(base: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> list[str]:
    """What differs in vocabulary, special and added tokens, and in the rules that turn text into tokens and back.

    A pad token that only one has is no difference: fine-tuning needs one where many bases have none, and nobody attends to it.
    """
    found = []
    ours, theirs = base.get_vocab(), other.get_vocab()
    changed = [token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)]
    if changed:
        changed.sort(key=lambda token: (ours.get(token, len(ours)), theirs.get(token, 0)))
        found.append("tokens " + some([f"{token!r} {_id(ours.get(token))} -> {_id(theirs.get(token))}" for token in changed]))
    for name in _SPECIAL:
        mine, its = (_special(tokenizer, name) for tokenizer in (base, other))
        if mine != its and not (name == "pad" and "none" in (mine, its)):
            found.append(f"{name} {mine} -> {its}")
    added, its_added = _added(base), _added(other)
    for title, tokens in (("the base", added.keys() - its_added.keys()), ("the expert", its_added.keys() - added.keys())):
        if tokens:
            found.append(f"added tokens only in {title}: {some([repr(token) for token in sorted(tokens)])}")
    for token in sorted(added.keys() & its_added.keys()):
        found += _changes(added[token], its_added[token], f"added token {token!r}")
    rules, its_rules = _rules(base), _rules(other)
    for name in dict.fromkeys([*rules, *its_rules]):
        if changes := list(_changes(rules.get(name, _ABSENT), its_rules.get(name, _ABSENT), name)):
            found.append(some(changes))
    return found


def _added(tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, bool]]:
    tokens = tokenizer.added_tokens_decoder.values()
    return {str(token): {flag: getattr(token, flag) for flag in _FLAGS} for token in tokens}


def _rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Normalizer, pre-tokenizer, post-processor, decoder and model with its merges; of a tokenizer written in Python none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {}
    content = json.loads(backend.to_str())
    rules = {name: content[name] for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model")}
    if isinstance(rules["model"].get("vocab"), dict):  # compared by token; a Unigram's list has scores too
        del rules["model"]["vocab"]
    return rules


def _changes(one: Any, other: Any, where: str) -> Iterator[str]:
    """Where two JSON values differ, and how."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from _changes(one.get(key, _ABSENT), other.get(key, _ABSENT), f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and any(isinstance(item, dict | list) for item in one + other):
        for index, (mine, its) in enumerate(zip_longest(one, other, fillvalue=_ABSENT)):
            yield from _changes(mine, its, f"{where}.{index}")
    elif one != other:
        yield f"{where} {_shown(one)} -> {_shown(other)}"


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else reprlib.repr(value)


def _special(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    token = getattr(tokenizer, f"{name}_token")
    return "none" if token is None else f"{str(token)!r} ({getattr(tokenizer, f'{name}_token_id')})"


def _id(number: int | None) -> str:
    return "absent" if number is None else str(number)
