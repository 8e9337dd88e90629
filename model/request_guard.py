"""What `model.serve` refuses before `transformers serve` sees it: that answers most malformed requests with 500, generates past the context
for whoever asks, and loads or unloads models for any client, even where the command names one."""

import asyncio
import inspect
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.cli.serving.utils import BaseHandler, Modality
from transformers.generation.stopping_criteria import StopStringCriteria

from .generation import context_of
from .request_checks import Refused, checked, parse_object

LONGEST_BODY = 1 << 20  # bytes
LONGEST_READ = 30  # seconds; the server does not end before its last request
MOST_WAITING = 64  # requests in work or in the queue for the one thread that generates
GENERATE, LOAD = ("/v1/completions", "/v1/chat/completions"), "/load_model"  # `transformers chat` asks for its model first
PATHS = dict.fromkeys((*GENERATE, LOAD), "POST") | {"/v1/models": "GET", "/health": "GET"}

_OWN = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters} - {"kwargs"}  # not the template's

Message = MutableMapping[str, Any]


class RequestGuard:
    """ASGI middleware. `models`: the server's `ModelManager`; `template_kwargs`: what the command gives to chat templates."""

    def __init__(self, app: Callable[..., Awaitable[None]], models: Any, template_kwargs: Mapping[str, Any] | None = None) -> None:
        self._app, self._models, self._template_kwargs = app, models, template_kwargs or {}
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
            request = self._within_context(request, chat=scope["path"] == GENERATE[1])
            await self._check_stops(request.get("stop"))
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

    async def _check_stops(self, stop: str | list[str] | None) -> None:
        """`Refused` for a text that no token ends. What transformers works out of the vocabulary, in seconds at the most, it keeps."""
        if stop is not None and self._models.force_model is not None:
            try:
                await asyncio.to_thread(StopStringCriteria, self._loaded().processor, stop)
            except ValueError as error:
                raise Refused(400, f"stop: {error}") from error

    def _loaded(self) -> Any:
        return self._models.loaded_models[self._models.process_model_name(self._models.force_model)]

    def _within_context(self, request: dict[str, Any], *, chat: bool) -> dict[str, Any]:
        """`request`, checked, with max_tokens: its own, else what the context leaves; `Refused` if prompt and answer do not fit."""
        if self._models.force_model is None:  # the request names what is to be loaded
            return checked(request, chat=chat, vocab=sys.maxsize)
        loaded = self._loaded()
        tokenizer, room = loaded.processor, context_of(loaded.model)
        request = checked(request, chat=chat, vocab=loaded.model.config.get_text_config().vocab_size)
        prompt = self._chat_prompt(tokenizer, request) if chat else tokenizer(request["prompt"])["input_ids"]
        if not prompt:
            raise Refused(400, "the prompt has no tokens")
        name = "max_completion_tokens" if "max_completion_tokens" in request else "max_tokens"
        wanted = request.get(name)
        if len(prompt) + (wanted or 1) > room:
            raise Refused(400, f"a prompt of {len(prompt)} tokens and {wanted or 1} new ones do not fit into a context of {room}")
        most = json.loads(request.get("generation_config", "{}")).get("max_new_tokens", 1024)
        return {**request, name: wanted or min(room - len(prompt), most)}

    def _chat_prompt(self, tokenizer: Any, request: dict[str, Any]) -> list[int]:
        """The prompt's tokens as the server's handler makes them."""
        if not tokenizer.chat_template:
            raise Refused(400, "this model has no chat template; use /v1/completions")
        kwargs = request.get("chat_template_kwargs", {})
        if taken := _OWN & kwargs.keys():
            raise Refused(400, f"chat_template_kwargs are the template's own; not {', '.join(sorted(taken))}")
        settings = {"add_generation_prompt": True, "load_audio_from_video": False, "tools": request.get("tools")}
        try:
            messages = BaseHandler.get_processor_inputs_from_messages(request["messages"], Modality.LLM)
            inputs = tokenizer.apply_chat_template(messages, **settings, **{**self._template_kwargs, **kwargs})
        except Exception as error:  # a template is a program of the model's
            raise Refused(400, f"the chat template refuses these messages: {type(error).__name__}: {error}") from error
        return list(inputs["input_ids"])


async def _read(receive: Callable[[], Awaitable[Message]]) -> dict[str, Any]:
    try:
        return parse_object(await asyncio.wait_for(_body(receive), LONGEST_READ), "the request")
    except TimeoutError:
        raise Refused(408, f"a request must be whole after {LONGEST_READ} seconds") from None


async def _body(receive: Callable[[], Awaitable[Message]]) -> bytes:
    data, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the connection was closed")
        data += message.get("body", b"")
        more = message.get("more_body", False)
        if len(data) > LONGEST_BODY:
            raise Refused(413, f"a request may have {LONGEST_BODY} bytes")
    return data


async def _answer(send: Callable[[Message], Awaitable[None]], status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
