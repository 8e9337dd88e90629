"""What the server refuses, and what it passes on, without the server."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from model import request_guard
from model.prompt import CHAT_TEMPLATE
from model.request_guard import RequestGuard
from tests.model.conftest import make_tokenizer

NAME = "models/mixture"


@pytest.fixture
def models():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    config = SimpleNamespace(max_position_embeddings=256, vocab_size=64)
    config.get_text_config = lambda: config
    loaded = SimpleNamespace(processor=tokenizer, model=SimpleNamespace(config=config))
    return SimpleNamespace(force_model=NAME, loaded_models={f"{NAME}@main": loaded}, process_model_name=lambda name: f"{name}@main")


def request(models, path: str, body: object, method: str = "POST") -> tuple[int, dict]:
    """The status and the answer; a request that is passed on is answered with what arrived."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = []

    async def app(scope, receive, send) -> None:
        await request_guard._answer(send, 200, json.loads((await receive())["body"] or b"{}"))

    async def receive() -> dict:
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "method": method, "headers": [(b"content-length", b"7")]}
    asyncio.run(RequestGuard(app, models)(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_a_request_that_never_ends_is_refused(models, monkeypatch):
    monkeypatch.setattr(request_guard, "LONGEST_READ", 0.01)
    sent = []

    async def receive() -> dict:
        await asyncio.sleep(3600)

    async def send(message) -> None:
        sent.append(message)

    asyncio.run(RequestGuard(None, models)({"type": "http", "path": "/v1/completions", "method": "POST", "headers": []}, receive, send))
    assert sent[0]["status"] == 408 and "must be whole after" in sent[1]["body"].decode()


def test_a_good_request_is_passed_on_within_the_context(models):
    wanted = {"prompt": "def f", "max_tokens": 9, "temperature": 0, "stream": True, "stop": ["\n"], "n": 1, "seed": 3}
    assert request(models, "/v1/completions", wanted) == (200, wanted)
    assert request(models, "/v1/completions", {"prompt": "abc"})[1]["max_tokens"] == 253
    sent = {"prompt": "abc", "generation_config": json.dumps({"max_new_tokens": 40})}
    assert request(models, "/v1/completions", sent)[1]["max_tokens"] == 40
    status, chat = request(models, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 5})
    assert (status, chat["max_completion_tokens"]) == (200, 5)
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    wanted = {"messages": [{"role": "user", "content": parts}, called], "logit_bias": {"5": 1}, "tools": None, "max_tokens": 4}
    status, chat = request(models, "/v1/chat/completions", wanted)
    assert (status, chat["logit_bias"], chat["messages"][0]) == (200, {"5": 1.0}, wanted["messages"][0])
    assert "tools" not in chat and "content" not in chat["messages"][1]
    assert request(models, "/load_model", {"model": NAME})[0] == 200
    assert request(models, "/v1/models", b"", "GET") == (200, {"object": "list", "data": [{"id": NAME, "object": "model"}]})


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/completions", b"{", 400, "is not JSON"),
        ("/v1/completions", b"[" * 100_000, 400, "is not JSON"),
        ("/v1/completions", b'{"prompt": "a", "prompt": "b"}', 400, "twice"),
        ("/v1/completions", [1], 400, "must be a JSON object, not list"),
        ("/v1/completions", {}, 400, "prompt is missing or empty"),
        ("/v1/completions", {"prompt": ["a"]}, 400, "prompt must be str"),
        ("/v1/completions", {"prompt": "a", "max_tokens": True}, 400, "max_tokens must be int, not 'True'"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}, 400, "max_tokens must be from 1"),
        ("/v1/completions", {"prompt": "abc", "max_tokens": 254}, 400, "3 tokens and 254 new ones do not fit into a context of 256"),
        ("/v1/completions", {"prompt": "a" * 256}, 400, "do not fit"),
        ("/v1/completions", {"prompt": "a", "temperature": float("nan")}, 400, "temperature must be from 0 to 2, not nan"),
        ("/v1/completions", {"prompt": "a", "stop": [""]}, 400, "stop must be"),
        ("/v1/completions", {"prompt": "a", "stop": {}}, 400, "stop must be str or list"),
        ("/v1/completions", {"prompt": "a", "stop": ["a" * 65]}, 400, "stop must be"),
        ("/v1/completions", {"prompt": "a", "stop": "\u4e2d"}, 400, "stop: Stop string preprocessing was unable to identify tokens"),
        ("/v1/completions", {"prompt": "\ud800"}, 400, "the lone surrogate"),
        ("/v1/completions", {"prompt": "a", "n": 2}, 400, "n must be 1, not 2"),
        ("/v1/completions", {"prompt": "a", "best_of": 3}, 400, "best_of must be 1, not 3"),
        ("/v1/completions", {"prompt": "a", "echo": True}, 400, "echo must be False, not True"),
        ("/v1/completions", {"prompt": "a", "logprobs": 0}, 400, "logprobs is not taken"),
        ("/v1/completions", {"prompt": "a", "logit_bias": {"5": 1}}, 400, "logit_bias is not taken"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, 400, "suffix is not taken"),
        ("/v1/completions", {"prompt": "a" * 999, "messages": [{"role": "user", "content": "a"}]}, 400, "messages is not taken"),
        ("/v1/completions", {"prompt": "a", "presence_penalty": 0.5}, 400, "presence_penalty must be 0, not 0.5"),
        *(
            ("/v1/completions", {"prompt": "a", "generation_config": json.dumps(config)}, 400, message)
            for config, message in [
                ({"num_beams": 9999}, "num_beams must be 1, not 9999"),
                ({"max_new_tokens": "x"}, "generation_config's max_new_tokens must be int, not 'x'"),
                ({"return_dict_in_generate": True}, "return_dict_in_generate must be False"),
                ({"eos_token_id": [2, 64]}, "a token of generation_config's eos_token_id must be from 0 to 63, not 64"),
                ({"top_k": -1}, "top_k must be from 0"),
                ({"transformers_version": "\ud800"}, "the lone surrogate"),
                ({"bad_words_ids": [[999]]}, "bad_words_ids is not taken"),
                ({"forced_eos_token_id": 9999}, "forced_eos_token_id is not taken"),
                ({"cache_implementation": "quantized"}, "cache_implementation is not taken"),
                ({"use_cache": False}, "use_cache must be True"),
            ]
        ),
        ("/v1/completions", b'{"prompt": "' + b"a" * (1 << 20) + b'"}', 413, "1048576 bytes"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, 400, "a message is an object"),
        *(
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], **fields}, 400, message)
            for fields, message in [
                ({"messages": [{"role": "wizard", "content": "a"}]}, "the chat template refuses these messages"),
                ({"messages": [{"role": "assistant", "content": "a", "tool_calls": 5}]}, "the chat template refuses these messages"),
                ({"tools": [1]}, "the chat template refuses these messages"),
                ({"logit_bias": {"x": 1}}, "logit_bias maps token numbers"),
                ({"logit_bias": {"64": 1}}, "a token of logit_bias must be from 0 to 63, not 64"),
                ({"logit_bias": {"5": 101}}, "logit_bias of token 5 must be from -100 to 100"),
                ({"chat_template_kwargs": {"chat_template": "x"}}, "not chat_template"),
                ({"chat_template_kwargs": {"load_audio_from_video": 1}}, "the chat template refuses these messages"),
                ({"response_format": {"type": "json_object"}}, "response_format is not taken"),
                ({"logprobs": True}, "logprobs must be False"),
            ]
        ),
        ("/load_model", {"model": "another/model"}, 400, f"model must be {NAME}, not 'another/model'"),
        ("/reset", b"", 404, "there is no /reset"),
        ("/v1/models", b"", 405, "/v1/models takes GET"),
    ],
)
def test_what_is_refused(path, body, status, message, models):
    found, answer = request(models, path, body)
    assert found == status and message in answer["error"]["message"]


@pytest.mark.parametrize("fields", [{"tools": [{"name": "a" * 300}]}, {"chat_template_kwargs": {"before": "a" * 300}}])
def test_all_that_the_template_writes_counts_against_the_context(fields, models):
    loaded = models.loaded_models[f"{NAME}@main"]
    loaded.processor.chat_template = "{{ before }}{{ tools }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    wanted = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
    assert request(models, "/v1/chat/completions", wanted)[0] == 200
    status, answer = request(models, "/v1/chat/completions", wanted | fields)
    assert status == 400 and "do not fit into a context of 256" in answer["error"]["message"]


def test_no_more_wait_than_the_limit(models, monkeypatch):
    monkeypatch.setattr(request_guard, "MOST_WAITING", 0)
    status, answer = request(models, "/v1/completions", {"prompt": "a"})
    assert status == 503 and "requests are waiting already" in answer["error"]["message"]
