"""The fields that a request to `model.serve` may have. `transformers serve` ignores some without a word and answers others with 500."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .strict_json import parse_json


class Refused(Exception):
    """A request that is not passed on: its status, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Field(NamedTuple):
    """What a value may be: its types, and the bounds of a number. Where only one value has an effect, it is the only one allowed."""

    types: tuple[type, ...]
    low: float = -math.inf
    high: float = math.inf


_NUMBER = (int, float)
_FIELDS = {
    "model": Field((str,)),
    "stream": Field((bool,)),
    "stream_options": Field((dict,)),  # the last chunk has the usage in any case
    "user": Field((str,)),
    "seed": Field((int,), 0, 1 << 63),
    "max_tokens": Field((int,), 1, 1 << 31),
    "temperature": Field(_NUMBER, 0, 2),
    "top_p": Field(_NUMBER, 0, 1),
    "frequency_penalty": Field(_NUMBER, -0.9, 2),
    "presence_penalty": Field(_NUMBER, 0, 0),
    "n": Field((int,), 1, 1),
    "stop": Field((str, list)),
    "generation_config": Field((str,)),
}
_OF_COMPLETIONS = _FIELDS | {"prompt": Field((str,)), "best_of": Field((int,), 1, 1), "echo": Field((bool,), False, False)}
_OF_CHATS = _FIELDS | {
    "messages": Field((list,)),
    "max_completion_tokens": _FIELDS["max_tokens"],
    "logit_bias": Field((dict,)),
    "logprobs": Field((bool,), False, False),
    "tools": Field((list,)),
    "chat_template_kwargs": Field((dict,)),
}
_OFF = Field((bool,), False, False)
_GENERATION = {  # what `transformers chat` sends; one answer by one beam, as more of either takes memory at the client's will
    "do_sample": Field((bool,)),
    "temperature": Field(_NUMBER, 0, 100),
    "top_k": Field((int,), 0, 1 << 31),
    "top_p": Field(_NUMBER, 0, 1),
    "min_p": Field(_NUMBER, 0, 1),
    "typical_p": Field(_NUMBER, 1e-3, 1),
    "repetition_penalty": Field(_NUMBER, 0.1, 3),
    "no_repeat_ngram_size": Field((int,), 0, 1 << 10),
    "max_new_tokens": _FIELDS["max_tokens"],
    "min_new_tokens": Field((int,), 0, 1 << 31),
    "num_beams": Field((int,), 1, 1),
    "num_return_sequences": Field((int,), 1, 1),
    "use_cache": Field((bool,), True, True),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), Field((int,))),
    "eos_token_id": Field((int, list)),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"), _OFF),
    "transformers_version": Field((str,)),
    "_from_model_config": Field((bool,)),
}
_BIAS = Field(_NUMBER, -100, 100)
_MOST_STOPS, _LONGEST_STOP = 4, 64  # OpenAI's number, and characters: transformers looks at each token at each place of each text


def checked(request: Mapping[str, Any], *, chat: bool, vocab: int) -> dict[str, Any]:
    """`request` without what is null or empty; `Refused` with status 400 naming the field that is missing, unknown or wrong.

    `vocab`: how many tokens there are.
    """
    given = _given(request, _OF_CHATS if chat else _OF_COMPLETIONS, "")
    needed = "messages" if chat else "prompt"
    if needed not in given:
        raise Refused(400, f"{needed} is missing or empty")
    _check_stops(given.get("stop"))
    if chat:
        given["messages"] = [_message(message) for message in given["messages"]]
    if "logit_bias" in given:
        given["logit_bias"] = _biases(given["logit_bias"], vocab)
    if "generation_config" in given:
        given["generation_config"] = json.dumps(_generation(given["generation_config"], vocab))
    return given


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object; `Refused` if it is none, or none that `parse_json` takes."""
    try:
        value = parse_json(data)
    except ValueError as error:
        raise Refused(400, f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refused(400, f"{name} must be a JSON object, not {type(value).__name__}")
    return value


def _given(request: Mapping[str, Any], fields: Mapping[str, Field], where: str) -> dict[str, Any]:
    given = {name: value for name, value in request.items() if value is not None}
    for name, value in given.items():
        if name not in fields:
            raise Refused(400, f"{where}{name[:80]} is not taken")
        _check(f"{where}{name}", value, fields[name])
    return {name: value for name, value in given.items() if value not in ("", [], {})}


def _check(name: str, value: Any, field: Field) -> None:
    types, low, high = field
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise Refused(400, f"{name} must be {' or '.join(kind.__name__ for kind in types)}, not {str(value)[:40]!r}")
    if isinstance(value, int | float) and not low <= value <= high:
        wanted = str(low) if low == high else f"from {low} to {high}"
        raise Refused(400, f"{name} must be {wanted}, not {str(value)[:40]}")


def _check_stops(stop: Any) -> None:
    marks = stop if isinstance(stop, list) else [] if stop is None else [stop]
    if len(marks) > _MOST_STOPS or not all(isinstance(mark, str) and 0 < len(mark) <= _LONGEST_STOP for mark in marks):
        raise Refused(400, f"stop must be a text or up to {_MOST_STOPS}, each of 1 to {_LONGEST_STOP} characters")


def _message(message: Any) -> dict[str, Any]:
    if isinstance(message, dict):
        message = {name: value for name, value in message.items() if value is not None}
        has_content = _is_text(message.get("content")) or ("content" not in message and message.get("tool_calls"))
        if isinstance(message.get("role"), str) and has_content:
            return message
    raise Refused(400, f"a message is an object with a role and a text content, not {str(message)[:80]}")


def _is_text(content: Any) -> bool:
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return bool(parts) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts
    )


def _biases(biases: Mapping[str, Any], vocab: int) -> dict[str, float]:
    for token, bias in biases.items():
        if not token.isdecimal():
            raise Refused(400, f"logit_bias maps token numbers to numbers, not {token[:40]!r}")
        _check_tokens("logit_bias", [int(token[:20])], vocab)
        _check(f"logit_bias of token {token[:20]}", bias, _BIAS)
    return {token: float(bias) for token, bias in biases.items()}  # transformers takes no whole numbers


def _check_tokens(name: str, tokens: Iterable[Any], vocab: int) -> None:
    for token in tokens:
        _check(f"a token of {name}", token, Field((int,), 0, vocab - 1))


def _generation(text: str, vocab: int) -> dict[str, Any]:
    config = _given(parse_object(text.encode(), "generation_config"), _GENERATION, "generation_config's ")
    for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
        tokens = config.get(name, [])
        _check_tokens(f"generation_config's {name}", tokens if isinstance(tokens, list) else [tokens], vocab)
    return config
