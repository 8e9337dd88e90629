"""What `model.serve` refuses before `transformers serve` sees it: that answers most malformed requests with 500, generates past the context
for whoever asks, and loads or unloads models for any client, even where the command names one."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from transformers import GenerationConfig

from .generation import context_of
from .strict_json import parse_json

LONGEST_BODY = 1 << 20  # bytes
MOST_WAITING = 64  # requests in work or in the queue for the one thread that generates
GENERATE, LOAD = ("/v1/completions", "/v1/chat/completions"), "/load_model"  # `transformers chat` asks for its model first
PATHS = dict.fromkeys((*GENERATE, LOAD), "POST") | {"/v1/models": "GET", "/health": "GET"}

Message = MutableMapping[str, Any]


class Refused(Exception):
    """A request that is not passed on: its status, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class RequestGuard:
    """ASGI middleware. `models`: the server's `ModelManager`."""

    def __init__(self, app: Callable[..., Awaitable[None]], models: Any) -> None:
        self._app, self._models = app, models
        self._waiting = 0

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            if scope["path"] not in PATHS:
                raise Refused(404, f"there is no {scope['path']}; there are {', '.join(PATHS)}")
            if scope["method"] != PATHS[scope["path"]]:
                raise Refused(405, f"{scope['path']} takes {PATHS[scope['path']]}")
            if scope["path"] == "/v1/models":
                # transformers would list the hub's cache, or fail where there is none
                names = [name.partition("@")[0] for name in self._models.loaded_models]
                return await _answer(send, 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in names]})
            if scope["path"] == "/health":
                return await self._app(scope, receive, send)
            await self._pass_on(scope, await self._admit(scope, receive), receive, send)
        except Refused as refusal:
            await _answer(send, refusal.status, {"error": {"message": str(refusal), "type": "invalid_request_error"}})

    async def _admit(self, scope: Message, receive: Callable[[], Awaitable[Message]]) -> bytes:
        """The request as it may be passed on."""
        request = await _read(receive)
        if scope["path"] == LOAD:
            self._check_load(request)
        else:
            check(request, chat=scope["path"] == GENERATE[1])
            request = self._within_context(request)
        if self._waiting >= MOST_WAITING:
            raise Refused(503, f"{MOST_WAITING} requests are waiting already")
        return json.dumps(request).encode()

    async def _pass_on(
        self, scope: Message, body: bytes, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name not in (b"content-length", b"content-type")]
        headers += [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return parts.pop() if parts else await receive()

        self._waiting += 1
        try:
            await self._app({**scope, "headers": headers}, replay, send)
        finally:
            self._waiting -= 1

    def _check_load(self, request: dict[str, Any]) -> None:
        ours, asked = self._models.force_model, request.get("model")
        if not isinstance(asked, str) or ours not in (None, asked):
            raise Refused(400, f"model must be {ours or 'a name'}, not {str(asked)[:80]!r}")

    def _within_context(self, request: dict[str, Any]) -> dict[str, Any]:
        """`request` with max_tokens: what it asks for, else what the context leaves; `Refused` if prompt and answer do not fit."""
        if self._models.force_model is None:  # the request names what is to be loaded
            return request
        loaded = self._models.loaded_models[self._models.process_model_name(self._models.force_model)]
        tokenizer, room = loaded.processor, context_of(loaded.model)
        if "messages" in request:
            if not tokenizer.chat_template:
                raise Refused(400, "this model has no chat template; use /v1/completions")
            try:
                prompt = tokenizer.apply_chat_template(request["messages"], add_generation_prompt=True, return_dict=False)
            except Exception as error:  # a template is a program of the model's
                raise Refused(400, f"the chat template refuses these messages: {error}") from error
        else:
            prompt = tokenizer(request["prompt"])["input_ids"]
        if not prompt:
            raise Refused(400, "the prompt has no tokens")
        name = "max_completion_tokens" if request.get("max_completion_tokens") else "max_tokens"
        wanted = request.get(name)
        if len(prompt) + (wanted or 1) > room:
            raise Refused(400, f"a prompt of {len(prompt)} tokens and {wanted or 1} new ones do not fit into a context of {room}")
        most = parse_json((request.get("generation_config") or "{}").encode()).get("max_new_tokens") or 1024
        return {**request, name: wanted or min(room - len(prompt), most)}


async def _read(receive: Callable[[], Awaitable[Message]]) -> dict[str, Any]:
    data, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the connection was closed")
        data += message.get("body", b"")
        more = message.get("more_body", False)
        if len(data) > LONGEST_BODY:
            raise Refused(413, f"a request may have {LONGEST_BODY} bytes")
    try:
        request = parse_json(data)
    except ValueError as error:
        raise Refused(400, f"the request is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise Refused(400, f"the request must be a JSON object, not {type(request).__name__}")
    return request


_TYPES: dict[str, tuple[type, ...]] = {
    "model": (str,), "stream": (bool,), "seed": (int,), "max_tokens": (int,), "max_completion_tokens": (int,), "temperature": (int, float),
    "top_p": (int, float), "frequency_penalty": (int, float), "stop": (str, list), "suffix": (str,), "generation_config": (str,),
    "logit_bias": (dict,), "tools": (list,), "chat_template_kwargs": (dict,), "messages": (list,), "prompt": (str,),
}  # fmt: skip
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "frequency_penalty": (-0.9, 2),
    "max_tokens": (1, 1 << 31),
    "seed": (0, 1 << 63),
}
_RANGES["max_completion_tokens"] = _RANGES["max_tokens"]


def check(request: dict[str, Any], *, chat: bool) -> None:
    """`Refused` with status 400 naming the field that is missing, of a wrong type or out of range."""
    needed = "messages" if chat else "prompt"
    if not request.get(needed):
        raise Refused(400, f"{needed} is missing or empty")
    for name, value in request.items():
        if value is None or name not in _TYPES:
            continue
        if not isinstance(value, _TYPES[name]) or (isinstance(value, bool) and bool not in _TYPES[name]):
            raise Refused(400, f"{name} must be {' or '.join(kind.__name__ for kind in _TYPES[name])}, not {str(value)[:40]!r}")
    for name, (low, high) in _RANGES.items():
        value = request.get(name)
        if value is not None and not low <= value <= high:
            raise Refused(400, f"{name} must be from {low} to {high}, not {str(value)[:40]}")
    if not all(isinstance(mark, str) and mark for mark in _as_list(request.get("stop"))):
        raise Refused(400, "stop must be a text or several, none of them empty")
    for message in request["messages"] if chat else ():
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not _is_text(message.get("content")):
            raise Refused(400, f"a message is an object with a role and a text content, not {str(message)[:80]}")
    for token, bias in (request.get("logit_bias") or {}).items():
        if not token.isdecimal() or not isinstance(bias, int | float):
            raise Refused(400, f"logit_bias maps token numbers to numbers, not {token[:40]!r} to {str(bias)[:40]}")
    if request.get("generation_config") is not None:
        _check_generation(request["generation_config"])


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_text(content: Any) -> bool:
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return bool(parts) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts
    )


def _check_generation(text: str) -> None:
    """What `transformers chat` sends. One answer by one beam: more of either takes memory at the client's will."""
    try:
        config = parse_json(text.encode())
    except ValueError as error:
        raise Refused(400, f"generation_config is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise Refused(400, "generation_config must be a JSON object")
    if not isinstance(most := config.get("max_new_tokens") or 1, int) or most < 1:
        raise Refused(400, f"generation_config's max_new_tokens must be a positive number, not {str(most)[:40]}")
    for name in ("num_beams", "num_return_sequences"):
        if config.get(name) not in (None, 1):
            raise Refused(400, f"generation_config may have {name} 1, not {config[name]}")
    try:
        GenerationConfig(**config)
    except Exception as error:  # of many types, as it checks little of what it takes
        raise Refused(400, f"generation_config: {error}") from error


async def _answer(send: Callable[[Message], Awaitable[None]], status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
